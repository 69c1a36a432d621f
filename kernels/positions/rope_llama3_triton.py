"""Llama 3.1's rotary embedding on the GPU: the rotary kernel with its scaled frequencies."""

from functools import lru_cache

import torch
from torch import Tensor

from llmlab.kernels.positions.rope_triton import AOT as AOT  # the same kernel
from llmlab.kernels.positions.rope_triton import rotate
from llmlab.kernels.twin import twin
from llmlab.reference.positions.rope_llama3 import ROPE_LLAMA3, llama3_frequencies


@twin(ROPE_LLAMA3, backend="triton")
def rope_llama3(x_BTNH: Tensor, positions_BT: Tensor, *, theta: float = 500000.0, **bands: float) -> Tensor:
    frequencies_R = _frequencies(x_BTNH.shape[-1], theta, tuple(sorted(bands.items())), x_BTNH.device)
    return rotate(x_BTNH, positions_BT, frequencies_R, interleaved=False)


@lru_cache(maxsize=64)
def _frequencies(head_width: int, theta: float, bands: tuple[tuple[str, float], ...], device: torch.device) -> Tensor:
    return torch.from_numpy(llama3_frequencies(head_width, theta=theta, **dict(bands))).to(device)
