"""Every implementation of a component side by side, right answers only: the formula itself, its twins, library peers.

Correctness comes first. A kernel that disagrees with its reference is recorded as wrong and never timed. All
implementations are given the same values in preallocated arrays of their own kind, and the same warm allocator. Where math
libraries choose slow code by the processor's vendor, each is timed once more in a process without that check, right after
it was timed here: the table shows it as shipped and at its best. The machine's limit is what it reaches right before and
after a case, for its memory's speed drifts.
"""

from __future__ import annotations

import importlib.util
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from llmlab.harness.arrays import convert, device_of, is_float, outputs, to_numpy
from llmlab.harness.check import choose, choose_backends
from llmlab.harness.machine import Machine, describe
from llmlab.harness.oracle import oracles_of
from llmlab.harness.parity import cannot_run, check_procedure_twin, draw_dims, testable_dtypes
from llmlab.harness.roofline import ITEMSIZE, Peaks, limit
from llmlab.harness.timing import results
from llmlab.harness.timing.beside import DRIFTED, Making, Reached, Stored, measured, release
from llmlab.harness.timing.measure import (
    Quiet,
    Timing,
    give_back_pages,
    measure,
    minor_faults,
    reserve_pages,
    summarize,
    synchronizer,
    wait_until_quiet,
    warm_allocator,
    warm_up,
    watch,
)
from llmlab.harness.timing.peaks import peaks
from llmlab.harness.timing.peer_process import PeerProcess
from llmlab.harness.timing.results import UNLOCKED, Change, Record
from llmlab.harness.tolerance import error_of, exact_and_allowed, in_dtype
from llmlab.kernels.twin import BACKENDS, Twin, missing, twins_of
from llmlab.reference.errors import InputError
from llmlab.reference.op import Component, Dims, Op, Procedure

REFERENCE = {Op: "numpy", Procedure: "python"}
FORMULA_FLOPS_PER_S, FORMULA_ELEMENTS_PER_S = 1e9, 1e8
"""Roughly what the plain formulas reach; decides only whether it is worth waiting for them."""

RESERVE_AT_MOST = 1 << 30

Call = Callable[[], Any]
Advance = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Effort:
    """How much time a benchmark may take.

    Attributes:
        budget_s: measured seconds per implementation and shape.
        shapes: named shapes per component, None for all.
        formula_s: a plain formula that would take longer than this is not timed.
        check_s: a shape whose plain formula takes longer than this is checked at halved axes instead.
        memory: fraction of the free memory one shape may use.
    """

    budget_s: float = 0.5
    shapes: int | None = None
    formula_s: float = 8.0
    check_s: float = 2.0
    memory: float = 0.5


FULL, QUICK = Effort(), Effort(budget_s=0.15, shapes=1, formula_s=1.0, check_s=0.25)


@dataclass(frozen=True)
class Implementation:
    """One way to compute a component here.

    Attributes:
        label: "numpy" (or "python") for the reference, a twin's label, or the library call of a peer.
        backend: whose arrays it takes: numpy, numba, torch, triton.
        device: where it runs.
        dtypes: float dtypes it can be timed in; empty for a procedure.
        function: what is called.
        tolerance_factor: its twin's.
        twin: the registered twin, None for the reference and for peers.
        refused: why it is not timed here, or empty.
        unlocked: timed in the process whose libraries run without their vendor check.
    """

    label: str
    backend: str
    device: str
    dtypes: tuple[str, ...]
    function: Callable[..., Any]
    tolerance_factor: float = 1.0
    twin: Twin | None = None
    refused: str = ""
    unlocked: bool = False

    @property
    def name(self) -> str:
        """The label as tables show it."""
        return self.label + UNLOCKED * self.unlocked

    @property
    def library(self) -> str:
        """Whose compiled code does the arithmetic: "numpy", "torch", or empty for code that is not a library's."""
        return "numpy" if self.label == REFERENCE[Op] else "torch" if is_peer_name(self.label) else ""

    def arrays(self, inputs: Mapping[str, np.ndarray], dtype: str) -> list[Any]:
        """Inputs as this implementation's own arrays."""
        if self.backend == "numpy":
            return [array.astype(dtype) if is_float(array) else array.copy() for array in inputs.values()]
        return convert(inputs, self.backend, dtype)


@dataclass(frozen=True)
class Skipped:
    """Something that was not timed, and why: no silent gaps in a table."""

    component: str
    shape: str
    dtype: str
    implementation: str
    why: str


