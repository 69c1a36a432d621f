"""What Numba loops over bytes lack: eight of them read as one number, and where its lowest set bit is."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


@intrinsic
def eight_bytes(typing_context: Any, data: Any, place: Any) -> Any:
    """The bytes of a contiguous array from `place` on as a uint64, the first lowest; nobody checks that there are eight."""
    if not (isinstance(data, types.Array) and data.dtype == types.uint8 and data.layout == "C" and place == types.int64):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        word = ir.IntType(64)
        start = builder.bitcast(cgutils.gep(builder, array.data, arguments[1]), word.as_pointer())
        return builder.load(start, align=1)

    return types.uint64(data, place), generate


@intrinsic
def trailing_zeros(typing_context: Any, word: Any) -> Any:
    """How many zeros a uint64 that is not 0 ends with, as an int64."""
    if word != types.uint64:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(word), generate
