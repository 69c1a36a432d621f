"""Attention of one block of queries to one block of keys, and how such results merge: what sequence-sharded attention shares.

Axes: B batch, T query position, S key position, K key/value head, G query heads per key/value head, H head width.
"""

from __future__ import annotations

import numpy as np


def tile_forward(
    q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, seen_TS: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (out_BTKGH, lse_BTKG): softmax over the keys seen of this block and the log of its sum, -inf where none is."""
    scores = np.einsum("btkgh,bskh->btkgs", q_BTKGH, k_BSKH) * q_BTKGH.shape[-1] ** -0.5
    scores = np.where(seen_TS[:, None, None, :], scores, -np.inf)
    peak = scores.max(axis=-1, initial=-np.inf)
    shift = np.where(np.isneginf(peak), 0, peak)
    exps = np.exp(scores - shift[..., None])
    total = exps.sum(axis=-1)
    out = np.einsum("btkgs,bskh->btkgh", exps, v_BSKH) / np.where(total == 0, 1, total)[..., None]
    with np.errstate(divide="ignore"):  # log 0 is the -inf that is meant
        return out, shift + np.log(total)


def merge(left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Merge two (out_BTKGH, lse_BTKG) of the same queries over different keys.

    lse = log(e^lse_1 + e^lse_2),   out = e^(lse_1 - lse) out_1 + e^(lse_2 - lse) out_2
    """
    (out_1, lse_1), (out_2, lse_2) = left, right
    lse = np.logaddexp(lse_1, lse_2)
    shift = np.where(np.isneginf(lse), 0, lse)  # no key seen by either: both shares are 0
    return np.exp(lse_1 - shift)[..., None] * out_1 + np.exp(lse_2 - shift)[..., None] * out_2, lse


def tile_backward(
    dout_BTKGH: np.ndarray,
    q_BTKGH: np.ndarray,
    k_BSKH: np.ndarray,
    v_BSKH: np.ndarray,
    lse_BTKG: np.ndarray,
    along_BTKG: np.ndarray,
    seen_TS: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return this block's summands of (dq, dk, dv), given the log-sum-exp over all keys and along = sum_h dout out.

    weights = e^(scores - lse),   dscores = weights (dout v' - along)
    """
    scale = q_BTKGH.shape[-1] ** -0.5
    scores = np.einsum("btkgh,bskh->btkgs", q_BTKGH, k_BSKH) * scale
    shift = np.where(np.isneginf(lse_BTKG), 0, lse_BTKG)[..., None]
    weights = np.exp(np.where(seen_TS[:, None, None, :], scores - shift, -np.inf))
    dscores = weights * (np.einsum("btkgh,bskh->btkgs", dout_BTKGH, v_BSKH) - along_BTKG[..., None])
    return (
        np.einsum("btkgs,bskh->btkgh", dscores, k_BSKH) * scale,
        np.einsum("btkgs,btkgh->bskh", dscores, q_BTKGH) * scale,
        np.einsum("btkgs,btkgh->bskh", weights, dout_BTKGH),
    )
