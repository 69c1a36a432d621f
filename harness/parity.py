"""The checks every component passes: parity of twins, gradients, oracles, layouts, empty and non-finite inputs, cost laws.

Each check returns a `Verdict`; nothing here raises for a wrong kernel, so that a table can show all of them. Tests call
`assert_passed`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llmlab.harness.arrays import convert, device_of, is_float, outputs, rounded, to_backend, total_size, ulp
from llmlab.harness.oracle import Oracle
from llmlab.harness.tolerance import error_of, exact_and_allowed, in_dtype, largest
from llmlab.kernels.twin import Twin
from llmlab.reference.op import Dims, Op, Procedure

Options = Mapping[str, Any]

CANCELLED_ULPS = 4.0
"""A gradient may err by this many units in the last place of the largest beside it, in the dtype of its sums."""


@dataclass(frozen=True)
class Verdict:
    """Outcome of one check.

    Attributes:
        component: component id.
        check: parity, layout, type, empty, nonfinite, backward, gradient, oracle, purity, cost.
        against: which twin or oracle was compared ("numba", "torch", "transformers...").
        dtype: float dtype of the inputs.
        case: axis sizes, options and seed, enough to repeat it.
        error: largest absolute error over the outputs, relative to `allowed` of the worst one.
        allowed: computed tolerance of the worst output.
        passed: within tolerance.
        note: what went wrong in words, empty when passed.
    """

    component: str
    check: str
    against: str
    dtype: str
    case: str
    error: float
    allowed: float
    passed: bool
    note: str = ""

    def as_row(self) -> dict[str, Any]:
        """The verdict as one table row."""
        return asdict(self)


def assert_passed(verdict: Verdict) -> None:
    """Raise AssertionError naming component, twin, dtype, case, error and allowance of a failed check."""
    if not verdict.passed:
        raise AssertionError(
            f"{verdict.component} {verdict.check} against {verdict.against} in {verdict.dtype} ({verdict.case}): "
            f"error {verdict.error:.3g} > allowed {verdict.allowed:.3g} {verdict.note}"
        )


def draw_dims(op: Op, rng: np.random.Generator) -> dict[str, int]:
    """One random choice of axis sizes from the declared ranges."""
    return {axis: int(rng.choice(np.asarray(sizes))) for axis, sizes in op.dims.items()}


def smallest_dims(op: Op) -> dict[str, int]:
    """Every axis at its smallest declared size (1 wherever the operator allows it)."""
    return {axis: min(sizes) for axis, sizes in op.dims.items()}


def testable_dtypes(twin: Twin) -> tuple[str, ...]:
    """Claimed dtypes that can be checked on this machine: Triton's interpreter is trusted in float32 only.

    NumPy arrays hold bfloat16 where ml_dtypes is installed.
    """
    if twin.backend == "numba" and importlib.util.find_spec("ml_dtypes") is None:
        return tuple(dtype for dtype in twin.dtypes if dtype != "bfloat16")
    if twin.backend == "triton" and device_of("triton") == "cpu":
        return tuple(dtype for dtype in twin.dtypes if dtype == "float32")
    return twin.dtypes


def cannot_run(twin: Twin) -> str:
    """Why a twin cannot run here although its backend is installed, or the empty string."""
    if twin.backend == "triton" and device_of("triton") == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "needs cuda, or TRITON_INTERPRET=1 set before the kernels are imported"
    return ""


def _case(dims: Dims, options: Options, seed: int) -> str:
    sizes = " ".join(f"{axis}={size}" for axis, size in dims.items())
    chosen = " ".join(f"{name}={value}" for name, value in options.items())
    return f"{sizes} {chosen} seed={seed}".replace("  ", " ")


def _judge(
    component: str,
    check: str,
    against: str,
    dtype: str,
    case: str,
    actual: Sequence[np.ndarray],
    exact: Sequence[np.ndarray],
    allowed: Sequence[float],
) -> Verdict:
    if len(actual) != len(exact):
        return Verdict(
            component, check, against, dtype, case, np.inf, 0.0, False, f"{len(actual)} outputs, expected {len(exact)}"
        )
    errors = [error_of(a, e) for a, e in zip(actual, exact)]
    worst = max(range(len(errors)), key=lambda i: errors[i] / allowed[i] if allowed[i] else errors[i], default=None)
    if worst is None:
        return Verdict(component, check, against, dtype, case, 0.0, 0.0, True)
    passed = all(error <= limit for error, limit in zip(errors, allowed))
    note = ""
    if not passed and actual[worst].shape != exact[worst].shape:
        note = f"shape {actual[worst].shape}, expected {exact[worst].shape}"
    return Verdict(component, check, against, dtype, case, errors[worst], allowed[worst], passed, note)


def _failed(component: str, check: str, against: str, dtype: str, case: str, error: Exception) -> Verdict:
    first_line = str(error).strip().split("\n")[0][:200]
    return Verdict(component, check, against, dtype, case, np.inf, 0.0, False, f"{type(error).__name__}: {first_line}")


def check_twin(op: Op, twin: Twin, dims: Dims, dtype: str, seed: int, options: Options, *, views: bool = False) -> Verdict:
    """Compare one forward twin with the reference on one drawn input; also that it leaves its inputs alone."""
    inputs = in_dtype(op.make_inputs(dims, np.random.default_rng(seed)), dtype)
    case, check = _case(dims, options, seed), "layout" if views else "parity"
    exact, allowed = exact_and_allowed(op.reference, list(inputs.values()), dtype, options)
    arrays = convert(inputs, twin.backend, dtype, views=views)
    try:
        result = twin.function(*arrays, **options)
        actual = outputs(result)
    except Exception as error:
        return _failed(op.id, check, twin.label, dtype, case, error)
    for name, before, after in zip(inputs, inputs.values(), outputs(tuple(arrays))):
        if error_of(after, before) != 0.0:
            return Verdict(op.id, "purity", twin.label, dtype, case, np.inf, 0.0, False, f"wrote into its argument {name}")
    if note := _other_type(result, arrays, op, inputs, options):
        return Verdict(op.id, "type", twin.label, dtype, case, np.inf, 0.0, False, note)
    return _judge(op.id, check, twin.label, dtype, case, actual, exact, [limit * twin.tolerance_factor for limit in allowed])


def _other_type(result: Any, arrays: Sequence[Any], op: Op, inputs: Mapping[str, np.ndarray], options: Options) -> str:
    """Say how the first result's array type or dtype differs from the first float argument's, if the reference's do not."""
    first = result[0] if isinstance(result, tuple | list) and result else result
    given = next((array for array, before in zip(arrays, inputs.values()) if is_float(before)), None)
    if first is None or given is None or not hasattr(given, "dtype"):
        return ""
    if type(first) is not type(given):
        return f"returns {type(first).__name__}, takes {type(given).__name__}"
    with np.errstate(all="ignore"):
        expected = op.reference(*(a.astype(np.float32) if is_float(a) else a for a in inputs.values()), **options)
    preserved = np.asarray(expected[0] if isinstance(expected, tuple | list) else expected).dtype == np.float32
    if preserved and first.dtype != given.dtype:
        returned, taken = (str(array.dtype).removeprefix("torch.") for array in (first, given))
        return f"returns {returned}, takes {taken}"
    return ""


