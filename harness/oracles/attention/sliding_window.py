"""PyTorch's FlexAttention with a window mask, as oracle of attention.sliding_window."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.attention._flex import flex
from llmlab.reference.attention.sliding_window import SLIDING_WINDOW, WINDOW


@oracle(SLIDING_WINDOW, library="torch.nn.attention.flex_attention.flex_attention(block_mask)", needs=("torch",))
def flex_window(q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, *, window: int = WINDOW) -> np.ndarray:
    before = k_BSKH.shape[1] - q_BTKGH.shape[1]
    out, _ = flex(q_BTKGH, k_BSKH, v_BSKH, lambda t, s: (t + before >= s) & (t + before - s < window))
    return out
