"""Windowed attention on the GPU: flash's tiles, keys outside a block's window never loaded."""

from __future__ import annotations

from torch import Tensor

from llmlab.kernels.attention._tiles_triton import forward_ahead
from llmlab.kernels.attention.flash_triton import attend, attend_backward
from llmlab.kernels.twin import twin
from llmlab.reference.attention.sliding_window import SLIDING_WINDOW, WINDOW, require_window


@twin(SLIDING_WINDOW, backend="triton")
def sliding_window(q_BTKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, *, window: int = WINDOW) -> Tensor:
    require_window(window)
    return attend(q_BTKGH, k_BSKH, v_BSKH, causal=True, window=window)[0]


@twin(SLIDING_WINDOW, backend="triton", of="backward")
def sliding_window_backward(
    dout_BTKGH: Tensor, q_BTKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, *, window: int = WINDOW
) -> tuple[Tensor, Tensor, Tensor]:
    require_window(window)
    return attend_backward(dout_BTKGH, None, q_BTKGH, k_BSKH, v_BSKH, causal=True, window=window)


AOT = [forward_ahead("bf16", 256, G=2, K=4, windowed=True), forward_ahead("bf16", 64, G=8, windowed=True)]
