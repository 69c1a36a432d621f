"""The recurrence that linear attention and state-space models share: a decaying sum of outer products, read by a query.

    S_t = a_t S_{t-1} + k_t v_t',   out_t = S_t' q_t

once step by step and once in chunks, where everything inside a chunk is a masked matrix product (Dao and Gu 2024,
arXiv:2405.21060, section 6). The two share no code, so each checks the other.

Axes: B batch, T position, K query/key head, G value heads per query/key head, M query/key width, H value width, C position
in a chunk.
"""

from __future__ import annotations

import numpy as np


def walk(
    q_BTKM: np.ndarray, k_BTKM: np.ndarray, v_BTKGH: np.ndarray, decay_BTKG: np.ndarray, state_BKGMH: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (out_BTKGH, state_BKGMH after the last position), one position after the other."""
    out_BTKGH = np.empty_like(v_BTKGH)
    for t in range(v_BTKGH.shape[1]):
        added_BKGMH = np.einsum("bkm,bkgh->bkgmh", k_BTKM[:, t], v_BTKGH[:, t])
        state_BKGMH = decay_BTKG[:, t, :, :, None, None] * state_BKGMH + added_BKGMH
        out_BTKGH[:, t] = np.einsum("bkm,bkgmh->bkgh", q_BTKM[:, t], state_BKGMH)
    return out_BTKGH, state_BKGMH.copy()


def walk_back(
    dout_BTKGH: np.ndarray,
    dstate_BKGMH: np.ndarray,
    q_BTKM: np.ndarray,
    k_BTKM: np.ndarray,
    v_BTKGH: np.ndarray,
    decay_BTKG: np.ndarray,
    state_BKGMH: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (dq_BTKM, dk_BTKM, dv_BTKGH, ddecay_BTKG, dstate_BKGMH) of `walk`.

    dS gathers what later positions want of the state:  dS_t = a_{t+1} dS_{t+1} + q_t dout_t'
    """
    before = [state_BKGMH]
    for t in range(v_BTKGH.shape[1]):
        added_BKGMH = np.einsum("bkm,bkgh->bkgmh", k_BTKM[:, t], v_BTKGH[:, t])
        before.append(decay_BTKG[:, t, :, :, None, None] * before[-1] + added_BKGMH)
    dq_BTKM, dk_BTKM, dv_BTKGH = np.empty_like(q_BTKM), np.empty_like(k_BTKM), np.empty_like(v_BTKGH)
    ddecay_BTKG = np.empty_like(decay_BTKG)
    for t in reversed(range(v_BTKGH.shape[1])):
        dstate_BKGMH = dstate_BKGMH + np.einsum("bkm,bkgh->bkgmh", q_BTKM[:, t], dout_BTKGH[:, t])
        dq_BTKM[:, t] = np.einsum("bkgmh,bkgh->bkm", before[t + 1], dout_BTKGH[:, t])
        dk_BTKM[:, t] = np.einsum("bkgmh,bkgh->bkm", dstate_BKGMH, v_BTKGH[:, t])
        dv_BTKGH[:, t] = np.einsum("bkgmh,bkm->bkgh", dstate_BKGMH, k_BTKM[:, t])
        ddecay_BTKG[:, t] = np.einsum("bkgmh,bkgmh->bkg", dstate_BKGMH, before[t])
        dstate_BKGMH = decay_BTKG[:, t, :, :, None, None] * dstate_BKGMH
    return dq_BTKM, dk_BTKM, dv_BTKGH, ddecay_BTKG, dstate_BKGMH.copy()


def segment_sums(logs_BCKG: np.ndarray) -> np.ndarray:
    """Return sums_BKGCD: the sum of the logs after position d up to position c, -inf where d is later than c.

    Each is summed on its own: the difference of two running sums would lose what they have in common.

    >>> segment_sums(np.array([5.0, 3.0, 1.0]).reshape(1, 3, 1, 1))[0, 0, 0]
    array([[  0., -inf, -inf],
           [  3.,   0., -inf],
           [  4.,   1.,   0.]])
    """
    C = logs_BCKG.shape[1]
    later_CD = np.tril(np.ones((C, C), dtype=bool), -1)
    terms_BKGCD = np.where(later_CD, np.moveaxis(logs_BCKG, 1, -1)[..., None], 0)
    return np.where(np.tril(np.ones((C, C), dtype=bool)), np.cumsum(terms_BKGCD, axis=-2), -np.inf)


def chunks(T: int, chunk: int) -> list[slice]:
    """Cut T positions into runs of `chunk`, the last one shorter."""
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1")
    return [slice(start, min(start + chunk, T)) for start in range(0, T, chunk)]


def walk_in_chunks(
    q_BTKM: np.ndarray,
    k_BTKM: np.ndarray,
    v_BTKGH: np.ndarray,
    log_decay_BTKG: np.ndarray,
    state_BKGMH: np.ndarray,
    *,
    chunk: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (out_BTKGH, state_BKGMH after the last position), one chunk after the other.

    Inside a chunk out = (q k' L) v with L the decay between two positions; what came before enters by its state.
    """
    out_BTKGH = np.empty_like(v_BTKGH)
    for part in chunks(v_BTKGH.shape[1], chunk):
        q_BCKM, k_BCKM, v_BCKGH = q_BTKM[:, part], k_BTKM[:, part], v_BTKGH[:, part]
        between_BKGCD = np.exp(segment_sums(log_decay_BTKG[:, part]))
        since_start_BCKG = np.exp(np.cumsum(log_decay_BTKG[:, part], axis=1))
        weights_BKGCD = np.einsum("bckm,bdkm->bkcd", q_BCKM, k_BCKM)[:, :, None] * between_BKGCD
        within_BCKGH = np.einsum("bkgcd,bdkgh->bckgh", weights_BKGCD, v_BCKGH)
        before_BCKGH = np.einsum("bckm,bkgmh->bckgh", q_BCKM, state_BKGMH) * since_start_BCKG[..., None]
        out_BTKGH[:, part] = within_BCKGH + before_BCKGH
        left_BCKGH = np.moveaxis(between_BKGCD[..., -1, :], -1, 1)[..., None] * v_BCKGH
        added_BKGMH = np.einsum("bckm,bckgh->bkgmh", k_BCKM, left_BCKGH)
        state_BKGMH = since_start_BCKG[:, -1, :, :, None, None] * state_BKGMH + added_BKGMH
    return out_BTKGH, state_BKGMH.copy()
