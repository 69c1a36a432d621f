"""Llama 3.1's rotary embedding in PyTorch: the rotary twin with its scaled frequencies."""

import torch
from torch import Tensor

from llmlab.kernels.positions.rope_torch import rotate
from llmlab.kernels.twin import twin
from llmlab.reference.positions.rope_llama3 import ROPE_LLAMA3, llama3_frequencies


@twin(ROPE_LLAMA3, backend="torch")
def rope_llama3(x_BTNH: Tensor, positions_BT: Tensor, *, theta: float = 500000.0, **bands: float) -> Tensor:
    frequencies_R = torch.from_numpy(llama3_frequencies(x_BTNH.shape[-1], theta=theta, **bands))
    return rotate(x_BTNH, positions_BT, frequencies_R, interleaved=False)
