"""Matrix products that stay in registers, for Numba kernels: LLVM vector code that loops alone do not become.

A tile is R rows times C vectors of accumulators, filled by fused multiply-adds while one operand is broadcast and the other
read a vector at a time. Its size follows the machine's vector width; callers pad their scratch to it:

    scores = tile(q, keys transposed)          TILE_ROWS rows, lanes(dtype) * TILE_VECTORS columns

All arrays are one-dimensional and contiguous, positions and strides count elements, nothing is checked. The operand read a
vector at a time may be bfloat16 (its bits, uint16) beside float32 ones: it is widened in registers. Numba's cache on disk
does not notice a change in this file: touch the files that use it.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload


def _vector_bytes() -> int:
    features = {} if config.CPU_NAME == "generic" else llvm.get_host_cpu_features()
    return 64 if features.get("avx512f") else 32 if features.get("avx") else 16


VECTOR_BYTES = _vector_bytes()
TILE_ROWS = 6
VECTORS_PER_FETCH = max(1, 64 // VECTOR_BYTES)  # a line of float32; of bfloat16 every second fetch asks again
UNROLLED = 4  # products per turn of a tile's loop: a loop of 64 turns ends in a mispredicted branch, one of 16 does not
TILE_VECTORS = 2 if VECTOR_BYTES == 32 else 4  # AVX2 has 16 registers, AVX-512 and Neon have 32


def lanes(dtype: Any) -> int:
    """Elements of one vector register."""
    return VECTOR_BYTES // np.dtype(dtype).itemsize


@overload(lanes)
def _lanes(dtype):  # type: ignore[no-untyped-def]
    size = VECTOR_BYTES // (dtype.dtype.bitwidth // 8)
    return lambda dtype: size


def _kind(array: Any) -> tuple[Any, int, str]:
    """LLVM element type that is computed in, lanes of a vector of it, and the suffix of intrinsics on that vector."""
    bits = 32 if _is_bfloat16(array) else array.dtype.bitwidth
    size = VECTOR_BYTES * 8 // bits
    return (ir.FloatType() if bits == 32 else ir.DoubleType()), size, f"v{size}f{bits}"


def is_float_array(*arrays: Any) -> bool:
    """True for one-dimensional contiguous arrays of floats."""
    return all(
        isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C" and isinstance(array.dtype, types.Float)
        for array in arrays
    )


def _is_bfloat16(array: Any) -> bool:
    return isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C" and array.dtype == types.uint16


def _streams(b: Any, computed: Any) -> bool:
    """True where `b` may be read a vector at a time beside arrays of dtype `computed`."""
    return (is_float_array(b) and b.dtype == computed) or (_is_bfloat16(b) and computed == types.float32)


def prefetch(builder: Any, pointer: Any) -> None:
    """Ask for the line of a place, which may lie outside its array, to come to the second-level cache."""
    word, byte = ir.IntType(32), ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    to_read, second_level, data_cache = (ir.Constant(word, value) for value in (0, 2, 1))
    builder.call(function, [builder.bitcast(pointer, byte), to_read, second_level, data_cache])


class Vectors:
    """Loads, stores and multiply-adds of one element type at one place of the generated code."""

    def __init__(self, context: Any, builder: Any, array_type: Any) -> None:
        self.context, self.builder = context, builder
        self.element, self.lanes, suffix = _kind(array_type)
        self.vector = ir.VectorType(self.element, self.lanes)
        self.align = array_type.dtype.bitwidth // 8
        self.fma_function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(self.vector, [self.vector] * 3), f"llvm.fma.{suffix}"
        )

    def pointer(self, array_type: Any, array: Any, position: Any) -> Any:
        """Where an element of an array lies."""
        data = cgutils.create_struct_proxy(array_type)(self.context, self.builder, value=array).data
        return self.builder.gep(data, [position])

    def rows(self, array_type: Any, array: Any, first: Any, stride: Any, count: int) -> list[Any]:
        """Where each of `count` rows begins, `stride` elements after the one before."""
        places = [self.builder.add(first, self.builder.mul(stride, ir.Constant(ir.IntType(64), r))) for r in range(count)]
        return [self.pointer(array_type, array, place) for place in places]

    def load_wide(self, pointer: Any) -> Any:
        """Load a vector, widened where the pointer is to bfloat16."""
        if pointer.type.pointee != ir.IntType(16):
            return self.load(pointer)
        halves = ir.VectorType(ir.IntType(16), self.lanes)
        words = ir.VectorType(ir.IntType(32), self.lanes)
        narrow = self.builder.load(self.builder.bitcast(pointer, halves.as_pointer()), align=2)
        shifted = self.builder.shl(self.builder.zext(narrow, words), ir.Constant(words, [16] * self.lanes))
        return self.builder.bitcast(shifted, self.vector)

    def at(self, pointer: Any, *terms: Any) -> Any:
        """A place so many elements (the sum of the terms) behind another."""
        offset = terms[0]
        for term in terms[1:]:
            offset = self.builder.add(offset, term)
        return self.builder.gep(pointer, [offset])

    def load(self, pointer: Any) -> Any:
        """A vector from memory, unaligned."""
        return self.builder.load(self.builder.bitcast(pointer, self.vector.as_pointer()), align=self.align)

    def store(self, value: Any, pointer: Any) -> None:
        """A vector to memory, unaligned."""
        self.builder.store(value, self.builder.bitcast(pointer, self.vector.as_pointer()), align=self.align)

    def spread(self, pointer: Any) -> Any:
        """One element in every lane."""
        lane0 = self.builder.insert_element(
            ir.Constant(self.vector, ir.Undefined), self.builder.load(pointer, align=self.align), ir.Constant(ir.IntType(32), 0)
        )
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(lane0, ir.Constant(self.vector, ir.Undefined), mask)

    def lane0(self, value: Any) -> Any:
        """The first lane alone."""
        return self.builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, rounded once."""
        return self.builder.call(self.fma_function, [a, b, c])

    def zero(self) -> Any:
        """Zero in every lane."""
        return ir.Constant(self.vector, [0.0] * self.lanes)

    def accumulate(self, depth: Any, start: list[Any], step: Any, unrolled: int = 1) -> list[Any]:
        """Run `values = step(k, values, turn)` for k in range(depth), the values held in registers.

        `turn` is k's place among the `unrolled` steps of one turn of the loop, 0 in the steps left over.
        """
        constant = lambda value: ir.Constant(ir.IntType(64), value)  # noqa: E731
        if unrolled == 1:
            return self._loop(constant(0), depth, 1, start, step)
        whole = self.builder.and_(depth, constant(-unrolled))
        return self._loop(whole, depth, 1, self._loop(constant(0), whole, unrolled, start, step), step)

    def _loop(self, first: Any, end: Any, stride: int, start: list[Any], step: Any) -> list[Any]:
        builder, word = self.builder, ir.IntType(64)
        before = builder.basic_block
        loop, done = builder.append_basic_block("tile.loop"), builder.append_basic_block("tile.done")
        builder.cbranch(builder.icmp_signed("<", first, end), loop, done)
        builder.position_at_end(loop)
        k = builder.phi(word)
        k.add_incoming(first, before)
        values = [builder.phi(self.vector) for _ in start]
        for value, initial in zip(values, start):
            value.add_incoming(initial, before)
        after = values
        for ahead in range(stride):
            after = step(builder.add(k, ir.Constant(word, ahead)), after, ahead)
        following, last = builder.add(k, ir.Constant(word, stride)), builder.basic_block
        k.add_incoming(following, last)
        for value, new in zip(values, after):
            value.add_incoming(new, last)
        builder.cbranch(builder.icmp_signed("<", following, end), loop, done)
        builder.position_at_end(done)
        result = []
        for initial, new in zip(start, after):
            merged = builder.phi(self.vector)
            merged.add_incoming(initial, before)
            merged.add_incoming(new, last)
            result.append(merged)
        return result


