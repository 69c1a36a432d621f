"""Multi-head latent attention by PyTorch's fused kernel, in the form that costs fewer FLOPs for the given sizes.

Absorbed, all heads are queries of one key head whose keys are [latent | rotated] and whose values are its first L columns.
Expanded, keys and values are brought to one width, which the fused kernel for CPUs asks for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.kernels.attention.gqa_torch import gqa
from llmlab.kernels.twin import twin
from llmlab.reference.attention.mla import MLA, absorbed_flops, expanded_flops


@twin(
    MLA,
    backend="torch",
    looser="the absorbed form rounds W_UK' q where the formula rounds W_UK c",
    tolerance_factor=2.0,
    gradient_factor=8.0,
)
def mla(
    q_BTNH: Tensor,
    q_rope_BTNR: Tensor,
    latent_BSL: Tensor,
    k_rope_BSR: Tensor,
    up_k_NHL: Tensor,
    up_v_NVL: Tensor,
    *,
    causal: bool = True,
) -> Tensor:
    arrays = (q_BTNH, q_rope_BTNR, latent_BSL, k_rope_BSR, up_k_NHL, up_v_NVL)
    if not q_BTNH.is_cuda and q_BTNH.dtype in (torch.float16, torch.bfloat16):  # half-precision products are slow here
        arrays = tuple(array.float() for array in arrays)
    form = absorbed if absorbs(*arrays) else expanded
    return form(*arrays, causal=causal).to(q_BTNH.dtype)


def absorbs(q: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, up_k: Tensor, up_v: Tensor) -> bool:
    """Whether the absorbed form takes fewer FLOPs."""
    B, T, N, H = q.shape
    d = {"B": B, "T": T, "S": latent.shape[1], "N": N, "H": H, "R": q_rope.shape[3], "L": latent.shape[2], "V": up_v.shape[1]}
    return absorbed_flops(d) < expanded_flops(d)


def absorbed(q: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, up_k: Tensor, up_v: Tensor, *, causal: bool) -> Tensor:
    """Multi-query attention over the latents."""
    H, R, L = q.shape[3], q_rope.shape[3], latent.shape[2]
    queries = torch.cat([torch.einsum("btnh,nhl->btnl", q, up_k), q_rope], -1) * ((L + R) / (H + R)) ** 0.5
    keys_BS1W = torch.cat([latent, k_rope], -1)[:, :, None]
    mixed_BTNL = gqa(queries[:, :, None], keys_BS1W, keys_BS1W, causal=causal)[:, :, 0, :, :L]
    return torch.einsum("btnl,nvl->btnv", mixed_BTNL, up_v)


def expanded(q: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, up_k: Tensor, up_v: Tensor, *, causal: bool) -> Tensor:
    """Multi-head attention over keys and values made from the latents."""
    queries, keys, values, V = expand(q, q_rope, latent, k_rope, up_k, up_v)
    return gqa(queries[..., None, :], keys, values, causal=causal)[..., 0, :V]


def expand(
    q: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, up_k: Tensor, up_v: Tensor
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return queries, keys and values of one width W, zeros behind, queries scaled so that 1 / sqrt(W) is the right scale."""
    (N, H, _), V, R = up_k.shape, up_v.shape[1], q_rope.shape[3]
    k_BSNH, v_BSNV = (torch.nn.functional.linear(latent, up.flatten(0, 1)).unflatten(2, up.shape[:2]) for up in (up_k, up_v))
    shared_BSNR = k_rope[:, :, None].expand(-1, -1, N, -1)
    W = max(H + R, V)
    queries, keys = torch.cat([q, q_rope], -1), torch.cat([k_BSNH, shared_BSNR], -1)
    queries, keys = (torch.nn.functional.pad(x, (0, W - H - R)) for x in (queries * (W / (H + R)) ** 0.5, keys))
    return queries, keys, torch.nn.functional.pad(v_BSNV, (0, W - V)), V
