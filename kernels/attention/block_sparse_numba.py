"""Block-sparse attention on CPU cores: per key head, the listed blocks gathered for register tiles."""

from __future__ import annotations

import numpy as np

from llmlab.kernels.attention._gathered_numba import GatheredSets
from llmlab.kernels.attention._tiles_numba import CANCELS
from llmlab.kernels.twin import twin
from llmlab.reference.attention._gathered import block_positions
from llmlab.reference.attention.block_sparse import BLOCK_SPARSE, block_size


@twin(BLOCK_SPARSE, backend="numba")
def block_sparse(
    q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, listed_KQL: np.ndarray, *, causal: bool = True
) -> np.ndarray:
    out_BTKGH = np.zeros_like(q_BTKGH)
    for head, sets in enumerate(_sets(q_BTKGH.shape[1], k_BSKH.shape[1], listed_KQL, causal)):
        for b in range(len(q_BTKGH)):
            sets.attend(q_BTKGH[b, :, head], k_BSKH[b, :, head], v_BSKH[b, :, head], out_BTKGH[b, :, head], causal=causal)
    return out_BTKGH


@twin(BLOCK_SPARSE, backend="numba", of="backward", looser=CANCELS, tolerance_factor=4.0)
def block_sparse_backward(
    dout_BTKGH: np.ndarray,
    q_BTKGH: np.ndarray,
    k_BSKH: np.ndarray,
    v_BSKH: np.ndarray,
    listed_KQL: np.ndarray,
    *,
    causal: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, None]:
    dq_BTKGH, dk_BSKH, dv_BSKH = np.zeros_like(q_BTKGH), np.zeros_like(k_BSKH), np.zeros_like(v_BSKH)
    for head, sets in enumerate(_sets(q_BTKGH.shape[1], k_BSKH.shape[1], listed_KQL, causal)):
        for b in range(len(q_BTKGH)):
            at = np.s_[b, :, head]
            sets.attend_backward(
                dout_BTKGH[at], q_BTKGH[at], k_BSKH[at], v_BSKH[at], (dq_BTKGH[at], dk_BSKH[at], dv_BSKH[at]), causal=causal
            )
    return dq_BTKGH, dk_BSKH, dv_BSKH, None


def _sets(T: int, S: int, listed_KQL: np.ndarray, causal: bool) -> list[GatheredSets]:
    """Per head one set per query block; a causal one ends in the queries' own block, hidden where it is not listed."""
    C = block_size(T, S, listed_KQL)
    heads = []
    for listed_QL in listed_KQL:
        queries, keys, hidden = [], [], []
        for i, listed_L in enumerate(listed_QL):
            own = S // C - len(listed_QL) + i
            blocks = np.sort(listed_L[listed_L >= 0])
            own_hidden = causal and own not in blocks
            if causal:
                blocks = np.append(blocks[blocks < own], own)
            queries.append(block_positions([i], C))
            keys.append(block_positions(blocks, C))
            hidden.append(C if own_hidden else 0)
        heads.append(GatheredSets(queries, keys, hidden=hidden))
    return heads
