"""Softmax by SciPy and by PyTorch."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.layers.softmax import SOFTMAX


@oracle(SOFTMAX, library="scipy.special.softmax", needs=("scipy",))
def scipy_softmax(x_BTS: np.ndarray, *, axis: int = -1) -> np.ndarray:
    from scipy.special import softmax

    return softmax(x_BTS, axis=axis)


@oracle(SOFTMAX, library="torch.softmax", needs=("torch",))
def torch_softmax(x_BTS: np.ndarray, *, axis: int = -1) -> np.ndarray:
    import torch

    return torch.softmax(torch.from_numpy(x_BTS), axis).numpy()
