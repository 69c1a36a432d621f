"""RMS normalization by PyTorch."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.layers.rms_norm import RMS_NORM


@oracle(RMS_NORM, library="torch.nn.functional.rms_norm", needs=("torch",))
def rms_norm(x_BTD: np.ndarray, weight_D: np.ndarray, *, eps: float = 1e-6) -> np.ndarray:
    import torch

    x, weight = torch.from_numpy(x_BTD), torch.from_numpy(weight_D)
    return torch.nn.functional.rms_norm(x, weight.shape, weight, eps).numpy()


@oracle(RMS_NORM, library="transformers LlamaRMSNorm", dtype="float32", needs=("torch", "transformers"))
def llama_rms_norm(x_BTD: np.ndarray, weight_D: np.ndarray, *, eps: float = 1e-6) -> np.ndarray:
    import torch
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    layer = LlamaRMSNorm(weight_D.size, eps)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight_D))
        return layer(torch.from_numpy(x_BTD)).numpy()