def check_empty(op: Op, twin: Twin, axis: str, dtype: str, options: Options) -> Verdict:
    """A batch of nothing gives a result of the reference's shape."""
    dims = {**smallest_dims(op), axis: 0}
    inputs = op.make_inputs(dims, np.random.default_rng(0))
    case = _case(dims, options, 0)
    expected = outputs(op.reference(*inputs.values(), **options))
    try:
        actual = outputs(twin.function(*convert(inputs, twin.backend, dtype), **options))
    except Exception as error:
        return _failed(op.id, "empty", twin.label, dtype, case, error)
    return _judge(op.id, "empty", twin.label, dtype, case, actual, expected, [np.inf if not e.size else 1e30 for e in expected])


def poisoned(op: Op, dims: Dims, seed: int, poison: float) -> list[dict[str, np.ndarray]]:
    """Input sets with one non-finite element each, one set per float input that the op declares for it."""
    rng = np.random.default_rng(seed)
    inputs = op.make_inputs(dims, rng)
    names = [name for name, array in inputs.items() if is_float(array)] if op.nonfinite is None else list(op.nonfinite)
    sets = []
    for name in names:
        if inputs[name].size:
            array = inputs[name].copy()
            array.flat[rng.integers(array.size)] = poison
            sets.append({**inputs, name: array})
    return sets


