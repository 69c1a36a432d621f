"""PyTorch's scaled dot-product attention with an additive mask, as oracle of attention.mha."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.attention.mha import MHA


@oracle(MHA, library="torch.nn.functional.scaled_dot_product_attention", needs=("torch",))
def scaled_dot_product(
    q_BTNH: np.ndarray,
    k_BSNH: np.ndarray,
    v_BSNH: np.ndarray,
    keep_BS: np.ndarray,
    bias_NTS: np.ndarray,
    *,
    causal: bool = False,
) -> np.ndarray:
    import torch

    q_BNTH, k_BNSH, v_BNSH = (torch.tensor(x).transpose(1, 2) for x in (q_BTNH, k_BSNH, v_BSNH))
    hidden_B11S = ~torch.tensor(keep_BS)[:, None, None, :]
    mask_BNTS = torch.tensor(bias_NTS)[None].masked_fill(hidden_B11S, -torch.inf)
    if causal:
        mask_BNTS = mask_BNTS.masked_fill(
            torch.ones(mask_BNTS.shape[-2:]).triu(k_BNSH.shape[2] - q_BNTH.shape[2] + 1) > 0, -torch.inf
        )
    out_BNTH = torch.nn.functional.scaled_dot_product_attention(q_BNTH, k_BNSH, v_BNSH, attn_mask=mask_BNTS)
    return out_BNTH.transpose(1, 2).numpy()
