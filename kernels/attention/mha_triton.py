"""Multi-head attention on the GPU: flash's tiles, padding mask and bias added to each tile of scores in registers."""

from __future__ import annotations

from torch import Tensor

from llmlab.kernels.attention._tiles_triton import even_starts, forward, forward_ahead
from llmlab.kernels.twin import twin
from llmlab.reference.attention._masked import require_keys
from llmlab.reference.attention.mha import MHA


@twin(MHA, backend="triton")
def mha(
    q_BTNH: Tensor,
    k_BSNH: Tensor,
    v_BSNH: Tensor,
    keep_BS: Tensor | None = None,
    bias_NTS: Tensor | None = None,
    *,
    causal: bool = False,
) -> Tensor:
    B, T, N, H = q_BTNH.shape
    S = k_BSNH.shape[1]
    if causal:
        require_keys(T, S)
    out_UN1H, _ = forward(
        q_BTNH.reshape(B * T, N, 1, H),
        k_BSNH.reshape(B * S, N, H),
        v_BSNH.reshape(B * S, N, H),
        even_starts(B, T, q_BTNH.device),
        even_starts(B, S, q_BTNH.device),
        T,
        causal=causal,
        keep_W=keep_BS,
        bias_KTS=bias_NTS,
    )
    return out_UN1H.reshape(q_BTNH.shape)


AOT = [
    forward_ahead("bf16", 64, G=1, K=12, causal=False),
    forward_ahead("bf16", 64, G=1, K=12, causal=False, masked=True),
    forward_ahead("bf16", 128, G=1, K=32, masked=True),
]
