"""What the sparse members of the family share: groups of queries that gather the same keys and attend to nothing else.

Only gathered pairs are computed, so the arithmetic of a reference is the arithmetic it saves.

Axes: B batch, T query position, S key position, K key/value head, G query heads per key/value head, H head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from llmlab.reference.attention._masked import EVERY_PAIR, attend, attend_backward


@dataclass(frozen=True)
class Group:
    """Queries and the keys they gather, as positions; `seen` hides single pairs (none unless given)."""

    queries: np.ndarray
    keys: np.ndarray
    seen: np.ndarray = field(default_factory=lambda: EVERY_PAIR)


def attend_groups(q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, groups: Sequence[Group]) -> np.ndarray:
    """Return out_BTKGH: every group attends to its own keys; queries in no group give zeros."""
    out_BTKGH = np.zeros_like(q_BTKGH)
    for group in groups:
        k_BsKH, v_BsKH = k_BSKH[:, group.keys], v_BSKH[:, group.keys]
        out_BTKGH[:, group.queries] = attend(q_BTKGH[:, group.queries], k_BsKH, v_BsKH, group.seen)
    return out_BTKGH


def attend_groups_backward(
    dout_BTKGH: np.ndarray, q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, groups: Sequence[Group]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (dq_BTKGH, dk_BSKH, dv_BSKH); a key sums the gradients of every group that gathered it."""
    dq_BTKGH, dk_BSKH, dv_BSKH = np.zeros_like(q_BTKGH), np.zeros_like(k_BSKH), np.zeros_like(v_BSKH)
    for group in groups:
        dq_BtKGH, dk_BsKH, dv_BsKH = attend_backward(
            dout_BTKGH[:, group.queries],
            q_BTKGH[:, group.queries],
            k_BSKH[:, group.keys],
            v_BSKH[:, group.keys],
            group.seen,
        )
        dq_BTKGH[:, group.queries] += dq_BtKGH
        np.add.at(dk_BSKH, (slice(None), group.keys), dk_BsKH)  # type: ignore[arg-type]
        np.add.at(dv_BSKH, (slice(None), group.keys), dv_BsKH)  # type: ignore[arg-type]
    return dq_BTKGH, dk_BSKH, dv_BSKH


def per_head(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield views of every array that hold one key/value head, its axis kept."""
    for head in range(arrays[0].shape[2]):
        yield tuple(array[:, :, head : head + 1] for array in arrays)


def block_positions(blocks: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    """Return the positions of the tokens of some blocks, in the order the blocks are given.

    >>> block_positions([2, 0], 3).tolist()
    [6, 7, 8, 0, 1, 2]
    """
    return (np.asarray(blocks, dtype=np.int64)[:, None] * size + np.arange(size)).ravel()
