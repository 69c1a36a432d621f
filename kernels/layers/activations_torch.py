"""Pointwise activations by PyTorch's operators."""

import torch
from torch import Tensor
from torch.nn import functional

from llmlab.kernels.twin import twin
from llmlab.reference.layers._activation import named
from llmlab.reference.layers.activations import ACTIVATIONS


@twin(ACTIVATIONS, backend="torch")
def activations(x_BTF: Tensor, *, kind: str = "gelu") -> Tensor:
    return activate(x_BTF, kind)


def activate(x: Tensor, kind: str) -> Tensor:
    """Apply the activation of that name; ValueError for an unknown one."""
    named(kind)
    if kind == "gelu":
        return functional.gelu(x)
    if kind == "gelu_tanh":
        return functional.gelu(x, approximate="tanh")
    if kind == "silu":
        return functional.silu(x)
    return torch.relu(x) if kind == "relu" else torch.relu(x).square()
