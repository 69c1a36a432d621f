"""Gated linear units by PyTorch: activation, then product."""

from torch import Tensor

from llmlab.kernels.layers.activations_torch import activate
from llmlab.kernels.twin import twin
from llmlab.reference.layers.glu import GLU


@twin(GLU, backend="torch")
def glu(gate_BTF: Tensor, up_BTF: Tensor, *, kind: str = "silu") -> Tensor:
    return activate(gate_BTF, kind) * up_BTF