def implementations_of(component: Component, backends: Sequence[str] = BACKENDS) -> list[Implementation]:
    """The reference, every twin that can be imported here, and the libraries whose call is a direct peer."""
    is_op = isinstance(component, Op)
    found = [
        Implementation(REFERENCE[type(component)], "numpy", "cpu", ("float64", "float32") if is_op else (), component.reference)
    ]
    for twin in twins_of(component, backends):
        if twin.of == "reference":
            device = device_of(twin.backend) if is_op else "cpu"
            refused = cannot_run(twin) or interpreted(twin)
            dtypes = testable_dtypes(twin) if is_op else ()
            found.append(
                Implementation(twin.label, twin.backend, device, dtypes, twin.function, twin.tolerance_factor, twin, refused)
            )
    if is_op:
        for oracle in oracles_of(component):
            if oracle.library.startswith("torch") and not oracle.missing():
                found.append(Implementation(oracle.library, "numpy", "cpu", ("float64", "float32"), oracle.function))
    return found


def with_unlocked(chosen: Sequence[Implementation]) -> list[Implementation]:
    """Every implementation, and behind it the same without its vendor check where a library computes on the processor."""
    return [
        each
        for one in chosen
        for each in ([one, replace(one, unlocked=True)] if one.library and one.device == "cpu" and not one.refused else [one])
    ]


def interpreted(twin: Twin) -> str:
    """Why a Triton kernel has no speed here: it runs under the interpreter."""
    return "runs under Triton's interpreter: correct, not timed" if twin.backend == "triton" and _interpreting() else ""


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1" or device_of("triton") == "cpu"


def formula_seconds(op: Op, dims: Dims) -> float:
    """About how long the plain formula takes."""
    cost = op.cost_of(dims)
    return cost.flops / FORMULA_FLOPS_PER_S + cost.moved_bytes(1) / FORMULA_ELEMENTS_PER_S


def shrunk(op: Op, dims: Dims, seconds: float) -> dict[str, int]:
    """Halve every long axis again and again until the plain formula takes at most this long.

    Axes of up to 128 stay whole at first (head widths, heads), then they are halved too; at 1 there is nothing left.
    """
    small = dict(dims)
    for shortest in (128, 1):
        while formula_seconds(op, small) > seconds and any(small[axis] > shortest for axis in op.dims):
            longest = max(small[axis] for axis in op.dims)
            small |= {axis: small[axis] // 2 for axis in op.dims if small[axis] > max(shortest, longest // 8)}
    return small


def checkable_dims(op: Op, dims: Dims, seconds: float, dtype: str) -> tuple[dict[str, int], Mapping[str, np.ndarray]]:
    """Axis sizes to check a timed shape at, and inputs for them in `dtype`; small random sizes where halving is not allowed."""
    chosen = shrunk(op, dims, seconds)
    options = op.options[0]
    try:
        inputs = in_dtype(op.make_inputs(chosen, np.random.default_rng(0)), dtype)
        if chosen != dict(dims):
            op.reference(*inputs.values(), **options)
    except (ValueError, IndexError):
        chosen = draw_dims(op, np.random.default_rng(0))
        inputs = in_dtype(op.make_inputs(chosen, np.random.default_rng(0)), dtype)
    return chosen, inputs


def memory_needed(op: Op, dims: Dims, dtype: str) -> float:
    """Bytes a timed shape takes at its worst: inputs drawn in float64, narrowed, copied for an implementation; results."""
    whole = op.complete(dims)
    inputs = sum(math.prod(1 if axis == "1" else whole[axis] for axis in axes) for axes in op.inputs.values())
    return 12.0 * inputs + 4.0 * op.cost_of(dims).elements_written * ITEMSIZE[dtype]


def timed_inputs(op: Op, dims: Dims, dtype: str) -> dict[str, np.ndarray]:
    """Inputs of a timed shape, held in float32 (float64 where that is timed): they may be large."""
    held = "float64" if dtype == "float64" else "float32"
    drawn = op.make_inputs(dims, np.random.default_rng(0))
    for name in list(drawn):  # one after the other, so that only one array exists twice
        drawn[name] = drawn[name].astype(held) if is_float(drawn[name]) else drawn[name]
    return drawn


class Checker:
    """Judges implementations of one op at one shape and dtype; the exact result is computed once for all of them."""

    def __init__(self, op: Op, dims: Dims, dtype: str, seconds: float) -> None:
        self.op, self.dtype = op, dtype
        self.dims, self.inputs = checkable_dims(op, dims, seconds, dtype)
        self.checked = "timed shape" if self.dims == dict(dims) else " ".join(f"{k}={v}" for k, v in self.dims.items())
        self.exact, self.allowed = exact_and_allowed(op.reference, list(self.inputs.values()), dtype, op.options[0])

    def judge(self, implementation: Implementation) -> tuple[bool, float | None, str]:
        """Return (correct, error over the allowed one, at which sizes or what went wrong)."""
        if implementation.label == REFERENCE[Op]:
            return True, None, "is the reference"
        try:
            actual = outputs(implementation.function(*implementation.arrays(self.inputs, self.dtype), **self.op.options[0]))
        except Exception as error:
            return False, None, f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120] if str(error) else ''}"
        if len(actual) != len(self.exact):
            return False, None, f"returned {len(actual)} arrays, expected {len(self.exact)}"
        worst = 0.0
        for one_actual, one_exact, allowed in zip(actual, self.exact, self.allowed):
            off = error_of(one_actual, one_exact)
            bound = allowed * implementation.tolerance_factor
            worst = max(worst, 0.0 if off == 0.0 else off / bound if bound else np.inf)
        if not np.isfinite(worst):
            return False, None, f"{self.checked}: wrong shape, integers or non-finite values"
        return worst <= 1.0, worst, self.checked


