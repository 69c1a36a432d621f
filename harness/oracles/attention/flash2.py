"""PyTorch's CPU flash kernel and FlexAttention, both with their log-sum-exp, as oracles of attention.flash2."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.attention.flash import aten_flash, flex_causal
from llmlab.reference.attention.flash2 import FLASH2


@oracle(FLASH2, library="torch.ops.aten._scaled_dot_product_flash_attention_for_cpu", needs=("torch",))
def aten_flash2(
    q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, *, causal: bool = True, rows: int = 128, block: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    return aten_flash(q_BTKGH, k_BSKH, v_BSKH, causal=causal)


@oracle(FLASH2, library="torch.nn.attention.flex_attention.flex_attention(return_aux)", needs=("torch",))
def flex_flash2(
    q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, *, causal: bool = True, rows: int = 128, block: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    return flex_causal(q_BTKGH, k_BSKH, v_BSKH, causal=causal)
