"""PyTorch's bit operations and attention, as oracle of attention.quantized_kv.

Hugging Face's QuantizedCache needs the packages quanto or hqq; what it does is `x = code * scale + zero` and plain attention,
asked here of PyTorch: codes are unpacked to the channels they belong to one by one.
"""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.attention.quantized_kv import QUANTIZED_KV


@oracle(QUANTIZED_KV, library="torch.addcmul and torch.nn.functional.scaled_dot_product_attention", needs=("torch",))
def dequantized(
    q_BKGH: np.ndarray,
    k_code_BSKPW: np.ndarray,
    k_scale_BJKH: np.ndarray,
    k_zero_BJKH: np.ndarray,
    v_code_BSKPW: np.ndarray,
    v_scale_BSKP: np.ndarray,
    v_zero_BSKP: np.ndarray,
    k_recent_BRKH: np.ndarray,
    v_recent_BRKH: np.ndarray,
) -> np.ndarray:
    import torch

    P, W = k_code_BSKPW.shape[3:]
    H = q_BKGH.shape[-1]
    U = H // (P * W)

    def channels(code: np.ndarray) -> torch.Tensor:
        bytes_ = torch.tensor(code).int()
        parts = []
        for h in range(H):
            p, u, w = h // (U * W), h // W % U, h % W
            parts.append(torch.bitwise_and(torch.bitwise_right_shift(bytes_[..., p, w], u * (8 // U)), 2 ** (8 // U) - 1))
        return torch.stack(parts, -1).double()

    C = k_code_BSKPW.shape[1] // k_scale_BJKH.shape[1]
    k_scale, k_zero = (torch.tensor(x).repeat_interleave(C, 1) for x in (k_scale_BJKH, k_zero_BJKH))
    v_scale, v_zero = (torch.tensor(x).repeat_interleave(H // P, 3) for x in (v_scale_BSKP, v_zero_BSKP))
    k_BTKH = torch.cat([torch.addcmul(k_zero, channels(k_code_BSKPW), k_scale), torch.tensor(k_recent_BRKH)], 1)
    v_BTKH = torch.cat([torch.addcmul(v_zero, channels(v_code_BSKPW), v_scale), torch.tensor(v_recent_BRKH)], 1)
    out_BNTH = torch.nn.functional.scaled_dot_product_attention(
        torch.tensor(q_BKGH).flatten(1, 2)[:, :, None], k_BTKH.transpose(1, 2), v_BTKH.transpose(1, 2), enable_gqa=True
    )
    return out_BNTH[:, :, 0].reshape(q_BKGH.shape).numpy()
