"""Stores that go past the caches to memory, for Numba kernels whose output is larger than the last-level cache.

An ordinary store first reads the line that it is about to overwrite, so an operator that reads one array and writes one
moves three. A non-temporal store of whole lines does not. It pays only where the output would leave the caches anyway:

    strip = np.empty(STRIP, dtype)             cached; the loop writes its results here
    stream(strip, out, ahead)                  whole lines past the caches, the ends of an unaligned `out` as usual
    settle()                                   once per thread's part: what was streamed is visible to other threads

Reading and writing take turns unless the lines of the next strip are asked for meanwhile: `stream` takes that strip too.
Kernels get `streamed` from `output_like` and write to `out` itself where it is false. Numba's cache on disk does not notice
a change in this file: touch the files that use it.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from llmlab.kernels.register_tile import VECTOR_BYTES, prefetch

LINE_BYTES = 64
STRIP = 1024
"""Elements that are computed in the first-level cache before they are streamed."""


def _last_level_cache_bytes() -> int:
    """What the system says; where it does not, the size of a server processor's."""
    known = getattr(os, "sysconf_names", {})
    sizes = [os.sysconf(name) for name in ("SC_LEVEL3_CACHE_SIZE", "SC_LEVEL2_CACHE_SIZE") if name in known]
    return next((size for size in sizes if size > 0), 1 << 25)


PART = 1 << 16  # elements
STREAMED_FROM = _last_level_cache_bytes()


def output_like(x: np.ndarray) -> tuple[np.ndarray, bool]:
    """An uninitialized array like a contiguous one, and whether to stream it: nobody will find it all in a cache.

    It starts at a line then, as most rows in it do: every row that does not costs two ordinary stores' reads.
    """
    if x.nbytes < STREAMED_FROM:
        return np.empty_like(x), False
    whole = np.empty(x.size + LINE_BYTES // x.itemsize, x.dtype)
    first = -whole.ctypes.data % LINE_BYTES // x.itemsize
    return whole[first : first + x.size].reshape(x.shape), True


@intrinsic
def _store_line(typing_context, source, source_at, target, target_at):  # type: ignore[no-untyped-def]
    """Copy one line of elements; target[target_at] must lie at the start of a line."""
    if not all(isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C" for array in (source, target)):
        return None
    if not isinstance(source.dtype, types.Float) or source.dtype != target.dtype:
        return None
    signature = types.void(source, types.intp, target, types.intp)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = source.dtype.bitwidth
        lanes = VECTOR_BYTES * 8 // bits
        vector = ir.VectorType(ir.FloatType() if bits == 32 else ir.DoubleType(), lanes).as_pointer()
        past_the_caches = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])

        def pointer(array_type: Any, array: Any, at: Any) -> Any:
            data = cgutils.create_struct_proxy(array_type)(context, builder, value=array).data
            return builder.gep(data, [at])

        read, written = pointer(source, *arguments[:2]), pointer(target, *arguments[2:])
        for first in range(0, LINE_BYTES * 8 // bits, lanes):
            offset = [ir.Constant(ir.IntType(64), first)]
            value = builder.load(builder.bitcast(builder.gep(read, offset), vector), align=bits // 8)
            store = builder.store(value, builder.bitcast(builder.gep(written, offset), vector), align=VECTOR_BYTES)
            store.set_metadata("nontemporal", past_the_caches)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _fetch(typing_context, array, at):  # type: ignore[no-untyped-def]
    """Ask for the line of array[at], which may lie outside, to come to the second-level cache."""
    if not (isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C"):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = cgutils.create_struct_proxy(array)(context, builder, value=arguments[0]).data
        prefetch(builder, builder.gep(data, [arguments[1]]))
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def settle(typing_context):  # type: ignore[no-untyped-def]
    """Wait until this thread's streamed lines are where other threads see them."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if builder.module.triple.startswith(("x86_64", "i386", "i686")):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.sfence"), [])
        else:
            builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@njit
def rows_per_part(rows_MD, streamed):  # type: ignore[no-untyped-def]
    """Neighbouring rows that one thread takes together: where they are streamed, so many that its `settle` does not count."""
    return max(1, PART // max(1, rows_MD.shape[1])) if streamed else 1


@njit(error_model="numpy")
def stream(source, target, ahead):  # type: ignore[no-untyped-def]
    """Copy a contiguous row to another of its size and dtype, whole lines past the caches; fetch what is read next."""
    size, itemsize = target.size, target.itemsize
    line = LINE_BYTES // itemsize
    head = min(size, (-np.int64(target.ctypes.data) % LINE_BYTES) // itemsize)
    tail = head + (size - head) // line * line
    for i in range(head):
        target[i] = source[i]
    for i in range(head, tail, line):
        _fetch(ahead, i)
        _store_line(source, i, target, i)
    for i in range(tail, size):
        target[i] = source[i]
