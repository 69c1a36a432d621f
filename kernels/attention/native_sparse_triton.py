"""Native sparse attention on the GPU: a query's selected blocks are the pages of a request whose rows are its group's heads.

The heads of a group share the selection, so each block is read once for all of them. Summaries and the choice of blocks are
matrix products and a sort, which PyTorch has; the window runs flash's tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.kernels.attention._tiles_triton import backward, even_starts, forward, forward_ahead
from llmlab.kernels.attention.flash_triton import attend, attend_backward
from llmlab.kernels.attention.native_sparse_torch import compressed_branch
from llmlab.kernels.twin import twin
from llmlab.reference.attention.native_sparse import BLOCK, NATIVE_SPARSE, SELECTED, STRIDE, WINDOW, require_sizes
from llmlab.reference.attention.sliding_window import require_window

REQUESTS = 4096  # whose gathered keys the backward holds at a time


@twin(NATIVE_SPARSE, backend="triton", looser="three branches are each rounded before they are added", tolerance_factor=4.0)
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
    arrays = (q_BTKGH, k_BSKH, v_BSKH, pool_k_C, pool_v_C)
    out_cmp, chosen_BTKX = compressed_branch(*map(_wide, arrays), stride=stride, block=block, selected=selected)
    out_slc = _Requests(q_BTKGH, k_BSKH, chosen_BTKX, block).forward(q_BTKGH, k_BSKH, v_BSKH)
    out_win, _ = attend(q_BTKGH, k_BSKH, v_BSKH, causal=True, window=window)
    gates = gates_BTKGZ.float()
    out = gates[..., 0:1] * out_cmp + gates[..., 1:2] * out_slc.float() + gates[..., 2:3] * out_win.float()
    return out.to(q_BTKGH.dtype)


@twin(
    NATIVE_SPARSE,
    backend="triton",
    of="backward",
    looser="three branches' gradients are rounded and added",
    tolerance_factor=4.0,
)
def native_sparse_backward(
    dout_BTKGH: Tensor,
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
) -> tuple[Tensor, ...]:
    require_sizes(q_BTKGH.shape[1], k_BSKH.shape[1], len(pool_k_C), stride, block, selected)
    dout, gates = dout_BTKGH.float(), gates_BTKGZ.float()
    dbranches = [gates[..., z : z + 1] * dout for z in range(3)]
    with torch.enable_grad():
        leaves = [_wide(x.detach()).requires_grad_() for x in (q_BTKGH, k_BSKH, v_BSKH, pool_k_C, pool_v_C)]
        out_cmp, chosen_BTKX = compressed_branch(*leaves, stride=stride, block=block, selected=selected)
        grads = torch.autograd.grad(out_cmp, leaves, dbranches[0].to(out_cmp.dtype), materialize_grads=True)
    requests = _Requests(q_BTKGH, k_BSKH, chosen_BTKX, block)
    out_slc = requests.forward(q_BTKGH, k_BSKH, v_BSKH)
    out_win, _ = attend(q_BTKGH, k_BSKH, v_BSKH, causal=True, window=window)
    slc = requests.backward(dbranches[1].to(q_BTKGH.dtype), q_BTKGH, k_BSKH, v_BSKH)
    win = attend_backward(dbranches[2].to(q_BTKGH.dtype), None, q_BTKGH, k_BSKH, v_BSKH, causal=True, window=window)
    dgates = torch.stack([(dout * out.float()).sum(-1) for out in (out_cmp.detach(), out_slc, out_win)], dim=-1)
    summed = [sum(part.float() for part in parts).to(q_BTKGH.dtype) for parts in zip(grads[:3], slc, win)]  # type: ignore[union-attr]
    return *summed, grads[3].to(pool_k_C.dtype), grads[4].to(pool_v_C.dtype), dgates.to(gates_BTKGZ.dtype)


def _wide(x: Tensor) -> Tensor:
    """Selection compares scores: they are formed in at least float32."""
    return x if x.dtype == torch.float64 else x.float()


class _Requests:
    """One request per (sequence, key head, query): its pages, its number of keys; a page is `block` keys of one head."""

    def __init__(self, q_BTKGH: Tensor, k_BSKH: Tensor, chosen_BTKX: Tensor, block: int) -> None:
        B, T, K = q_BTKGH.shape[:3]
        S = k_BSKH.shape[1]
        self.block, self.pages = block, -(-S // block)
        chosen_BKTX = chosen_BTKX.transpose(1, 2)
        first_BK11 = torch.arange(B * K, device=q_BTKGH.device).view(B, K, 1, 1) * self.pages
        self.table_RX = (chosen_BKTX.clamp(min=0) + first_BK11).flatten(0, 2)
        whole_BKT = ((chosen_BKTX >= 0).sum(-1) - 1) * block  # every page but the query's own, which comes last
        own_T = (S - T + torch.arange(T, device=q_BTKGH.device)) % block + 1
        self.keys_R = (whole_BKT + own_T).flatten()

    def rows(self, x_BTKGH: Tensor) -> Tensor:
        """[B K T, 1, G, H]"""
        return x_BTKGH.transpose(1, 2).flatten(0, 2)[:, None]

    def pool(self, x_BSKH: Tensor) -> Tensor:
        """[B K pages block, 1, H], zeros behind the last key."""
        behind = self.pages * self.block - x_BSKH.shape[1]
        return torch.nn.functional.pad(x_BSKH, (0, 0, 0, 0, 0, behind)).transpose(1, 2).flatten(0, 2)[:, None]

    def forward(self, q_BTKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor) -> Tensor:
        B, T, K, G, H = q_BTKGH.shape
        q = self.rows(q_BTKGH)
        starts = even_starts(len(q), 1, q.device)
        out, _ = forward(
            q,
            self.pool(k_BSKH),
            self.pool(v_BSKH),
            starts,
            self.keys_R,
            1,
            causal=False,
            table_BM=self.table_RX,
            page=self.block,
        )
        return out.view(B, K, T, G, H).transpose(1, 2)

    def backward(self, dout_BTKGH: Tensor, q_BTKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, T, K, G, H = q_BTKGH.shape
        S = k_BSKH.shape[1]
        dout, q, k, v = self.rows(dout_BTKGH), self.rows(q_BTKGH), self.pool(k_BSKH), self.pool(v_BSKH)
        dq, dk, dv = torch.empty_like(q), k.new_zeros(k.shape, dtype=torch.float32), v.new_zeros(v.shape, dtype=torch.float32)
        inside = torch.arange(self.block, device=q.device)
        for first in range(0, len(q), REQUESTS):
            some = slice(first, first + REQUESTS)
            count_R = self.keys_R[some]
            keys_RY = (self.table_RX[some, :, None] * self.block + inside).flatten(1)
            keys = keys_RY[torch.arange(keys_RY.shape[1], device=q.device) < count_R[:, None]]
            starts = torch.nn.functional.pad(count_R.cumsum(0), (1, 0))
            dq[some], dk_some, dv_some = backward(
                dout[some], None, q[some], k[keys], v[keys], even_starts(len(count_R), 1, q.device), starts, 1,
                int(count_R.max()), causal=False,
            )  # fmt: skip
            dk.index_add_(0, keys, dk_some.float())
            dv.index_add_(0, keys, dv_some.float())
        dk_BSKH, dv_BSKH = (x.view(B, K, -1, H)[:, :, :S].transpose(1, 2).to(k.dtype) for x in (dk, dv))
        return dq.view(B, K, T, G, H).transpose(1, 2), dk_BSKH, dv_BSKH


AOT = [forward_ahead("bf16", 128, K=1, G=16, rows=16, causal=False, page=64)]
