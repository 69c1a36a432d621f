"""Linear biases as transformers' BLOOM builds them; it measures distance from key 0, which differs per query only."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.positions.alibi import ALIBI


@oracle(ALIBI, library="transformers build_alibi_tensor", dtype="float32", needs=("torch", "transformers"))
def alibi(scores_BNTS: np.ndarray) -> np.ndarray:
    import torch
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    B, N, T, S = scores_BNTS.shape
    by_key_BNS = build_alibi_tensor(torch.ones(B, S, dtype=torch.int64), N, torch.float32).view(B, N, S).numpy()
    own_BNT = by_key_BNS[..., S - T :]
    return scores_BNTS + (by_key_BNS[:, :, None, :] - own_BNT[..., None])
