"""PyTorch's attention of the whole sequence with autograd: what attention over shards must equal."""

from __future__ import annotations

import numpy as np


def whole_sequence(
    q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, dout_BTKGH: np.ndarray, causal: bool
) -> dict[str, np.ndarray]:
    import torch

    T, S = q_BTKGH.shape[1], k_BSKH.shape[1]
    q, k, v = (torch.tensor(x, requires_grad=True) for x in (q_BTKGH, k_BSKH, v_BSKH))
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T) if causal else None
    out_BNTH = torch.nn.functional.scaled_dot_product_attention(
        q.flatten(2, 3).transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, enable_gqa=True
    )
    out = out_BNTH.transpose(1, 2).reshape(q.shape)
    out.backward(torch.tensor(dout_BTKGH))
    return {"out": out.detach().numpy(), "dq": q.grad.numpy(), "dk": k.grad.numpy(), "dv": v.grad.numpy()}
