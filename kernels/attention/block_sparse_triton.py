"""Block-sparse attention on the GPU: flash's tiles with the list of blocks as a page table, so nothing is gathered.

A query block of one key head is a request; the blocks it lists are its pages. A causal one ends in its own block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.kernels.attention._tiles_triton import backward, even_starts, forward, forward_ahead
from llmlab.kernels.twin import twin
from llmlab.reference.attention.block_sparse import BLOCK_SPARSE, block_size


@twin(BLOCK_SPARSE, backend="triton")
def block_sparse(q_BTKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, listed_KQL: Tensor, *, causal: bool = True) -> Tensor:
    pages = _Pages(q_BTKGH, k_BSKH, listed_KQL, causal)
    out, _ = pages.forward(q_BTKGH, k_BSKH, v_BSKH)
    return out


@twin(BLOCK_SPARSE, backend="triton", of="backward")
def block_sparse_backward(
    dout_BTKGH: Tensor, q_BTKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, listed_KQL: Tensor, *, causal: bool = True
) -> tuple[Tensor, Tensor, Tensor, None]:
    pages = _Pages(q_BTKGH, k_BSKH, listed_KQL, causal)
    return *pages.backward(dout_BTKGH, q_BTKGH, k_BSKH, v_BSKH), None


class _Pages:
    """The requests: for each (sequence, key head, query block) a row of pages and the number of keys in them."""

    def __init__(self, q_BTKGH: Tensor, k_BSKH: Tensor, listed_KQL: Tensor, causal: bool) -> None:
        B, T, K = q_BTKGH.shape[:3]
        S, Q = k_BSKH.shape[1], listed_KQL.shape[1]
        self.C, self.causal = block_size(T, S, listed_KQL.cpu().numpy()), causal
        M = S // self.C
        own_Q1 = M - Q + torch.arange(Q, device=q_BTKGH.device)[:, None]
        used_KQL = listed_KQL >= 0
        owned_KQ1 = (listed_KQL == own_Q1).any(-1, keepdim=True)
        if causal:
            used_KQL = used_KQL & (listed_KQL <= own_Q1)
        # used blocks first, ascending, so that a causal request ends in its own block
        order_KQL = torch.where(used_KQL, listed_KQL, M).sort(-1).values
        self.count_KQ = used_KQL.sum(-1)
        # the kernel's causal rule holds for the last page: a request without its own block sees all of every page
        self.masked_KQ1 = owned_KQ1 & torch.tensor(causal, device=q_BTKGH.device)
        pool_BK11 = torch.arange(B * K, device=q_BTKGH.device).view(B, K, 1, 1) * M
        self.table_RL = (order_KQL.clamp(max=M - 1) + pool_BK11).flatten(0, 2)
        self.keys_R = (self.count_KQ * self.C).expand(B, K, Q).reshape(-1)
        self.whole_R = ~self.masked_KQ1[..., 0].expand(B, K, Q).reshape(-1)

    def rows(self, x_BTKGH: Tensor) -> Tensor:
        """Queries as packed requests with one key head, [B K Q C, 1, G, H]."""
        return x_BTKGH.transpose(1, 2).flatten(0, 2)[:, None]

    def unrows(self, rows: Tensor, like_BTKGH: Tensor) -> Tensor:
        B, T, K, G, H = like_BTKGH.shape
        return rows[:, 0].view(B, K, T, G, H).transpose(1, 2)

    def pool(self, x_BSKH: Tensor) -> Tensor:
        """Keys as a pool of pages, [B K S, 1, H]."""
        return x_BSKH.transpose(1, 2).flatten(0, 2)[:, None]

    def parts(self) -> list[tuple[Tensor, bool]]:
        """Requests that the causal rule holds for, and those that see all their keys."""
        return [
            (part, causal)
            for part, causal in (((~self.whole_R).nonzero()[:, 0], True), (self.whole_R.nonzero()[:, 0], False))
            if len(part)
        ]

    def forward(self, q_BTKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor) -> tuple[Tensor, None]:
        q, k, v = self.rows(q_BTKGH), self.pool(k_BSKH), self.pool(v_BSKH)
        out = torch.zeros_like(q)
        for part, causal in self.parts():
            of_part = (part[:, None] * self.C + torch.arange(self.C, device=q.device)).flatten()
            found, _ = forward(
                q[of_part], k, v, even_starts(len(part), self.C, q.device), self.keys_R[part], self.C,
                causal=causal, table_BM=self.table_RL[part], page=self.C,
            )  # fmt: skip
            out[of_part] = found
        return self.unrows(out, q_BTKGH), None

    def backward(self, dout_BTKGH: Tensor, q_BTKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The pages gathered, flash's backward over them, the gradients of a page summed over its requests."""
        dout, q, k, v = self.rows(dout_BTKGH), self.rows(q_BTKGH), self.pool(k_BSKH), self.pool(v_BSKH)
        dq = torch.zeros_like(q)
        dk, dv = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (k, v))
        for part, causal in self.parts():
            inside_C = torch.arange(self.C, device=q.device)
            of_part = (part[:, None] * self.C + inside_C).flatten()
            used_RL = torch.arange(self.table_RL.shape[1], device=q.device) * self.C < self.keys_R[part][:, None]
            pages = self.table_RL[part][used_RL]
            keys = (pages[:, None] * self.C + inside_C).flatten()
            starts = torch.nn.functional.pad(self.keys_R[part].cumsum(0), (1, 0))
            longest = int(self.keys_R[part].max())
            dq[of_part], dk_part, dv_part = backward(
                dout[of_part], None, q[of_part], k[keys], v[keys], even_starts(len(part), self.C, q.device), starts,
                self.C, longest, causal=causal,
            )  # fmt: skip
            dk.index_add_(0, keys, dk_part.float())
            dv.index_add_(0, keys, dv_part.float())
        B, S, K, H = k_BSKH.shape
        dk_BSKH, dv_BSKH = (x[:, 0].view(B, K, S, H).transpose(1, 2).to(k.dtype) for x in (dk, dv))
        return self.unrows(dq, q_BTKGH), dk_BSKH, dv_BSKH


AOT = [forward_ahead("bf16", 64, K=1, G=1, page=64), forward_ahead("bf16", 128, K=1, G=4, page=64)]
