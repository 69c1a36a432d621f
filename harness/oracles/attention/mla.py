"""PyTorch's attention over expanded keys, as oracle of attention.mla; DeepSeek's own layer is in its tests."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.attention.mla import MLA


@oracle(MLA, library="torch.nn.functional.scaled_dot_product_attention", needs=("torch",))
def expanded(
    q_BTNH: np.ndarray,
    q_rope_BTNR: np.ndarray,
    latent_BSL: np.ndarray,
    k_rope_BSR: np.ndarray,
    up_k_NHL: np.ndarray,
    up_v_NVL: np.ndarray,
    *,
    causal: bool = True,
) -> np.ndarray:
    import torch
    from torch.nn.attention.bias import causal_lower_right

    q, q_rope, latent, k_rope, up_k, up_v = map(
        torch.from_numpy, (q_BTNH, q_rope_BTNR, latent_BSL, k_rope_BSR, up_k_NHL, up_v_NVL)
    )
    N = up_k.shape[0]
    k, v = (torch.nn.functional.linear(latent, up.flatten(0, 1)).unflatten(2, (N, -1)) for up in (up_k, up_v))
    queries = torch.cat([q, q_rope], -1).transpose(1, 2)
    keys = torch.cat([k, k_rope[:, :, None].expand(-1, -1, N, -1)], -1).transpose(1, 2)
    seen = causal_lower_right(q.shape[1], k.shape[1])._materialize(torch.device("cpu")) if causal else None
    out = torch.nn.functional.scaled_dot_product_attention(queries, keys, v.transpose(1, 2), attn_mask=seen)
    return out.transpose(1, 2).numpy()