@lru_cache(maxsize=1)
def checker_of(op: Op, shape: str, dtype: str, seconds: float) -> Checker:
    """The checker of one shape and dtype, kept for the implementations that follow."""
    return Checker(op, op.shapes[shape], dtype, seconds)


@lru_cache(maxsize=1)
def inputs_of(op: Op, shape: str, dtype: str) -> dict[str, np.ndarray]:
    """The inputs of one shape and dtype, kept for the implementations that follow; each is given copies."""
    return timed_inputs(op, op.shapes[shape], dtype)


def forget_case() -> None:
    """Let go of what is kept for the implementations of one shape, and give its memory back."""
    checker_of.cache_clear()
    inputs_of.cache_clear()
    give_back_pages()


def run_bench(
    components: Sequence[Component],
    *,
    peaks_of: Callable[[str], Peaks | None] = lambda device: None,
    backends: Sequence[str] = BACKENDS,
    dtypes: Sequence[str] | None = None,
    shape: str | None = None,
    effort: Effort = FULL,
    progress: Advance = lambda name, done, total: None,
    keep: Callable[[Sequence[Record]], Any] = lambda records: None,
    beside: Making = Stored,
    peers: PeerProcess | None = None,
    wait_s: float = 0.0,
) -> tuple[list[Record], list[Skipped]]:
    """Check and time every implementation of the chosen components at their named shapes.

    Args:
        components: what to time.
        peaks_of: the measured peaks of a device, for the fraction of the machine's limit.
        backends: which twins.
        dtypes: float dtypes; float32, and bfloat16 where there is a GPU, when not given.
        shape: only shapes whose name holds this text.
        effort: how long it may take.
        progress: called with (name, done, total) before each shape.
        keep: called with the records of each shape when it is done, so that a run that is ended early leaves them.
        beside: what measures the machine's limit beside each case; the peaks measured once when not given.
        peers: times libraries without their vendor check.
        wait_s: seconds to wait in all for a quiet machine, after shapes that were timed on a noisy one.
    """
    wanted = tuple(dtypes or default_dtypes())
    jobs = [(component, name, dtype) for component in components for name, dtype in cases(component, wanted, shape, effort)]
    records: list[Record] = []
    skipped: list[Skipped] = []
    with warm_allocator():
        for done, (component, name, dtype) in enumerate(jobs):
            progress(f"{component.id}, {name}", done, len(jobs))
            case = bench_case(
                component, name, dtype, peaks_of=peaks_of, backends=backends, effort=effort, beside=beside, peers=peers
            )
            found = list(case)
            new = [one for one in found if isinstance(one, Record)]
            skipped += [one for one in found if isinstance(one, Skipped)]
            records += new
            if new:
                keep(new)
            forget_case()
            if peers is not None:
                peers.rest()
            if wait_s > 0 and any(record.noisy for record in new):
                started = time.perf_counter()
                wait_until_quiet(min(wait_s, LONGEST_WAIT_S))
                wait_s -= time.perf_counter() - started
    release()
    progress("", len(jobs), len(jobs))
    return records, skipped


