"""PyTorch's FlexAttention with a mask of window and global tokens, as oracle of attention.longformer."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.attention._flex import flex
from llmlab.reference.attention.longformer import LONGFORMER, WINDOW


@oracle(LONGFORMER, library="torch.nn.attention.flex_attention.flex_attention(block_mask)", needs=("torch",))
def flex_window_and_global(
    q_BTNH: np.ndarray,
    k_BTNH: np.ndarray,
    v_BTNH: np.ndarray,
    global_q_BPNH: np.ndarray,
    global_k_BTNH: np.ndarray,
    global_v_BTNH: np.ndarray,
    *,
    window: int = WINDOW,
    dilation: int = 1,
) -> np.ndarray:
    P = global_q_BPNH.shape[1]

    def seen(t, s):  # type: ignore[no-untyped-def]
        return (((t - s).abs() <= dilation * (window // 2)) & ((t - s) % dilation == 0)) | (s < P)

    out, _ = flex(q_BTNH[..., None, :], k_BTNH, v_BTNH, seen)
    if P:
        out[:, :P] = flex(global_q_BPNH[..., None, :], global_k_BTNH, global_v_BTNH, lambda t, s: s >= 0)[0]
    return out[..., 0, :]
