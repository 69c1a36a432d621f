"""Decaying sums of outer products in chunks by batched matrix products; only the states pass from chunk to chunk.

Everything is computed in float32 for halves: running sums of 8-bit significands would not last a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64


def working(x: Tensor) -> Tensor:
    """The tensor in the dtype that sums are kept in."""
    return x if x.dtype == torch.float64 else x.float()


def in_chunks(x_BT: Tensor, chunk: int) -> Tensor:
    """(B, T, ...) as (chunk, B, position, ...), zeros past the end."""
    T = x_BT.shape[1]
    padded = torch.nn.functional.pad(x_BT, [0, 0] * (x_BT.ndim - 2) + [0, -T % chunk])
    return padded.unflatten(1, (-1, chunk)).movedim(1, 0)


def whole(x_LBC: Tensor, T: int) -> Tensor:
    """Back to (B, T, ...)."""
    return x_LBC.movedim(0, 1).flatten(1, 2)[:, :T]


def decay_between(logs_LBCKG: Tensor) -> Tensor:
    """Decay from position d to position c, (L, B, K, G, C, D); each segment is summed on its own."""
    C = logs_LBCKG.shape[2]
    not_after_CD = torch.ones(C, C, dtype=torch.bool, device=logs_LBCKG.device).triu()
    terms = logs_LBCKG.movedim(2, -1)[..., None].expand(*logs_LBCKG.movedim(2, -1).shape, C).masked_fill(not_after_CD, 0)
    return terms.cumsum(-2).masked_fill(not_after_CD.triu(1), -torch.inf).exp()


def walk(
    q_BTKM: Tensor, k_BTKM: Tensor, v_BTKGH: Tensor, log_decay_BTKG: Tensor | None, state_BKGMH: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (out_BTKGH, state_BKGMH after the last position); no decay is 1."""
    T = v_BTKGH.shape[1]
    if T == 1:
        kept = state_BKGMH if log_decay_BTKG is None else log_decay_BTKG[:, 0, :, :, None, None].exp() * state_BKGMH
        state = kept + k_BTKM[:, 0, :, None, :, None] * v_BTKGH[:, 0, :, :, None, :]
        return torch.einsum("bkm,bkgmh->bkgh", q_BTKM[:, 0], state)[:, None], state
    chunk = min(CHUNK, max(T, 1))
    q_LBCKM, k_LBCKM, v_LBCKGH = (in_chunks(x, chunk) for x in (q_BTKM, k_BTKM, v_BTKGH))
    scores_LBKCD = torch.einsum("lbckm,lbdkm->lbkcd", q_LBCKM, k_LBCKM)
    if log_decay_BTKG is None:
        weights_LBKGCD = scores_LBKCD.tril()[:, :, :, None].expand(-1, -1, -1, v_BTKGH.shape[3], -1, -1)
        added_LBKGMH = torch.einsum("lbckm,lbckgh->lbkgmh", k_LBCKM, v_LBCKGH)
        states = torch.cat([state_BKGMH[None], added_LBKGMH]).cumsum(0)
        before_LBCKGH = torch.einsum("lbckm,lbkgmh->lbckgh", q_LBCKM, states[:-1])
    else:
        logs_LBCKG = in_chunks(log_decay_BTKG, chunk)
        between_LBKGCD = decay_between(logs_LBCKG)
        since_LBCKG = logs_LBCKG.cumsum(2).exp()
        weights_LBKGCD = scores_LBKCD[:, :, :, None] * between_LBKGCD
        left_LBCKGH = between_LBKGCD[..., -1, :].movedim(-1, 2)[..., None] * v_LBCKGH
        states = _chain(torch.einsum("lbckm,lbckgh->lbkgmh", k_LBCKM, left_LBCKGH), since_LBCKG[:, :, -1], state_BKGMH)
        before_LBCKGH = torch.einsum("lbckm,lbkgmh->lbckgh", q_LBCKM, states[:-1]) * since_LBCKG[..., None]
    out_LBCKGH = torch.einsum("lbkgcd,lbdkgh->lbckgh", weights_LBKGCD, v_LBCKGH) + before_LBCKGH
    return whole(out_LBCKGH, T), states[-1]


def _chain(added_LBKGMH: Tensor, decay_LBKG: Tensor, state_BKGMH: Tensor) -> Tensor:
    states = [state_BKGMH]
    for added, decay in zip(added_LBKGMH, decay_LBKG):
        states.append(torch.addcmul(added, decay[..., None, None], states[-1]))
    return torch.stack(states)
