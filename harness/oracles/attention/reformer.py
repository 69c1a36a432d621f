"""PyTorch's FlexAttention over the union of all rounds, counted pair by pair, as oracle of attention.reformer."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.attention.reformer import CHUNK, REFORMER


@oracle(REFORMER, library="torch.nn.attention.flex_attention.flex_attention(block_mask)", needs=("torch",))
def flex_union(
    qk_BTNH: np.ndarray, v_BTNH: np.ndarray, buckets_BNRT: np.ndarray, *, chunk: int = CHUNK, causal: bool = True
) -> np.ndarray:
    import warnings

    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    B, N, R, T = buckets_BNRT.shape
    seen = torch.zeros(B, N, T, T, dtype=torch.bool)
    for b, n, r in np.ndindex(B, N, R):
        buckets = buckets_BNRT[b, n, r].tolist()
        place = {t: s for s, t in enumerate(sorted(range(T), key=lambda t: (buckets[t], t)))}
        for i in range(T):
            for j in range(i if causal else T):
                near = place[i] // chunk - place[j] // chunk in (0, 1)
                seen[b, n, i, j] |= i != j and near and buckets[i] == buckets[j]
    for i in range(T):
        seen[:, :, i, i] = ~seen[:, :, i].any(-1)
    q, v = (torch.from_numpy(x).transpose(1, 2) for x in (qk_BTNH, v_BTNH))
    mask = create_block_mask(lambda b, n, t, s: seen[b, n, t, s], B, N, T, T, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks to be compiled
        keys = torch.nn.functional.normalize(q, dim=-1)
        return flex_attention(q, keys, v, block_mask=mask, scale=1.0).transpose(1, 2).numpy()