def check_nonfinite(op: Op, twin: Twin, dims: Dims, dtype: str, seed: int, options: Options, poison: float) -> Verdict:
    """NaN and infinities come out exactly where they come out of the reference."""
    worst: Verdict | None = None
    case = f"{_case(dims, options, seed)} poison={poison}"
    for inputs in poisoned(op, dims, seed, poison):
        arrays = in_dtype(inputs, dtype)
        with np.errstate(all="ignore"):
            expected = outputs(op.reference(*arrays.values(), **options))
        try:
            with np.errstate(all="ignore"):
                actual = outputs(twin.function(*convert(arrays, twin.backend, dtype), **options))
        except Exception as error:
            return _failed(op.id, "nonfinite", twin.label, dtype, case, error)
        verdict = judge_nonfinite(op.id, twin.label, dtype, case, actual, expected)
        if not verdict.passed:
            return verdict
        worst = verdict
    return worst or Verdict(op.id, "nonfinite", twin.label, dtype, case, 0.0, 0.0, True, "no input declared")


def judge_nonfinite(
    component: str, against: str, dtype: str, case: str, actual: Sequence[np.ndarray], expected: Sequence[np.ndarray]
) -> Verdict:
    """Compare where two results are finite."""
    for one, other in zip(actual, expected, strict=True):
        if one.shape != other.shape or (is_float(other) and not np.array_equal(np.isfinite(one), np.isfinite(other))):
            wrong = int(np.sum(np.isfinite(one) != np.isfinite(other))) if one.shape == other.shape else one.size
            return Verdict(
                component, "nonfinite", against, dtype, case, np.inf, 0.0, False, f"{wrong} elements differ in finiteness"
            )
    return Verdict(component, "nonfinite", against, dtype, case, 0.0, 0.0, True)


def _gradient_seeds(exact: Sequence[np.ndarray], rng: np.random.Generator, dtype: str) -> list[np.ndarray]:
    # Where an output is not finite (log-sum-exp of an empty row) its gradient is zero by convention.
    return [
        rounded(np.where(np.isfinite(array), rng.standard_normal(array.shape), 0.0), dtype)
        for array in exact
        if is_float(array)
    ]


