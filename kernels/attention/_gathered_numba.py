"""Blocks of queries over the keys they gather, on CPU cores: gathered rows run through the register tiles of the family.

A gathered set is one sequence of a packed batch. Sets of one key head are packed at a time, so that what is gathered stays
small beside the caches; the products, which take G times the head width as long, hide the copying.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from llmlab.kernels.attention._tiles_numba import backward, forward

Array = np.ndarray


class GatheredSets:
    """For every set its queries and its keys, as positions; a causal set's last keys are those of its queries."""

    def __init__(self, queries: Sequence[Array], keys: Sequence[Array], *, hidden: Sequence[int] | None = None) -> None:
        """`hidden` counts the last keys of each set that nobody may see; they only align a causal set."""
        self.queries, self.keys = (np.concatenate([*sets, np.zeros(0, np.int64)]).astype(np.int64) for sets in (queries, keys))
        self.query_starts = np.concatenate([[0], np.cumsum([len(one) for one in queries], dtype=np.int64)])
        self.key_starts = np.concatenate([[0], np.cumsum([len(one) for one in keys], dtype=np.int64)])
        self.keep: Array | None = None
        if hidden is not None and any(hidden):
            self.keep = np.ones(len(self.keys), dtype=np.bool_)
            for end, count in zip(self.key_starts[1:], hidden):
                self.keep[end - count : end] = False

    def attend(self, q_TGH: Array, k_SH: Array, v_SH: Array, out_TGH: Array, *, causal: bool) -> None:
        """Write the result of one key head into the rows of the queries."""
        q, k, v = gathered(q_TGH, self.queries), gathered(k_SH, self.keys), gathered(v_SH, self.keys)
        out, _ = forward(
            q[:, None], k[:, None], v[:, None], self.query_starts, self.key_starts, causal=causal, keep_W=self.keep
        )
        out_TGH[self.queries] = out[:, 0]

    def attend_backward(
        self, dout_TGH: Array, q_TGH: Array, k_SH: Array, v_SH: Array, gradients: tuple[Array, Array, Array], *, causal: bool
    ) -> None:
        """Add to the gradients (dq_TGH, dk_SH, dv_SH) of one key head."""
        dout, q = gathered(dout_TGH, self.queries), gathered(q_TGH, self.queries)
        k, v = gathered(k_SH, self.keys), gathered(v_SH, self.keys)
        dq, dk, dv, _ = backward(
            dout[:, None], None, q[:, None], k[:, None], v[:, None], self.query_starts, self.key_starts,
            causal=causal, keep_W=self.keep,
        )  # fmt: skip
        gradients[0][self.queries] += dq[:, 0]
        add_rows_at(gradients[1], self.keys, dk[:, 0])
        add_rows_at(gradients[2], self.keys, dv[:, 0])


def gathered(x: Array, rows: Array) -> Array:
    """The chosen rows, contiguous."""
    return np.take(x, rows, axis=0)


@njit(cache=True, error_model="numpy")
def add_rows_at(x_SH, rows, added):  # type: ignore[no-untyped-def]
    """x[rows[i]] += added[i], rows repeated or not."""
    for i in range(len(rows)):
        row = x_SH[rows[i]]
        for h in range(x_SH.shape[1]):
            row[h] += added[i, h]
