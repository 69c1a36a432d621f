"""Layer normalization by PyTorch's fused operator."""

import torch
from torch import Tensor

from llmlab.kernels.twin import twin
from llmlab.reference.layers.layer_norm import LAYER_NORM


@twin(LAYER_NORM, backend="torch")
def layer_norm(x_BTD: Tensor, weight_D: Tensor, bias_D: Tensor, *, eps: float = 1e-5) -> Tensor:
    return torch.nn.functional.layer_norm(x_BTD, weight_D.shape, weight_D, bias_D, eps)
