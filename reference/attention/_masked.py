"""What the members of the family share: who may see whom, how many pairs that is, and the gradient of masked attention.

Axes: B batch, T query position, S key position, K key/value head, G query heads per key/value head, H head width.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.layers.softmax import softmax

EVERY_PAIR = np.ones((1, 1), dtype=bool)
"""A mask that hides nothing."""


def causal_TS(T: int, S: int, *, window: int | None = None) -> np.ndarray:
    """Return seen_TS: query t sits at position S - T + t and sees keys up to its own position, the last `window` of them.

    >>> causal_TS(2, 4).astype(int)
    array([[1, 1, 1, 0],
           [1, 1, 1, 1]])
    >>> causal_TS(2, 4, window=2).astype(int)
    array([[0, 1, 1, 0],
           [0, 0, 1, 1]])
    """
    age_TS = (S - T + np.arange(T))[:, None] - np.arange(S)
    return (age_TS >= 0) & (age_TS < (S + T if window is None else window))


def require_keys(T: int, S: int) -> None:
    """Refuse causal attention with more queries than keys: the first ones would sit before position 0."""
    if T > S:
        raise ValueError(f"causal attention needs a key at every query's position: T={T} > S={S}")


def causal_pairs(T: int, S: int) -> int:
    """Count the (query, key) pairs of causal attention; a query before position 0 has none.

    >>> causal_pairs(4, 4), causal_pairs(1, 4096), causal_pairs(2, 4)
    (10, 4096, 7)
    """
    placed = min(T, S)
    return placed * S - placed * (placed - 1) // 2


def window_pairs(T: int, S: int, window: int) -> int:
    """Count the pairs of causal attention limited to the last `window` keys.

    >>> window_pairs(4, 4, 2), window_pairs(4, 4, 9)
    (7, 10)
    """
    beyond = max(S - window, 0)  # the pairs further back than the window are a causal triangle of that height
    return causal_pairs(T, S) - causal_pairs(min(T, beyond), beyond)


def attend(q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, seen_TS: np.ndarray) -> np.ndarray:
    """Return out_BTKGH = softmax(q k' / sqrt(H), over the keys seen) v; a query that sees none gives zeros."""
    return np.einsum("bkgts,bskh->btkgh", attention_weights(q_BTKGH, k_BSKH, seen_TS), v_BSKH)


def attention_weights(q_BTKGH: np.ndarray, k_BSKH: np.ndarray, seen_TS: np.ndarray) -> np.ndarray:
    """Return weights_BKGTS = softmax(q k' / sqrt(H)) over the keys seen."""
    scores_BKGTS = np.einsum("btkgh,bskh->bkgts", q_BTKGH, k_BSKH) * q_BTKGH.shape[-1] ** -0.5
    return softmax(np.where(seen_TS, scores_BKGTS, -np.inf))


def attend_backward(
    dout_BTKGH: np.ndarray, q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, seen_TS: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (dq_BTKGH, dk_BSKH, dv_BSKH) of `attend`.

    dweights = dout v',  dscores = weights (dweights - sum dweights weights),  dq = dscores k / sqrt(H)
    """
    scale = q_BTKGH.shape[-1] ** -0.5
    weights_BKGTS = attention_weights(q_BTKGH, k_BSKH, seen_TS)
    dweights_BKGTS = np.einsum("btkgh,bskh->bkgts", dout_BTKGH, v_BSKH)
    dscores_BKGTS = weights_BKGTS * (dweights_BKGTS - np.sum(dweights_BKGTS * weights_BKGTS, axis=-1, keepdims=True))
    dq_BTKGH = np.einsum("bkgts,bskh->btkgh", dscores_BKGTS, k_BSKH) * scale
    dk_BSKH = np.einsum("bkgts,btkgh->bskh", dscores_BKGTS, q_BTKGH) * scale
    dv_BSKH = np.einsum("bkgts,btkgh->bskh", weights_BKGTS, dout_BTKGH)
    return dq_BTKGH, dk_BSKH, dv_BSKH
