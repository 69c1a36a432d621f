"""Measured peaks of one device: memory bandwidth by working set, arithmetic by dtype and method, kernel latency.

Arithmetic is measured twice where possible: by a register-only loop of fused multiply-adds (what the processor can do) and
by the libraries' GEMM (what their code path does with it). A library far below the loop has taken a slow path, and a twin
that "beats" it has beaten that. Each measurement is a `Record` of the family `machine`, kept in the results file and
found again by the machine's digest.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmlab.harness.machine import Machine, describe
from llmlab.harness.roofline import Peaks
from llmlab.harness.timing import results
from llmlab.harness.timing.measure import give_back_pages, measure, watch
from llmlab.harness.timing.results import Record

if TYPE_CHECKING:
    from llmlab.harness.timing.peer_process import PeerProcess

KIB, MIB = 1 << 10, 1 << 20
CPU_WORKING_SETS = (128 * KIB, 512 * KIB, 2 * MIB, 8 * MIB, 32 * MIB, 128 * MIB, 512 * MIB)
CUDA_WORKING_SETS = (2 * MIB, 8 * MIB, 32 * MIB, 128 * MIB, 512 * MIB, 4096 * MIB)
GEMM_SIZE = {"float64": 1536, "float32": 2048, "bfloat16": 2048, "float16": 1024, "int8": 2048}
Say = Callable[[str], None]


def peaks(
    device: str = "cpu",
    *,
    path: str | Path | None = None,
    fresh: bool = False,
    quick: bool = False,
    say: Say = lambda text: None,
    peers: PeerProcess | None = None,
) -> Peaks:
    """Peaks of this machine's device: from the results file when it holds them, else measured (under 20 s) and stored there.

    Peaks that were never measured on a quiet machine are measured again on the next calls, three times in all, and the best
    of all measurements counts.

    Args:
        device: "cpu" or "cuda".
        path: results file; None keeps nothing.
        fresh: measure even if the file has them.
        quick: fewer rounds and smaller products.
        say: told what is being measured.
        peers: also asked for the matrix products of libraries without their vendor check.
    """
    machine = describe()
    stored = results.read(path) if path is not None and Path(path).is_file() else []
    known = from_records(stored, machine.digest, device)
    enough = not fresh and known is not None and (not known.noisy or times_measured(stored, machine.digest, device) >= 3)
    records = [] if enough else list(measure_peaks(machine, device, quick=quick, say=say))
    if device == "cpu" and peers is not None and not any(one.unlocked for one in of_machine(stored, machine.digest, device)):
        say("matrix products, unlocked")
        libraries = [name for name in ("numpy", "torch") if peers.differs(name)]
        products = peers.products(quick) if libraries else []
        records += [replace(one, machine=machine.digest, unlocked=True) for one in products if one.implementation in libraries]
    if known is not None and not records:
        return known
    if path is not None:
        results.append(path, records)
    found = from_records([*stored, *records], machine.digest, device)
    assert found is not None
    return found


def of_machine(records: Sequence[Record], machine: str, device: str) -> list[Record]:
    """The peak measurements of one machine and device."""
    return [
        record
        for record in records
        if record.component.startswith("machine.") and (record.machine, record.device) == (machine, device) and record.best_s
    ]


def times_measured(records: Sequence[Record], machine: str, device: str) -> int:
    """How often the peaks of a machine and device were measured."""
    return sum(record.component == "machine.latency" for record in of_machine(records, machine, device))


def from_records(records: Sequence[Record], machine: str, device: str) -> Peaks | None:
    """Gather the peaks of one machine and device from all records of it, or None when they are not all there.

    A peak is the best that was ever reached: a neighbour can only lower a measurement. `noisy` says that something was
    never measured while the machine was quiet.
    """
    bandwidth: dict[float, float] = {}
    methods: dict[str, dict[str, float]] = {}
    latency_s = math.inf
    quiet: dict[results.Key, bool] = {}
    for record in of_machine(records, machine, device):
        assert record.best_s is not None
        quiet[record.key] = quiet.get(record.key, False) or not record.noisy
        if record.component == "machine.bandwidth":
            size, rate = float(record.dims["bytes"]), (record.moved_bytes or 0.0) / record.best_s
            bandwidth[size] = max(bandwidth.get(size, 0.0), rate)
        elif record.component == "machine.arithmetic":
            reached = methods.setdefault(record.dtype, {})
            rate = (record.flops or 0.0) / record.best_s
            reached[record.label] = max(reached.get(record.label, 0.0), rate)
        elif record.component == "machine.latency":
            latency_s = min(latency_s, record.best_s)
    if not bandwidth or "float32" not in methods or math.isinf(latency_s):
        return None
    return Peaks(
        device=device,
        machine=machine,
        bandwidth=sorted(bandwidth.items()),
        flops={dtype: max(rates.values()) for dtype, rates in methods.items()},
        methods=methods,
        latency_s=latency_s,
        noisy=not all(quiet.values()),
    )


def measure_peaks(
    machine: Machine, device: str, plan: Plan | None = None, *, quick: bool = False, say: Say = lambda text: None
) -> Iterator[Record]:
    """Measure every peak of a device, or those of a plan; a method this machine lacks is left out."""
    rounds = {"budget_s": 0.1 if quick else 0.3, "min_rounds": 3 if quick else 5, "max_rounds": 25}

    def record(what: str, shape: str, size: int, dtype: str, method: str, call: Any, flops: float, moved: float) -> Record:
        timing = measure(call, device=device, **rounds)  # type: ignore[arg-type]
        return Record(
            component=f"machine.{what}",
            shape=shape,
            dims={"bytes" if what == "bandwidth" else "n": size},
            dtype=dtype,
            implementation=method,
            device=device,
            device_name=machine.device_name(device),
            machine=machine.digest,
            versions=dict(machine.versions),
            code_path=machine.code_paths.get("numba" if method in ("fma", "read", "triad") else method, ""),
            threads=machine.threads,
            correct=True,
            error=None,
            checked="a peak has no reference",
            flops=flops,
            moved_bytes=moved,
            median_s=timing.median_s,
            best_s=timing.best_s,
            lower_s=timing.lower_s,
            upper_s=timing.upper_s,
            rounds=timing.rounds,
            calls=timing.calls,
            page_faults=timing.page_faults,
            noisy=timing.noisy or disturbed,
            date=results.now(),
        )

    with watch() as before:
        time.sleep(0.2)
    disturbed = before[0].noisy
    plan = plan or (_cuda_plan if device == "cuda" else _cpu_plan)
    for name, shape, size, dtype, method, make in plan(machine, quick):
        say(f"{name} {shape} {dtype} {method}".replace("  ", " "))
        call, flops, moved = make()
        yield record(name, shape, size, dtype, method, call, flops, moved)
        del call
    give_back_pages()


Made = tuple[Callable[[], Any], float, float]
Planned = tuple[str, str, int, str, str, Callable[[], Made]]
Plan = Callable[[Machine, bool], Iterator[Planned]]


def _cpu_plan(machine: Machine, quick: bool) -> Iterator[Planned]:
    """(what, shape, size, dtype, method, maker of (call, FLOPs, bytes)) for every peak of the processor."""
    yield from _compiled_plan(machine.threads) if numba_works() else _plain_plan()
    yield from products_plan(machine, quick, tuple(GEMM_SIZE))


def products_plan(machine: Machine, quick: bool, dtypes: Sequence[str] = ("float64", "float32")) -> Iterator[Planned]:
    """The libraries' matrix products; those of narrow dtypes pass no vendor check."""
    for dtype in ("float64", "float32"):
        n = GEMM_SIZE[dtype] // (2 if quick else 1)
        yield "arithmetic", f"n={n}", n, dtype, "numpy", partial(_numpy_gemm, dtype, n)
    if importlib.util.find_spec("torch") is not None:
        for dtype in dtypes:
            n = GEMM_SIZE[dtype] // (2 if quick else 1)
            yield "arithmetic", f"n={n}", n, dtype, "torch", partial(_torch_gemm, dtype, n, "cpu")


