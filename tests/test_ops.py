"""What is true of every operator and every twin; parametrized over the catalog, naming no component."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.harness import parity
from llmlab.harness.arrays import outputs
from llmlab.harness.tolerance import exact_and_allowed, in_dtype
from llmlab.kernels.twin import Twin, twins_of
from llmlab.reference.catalog import components
from llmlab.reference.op import Cost, Op, Procedure

OPS = [component for component in components().values() if isinstance(component, Op)]
WITH_BACKWARD = [op for op in OPS if op.backward is not None]
EACH_OP = [pytest.param(op, id=op.id) for op in OPS]
EACH_WITH_BACKWARD = [pytest.param(op, id=op.id) for op in WITH_BACKWARD]
SEEDS = st.integers(0, 2**32 - 1)


def twin_params(*, of: str, backward: bool = False, all_dtypes: bool = True) -> list[Any]:
    return list(_twin_params(of, backward, all_dtypes))


def _twin_params(of: str, backward: bool, all_dtypes: bool) -> Iterator[Any]:
    for op in OPS:
        for twin in twins_of(op):
            wanted = (
                (twin.of == "backward" or twin.backend == "torch") and op.backward is not None if backward else twin.of == of
            )
            if not wanted:
                continue
            dtypes = parity.testable_dtypes(twin)
            for dtype in dtypes if all_dtypes else dtypes[:1]:
                yield pytest.param(op, twin, dtype, id=f"{op.id}-{twin.backend}-{dtype}")


def examples_for(twin: Twin) -> int:
    """The interpreter takes a fifth of a millisecond per instruction; the others take as many as they like."""
    return 2 if twin.backend == "triton" else 6


@pytest.mark.parametrize(("op", "twin", "dtype"), twin_params(of="reference"))
def test_twin_equals_reference(op: Op, twin: Twin, dtype: str) -> None:
    @settings(max_examples=examples_for(twin))
    @given(seed=SEEDS)
    def check(seed: int) -> None:
        dims = parity.draw_dims(op, np.random.default_rng(seed))
        for options in op.options:
            parity.assert_passed(parity.check_twin(op, twin, dims, dtype, seed, options))

    check()
    for options in op.options:
        parity.assert_passed(parity.check_twin(op, twin, parity.smallest_dims(op), dtype, 1, options))


PROCEDURE_TWINS = [
    pytest.param(procedure, twin, id=f"{procedure.id}-{twin.backend}")
    for procedure in components().values()
    if isinstance(procedure, Procedure)
    for twin in twins_of(procedure)
]


@pytest.mark.parametrize(("procedure", "twin"), PROCEDURE_TWINS)
def test_procedure_twin_equals_reference(procedure: Procedure, twin: Twin) -> None:
    for seed in range(2 if twin.backend == "triton" else 6):
        parity.assert_passed(parity.check_procedure_twin(procedure, twin, seed))


@pytest.mark.parametrize(("op", "twin", "dtype"), twin_params(of="reference", all_dtypes=False))
def test_twin_takes_non_contiguous_views(op: Op, twin: Twin, dtype: str) -> None:
    for seed in range(2):
        dims = parity.draw_dims(op, np.random.default_rng(seed))
        parity.assert_passed(parity.check_twin(op, twin, dims, dtype, seed, op.options[0], views=True))


@pytest.mark.parametrize(("op", "twin", "dtype"), twin_params(of="reference", all_dtypes=False))
def test_twin_of_nothing_is_nothing(op: Op, twin: Twin, dtype: str) -> None:
    for axis in op.empty:
        parity.assert_passed(parity.check_empty(op, twin, axis, dtype, op.options[0]))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf], ids=["nan", "inf", "-inf"])
@pytest.mark.parametrize(("op", "twin", "dtype"), twin_params(of="reference", all_dtypes=False))
def test_twin_passes_nonfinite_values_on_like_the_reference(op: Op, twin: Twin, dtype: str, poison: float) -> None:
    for seed in range(1 if twin.backend == "triton" else 3):
        dims = parity.draw_dims(op, np.random.default_rng(seed))
        parity.assert_passed(parity.check_nonfinite(op, twin, dims, dtype, seed, op.options[0], poison))


@pytest.mark.parametrize(("op", "twin", "dtype"), twin_params(of="", backward=True))
def test_twin_gradient_equals_reference_backward(op: Op, twin: Twin, dtype: str) -> None:
    for seed in range(2 if twin.backend == "triton" else 4):
        dims = parity.draw_dims(op, np.random.default_rng(seed))
        for options in op.options:
            parity.assert_passed(parity.check_backward(op, twin, dims, dtype, seed, options))


@pytest.mark.parametrize("op", EACH_WITH_BACKWARD)
def test_backward_equals_central_difference(op: Op) -> None:
    @given(seed=SEEDS)
    def check(seed: int) -> None:
        dims = parity.draw_dims(op, np.random.default_rng(seed))
        for options in op.options:
            parity.assert_passed(parity.check_gradient(op, dims, seed, options))

    check()


@pytest.mark.parametrize("op", EACH_OP)
def test_cost_obeys_its_laws(op: Op) -> None:
    @given(seed=SEEDS)
    def check(seed: int) -> None:
        parity.assert_passed(parity.check_cost(op, parity.draw_dims(op, np.random.default_rng(seed))))

    check()


@pytest.mark.parametrize("op", EACH_OP)
def test_quoted_shapes_name_every_axis(op: Op) -> None:
    assert op.shapes, f"{op.id} has no benchmark shape"
    for name, dims in op.shapes.items():
        assert set(dims) == set(op.dims), f"{op.id} shape {name!r}: {set(dims) ^ set(op.dims)}"
        assert op.cost_of(dims).elements_written > 0


@pytest.mark.parametrize("op", EACH_OP)
def test_reference_keeps_dtype_and_leaves_inputs_alone(op: Op) -> None:
    inputs = op.make_inputs(parity.draw_dims(op, np.random.default_rng(3)), np.random.default_rng(3))
    arrays = [array.astype(np.float32) if array.dtype.kind == "f" else array for array in inputs.values()]
    before = [array.copy() for array in arrays]
    result = op.reference(*arrays, **op.options[0])
    for array in result if isinstance(result, tuple) else (result,):
        assert array.dtype.kind != "f" or array.dtype == np.float32, f"{op.id} returned {array.dtype} for float32"
    for left, right in zip(arrays, before):
        np.testing.assert_array_equal(left, right)


# Each check is shown able to fail: a result wrong by one part in a thousand, or of the wrong kind, must be refused.


def wrong(op: Op, factor: float = 1e-3) -> Twin:
    def slightly_off(*arrays: np.ndarray, **options: Any) -> Any:
        results = op.reference(*arrays, **options)
        whole = results if isinstance(results, tuple) else (results,)
        off = tuple(
            array + factor * max(np.abs(array[np.isfinite(array)]).max(initial=0.0), 1e-3)
            if array.dtype.kind == "f"
            else array + 1
            for array in whole
        )
        return off if isinstance(results, tuple) else off[0]

    return Twin(op, "numba", slightly_off, ("float64", "float32"), source="wrong on purpose")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("op", EACH_OP)
def test_parity_refuses_a_wrong_result(op: Op, dtype: str) -> None:
    dims = parity.draw_dims(op, np.random.default_rng(5))
    verdict = parity.check_twin(op, wrong(op), dims, dtype, 5, op.options[0])
    assert not verdict.passed
    with pytest.raises(AssertionError, match=op.id):
        parity.assert_passed(verdict)


@pytest.mark.parametrize("op", EACH_OP)
def test_parity_accepts_the_reference_itself(op: Op) -> None:
    same = Twin(op, "numba", op.reference, ("float64",), source="the reference")
    dims = parity.draw_dims(op, np.random.default_rng(5))
    parity.assert_passed(parity.check_twin(op, same, dims, "float64", 5, op.options[0], views=True))


@pytest.mark.parametrize("op", EACH_OP)
def test_nonfinite_check_refuses_a_kernel_that_hides_them(op: Op) -> None:
    dims = parity.draw_dims(op, np.random.default_rng(7))
    sets = parity.poisoned(op, dims, 7, np.nan)
    with np.errstate(all="ignore"):
        reached = [outputs(op.reference(*inputs.values(), **op.options[0])) for inputs in sets]
    if not any(np.isnan(array).any() for result in reached for array in result if array.dtype.kind == "f"):
        assert op.nonfinite is not None, f"{op.id}: NaN reaches no output; declare `nonfinite` and say why in the docstring"
        return
    hiding = Twin(op, "numba", lambda *a, **o: tuple(np.nan_to_num(x) for x in outputs(op.reference(*a, **o))), ("float64",))
    assert not parity.check_nonfinite(op, hiding, dims, "float64", 7, op.options[0], np.nan).passed


@pytest.mark.parametrize("op", EACH_WITH_BACKWARD)
def test_gradient_check_refuses_a_wrong_backward(op: Op) -> None:
    import dataclasses

    assert op.backward is not None
    off = dataclasses.replace(
        op,
        backward=lambda *a, **o: tuple(None if g is None else g * 1.001 + 1e-3 for g in op.backward(*a, **o)),  # type: ignore[misc]
    )
    refused = [
        not parity.check_gradient(off, parity.draw_dims(op, np.random.default_rng(seed)), seed, op.options[0]).passed
        for seed in range(4)
    ]
    assert any(refused)


@pytest.mark.parametrize("op", EACH_OP)
def test_cost_check_refuses_a_wrong_cost(op: Op) -> None:
    dims = parity.draw_dims(op, np.random.default_rng(9))
    for bad in (Cost(-1.0, 1.0, 1.0), op.cost_of(dims) * 2):
        assert not parity.check_cost(op, dims, lambda _, bad=bad: bad).passed


def test_tolerance_follows_the_dtype() -> None:
    """The plain formula errs about 2**-24 in float32, so the allowance lies between that and a thousandth."""

    def mean(x_BD: np.ndarray) -> np.ndarray:
        return x_BD.mean(-1)

    x = {"x_BD": np.random.default_rng(0).standard_normal((4, 64))}
    limits = [
        exact_and_allowed(mean, list(in_dtype(x, dtype).values()), dtype, {})[1][0]
        for dtype in ("float64", "float32", "bfloat16")
    ]
    assert limits[0] < 1e-14 < limits[1] < 1e-6 < limits[2] < 0.1


def test_where_terms_cancel_float64_is_allowed_what_the_last_places_of_its_inputs_change() -> None:
    terms = np.array([1.0, 1e-10, -1.0])
    _, (cancelled,) = exact_and_allowed(np.sum, [terms], "float64", {})
    assert 8 * np.spacing(1e-10) < np.spacing(1.0) / 4 < cancelled <= 16 * np.spacing(1.0)
    _, (added,) = exact_and_allowed(np.sum, [np.abs(terms)], "float64", {})
    assert added <= 8 * np.spacing(2.0)
