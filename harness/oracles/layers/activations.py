"""Pointwise activations by PyTorch; the squared ReLU, which it lacks, by transformers."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.layers.activations import ACTIVATIONS


@oracle(ACTIVATIONS, library="torch.nn.functional and transformers ACT2FN", needs=("torch", "transformers"))
def activations(x_BTF: np.ndarray, *, kind: str = "gelu") -> np.ndarray:
    import torch
    from torch.nn import functional
    from transformers.activations import ACT2FN

    functions = {
        "gelu": functional.gelu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "silu": functional.silu,
        "relu": functional.relu,
        "relu2": ACT2FN["relu2"],
    }
    return functions[kind](torch.from_numpy(x_BTF)).numpy()
