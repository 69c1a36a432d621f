"""Residual addition and RMS normalization by PyTorch: two operators."""

import torch
from torch import Tensor

from llmlab.kernels.twin import twin
from llmlab.reference.layers.add_rms_norm import ADD_RMS_NORM


@twin(ADD_RMS_NORM, backend="torch")
def add_rms_norm(x_BTD: Tensor, residual_BTD: Tensor, weight_D: Tensor, *, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    stream_BTD = residual_BTD + x_BTD
    return torch.nn.functional.rms_norm(stream_BTD, weight_D.shape, weight_D, eps), stream_BTD
