"""Embedding by PyTorch."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.layers.embedding import EMBEDDING


@oracle(EMBEDDING, library="torch.nn.Embedding", needs=("torch",))
def embedding(ids_BT: np.ndarray, weight_VD: np.ndarray, *, padding_index: int | None = None) -> np.ndarray:
    import torch

    table = torch.nn.Embedding.from_pretrained(torch.from_numpy(weight_VD), padding_idx=padding_index)
    return table(torch.from_numpy(ids_BT)).numpy()