def make_tile(rows: int, vectors: int, *, scaled: bool) -> Any:
    """Generate `tile(a, a_at, a_row, a_depth, b, b_at, b_depth, c, c_at, c_row, depth, scale, scale_at)`.

        c[r, n] = scale[r] * c[r, n] + sum_k a[r, k] * b[k, n]        (scale[r] = 0, c unread, unless `scaled`)

    for r < rows and n < vectors * lanes; a[r, k] lies at a_at + r * a_row + k * a_depth, b[k, n] at b_at + k * b_depth + n,
    c[r, n] at c_at + r * c_row + n, scale[r] at scale_at + r.
    """

    @intrinsic
    def tile(  # type: ignore[no-untyped-def]
        typing_context, a, a_at, a_row, a_depth, b, b_at, b_depth, c, c_at, c_row, depth, scale, scale_at
    ):
        if not (is_float_array(a, c, scale) and a.dtype == c.dtype == scale.dtype and _streams(b, a.dtype)):
            return None
        word = types.int64
        signature = types.void(a, word, word, word, b, word, word, c, word, word, word, scale, word)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            a_, a_at, a_row, a_depth, b_, b_at, b_depth, c_, c_at, c_row, depth, scale_, scale_at = arguments
            v = Vectors(context, builder, a)
            constant = lambda value: ir.Constant(ir.IntType(64), value)  # noqa: E731
            columns = [constant(j * v.lanes) for j in range(vectors)]
            a_rows = v.rows(a, a_, a_at, a_row, rows)
            c_rows = v.rows(c, c_, c_at, c_row, rows)
            b_first = v.pointer(b, b_, b_at)
            if scaled:
                factors = [v.spread(v.pointer(scale, scale_, builder.add(scale_at, constant(r)))) for r in range(rows)]
                start = [
                    builder.fmul(factors[r], v.load(v.at(c_rows[r], columns[j]))) for r in range(rows) for j in range(vectors)
                ]
            else:
                start = [v.zero()] * (rows * vectors)

            def step(k: Any, values: list[Any], turn: int) -> list[Any]:
                row_of_b = builder.mul(k, b_depth)
                b_values = [v.load_wide(v.at(b_first, row_of_b, column)) for column in columns]
                along_a = builder.mul(k, a_depth)
                after = []
                for r in range(rows):
                    a_value = v.spread(v.at(a_rows[r], along_a))
                    after += [v.fma(a_value, b_values[j], values[r * vectors + j]) for j in range(vectors)]
                return after

            for i, value in enumerate(v.accumulate(depth, start, step, UNROLLED)):
                v.store(value, v.at(c_rows[i // vectors], columns[i % vectors]))
            return context.get_dummy_value()

        return signature, generate

    return tile


def make_dots(sharing: int) -> Any:
    """Generate `dots(a, a_at, a_row, b, b_at, b_rows, first, width, ahead, c, c_at)`, as many products as a vector has lanes.

        c[c_at + j] = sum_h a[a_at + j * a_row + h] b[b_at + b_rows[first + j // sharing] + h]

    for h < width, a multiple of the lanes. Neighbouring rows of a share a row of b, `sharing` of them (all, where there are
    fewer lanes). What lies `ahead` elements behind each element of b is asked for meanwhile: the processor's own guesses
    end with each page. The sums of the lanes of all rows are taken together, by halving.
    """

    @intrinsic
    def dots(typing_context, a, a_at, a_row, b, b_at, b_rows, first, width, ahead, c, c_at):  # type: ignore[no-untyped-def]
        if not (is_float_array(a, c) and a.dtype == c.dtype and _streams(b, a.dtype)):
            return None
        word = types.int64
        signature = types.void(a, word, word, b, word, b_rows, word, word, word, c, word)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            a_, a_at, a_row, b_, b_at, b_rows_, first, width, ahead, c_, c_at = arguments
            v = Vectors(context, builder, a)
            constant = lambda value: ir.Constant(ir.IntType(64), value)  # noqa: E731
            shared = min(sharing, v.lanes)
            a_rows = v.rows(a, a_, a_at, a_row, v.lanes)
            offsets = [
                builder.load(v.pointer(b_rows, b_rows_, builder.add(first, constant(i)))) for i in range(v.lanes // shared)
            ]
            b_starts = [v.pointer(b, b_, builder.add(b_at, offset)) for offset in offsets]

            vectors, sums = builder.sdiv(width, constant(v.lanes)), []
            chains = 2 if shared < 8 else 1  # sums of one product that do not wait for each other
            for i, b_start in enumerate(b_starts):  # one row of b after the other, as they lie in memory

                def step(k: Any, values: list[Any], turn: int, i: int = i, b_start: Any = b_start) -> list[Any]:
                    h, after = builder.mul(k, constant(v.lanes)), list(values)
                    b_value = v.load_wide(v.at(b_start, h))
                    if turn % VECTORS_PER_FETCH == 0:
                        prefetch(builder, v.at(b_start, builder.add(h, ahead)))
                    for j in range(shared):
                        place = turn % chains * shared + j
                        after[place] = v.fma(v.load(v.at(a_rows[i * shared + j], h)), b_value, values[place])
                    return after

                parts = v.accumulate(vectors, [v.zero()] * (chains * shared), step, UNROLLED)
                for j in range(shared):
                    total = parts[j]
                    for part in parts[j + shared :: shared]:
                        total = builder.fadd(total, part)
                    sums.append(total)
            index = ir.VectorType(ir.IntType(32), v.lanes)
            even, odd = (ir.Constant(index, list(range(start, 2 * v.lanes, 2))) for start in (0, 1))
            while len(sums) > 1:
                sums = [
                    builder.fadd(builder.shuffle_vector(x, y, even), builder.shuffle_vector(x, y, odd))
                    for x, y in zip(sums[::2], sums[1::2])
                ]
            v.store(sums[0], v.pointer(c, c_, c_at))
            return context.get_dummy_value()

        return signature, generate

    return dots


@intrinsic
def take(typing_context, counter):  # type: ignore[no-untyped-def]
    """Add one to counter[0] and return what it was, indivisibly: how threads share a queue of unequal tasks."""
    if not (isinstance(counter, types.Array) and counter.dtype == types.int64):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = cgutils.create_struct_proxy(counter)(context, builder, value=arguments[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), generate


def make_streams(sharing: int, streams: int) -> Any:
    """Generate `add(a, a_at, a_row, b, b_at, b_row, width, ahead, c, c_at, c_row)`: rows of b from memory onto cached ones.

        c[r, h] += sum_i a[i, r] b[i, h]        r < sharing, i < streams, h < width, a multiple of the lanes

    a[i, r] lies at a_at + i * a_row + r, b[i, h] at b_at + i * b_row + h, c[r, h] at c_at + r * c_row + h; `ahead` as in
    `make_dots`.
    """

    @intrinsic
    def add(typing_context, a, a_at, a_row, b, b_at, b_row, width, ahead, c, c_at, c_row):  # type: ignore[no-untyped-def]
        if not (is_float_array(a, c) and a.dtype == c.dtype and _streams(b, a.dtype)):
            return None
        word = types.int64
        signature = types.void(a, word, word, b, word, word, word, word, c, word, word)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            a_, a_at, a_row, b_, b_at, b_row, width, ahead, c_, c_at, c_row = arguments
            v = Vectors(context, builder, a)
            constant = lambda value: ir.Constant(ir.IntType(64), value)  # noqa: E731
            a_rows = v.rows(a, a_, a_at, a_row, streams)
            b_rows = v.rows(b, b_, b_at, b_row, streams)
            c_rows = v.rows(c, c_, c_at, c_row, sharing)
            weights = [[v.spread(v.at(row, constant(r))) for row in a_rows] for r in range(sharing)]

            def step(k: Any, values: list[Any], turn: int) -> list[Any]:
                h = builder.mul(k, constant(v.lanes))
                b_values = [v.load_wide(v.at(row, h)) for row in b_rows]
                if turn == 0:
                    for row in b_rows:
                        prefetch(builder, v.at(row, builder.add(h, ahead)))
                for r, row in enumerate(c_rows):
                    value = v.load(v.at(row, h))
                    for weight, b_value in zip(weights[r], b_values):
                        value = v.fma(weight, b_value, value)
                    v.store(value, v.at(row, h))
                return []

            v.accumulate(builder.sdiv(width, constant(v.lanes)), [], step, VECTORS_PER_FETCH)
            return context.get_dummy_value()

        return signature, generate

    return add


_fill_wide = make_tile(TILE_ROWS, TILE_VECTORS, scaled=False)
_add_wide = make_tile(TILE_ROWS, TILE_VECTORS, scaled=True)
_add_narrow = make_tile(TILE_ROWS, 1, scaled=True)


@njit(inline="always")
def fill_tile(a, a_at, a_row, a_depth, b, b_at, b_depth, c, c_at, c_row, depth):  # type: ignore[no-untyped-def]
    """c = a b for TILE_ROWS rows and TILE_VECTORS vectors of columns."""
    _fill_wide(a, a_at, a_row, a_depth, b, b_at, b_depth, c, c_at, c_row, depth, c, 0)


@njit
def add_tiles(  # type: ignore[no-untyped-def]
    a, a_at, a_row, a_depth, b, b_at, b_depth, c, c_at, c_row, depth, columns, scale, scale_at
):
    """c = scale c + a b for TILE_ROWS rows and `columns` columns, a multiple of the lanes."""
    wide, narrow = TILE_VECTORS * lanes(c), lanes(c)
    n = 0
    while n + wide <= columns:
        _add_wide(a, a_at, a_row, a_depth, b, b_at + n, b_depth, c, c_at + n, c_row, depth, scale, scale_at)
        n += wide
    while n < columns:
        _add_narrow(a, a_at, a_row, a_depth, b, b_at + n, b_depth, c, c_at + n, c_row, depth, scale, scale_at)
        n += narrow
