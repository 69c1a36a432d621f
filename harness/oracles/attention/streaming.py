"""Hugging Face's rotary embedding and PyTorch's attention on the tokens a cache holds, as oracle of attention.streaming.

Hugging Face's own SinkCache is gone since version 5; here the kept tokens are listed in the order of the text, sequence by
sequence, which shares nothing with the ring of slots.
"""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.attention.streaming import STREAMING


@oracle(
    STREAMING,
    library="transformers apply_rotary_pos_emb and torch scaled_dot_product_attention",
    dtype="float32",
    needs=("transformers", "torch"),
)
def kept_tokens(
    q_BKGH: np.ndarray, k_BCKH: np.ndarray, v_BCKH: np.ndarray, seen_B: np.ndarray, *, sinks: int = 4, theta: float = 10000.0
) -> np.ndarray:
    import torch
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    C, H = k_BCKH.shape[1], k_BCKH.shape[3]
    out_BKGH = np.empty_like(q_BKGH)
    for b, seen in enumerate(seen_B.tolist()):
        tokens = list(range(min(seen, sinks))) + list(range(max(sinks, seen - (C - sinks)), seen))
        slots = [p if p < sinks else sinks + (p - sinks) % (C - sinks) for p in tokens]
        q_1NTH = torch.tensor(q_BKGH[b]).flatten(0, 1)[None, :, None]
        k_1KTH, v_1KTH = (torch.tensor(x[b, slots]).transpose(0, 1)[None] for x in (k_BCKH, v_BCKH))
        speeds = theta ** (-torch.arange(0, H, 2, dtype=torch.float64) / H)
        angle_1TH = (torch.arange(len(tokens))[:, None] * speeds).repeat(1, 2)[None]
        cos, sin = angle_1TH.cos().float(), angle_1TH.sin().float()
        q, _ = apply_rotary_pos_emb(q_1NTH, q_1NTH, cos[:, -1:], sin[:, -1:])
        _, k = apply_rotary_pos_emb(k_1KTH, k_1KTH, cos, sin)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v_1KTH, enable_gqa=True)
        out_BKGH[b] = out[0, :, 0].reshape(q_BKGH[b].shape).numpy()
    return out_BKGH