def check_gradient(op: Op, dims: Dims, seed: int, options: Options) -> Verdict:
    """Reference backward against central differences of the reference along a random direction, in float64.

    Second- and fourth-order differences bound their own error, so the allowance follows from them.
    """
    assert op.backward is not None
    rng = np.random.default_rng(seed)
    inputs = op.make_inputs(dims, rng)
    arrays = list(inputs.values())
    case = _case(dims, options, seed)
    seeds = _gradient_seeds(outputs(op.reference(*arrays, **options)), rng, "float64")
    gradients = op.backward(*seeds, *arrays, **options)
    if len(gradients) != len(arrays):
        return Verdict(
            op.id, "gradient", "central difference", "float64", case, np.inf, 0.0, False, f"{len(gradients)} gradients"
        )
    with_gradient = [i for i, gradient in enumerate(gradients) if gradient is not None]
    for i in with_gradient:
        if np.shape(gradients[i]) != arrays[i].shape:
            note = f"gradient {i} has shape {np.shape(gradients[i])}, input {arrays[i].shape}"
            return Verdict(op.id, "gradient", "central difference", "float64", case, np.inf, 0.0, False, note)
    directions = {i: rng.standard_normal(arrays[i].shape) for i in with_gradient}

    def along(step: float) -> float:
        moved = [array + step * directions[i] if i in directions else array for i, array in enumerate(arrays)]
        results = [array for array in outputs(op.reference(*moved, **options)) if is_float(array)]
        with np.errstate(invalid="ignore"):
            return sum(float(np.sum(np.where(s == 0.0, 0.0, s * r))) for s, r in zip(seeds, results, strict=True))

    analytic = sum(float(np.sum(gradients[i] * directions[i])) for i in with_gradient)
    magnitude = max(1.0, abs(along(0.0)), total_size(arrays))
    for step in (1e-3, 1e-5):  # a kink (ReLU) within the first step is hardly ever within the second as well
        near, far = along(step) - along(-step), along(2 * step) - along(-2 * step)
        second_order, fourth_order = near / (2 * step), (8 * near - far) / (12 * step)
        rounding = 64 * np.finfo(np.float64).eps * magnitude / step
        allowed = abs(fourth_order - second_order) + rounding
        error = abs(analytic - fourth_order)
        if error <= allowed:
            break
    return Verdict(op.id, "gradient", "central difference", "float64", case, error, allowed, bool(error <= allowed))


def check_backward(op: Op, twin: Twin, dims: Dims, dtype: str, seed: int, options: Options) -> Verdict:
    """A twin's gradients against the reference's backward: autograd through a torch twin, or a backward twin itself."""
    assert op.backward is not None
    rng = np.random.default_rng(seed)
    inputs = in_dtype(op.make_inputs(dims, rng), dtype)
    case = _case(dims, options, seed)
    arrays = list(inputs.values())
    seeds = _gradient_seeds(outputs(op.reference(*arrays, **options)), rng, dtype)

    def kept(*all_arrays: np.ndarray, **chosen: Any) -> tuple[np.ndarray, ...]:
        return tuple(gradient for gradient in op.backward(*all_arrays, **chosen) if gradient is not None)  # type: ignore[misc]

    exact, allowed = exact_and_allowed(kept, [*seeds, *arrays], dtype, options)
    # what cancels to nothing, as through a softmax over one key, errs as much as what it is summed from is rounded
    summed_in = "float64" if dtype == "float64" else "float32"
    beside = CANCELLED_ULPS * ulp(max(map(largest, exact), default=0.0), summed_in)
    allowed = [max(limit, beside) for limit in allowed]
    expects = [gradient is not None for gradient in op.backward(*seeds, *arrays, **options)]
    try:
        if twin.of == "backward":
            given = convert({str(i): array for i, array in enumerate([*seeds, *arrays])}, twin.backend, dtype)
            found = twin.function(*given, **options)
        else:
            found = _autograd(twin, seeds, inputs, dtype, options, expects)
    except Exception as error:
        return _failed(op.id, "backward", twin.label, dtype, case, error)
    actual = outputs(tuple(gradient for gradient, wanted in zip(found, expects, strict=True) if wanted))
    factor = twin.tolerance_factor if twin.of == "backward" else twin.gradient_factor
    return _judge(op.id, "backward", twin.label, dtype, case, actual, exact, [limit * factor for limit in allowed])


def _autograd(
    twin: Twin,
    seeds: Sequence[np.ndarray],
    inputs: Mapping[str, np.ndarray],
    dtype: str,
    options: Options,
    wanted: Sequence[bool],
) -> list[Any]:
    import torch

    tensors = convert(inputs, twin.backend, dtype)
    for tensor, want in zip(tensors, wanted):
        if want:
            tensor.requires_grad_(True)
    result = twin.function(*tensors, **options)
    results = [part for part in (result if isinstance(result, tuple) else (result,)) if part.is_floating_point()]
    device = device_of(twin.backend)
    given = [to_backend(seed, twin.backend, dtype, device) for seed in seeds]
    connected = [(part, seed) for part, seed in zip(results, given, strict=True) if part.requires_grad]
    leaves = [tensor for tensor in tensors if tensor.requires_grad]
    found = iter(
        torch.autograd.grad([part for part, _ in connected], leaves, [seed for _, seed in connected], materialize_grads=True)
    )
    return [next(found) if tensor.requires_grad else None for tensor in tensors]


