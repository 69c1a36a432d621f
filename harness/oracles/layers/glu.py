"""Gated linear units as transformers' Llama MLP computes them, with identity projections."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.layers.glu import GLU


@oracle(GLU, library="transformers LlamaMLP", needs=("torch", "transformers"))
def glu(gate_BTF: np.ndarray, up_BTF: np.ndarray, *, kind: str = "silu") -> np.ndarray:
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    names = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "silu": "silu", "relu": "relu", "relu2": "relu2"}
    F = gate_BTF.shape[-1]
    mlp = LlamaMLP(LlamaConfig(hidden_size=2 * F, intermediate_size=F, num_attention_heads=1, hidden_act=names[kind])).double()
    with torch.no_grad():  # the input holds gate and up side by side; each projection picks its half
        mlp.gate_proj.weight.copy_(torch.eye(F, 2 * F))
        mlp.up_proj.weight.copy_(torch.eye(2 * F)[F:])
        mlp.down_proj.weight.copy_(torch.eye(2 * F, F))
        return mlp(torch.from_numpy(np.concatenate([gate_BTF, up_BTF], -1)))[..., :F].numpy()
