"""Layer normalization by PyTorch."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.layers.layer_norm import LAYER_NORM


@oracle(LAYER_NORM, library="torch.nn.functional.layer_norm", needs=("torch",))
def layer_norm(x_BTD: np.ndarray, weight_D: np.ndarray, bias_D: np.ndarray, *, eps: float = 1e-5) -> np.ndarray:
    import torch

    x, weight, bias = (torch.from_numpy(array) for array in (x_BTD, weight_D, bias_D))
    return torch.nn.functional.layer_norm(x, weight.shape, weight, bias, eps).numpy()
