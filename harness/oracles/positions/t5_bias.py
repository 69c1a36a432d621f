"""The relative bias as transformers' T5 attention computes it."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.positions.t5_bias import T5_BIAS


@oracle(T5_BIAS, library="transformers T5Attention.compute_bias", needs=("torch", "transformers"))
def t5_bias(
    scores_BNTS: np.ndarray, weight_UN: np.ndarray, *, bidirectional: bool = True, max_distance: int = 128
) -> np.ndarray:
    import torch
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    T, S = scores_BNTS.shape[2:]
    config = T5Config(
        d_model=4,
        d_kv=4,
        num_heads=weight_UN.shape[1],
        relative_attention_num_buckets=weight_UN.shape[0],
        relative_attention_max_distance=max_distance,
        is_decoder=not bidirectional,
    )
    attention = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    attention.relative_attention_bias.weight = torch.nn.Parameter(torch.from_numpy(weight_UN), requires_grad=False)
    bias_1NTS = attention.compute_bias(S, S)[:, :, S - T :]
    return scores_BNTS + bias_1NTS.numpy()