def numba_works() -> bool:
    """Numba may be installed and yet refuse the NumPy beside it."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


def _compiled_plan(threads: int) -> Iterator[Planned]:
    """Latency, bandwidth and register arithmetic by compiled loops."""
    from llmlab.harness.timing import loops

    loops.use_threads(threads)
    yield "latency", "empty parallel region", threads, "", "numba", lambda: (loops.empty_region(threads), 0.0, 0.0)
    for size in CPU_WORKING_SETS:
        for method, make in (("read", loops.reading), ("triad", loops.triad)):
            yield "bandwidth", _size(size), size, "", method, partial(make, size, threads)
    for dtype in ("float64", "float32"):
        yield "arithmetic", "registers", 0, dtype, "fma", partial(loops.fused, dtype, threads)


def _plain_plan() -> Iterator[Planned]:
    """Latency and bandwidth without a compiler: one thread, so a lower bound."""
    yield "latency", "one tiny call", 1, "", "numpy", partial(_numpy_copy, 1)
    for size in CPU_WORKING_SETS:
        yield "bandwidth", _size(size), size, "", "numpy", partial(_numpy_copy, size)


def _cuda_plan(machine: Machine, quick: bool) -> Iterator[Planned]:
    for size in CUDA_WORKING_SETS[: -1 if quick else None]:
        yield "bandwidth", _size(size), size, "", "copy", partial(_cuda_copy, size)
    yield "latency", "one tiny kernel", 1, "", "torch", _cuda_launch
    for dtype in GEMM_SIZE:
        n = 2048 if dtype == "float64" else 4096 if quick else 8192
        yield "arithmetic", f"n={n}", n, dtype, "torch", partial(_torch_gemm, dtype, n, "cuda")


def _size(size: int) -> str:
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"


def _numpy_copy(size: int) -> Made:
    source = np.ones(max(1, size // 16))
    target = np.empty_like(source)
    return lambda: np.copyto(target, source), 0.0, 2.0 * source.nbytes


def _numpy_gemm(dtype: str, n: int) -> Made:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((n, n)).astype(dtype) for _ in range(2))
    out = np.empty_like(a)
    return lambda: np.matmul(a, b, out=out), 2.0 * n**3, 3.0 * n * n * a.itemsize


def _torch_gemm(dtype: str, n: int, device: str) -> Made:
    """Random operands: products of zeros run faster on power-limited devices."""
    import torch

    generator = torch.Generator(device).manual_seed(0)
    if dtype == "int8":
        a, b = (torch.randint(-128, 128, (n, n), dtype=torch.int8, device=device, generator=generator) for _ in range(2))
        return lambda: torch._int_mm(a, b), 2.0 * n**3, 3.0 * n * n
    kind = getattr(torch, dtype)
    a, b = (torch.randn(n, n, device=device, generator=generator).to(kind) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), 2.0 * n**3, 3.0 * n * n * a.element_size()


def _cuda_copy(size: int) -> Made:
    import torch

    source = torch.empty(size // 2, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 0.0, float(size)


def _cuda_launch() -> Made:
    import torch

    one = torch.zeros(1, device="cuda")
    return lambda: one.add_(1.0), 0.0, 8.0
