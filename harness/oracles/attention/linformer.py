"""The `linformer` package's self-attention with identity projections around it, as oracle of attention.linformer."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.attention.linformer import LINFORMER


@oracle(LINFORMER, library="linformer.LinformerSelfAttention", needs=("torch", "linformer"))
def linformer(
    q_BTNH: np.ndarray, k_BSNH: np.ndarray, v_BSNH: np.ndarray, project_k_RS: np.ndarray, project_v_RS: np.ndarray
) -> np.ndarray:
    import torch
    from linformer import LinformerSelfAttention

    B, T, N, H = q_BTNH.shape
    S, R, D = k_BSNH.shape[1], len(project_k_RS), N * H
    layer = LinformerSelfAttention(dim=3 * D, seq_len=S, k=R, heads=N, dim_head=H).double()
    rows = torch.zeros(B, max(T, S), 3 * D, dtype=torch.float64)  # one input for all: thirds of it are q, k and v
    for third, x in enumerate((q_BTNH, k_BSNH, v_BSNH)):
        rows[:, : x.shape[1], third * D : (third + 1) * D] = torch.from_numpy(x).flatten(2)
    eye = torch.eye(D, dtype=torch.float64)
    with torch.no_grad():
        for third, linear in enumerate((layer.to_q, layer.to_k, layer.to_v)):
            linear.weight.zero_()
            linear.weight[:, third * D : (third + 1) * D] = eye
        layer.proj_k.copy_(torch.from_numpy(project_k_RS.T))
        layer.proj_v.copy_(torch.from_numpy(project_v_RS.T))
        layer.to_out = torch.nn.Identity()
        out = layer(rows[:, :T], context=rows[:, :S])
    return out.view(B, T, N, H).numpy()
