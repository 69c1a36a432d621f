"""Gated delta rule in chunks: one triangular solve for all chunks at once, then only the states pass from chunk to chunk."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.kernels.attention._decayed_torch import CHUNK, decay_between, in_chunks, whole, working
from llmlab.kernels.twin import twin
from llmlab.reference.attention.gated_delta import GATED_DELTA, SOLVED, require_one_length


@twin(GATED_DELTA, backend="torch", looser=SOLVED, gradient_factor=4.0)
def gated_delta(
    q_BTKM: Tensor, k_BTKM: Tensor, v_BTKGH: Tensor, beta_BTKG: Tensor, log_decay_BTKG: Tensor, state_BKGMH: Tensor
) -> tuple[Tensor, Tensor]:
    require_one_length(q_BTKM, k_BTKM, v_BTKGH, beta_BTKG, log_decay_BTKG)
    kind, T = v_BTKGH.dtype, v_BTKGH.shape[1]
    q, k, v, beta, logs, state = (working(x) for x in (q_BTKM, k_BTKM, v_BTKGH, beta_BTKG, log_decay_BTKG, state_BKGMH))
    if v.numel() == 0:
        return v_BTKGH.clone(), state_BKGMH.clone()
    q, k, v, beta, logs = (in_chunks(x, min(CHUNK, T)) for x in (q, k, v, beta, logs))
    between_LBKGCD = decay_between(logs)
    since_LBKGC1 = logs.cumsum(2).exp().movedim(2, -1)[..., None]
    beta_LBKGC1 = beta.movedim(2, -1)[..., None]
    overlap_LBKGCD = beta_LBKGC1 * between_LBKGCD * torch.einsum("lbckm,lbdkm->lbkcd", k, k)[:, :, :, None]
    keys_LBKGCM = (beta_LBKGC1 * since_LBKGC1) * torch.einsum("lbckm->lbkcm", k)[:, :, :, None]
    right = torch.cat([beta_LBKGC1 * torch.einsum("lbckgh->lbkgch", v), keys_LBKGCM], dim=-1)
    solved = torch.linalg.solve_triangular(overlap_LBKGCD, right, upper=False, unitriangular=True)
    wanted_LBKGCH, lookup_LBKGCM = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    weights_LBKGCD = between_LBKGCD * torch.einsum("lbckm,lbdkm->lbkcd", q, k)[:, :, :, None]
    queries_LBKGCM = since_LBKGC1 * torch.einsum("lbckm->lbkcm", q)[:, :, :, None]
    left_LBKGCM = between_LBKGCD[..., -1, :, None] * torch.einsum("lbckm->lbkcm", k)[:, :, :, None]
    out = []
    for wanted, lookup, weights, queries, left, since in zip(
        wanted_LBKGCH, lookup_LBKGCM, weights_LBKGCD, queries_LBKGCM, left_LBKGCM, since_LBKGC1
    ):
        u_BKGCH = wanted - lookup @ state
        out.append(queries @ state + weights @ u_BKGCH)
        state = since[..., -1:, :] * state + left.mT @ u_BKGCH
    out_BTKGH = whole(torch.einsum("lbkgch->lbckgh", torch.stack(out)), T)
    return out_BTKGH.to(kind), state.to(kind)