def default_dtypes() -> tuple[str, ...]:
    """Float dtypes that are timed when nobody asks: float32, and bfloat16 where there is a GPU."""
    return ("float32", "bfloat16") if describe().accelerators else ("float32",)


def timer_of(benchmark: Any, effort: Effort) -> Callable[[Call, Implementation], Timing]:
    """Time through pytest-benchmark's fixture: its rounds, our warm-up, allocator and summary."""

    def timer(call: Call, one: Implementation) -> Timing:
        synchronize = synchronizer(one.device)

        def whole() -> None:
            call()
            synchronize()

        calls, estimate_s = warm_up(call, device=one.device, budget_s=effort.budget_s)
        rounds = 1 if estimate_s > effort.budget_s else min(200, max(5, int(effort.budget_s / (calls * estimate_s))))
        faults = minor_faults()
        with watch(spins=0) as quiet:
            benchmark.pedantic(whole, rounds=rounds, iterations=calls)
        faults = minor_faults() - faults
        seconds = list(benchmark.stats.stats.data)
        return summarize(seconds, calls, page_faults=faults / (rounds * calls), noisy=quiet[0].noisy)

    return timer


def cases(component: Component, dtypes: Sequence[str], shape: str | None, effort: Effort) -> list[tuple[str, str]]:
    """(shape name, dtype) pairs of a component; a procedure has no dtype."""
    names = [name for name in component.shapes if shape is None or shape in name][: effort.shapes]
    return [(name, dtype) for name in names for dtype in (dtypes if isinstance(component, Op) else ("",))]


def bench_case(
    component: Component,
    shape: str,
    dtype: str,
    *,
    peaks_of: Callable[[str], Peaks | None] = lambda device: None,
    backends: Sequence[str] = BACKENDS,
    effort: Effort = FULL,
    timer: Callable[[Call, Implementation], Timing] | None = None,
    only: str | None = None,
    beside: Making = Stored,
    peers: PeerProcess | None = None,
) -> Iterator[Record | Skipped]:
    """Check and time every implementation of one component at one shape, or the one named `only`.

    Yields when the last one is timed, for the machine's limit is measured once more then.
    """
    everything = implementations_of(component, backends)
    chosen = [
        one
        for one in (with_unlocked(everything) if peers is not None else everything)
        if only in (None, one.name) and not (one.unlocked and peers is not None and not peers.differs(one.library))
    ]
    timer = timer or (lambda call, one: measure(call, device=one.device, budget_s=effort.budget_s))

    def unlocked(one: Implementation) -> Record | Skipped:
        assert peers is not None
        request = {"component": component.id, "shape": shape, "dtype": dtype, "implementation": one.label}
        found = peers.bench(request | {"backends": list(backends), "effort": asdict(effort)})
        if isinstance(found, str):
            return Skipped(component.id, shape, dtype, one.name, found)
        return replace(found, unlocked=True, machine=describe().digest)

    if isinstance(component, Op):
        yield from _bench_op(component, shape, dtype, chosen, effort, timer, peaks_of, beside, unlocked)
    else:
        yield from _bench_procedure(component, shape, dtype, chosen, timer, unlocked)


