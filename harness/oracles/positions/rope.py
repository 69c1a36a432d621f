"""Rotary embedding as transformers' Llama (half-split) and GPT-J (interleaved) compute it."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.positions.rope import ROPE


@oracle(ROPE, library="transformers Llama and GPT-J rotary", dtype="float32", needs=("torch", "transformers"))
def rope(x_BTNH: np.ndarray, positions_BT: np.ndarray, *, theta: float = 10000.0, interleaved: bool = False) -> np.ndarray:
    import torch
    from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as rotate_interleaved
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as rotate_halves

    H = x_BTNH.shape[-1]
    speeds_R = 1.0 / theta ** (torch.arange(0, H, 2, dtype=torch.float64) / H)  # the libraries' float32 angles err by 1e-3
    angles_BTR = torch.from_numpy(positions_BT)[..., None].double() * speeds_R
    x = torch.from_numpy(x_BTNH)
    if interleaved:
        return rotate_interleaved(x, angles_BTR.sin().float(), angles_BTR.cos().float()).numpy()
    angles_BTH = torch.cat([angles_BTR, angles_BTR], -1)
    turned, _ = rotate_halves(x, x, angles_BTH.cos().float(), angles_BTH.sin().float(), unsqueeze_dim=2)
    return turned.numpy()


@oracle(ROPE, library="exact enumeration: complex multiplication, one pair at a time")
def by_complex_numbers(
    x_BTNH: np.ndarray, positions_BT: np.ndarray, *, theta: float = 10000.0, interleaved: bool = False
) -> np.ndarray:
    out_BTNH = np.empty_like(x_BTNH)
    H = x_BTNH.shape[-1]
    for r in range(H // 2):
        a, b = (2 * r, 2 * r + 1) if interleaved else (r, r + H // 2)
        turn_BT = np.exp(1j * positions_BT * theta ** (-2 * r / H))
        turned_BTN = (x_BTNH[..., a] + 1j * x_BTNH[..., b]) * turn_BT[..., None]
        out_BTNH[..., a], out_BTNH[..., b] = turned_BTN.real, turned_BTN.imag
    return out_BTNH
