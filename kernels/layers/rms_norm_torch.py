"""RMS normalization by PyTorch's fused operator."""

import torch
from torch import Tensor

from llmlab.kernels.twin import twin
from llmlab.reference.layers.rms_norm import RMS_NORM


@twin(RMS_NORM, backend="torch")
def rms_norm(x_BTD: Tensor, weight_D: Tensor, *, eps: float = 1e-6) -> Tensor:
    return torch.nn.functional.rms_norm(x_BTD, weight_D.shape, weight_D, eps)