def _bench_op(
    op: Op,
    shape: str,
    dtype: str,
    chosen: Sequence[Implementation],
    effort: Effort,
    timer: Callable[[Call, Implementation], Timing],
    peaks_of: Callable[[str], Peaks | None],
    beside: Making,
    unlocked: Callable[[Implementation], Record | Skipped],
) -> Iterator[Record | Skipped]:
    dims, options = op.shapes[shape], op.options[0]
    cost = op.cost_of(dims)
    moved_bytes = float(cost.moved_bytes(ITEMSIZE[dtype]))
    timed: list[Implementation] = []
    for one in chosen:
        why = one.refused or ("" if dtype in one.dtypes else f"does not claim {dtype}")
        if not why:
            timed.append(one)
        elif not one.unlocked:
            yield Skipped(op.id, shape, dtype, one.label, why)
    needed = memory_needed(op, dims, dtype)
    if needed > effort.memory * _free_memory():
        for one in timed:
            if not one.unlocked:
                yield Skipped(op.id, shape, dtype, one.label, f"would need {needed / 2**30:.1f} GiB of memory")
        return
    if (seconds := formula_seconds(op, dims)) > effort.formula_s and any(one.label == REFERENCE[Op] for one in timed):
        yield Skipped(op.id, shape, dtype, REFERENCE[Op], f"the plain formula would take about {seconds:.0f} s")
        timed = [one for one in timed if one.label != REFERENCE[Op]]
    if not timed:
        return
    checker = checker_of(op, shape, dtype, effort.check_s)
    known = {device: peaks_of(device) for device in sorted({one.device for one in timed})}
    probes = {device: beside(one, moved_bytes, dtype) for device, one in known.items() if one and dtype in one.flops}
    inputs: Mapping[str, np.ndarray] | None = checker.inputs if checker.dims == dict(dims) else None
    found: list[Record] = []
    no_peer = ""
    for one in timed:
        if one.unlocked:
            other = unlocked(one) if one.label != no_peer else None
            if isinstance(other, Record):
                found.append(other)
            elif other is not None:
                yield other
            continue
        correct, error, checked = checker.judge(one)
        record = _record(op, shape, dims, dtype, one, correct, error, checked)
        record = replace(record, flops=float(cost.flops), moved_bytes=moved_bytes)
        if not correct:
            found.append(record)
            continue
        if inputs is None:
            inputs = inputs_of(op, shape, dtype)
        arrays = one.arrays(inputs, dtype)
        if one.twin is None and one.label != REFERENCE[Op] and (answered := _result_dtype(one, arrays, options)) != dtype:
            yield Skipped(op.id, shape, dtype, one.label, f"answers in {answered}: no peer of a {dtype} kernel")
            no_peer = one.label
            continue
        reserve_pages(int(min(3 * cost.elements_written * ITEMSIZE[dtype], RESERVE_AT_MOST)))
        timing = timer(_calling(one.function, arrays, options), one)
        del arrays
        found.append(_with_timing(record, timing))
    reached = {device: probe.after() for device, probe in probes.items()}
    yield from (_with_limit(record, reached.get(record.device)) for record in found)


def _calling(function: Callable[..., Any], arrays: list[Any], options: Mapping[str, Any]) -> Call:
    return lambda: function(*arrays, **options)


def _result_dtype(one: Implementation, arrays: list[Any], options: Mapping[str, Any]) -> str:
    result = one.function(*arrays, **options)
    first = result[0] if isinstance(result, tuple | list) else result
    array = to_numpy(first)
    return array.dtype.name if is_float(array) else arrays[0].dtype.name


def _bench_procedure(
    procedure: Procedure,
    shape: str,
    dtype: str,
    chosen: Sequence[Implementation],
    timer: Callable[[Call, Implementation], Timing],
    unlocked: Callable[[Implementation], Record | Skipped],
) -> Iterator[Record | Skipped]:
    for one in chosen:
        if one.refused:
            yield Skipped(procedure.id, shape, dtype, one.label, one.refused)
            continue
        if one.unlocked:
            yield unlocked(one)
            continue
        correct, checked = True, "is the reference"
        if one.twin is not None:
            verdict = check_procedure_twin(procedure, one.twin, seed=0)
            correct, checked = verdict.passed, verdict.note or "a drawn example"
        record = _record(procedure, shape, {}, dtype, one, correct, None if one.twin is None or not correct else 0.0, checked)
        if correct:
            given = procedure.shapes[shape](np.random.default_rng(0))
            call = _calling_with(one.function, given)
            record = _with_timing(record, timer(call, one))
        yield record


def _calling_with(function: Callable[..., Any], given: Mapping[str, Any]) -> Call:
    return lambda: function(**given)


def _record(
    component: Component,
    shape: str,
    dims: Dims,
    dtype: str,
    one: Implementation,
    correct: bool,
    error: float | None,
    checked: str,
) -> Record:
    machine = describe()
    took_part = {"numpy": ("numpy",), "numba": ("numpy", "numba", "llvmlite"), "torch": ("torch",)}
    packages = (one.library,) if one.library else took_part.get(one.backend, ("torch", "triton"))
    return Record(
        component=component.id,
        shape=shape,
        dims=dict(dims),
        dtype=dtype,
        implementation=one.label,
        device=one.device,
        device_name=machine.device_name(one.device),
        machine=machine.digest,
        versions={name: machine.versions[name] for name in packages},
        code_path=code_path(one),
        threads=machine.threads if one.device == "cpu" else 0,
        correct=correct,
        error=error,
        checked=checked,
        flops=None,
        moved_bytes=None,
        date=results.now(),
    )


