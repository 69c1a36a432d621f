"""Learned positions by PyTorch's embedding."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.positions.learned import LEARNED


@oracle(LEARNED, library="torch.nn.Embedding", needs=("torch",))
def learned(x_BTD: np.ndarray, positions_BT: np.ndarray, weight_PD: np.ndarray) -> np.ndarray:
    import torch

    table = torch.nn.Embedding.from_pretrained(torch.from_numpy(weight_PD))
    return (torch.from_numpy(x_BTD) + table(torch.from_numpy(positions_BT))).numpy()
