"""Residual addition and RMS normalization by PyTorch, one after the other."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.layers.add_rms_norm import ADD_RMS_NORM


@oracle(ADD_RMS_NORM, library="torch.add and torch.nn.functional.rms_norm", needs=("torch",))
def add_rms_norm(
    x_BTD: np.ndarray, residual_BTD: np.ndarray, weight_D: np.ndarray, *, eps: float = 1e-6
) -> tuple[np.ndarray, np.ndarray]:
    import torch

    stream, weight = torch.from_numpy(residual_BTD) + torch.from_numpy(x_BTD), torch.from_numpy(weight_D)
    return torch.nn.functional.rms_norm(stream, weight.shape, weight, eps).numpy(), stream.numpy()
