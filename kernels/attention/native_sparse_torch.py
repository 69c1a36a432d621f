"""Native sparse attention in PyTorch: compressed scores as one product, selected blocks gathered for runs of queries."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.kernels.attention._gathered_torch import attend_gathered
from llmlab.kernels.attention.sliding_window_torch import sliding_window
from llmlab.kernels.twin import twin
from llmlab.reference.attention.native_sparse import (
    BLOCK,
    NATIVE_SPARSE,
    SELECTED,
    STRIDE,
    WINDOW,
    num_summaries,
    require_sizes,
)
from llmlab.reference.attention.sliding_window import require_window

QUERIES = 64  # whose gathered keys are held at a time
ADDED = "three branches and their gradients, each rounded by a fused kernel, are added"


@twin(NATIVE_SPARSE, backend="torch", looser=ADDED, tolerance_factor=4.0, gradient_factor=4.0)
def native_sparse(
    q_BTKGH: Tensor,
    k_BSKH: Tensor,
    v_BSKH: Tensor,
    pool_k_C: Tensor,
    pool_v_C: Tensor,
    gates_BTKGZ: Tensor,
    *,
    stride: int = STRIDE,
    block: int = BLOCK,
    selected: int = SELECTED,
    window: int = WINDOW,
) -> Tensor:
    require_sizes(q_BTKGH.shape[1], k_BSKH.shape[1], len(pool_k_C), stride, block, selected)
    require_window(window)
    kind = q_BTKGH.dtype if q_BTKGH.is_cuda or q_BTKGH.dtype == torch.float64 else torch.float32
    q, k, v, pool_k, pool_v, gates = (x.to(kind) for x in (q_BTKGH, k_BSKH, v_BSKH, pool_k_C, pool_v_C, gates_BTKGZ))
    out_cmp, chosen_BTKX = compressed_branch(q, k, v, pool_k, pool_v, stride=stride, block=block, selected=selected)
    out_slc = _selected_branch(q, k, v, chosen_BTKX, block)
    branches = (out_cmp, out_slc, sliding_window(q, k, v, window=window))
    out = sum(gate[..., None] * branch for gate, branch in zip(gates.unbind(-1), branches))
    return out.to(q_BTKGH.dtype)  # type: ignore[union-attr]


def compressed_branch(
    q_BTKGH: Tensor,
    k_BSKH: Tensor,
    v_BSKH: Tensor,
    pool_k_C: Tensor,
    pool_v_C: Tensor,
    *,
    stride: int,
    block: int,
    selected: int,
) -> tuple[Tensor, Tensor]:
    """Return (out_BTKGH, chosen_BTKX): attention to the summaries and the blocks its weights select."""
    T, H = q_BTKGH.shape[1], q_BTKGH.shape[-1]
    S, C = k_BSKH.shape[1], len(pool_k_C)
    M = num_summaries(S, C, stride)
    if M == 0:
        out = q_BTKGH * 0
        weights_BKGTM = q_BTKGH.new_zeros((q_BTKGH.shape[0], *q_BTKGH.shape[2:4], T, 0))
    else:
        summary_k, summary_v = (
            torch.einsum("bmkhc,c->bmkh", x.unfold(1, C, stride), pool) for x, pool in ((k_BSKH, pool_k_C), (v_BSKH, pool_v_C))
        )
        ends_M = torch.arange(M, device=q_BTKGH.device) * stride + C - 1
        seen_TM = ends_M <= (S - T + torch.arange(T, device=q_BTKGH.device))[:, None]
        scores = (
            torch.einsum("btkgh,bmkh->bkgtm", q_BTKGH, summary_k).float()
            if q_BTKGH.dtype != torch.float64
            else (torch.einsum("btkgh,bmkh->bkgtm", q_BTKGH, summary_k))
        )
        blind_T1 = ~seen_TM.any(-1, keepdim=True)
        weights_BKGTM = (scores * H**-0.5).masked_fill(~(seen_TM | blind_T1), -torch.inf).softmax(-1).masked_fill(blind_T1, 0)
        out = torch.einsum("bkgtm,bmkh->btkgh", weights_BKGTM.to(summary_v.dtype), summary_v)
    return out, _choose(weights_BKGTM.detach(), S, C, stride, block, selected)


def _choose(weights_BKGTM: Tensor, S: int, C: int, stride: int, block: int, selected: int) -> Tensor:
    """Blocks by the weights of the compressed tokens that overlap them, as `select_blocks`."""
    T, M, J = weights_BKGTM.shape[3], weights_BKGTM.shape[4], -(-S // block)
    stretch = torch.zeros(M, J, dtype=weights_BKGTM.dtype)
    for i in range(M):
        for n in range(C // stride):
            stretch[i, (i + n) * stride // block] += 1
    score_BTKJ = torch.einsum("bkgtm,mj->btkj", weights_BKGTM, stretch.to(weights_BKGTM.device))
    block_J = torch.arange(J, device=score_BTKJ.device)
    own_T11 = ((S - T + torch.arange(T, device=score_BTKJ.device)) // block)[:, None, None]
    always = (block_J == 0) | (block_J == own_T11) | (block_J == own_T11 - 1)
    score_BTKJ = score_BTKJ.masked_fill(always, torch.inf).masked_fill(block_J > own_T11, -torch.inf)
    best_BTKX = score_BTKJ.sort(dim=-1, descending=True, stable=True).indices[..., :selected]
    ascending = torch.where(best_BTKX <= own_T11, best_BTKX, J).sort(dim=-1).values
    return torch.where(ascending < J, ascending, -1)


def _selected_branch(q_BTKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, chosen_BTKX: Tensor, block: int) -> Tensor:
    B, T, K, _, _ = q_BTKGH.shape
    S = k_BSKH.shape[1]
    batch_B11, head_K1 = (
        torch.arange(B, device=q_BTKGH.device)[:, None, None, None],
        torch.arange(K, device=q_BTKGH.device)[:, None],
    )
    runs = []
    for start in range(0, T, QUERIES):
        chosen = chosen_BTKX[:, start : start + QUERIES]
        run = chosen.shape[1]
        keys_BTKY = (chosen.clamp(min=0)[..., None] * block + torch.arange(block, device=q_BTKGH.device)).flatten(3)
        position_T11 = (S - T + start + torch.arange(run, device=q_BTKGH.device))[:, None, None]
        seen = (chosen >= 0).repeat_interleave(block, dim=-1) & (keys_BTKY <= position_T11)
        at = (batch_B11, keys_BTKY.clamp(max=S - 1), head_K1)
        out = attend_gathered(
            q_BTKGH[:, start : start + QUERIES].flatten(0, 2)[:, None],
            k_BSKH[at].flatten(0, 2),
            v_BSKH[at].flatten(0, 2),
            seen.flatten(0, 2)[:, None],
        )
        runs.append(out[:, 0].unflatten(0, (B, run, K)))
    return torch.cat(runs, dim=1) if runs else q_BTKGH
