"""PyTorch's scaled dot-product attention with grouped heads, as oracle of attention.gqa."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.attention.gqa import GQA


@oracle(GQA, library="torch.nn.functional.scaled_dot_product_attention(enable_gqa=True)", needs=("torch",))
def scaled_dot_product(q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, *, causal: bool = True) -> np.ndarray:
    import torch
    from torch.nn.attention.bias import causal_lower_right

    q_BNTH = torch.tensor(q_BTKGH).flatten(2, 3).transpose(1, 2)
    k_BKSH, v_BKSH = (torch.tensor(x).transpose(1, 2) for x in (k_BSKH, v_BSKH))
    seen_TS = causal_lower_right(q_BNTH.shape[2], k_BKSH.shape[2])._materialize(torch.device("cpu")) if causal else None
    out_BNTH = torch.nn.functional.scaled_dot_product_attention(q_BNTH, k_BKSH, v_BKSH, attn_mask=seen_TS, enable_gqa=True)
    return out_BNTH.transpose(1, 2).reshape(q_BTKGH.shape).numpy()
