"""PyTorch's scaled dot-product attention of one query, as oracle of attention.flash_decoding."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.attention.flash_decoding import FLASH_DECODING


@oracle(FLASH_DECODING, library="torch.nn.functional.scaled_dot_product_attention(enable_gqa=True)", needs=("torch",))
def scaled_dot_product(q_BKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, *, splits: int = 8) -> np.ndarray:
    import torch

    q_BN1H = torch.tensor(q_BKGH).flatten(1, 2)[:, :, None]
    k_BKSH, v_BKSH = (torch.tensor(x).transpose(1, 2) for x in (k_BSKH, v_BSKH))
    out_BN1H = torch.nn.functional.scaled_dot_product_attention(q_BN1H, k_BKSH, v_BKSH, enable_gqa=True)
    return out_BN1H.reshape(q_BKGH.shape).numpy()