def check_procedure_twin(procedure: Procedure, twin: Twin, seed: int) -> Verdict:
    """A twin of a procedure on one drawn example, compared as the declaration says."""
    expected = procedure.reference(**procedure.examples(np.random.default_rng(seed)))
    case = f"seed={seed}"
    try:
        actual = twin.function(**procedure.examples(np.random.default_rng(seed)))
        passed = procedure.same(expected, actual)
    except Exception as error:
        return _failed(procedure.id, "parity", twin.label, "", case, error)
    return Verdict(procedure.id, "parity", twin.label, "", case, 0.0 if passed else np.inf, 0.0, passed)


def check_oracle(
    component: Op | Procedure, oracle: Oracle, seed: int, *, dims: Dims | None = None, options: Options | None = None
) -> Verdict:
    """The reference against somebody else's code on one drawn input."""
    if isinstance(component, Procedure):
        example = component.examples(np.random.default_rng(seed))
        again = component.examples(np.random.default_rng(seed))
        passed = component.same(component.reference(**example), oracle.function(**again))
        return Verdict(component.id, "oracle", oracle.library, "", f"seed={seed}", 0.0 if passed else np.inf, 0.0, passed)
    rng = np.random.default_rng(seed)
    dims = dims or draw_dims(component, rng)
    options = component.options[0] if options is None else options
    inputs = in_dtype(component.make_inputs(dims, rng), oracle.dtype)
    case = _case(dims, options, seed)
    exact, allowed = exact_and_allowed(component.reference, list(inputs.values()), oracle.dtype, options)
    given = [array.astype(oracle.dtype) if is_float(array) else array for array in inputs.values()]
    try:
        actual = outputs(oracle.function(*given, **options))
    except Exception as error:
        return _failed(component.id, "oracle", oracle.library, oracle.dtype, case, error)
    return _judge(component.id, "oracle", oracle.library, oracle.dtype, case, actual, exact, allowed)


def check_cost(op: Op, dims: Dims, cost: Callable[[Dims], Any] | None = None) -> Verdict:
    """Cost laws at one size: positive, writes exactly the outputs, reads at most the inputs, never shrinks as an axis grows."""
    cost_of = cost or op.cost_of
    case = _case(dims, op.options[0], 0)
    here = cost_of(dims)
    notes = []
    if not (here.flops >= 0 and here.elements_read > 0 and here.elements_written > 0):
        notes.append(f"not positive: {here}")
    inputs = op.make_inputs(dims, np.random.default_rng(0))
    written = total_size(outputs(op.reference(*inputs.values(), **op.options[0])))
    if here.elements_written != written:
        notes.append(f"writes {here.elements_written} elements, the reference returns {written}")
    if here.elements_read > total_size(list(inputs.values())):
        notes.append(f"reads {here.elements_read} elements of {total_size(list(inputs.values()))}")
    for axis in op.dims:
        larger = cost_of({**dims, axis: 2 * dims[axis]})
        if (
            min(
                larger.flops - here.flops,
                larger.elements_read - here.elements_read,
                larger.elements_written - here.elements_written,
            )
            < 0
        ):
            notes.append(f"shrinks as {axis} doubles")
    for axis, power in op.powers.items():
        long = 2**24
        growth = cost_of({**dims, axis: 2 * long}).flops / max(cost_of({**dims, axis: long}).flops, 1)
        if abs(growth / 2**power - 1) > 1e-3:
            notes.append(f"FLOPs grow {growth:.4g}x as {axis} doubles, declared 2**{power}")
    return Verdict(op.id, "cost", "laws", "", case, float(len(notes)), 0.0, not notes, "; ".join(notes))
