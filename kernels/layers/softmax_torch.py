"""Softmax by PyTorch's operator, in the variant that gives zeros where nothing may be seen."""

import torch
from torch import Tensor

from llmlab.kernels.twin import twin
from llmlab.reference.layers.softmax import SOFTMAX


@twin(SOFTMAX, backend="torch")
def softmax(x_BTS: Tensor, *, axis: int = -1) -> Tensor:
    return torch._safe_softmax(x_BTS, axis)
