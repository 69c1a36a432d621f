"""Steps of the online softmax as vector code: rows of a few dozen numbers, so that calls and single elements would count."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from llmlab.kernels.numba_math import exp_terms
from llmlab.kernels.register_tile import TILE_ROWS, Vectors, is_float_array


class _Exp:
    """e**x on whole vectors for x <= 0, 0 below the smallest normal numbers, NaN for NaN."""

    def __init__(self, v: Vectors, bits: int) -> None:
        self.v, self.builder = v, v.builder
        terms = exp_terms(np.float32 if bits == 32 else np.float64)
        self.low, self.per_octave, self.shift = (self.constant(x) for x in (terms.low, terms.per_octave, terms.shift))
        self.minus_ln2 = [self.constant(-part) for part in (terms.ln2_high, terms.ln2_low)]
        self.series = [self.constant(c) for c in terms.series]
        self.words = ir.VectorType(ir.IntType(bits), v.lanes)
        self.significand = ir.Constant(self.words, [terms.significand_bits] * v.lanes)

    def constant(self, value: Any) -> Any:
        return ir.Constant(self.v.vector, [float(value)] * self.v.lanes)

    def __call__(self, x: Any) -> Any:
        builder, fma = self.builder, self.v.fma
        shifted = fma(x, self.per_octave, self.shift)  # its lowest bits are the exponent field of the power of two
        octaves = builder.fsub(shifted, self.shift)
        r = fma(octaves, self.minus_ln2[1], fma(octaves, self.minus_ln2[0], x))
        value = self.series[0]
        for coefficient in self.series[1:]:
            value = fma(value, r, coefficient)
        power = builder.bitcast(builder.shl(builder.bitcast(shifted, self.words), self.significand), self.v.vector)
        vanishes = builder.fcmp_ordered("<", x, self.low)  # whatever came out there
        return builder.select(vanishes, self.v.zero(), builder.fmul(value, power))


def _larger(builder: Any, x: Any, y: Any) -> Any:
    """The larger one of each lane, y where either is NaN: one instruction, unlike `llvm.maximum`."""
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


def _across(v: Vectors, value: Any, combine: Any) -> Any:
    """All lanes combined, in every lane."""
    step = v.lanes // 2
    while step:
        order = ir.Constant(ir.VectorType(ir.IntType(32), v.lanes), [lane ^ step for lane in range(v.lanes)])
        value = combine(value, v.builder.shuffle_vector(value, ir.Constant(v.vector, ir.Undefined), order))
        step //= 2
    return value


def make_online_softmax(rows: int) -> Any:
    """Generate `softmax(scores, at, row, columns, peak, total, shrink, i)`, one step of the online softmax of `rows` rows.

        scores[r, j] = exp(scores[r, j] - new peak) for j < columns, a multiple of the lanes
        shrink[i + r] = exp(old peak - new peak); peak[i + r] and total[i + r] follow

    scores[r, j] lies at `at` + r * row + j. A NaN among the scores leaves the peak and makes the total NaN, hence everything
    that is divided by it.
    """

    @intrinsic
    def softmax(typing_context, scores, at, row, columns, peak, total, shrink, i):  # type: ignore[no-untyped-def]
        if not (is_float_array(scores, peak, total, shrink) and scores.dtype == peak.dtype == total.dtype == shrink.dtype):
            return None
        word = types.int64
        signature = types.void(scores, word, word, word, peak, total, shrink, word)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            scores_, at, row, columns, peak_, total_, shrink_, i = arguments
            v = Vectors(context, builder, scores)
            exp = _Exp(v, scores.dtype.bitwidth)
            constant = lambda value: ir.Constant(ir.IntType(64), value)  # noqa: E731
            firsts = [v.pointer(scores, scores_, builder.add(at, builder.mul(row, constant(r)))) for r in range(rows)]
            peaks, totals, shrinks = (
                [v.pointer(scores, array, builder.add(i, constant(r))) for r in range(rows)]
                for array in (peak_, total_, shrink_)
            )
            vectors = builder.sdiv(columns, constant(v.lanes))
            along = lambda k: builder.mul(k, constant(v.lanes))  # noqa: E731
            old = [v.spread(pointer) for pointer in peaks]
            # all rows' peaks first, and then their sums: one row after the other would wait for each
            tops = v.accumulate(
                vectors,
                old,
                lambda k, values, turn: [_larger(builder, v.load(v.at(f, along(k))), top) for f, top in zip(firsts, values)],
            )
            new = [_across(v, top, lambda x, y: _larger(builder, x, y)) for top in tops]
            lowest = exp.constant(-np.inf)
            shift = [builder.select(builder.fcmp_ordered("==", one, lowest), v.zero(), one) for one in new]
            sums = []
            for first, by in zip(firsts, shift):

                def step(k: Any, values: list[Any], turn: int, first: Any = first, by: Any = by) -> list[Any]:
                    weight = exp(builder.fsub(v.load(v.at(first, along(k))), by))
                    v.store(weight, v.at(first, along(k)))
                    return [builder.fadd(values[0], weight)]

                sums += v.accumulate(vectors, [v.zero()], step)
            for r in range(rows):
                shrunk = v.lane0(exp(builder.fsub(old[r], shift[r])))
                summed = v.lane0(_across(v, sums[r], builder.fadd))
                builder.store(shrunk, shrinks[r])
                builder.store(v.lane0(new[r]), peaks[r])
                builder.store(builder.fadd(builder.fmul(builder.load(totals[r]), shrunk), summed), totals[r])
            return context.get_dummy_value()

        return signature, generate

    return softmax


softmax_tile = make_online_softmax(TILE_ROWS)
softmax_row = make_online_softmax(1)
