"""PyTorch's CPU flash kernel and FlexAttention, both with their log-sum-exp, as oracles of attention.flash."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.attention._flex import flex
from llmlab.reference.attention.flash import FLASH


@oracle(FLASH, library="torch.ops.aten._scaled_dot_product_flash_attention_for_cpu", needs=("torch",))
def aten_flash(
    q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, *, causal: bool = True, block: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    import torch
    from torch.nn.attention.bias import causal_lower_right

    G = q_BTKGH.shape[3]
    q_BNTH = torch.tensor(q_BTKGH).flatten(2, 3).transpose(1, 2)
    k_BNSH, v_BNSH = (torch.tensor(x).transpose(1, 2).repeat_interleave(G, dim=1) for x in (k_BSKH, v_BSKH))
    seen_TS = causal_lower_right(q_BNTH.shape[2], k_BNSH.shape[2])._materialize(torch.device("cpu"))
    mask_TS = torch.zeros_like(seen_TS, dtype=q_BNTH.dtype).masked_fill(~seen_TS, -torch.inf) if causal else None
    out_BNTH, lse_BNT = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_BNTH, k_BNSH, v_BNSH, 0.0, False, attn_mask=mask_TS
    )
    return (
        out_BNTH.transpose(1, 2).reshape(q_BTKGH.shape).numpy(),
        lse_BNT.transpose(1, 2).reshape(q_BTKGH.shape[:-1]).numpy(),
    )


@oracle(FLASH, library="torch.nn.attention.flex_attention.flex_attention(return_aux)", needs=("torch",))
def flex_causal(
    q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, *, causal: bool = True, block: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    before = k_BSKH.shape[1] - q_BTKGH.shape[1]
    return flex(q_BTKGH, k_BSKH, v_BSKH, lambda t, s: (t + before >= s) | (not causal))
