"""Embedding by PyTorch's operator."""

import torch
from torch import Tensor

from llmlab.kernels.twin import twin
from llmlab.reference.layers.embedding import EMBEDDING


@twin(EMBEDDING, backend="torch")
def embedding(ids_BT: Tensor, weight_VD: Tensor, *, padding_index: int | None = None) -> Tensor:
    return torch.nn.functional.embedding(ids_BT, weight_VD, padding_idx=padding_index)
