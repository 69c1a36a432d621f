"""Compiled loops that measure a processor: streaming reads, a triad, fused multiply-adds in registers, an empty region.

One thread per processor; repeats happen inside the compiled code, so that small working sets are not all call overhead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import llvmlite.binding as llvm
import llvmlite.ir as ir
import numba
import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic

BYTES_PER_CALL = 1 << 26
"""Small working sets are streamed this many bytes per call."""

FMA_STEPS = 1 << 20

Made = tuple[Callable[[], Any], float, float]


def use_threads(threads: int) -> None:
    """Let parallel loops use this many threads, or as many as the runtime allows."""
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]


def vector_bytes() -> int:
    """Width of the widest vectors this processor computes on."""
    features = llvm.get_host_cpu_features()
    return 64 if features.get("avx512f") else 32 if features.get("avx") else 16


@numba.njit(parallel=True, cache=True)
def _nothing(out_W: np.ndarray) -> None:
    for worker in numba.prange(out_W.shape[0]):
        out_W[worker] = worker


def empty_region(threads: int) -> Callable[[], Any]:
    """A parallel loop that does nothing: the cost of starting one."""
    out_W = np.zeros(threads)
    return lambda: _nothing(out_W)


@numba.njit(parallel=True, fastmath=True, cache=True)
def _read(x_WN: np.ndarray, repeats: int, sums_W: np.ndarray) -> None:
    for worker in numba.prange(x_WN.shape[0]):
        total = 0.0
        for repeat in range(repeats):
            x_N = x_WN[worker][repeat % 2 :]  # a slice, so that the loop vectorizes; shifted, so that it cannot be hoisted
            part = 0.0
            for i in range(x_N.shape[0]):
                part += x_N[i]
            total += part
        sums_W[worker] = total


PADDING = 136
"""Elements between arrays that lie in one block, so that they do not start at the same offset of a page."""


def _arrays(number: int, working_set: int, threads: int, block_N: np.ndarray | None) -> Iterator[np.ndarray]:
    """Equal arrays that take this many bytes together, one row per thread: new ones, or views of a block of float64."""
    length = working_set // 8 // number // threads
    for i in range(number):
        start = i * (threads * length + PADDING)
        rows = None if block_N is None else block_N[start : start + threads * length]
        yield np.ones((threads, length)) if rows is None else rows.reshape(threads, length)


def block(working_set: int) -> np.ndarray:
    """Memory that `reading` and `triad` of up to this many bytes can share."""
    return np.ones(working_set // 8 + 3 * PADDING)


def reading(working_set: int, threads: int, block_N: np.ndarray | None = None) -> Made:
    """Sum an array of this many bytes."""
    (x_WN,) = _arrays(1, working_set, threads, block_N)
    sums_W, repeats = np.zeros(threads), max(1, BYTES_PER_CALL // working_set)
    return lambda: _read(x_WN, repeats, sums_W), 0.0, float(x_WN.nbytes * repeats)


@numba.njit(parallel=True, fastmath=True, cache=True)
def _triad(a_WN: np.ndarray, b_WN: np.ndarray, c_WN: np.ndarray, repeats: int) -> None:
    for worker in numba.prange(a_WN.shape[0]):
        for repeat in range(repeats):
            a_N, b_N, c_N = a_WN[worker], b_WN[worker], c_WN[worker]
            scale = 0.5 + repeat
            for i in range(a_N.shape[0]):
                a_N[i] = b_N[i] + scale * c_N[i]


def triad(working_set: int, threads: int, block_N: np.ndarray | None = None) -> Made:
    """a = b + s c over three arrays that take this many bytes together (write-allocate traffic not counted)."""
    a_WN, b_WN, c_WN = _arrays(3, working_set, threads, block_N)
    repeats = max(1, BYTES_PER_CALL // working_set)
    return lambda: _triad(a_WN, b_WN, c_WN, repeats), 0.0, float(3 * a_WN.nbytes * repeats)


ACCUMULATORS = 12 if vector_bytes() == 64 else 10
"""Independent chains: enough to cover latency times issue width (at least 8), few enough to stay in the registers."""


@intrinsic
def _fused_chains(typingctx: Any, start: Any, steps: Any) -> Any:
    """Run `steps` rounds of one fused multiply-add per accumulator vector; return the sum of one lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scalar = context.get_value_type(signature.args[0])
        lanes = vector_bytes() // (8 if signature.args[0] == types.float64 else 4)
        vector = ir.VectorType(scalar, lanes)
        suffix = f"v{lanes}{'f64' if signature.args[0] == types.float64 else 'f32'}"
        kind = ir.FunctionType(vector, [vector] * 3)
        multiply = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.{suffix}")

        def splat(value: Any) -> Any:
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
            return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)

        factor, offset = splat(arguments[0]), splat(ir.Constant(scalar, 1e-3))
        slots = [cgutils.alloca_once_value(builder, splat(ir.Constant(scalar, float(i)))) for i in range(ACCUMULATORS)]
        with cgutils.for_range(builder, arguments[1]):
            for slot in slots:
                builder.store(builder.call(multiply, [builder.load(slot), factor, offset]), slot)
        total = builder.load(slots[0])
        for slot in slots[1:]:
            total = builder.fadd(total, builder.load(slot))
        return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

    return start(start, steps), generate


@numba.njit(parallel=True)
def _fuse(factors_W: np.ndarray, steps: int, out_W: np.ndarray) -> None:
    for worker in numba.prange(factors_W.shape[0]):
        out_W[worker] = _fused_chains(factors_W[worker], steps)  # type: ignore[call-arg]


def fused(dtype: str, threads: int) -> Made:
    """Fused multiply-adds on values that stay in registers: the arithmetic peak."""
    factors_W = np.full(threads, 0.999, dtype)
    out_W = np.zeros(threads, dtype)
    lanes = vector_bytes() // factors_W.itemsize
    return lambda: _fuse(factors_W, FMA_STEPS, out_W), 2.0 * threads * FMA_STEPS * ACCUMULATORS * lanes, 0.0