def code_path(one: Implementation) -> str:
    """Which compiled code does an implementation's arithmetic on this machine."""
    machine = describe()
    if one.device == "cuda":
        gpu = machine.accelerators[0]
        return f"{gpu.runtime}, compute capability {gpu.compute_capability}"
    return machine.code_paths.get(one.library or one.backend, "")


def _with_timing(record: Record, timing: Timing) -> Record:
    return replace(
        record,
        median_s=timing.median_s,
        best_s=timing.best_s,
        lower_s=timing.lower_s,
        upper_s=timing.upper_s,
        rounds=timing.rounds,
        calls=timing.calls,
        page_faults=timing.page_faults,
        noisy=timing.noisy,
    )


def _with_limit(record: Record, reached: Reached | None) -> Record:
    if reached is None or record.flops is None or record.moved_bytes is None or record.median_s is None:
        return record
    rates = reached.rates
    bound = limit(record.flops, record.moved_bytes, rates.bandwidth, rates.arithmetic)
    return replace(
        record,
        limit_s=bound.seconds,
        bound=bound.bound,
        bandwidth=rates.bandwidth,
        arithmetic=rates.arithmetic,
        drift=reached.drift(record.flops, record.moved_bytes),
    )


def _free_memory() -> float:
    """Bytes that may be used; half of all where nobody can tell."""
    if importlib.util.find_spec("psutil") is None:
        return describe().memory_gib * 2.0**29
    import psutil

    return float(psutil.virtual_memory().available)


def table(records: Sequence[Record], skipped: Sequence[Skipped] = ()) -> list[dict[str, str]]:
    """Rows to print, per component, shape and dtype every implementation side by side, the fastest first.

    Columns: % of the machine's limit, the best library peer's time over this one's (above 1 is faster than the peer; both at
    their best round; the best of the libraries as shipped and unlocked), best and median time, the ratio to the fastest
    median of the group, and remarks. A wrong kernel shows WRONG and no time.
    """
    rows = []
    everything: list[Record | Skipped] = [*records, *skipped]
    for group in by_case(everything):
        timed = [one for one in group if isinstance(one, Record) and one.median_s is not None]
        fastest = min((one.median_s or 0.0 for one in timed), default=0.0)
        for one in group:
            where = f" on {one.device}" if isinstance(one, Record) and one.device != "cpu" else ""
            head = {"component": one.component, "shape": one.shape, "dtype": one.dtype, "implementation": name_of(one) + where}
            cells = _skipped_cells(one) if isinstance(one, Skipped) else _cells(one, fastest, best_peer(one, timed))
            rows.append(head | cells)
    return rows


Found = TypeVar("Found", Record, Record | Skipped)


def by_case(found: Sequence[Found]) -> list[list[Found]]:
    """Everything of one component, shape and dtype together: the fastest first, what has no time last."""
    cases: dict[tuple[str, str, str], list[Found]] = {}
    for one in found:
        cases.setdefault((one.component, one.shape, one.dtype), []).append(one)
    return [sorted(group, key=lambda one: getattr(one, "median_s", None) or math.inf) for group in cases.values()]


def best_peer(record: Record, group: Sequence[Record]) -> float | None:
    """Best round of the fastest library implementation beside this one on its device; None if it is itself one, or has none.

    Libraries count at their best, unlocked included. Only somebody's kernel that computes with torch, and has torch's handicap
    in this process, is weighed against torch as shipped.
    """
    if is_peer(record):
        return None
    handicapped = record.implementation.startswith(BROUGHT)
    peers = [one for one in group if is_peer(one) and one.device == record.device and not (handicapped and one.unlocked)]
    return min((one.best_s for one in peers if one.best_s), default=None)


BROUGHT = "torch ("
"""Begins the label of somebody's kernel that computes with torch."""


def is_peer(record: Record) -> bool:
    """True for PyTorch's own operators, called by a torch twin or directly."""
    return is_peer_name(record.implementation)


def is_peer_name(label: str) -> bool:
    """True for a label of PyTorch's own operators; somebody's kernel that computes with torch is none.

    >>> is_peer_name("torch"), is_peer_name("torch.softmax"), is_peer_name("torch (mine.py)"), is_peer_name("numba")
    (True, True, False, False)
    """
    return label.startswith("torch") and not label.startswith(BROUGHT)


def name_of(one: Record | Skipped | Change) -> str:
    """An implementation as tables show it."""
    return one.implementation if isinstance(one, Skipped) else one.label


def tables(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, list[dict[str, str]]]]:
    """Split rows into one titled table per component, shape and dtype."""
    split: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        title = ", ".join(filter(None, (row["component"], row["shape"], row["dtype"])))
        rest = {name: value for name, value in row.items() if name not in ("component", "shape", "dtype")}
        split.setdefault(title, []).append(rest)
    return list(split.items())


NOTHING = dict.fromkeys(("% of limit", "peer/this", "best", "median", "ratio", "bound", "remarks"), "")


def _cells(record: Record, fastest: float, peer_s: float | None) -> dict[str, str]:
    if record.median_s is None or record.best_s is None:
        off = f"error {record.error:.3g} x allowed; " if record.error is not None else ""
        return NOTHING | {"median": "WRONG", "remarks": f"{off}{record.checked}"}
    remarks = doubts_on(record)
    if record.checked not in ("timed shape", "is the reference"):
        remarks.append(f"checked at {record.checked}")
    return NOTHING | {
        "% of limit": f"{100 * record.fraction:.1f}" if record.fraction is not None else "",
        "peer/this": f"{peer_s / record.best_s:.2f}" if peer_s is not None else "",
        "best": duration(record.best_s),
        "median": duration(record.median_s),
        "ratio": f"{record.median_s / fastest:.2f}",
        "bound": record.bound,
        "remarks": "; ".join(remarks),
    }


def doubts_on(record: Record) -> list[str]:
    """Why a timing, or its fraction of the limit, may be worth less than it looks."""
    remarks = ["noisy"] if record.noisy else []
    if record.fraction is not None and record.fraction > 1.05:
        remarks.append("above the measured limit: what was measured is too low, or work is skipped")
    if record.drift is not None and record.drift > DRIFTED:
        remarks.append(f"{'memory' if record.bound == 'memory' else 'arithmetic'} drifted by {record.drift:.0%}")
    if record.moved_bytes and record.page_faults * 4096 > 0.05 * record.moved_bytes:
        remarks.append(f"{record.page_faults:.0f} page faults a call")
    return remarks


def _skipped_cells(skipped: Skipped) -> dict[str, str]:
    return NOTHING | {"median": "-", "remarks": skipped.why}


def duration(seconds: float) -> str:
    """A time with three figures and its unit.

    >>> duration(0.0123), duration(4.2e-6), duration(75.0)
    ('12.3 ms', '4.2 us', '75 s')
    """
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


@dataclass(frozen=True)
class Report:
    """What one `llmlab bench` did."""

    machine: Machine
    peaks: Mapping[str, Peaks]
    quiet: Quiet
    records: Sequence[Record]
    skipped: Sequence[Skipped]
    changes: Sequence[Change]
    results: str
    unlocked: Mapping[str, str] = field(default_factory=dict)
    why_not_unlocked: str = ""

    @property
    def wrong(self) -> list[Record]:
        """Kernels that disagree with their reference."""
        return [record for record in self.records if not record.correct]

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON values; `--compare` reads the printed object back."""
        return {
            "machine": self.machine.as_dict() | {"digest": self.machine.digest},
            "peaks": {device: one.as_dict() for device, one in self.peaks.items()},
            "quiet": asdict(self.quiet) | {"noisy": self.quiet.noisy},
            "records": [record.as_dict() for record in self.records],
            "skipped": [asdict(one) for one in self.skipped],
            "changes": [change.as_dict() for change in self.changes],
            "results": self.results,
            "unlocked": {"code_paths": dict(self.unlocked), "why_not": self.why_not_unlocked},
        }

    def remarks(self) -> list[str]:
        """What a reader must know before believing the table, one line each."""
        lines = [f"{name}: {path}" for name, path in self.machine.code_paths.items()]
        lines += [f"{name}{UNLOCKED}: {path}" for name, path in self.unlocked.items()]
        if self.why_not_unlocked:
            lines.append(f"libraries are shown as shipped only, and may be slow here: {self.why_not_unlocked}")
        for device, one in self.peaks.items():
            rates = ", ".join(f"{dtype} {rate / 1e9:.0f}" for dtype, rate in one.flops.items())
            lines.append(f"{device} peaks: memory {one.memory_bandwidth / 1e9:.0f} GB/s; GFLOP/s {rates}")
            if one.noisy:
                lines.append(f"{device} peaks were never measured on a quiet machine")
            shares = one.blas_fraction if device == "cpu" else {}
            slow = {library: ", a slow code path" for library, share in shares.items() if share < SLOW_CODE_PATH}
            lines += [
                f"{library} float32 GEMM reaches {share:.0%} of the arithmetic peak{slow.get(library, '')}"
                for library, share in shares.items()
                if slow
            ]
        timed = [record for record in self.records if record.median_s is not None]
        if noisy := sum(record.noisy for record in timed):
            lines.append(f"{noisy} of {len(timed)} timings are noisy: believe their `best`, not `median`")
        if self.quiet.noisy:
            lines.append(f"not a quiet machine at the start: others used {self.quiet.others:.0%} of it")
        return lines


SLOW_CODE_PATH = 0.6
LONGEST_WAIT_S = 3.0
"""For a quiet machine, after one shape that was timed on a noisy one."""

WAIT_S = 30.0
"""For a quiet machine, in a whole run."""


def run(
    ids: Sequence[str] | None = None,
    *,
    backends: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    shape: str | None = None,
    quick: bool = False,
    compare: str | Path | None = None,
    only: Twin | None = None,
    path: str | Path | None = None,
    wait_s: float = 3.0,
    progress: Advance = lambda name, done, total: None,
) -> Report:
    """Benchmark components on this machine, add the records to the results file, and compare with an older file if given.

    Raises:
        InputError: unknown component, backend, dtype or shape; an unreadable results or comparison file.
    """
    components = [only.component] if only else choose(ids)
    wanted = choose_backends(backends)
    check_runnable(backends or ())
    chosen_dtypes = check_dtypes(dtypes)
    if shape is not None and not any(shape in name for component in components for name in component.shapes):
        raise InputError("option", "--shape", shape, "is part of no shape's name of the chosen components")
    old = results.read(compare) if compare is not None else None
    target = Path(path) if path is not None else results.default_path()
    progress("waiting for a quiet machine", 0, 1)
    quiet = wait_until_quiet(wait_s)
    devices = sorted({"cpu", device_of("torch") if not missing("torch") else "cpu"})
    with PeerProcess(describe()) as peers:
        known = {
            device: peaks(device, path=target, quick=quick, say=lambda what: progress(f"peaks: {what}", 0, 1), peers=peers)
            for device in devices
        }
        records, skipped = run_bench(
            components,
            peaks_of=known.get,
            backends=wanted,
            dtypes=chosen_dtypes,
            shape=shape,
            effort=QUICK if quick else FULL,
            progress=progress,
            keep=lambda new: results.append(target, new),
            beside=measured,
            peers=peers,
            wait_s=WAIT_S,
        )
        paths = {name: path for name, path in peers.code_paths.items() if peers.differs(name)}
        why_not = peers.why_not if peers.needed else ""
    timed_keys = {record.key for record in records}
    before = [record for record in old or () if record.key in timed_keys]
    changes = results.compare(before, records) if old is not None else []
    return Report(describe(), known, quiet, records, skipped, changes, str(target), paths, why_not)


def change_rows(changes: Sequence[Change]) -> list[dict[str, str]]:
    """Rows to print of a comparison: before, now, their ratio, and the verdict given the spread of both."""
    return [
        {
            "component": change.component,
            "shape": change.shape,
            "dtype": change.dtype,
            "implementation": name_of(change),
            "before": duration(change.old_s) if change.old_s else "",
            "now": duration(change.new_s) if change.new_s else "",
            "ratio": f"{change.ratio:.2f}" if change.ratio else "",
            "noise": f"+-{change.band:.0%}" if change.band else "",
            "verdict": change.verdict,
            "note": change.note,
        }
        for change in changes
    ]


def check_dtypes(dtypes: Sequence[str] | None) -> tuple[str, ...] | None:
    """Validate dtype names.

    Raises:
        InputError: an unknown dtype.
    """
    known = [name for name in ITEMSIZE if name != "int8"]
    for dtype in dtypes or ():
        if dtype not in known:
            raise InputError("option", "--dtype", dtype, f"is none of {', '.join(known)}")
    return tuple(dtypes) if dtypes else None


def check_runnable(backends: Sequence[str]) -> None:
    """Say so when a backend that was asked for by name cannot run here.

    Raises:
        InputError: the backend's packages are not installed.
    """
    for backend in backends:
        if missing(backend):
            raise InputError("option", "--backend", backend, missing(backend))
