"""Native sparse attention by branches: selected attention of flash-linear-attention, FlexAttention's masks for the others."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.attention._fla import naive
from llmlab.harness.oracles.attention._flex import flex
from llmlab.reference.attention.native_sparse import BLOCK, NATIVE_SPARSE, SELECTED, STRIDE, WINDOW


@oracle(NATIVE_SPARSE, library="fla naive_nsa_selection, flex_attention", dtype="float32", needs=("torch", "fla", "einops"))
def by_branches(
    q_BTKGH: np.ndarray,
    k_BSKH: np.ndarray,
    v_BSKH: np.ndarray,
    pool_k_C: np.ndarray,
    pool_v_C: np.ndarray,
    gates_BTKGZ: np.ndarray,
    *,
    stride: int = STRIDE,
    block: int = BLOCK,
    selected: int = SELECTED,
    window: int = WINDOW,
) -> np.ndarray:
    import torch

    B, T, K, G, H = q_BTKGH.shape
    S, C = k_BSKH.shape[1], len(pool_k_C)
    starts = range(0, S - C + 1, stride)
    summary_k, summary_v = (
        np.stack([np.tensordot(x[:, i : i + C], pool, (1, 0)) for i in starts], axis=1)
        for x, pool in ((k_BSKH, pool_k_C), (v_BSKH, pool_v_C))
    )
    compressed, lse = flex(q_BTKGH, summary_k, summary_v, lambda t, i: i * stride + C - 1 <= t + S - T)
    near, _ = flex(q_BTKGH, k_BSKH, v_BSKH, lambda t, s: (t + S - T >= s) & (t + S - T - s < window))
    chosen = np.full((B, S, K, selected), -1)
    chosen[:, : S - T, :, 0] = 0  # fla knows only as many queries as keys: those before ours see something too
    for b, t, k in np.ndindex(B, T, K):
        chosen[b, S - T + t, k] = _best(
            np.exp(q_BTKGH[b, t, k] @ summary_k[b, :, k].T * H**-0.5 - lse[b, t, k][:, None]), S - T + t, C, stride, block,
            selected,
        )  # fmt: skip
    q = np.concatenate([np.zeros((B, S - T, K, G, H), q_BTKGH.dtype), q_BTKGH], axis=1).reshape(B, S, K * G, H)
    full = naive("nsa").naive_nsa_selection(*map(torch.from_numpy, (q, k_BSKH, v_BSKH, chosen)), block)
    branches = (compressed, full[:, S - T :].reshape(q_BTKGH.shape).numpy(), near)
    return sum(gates_BTKGZ[..., z : z + 1] * branch for z, branch in enumerate(branches))


def _best(weights_GM: np.ndarray, position: int, C: int, stride: int, block: int, selected: int) -> np.ndarray:
    """Blocks by the stretches of `stride` tokens that compressed tokens share with them, counted token by token."""
    own = position // block
    score = {}
    for j in range(own + 1):
        tokens = set(range(j * block, (j + 1) * block, stride))
        score[j] = sum(
            weights_GM[:, i].sum() * len(tokens & set(range(i * stride, i * stride + C, stride)))
            for i in range(weights_GM.shape[1])
            if i * stride + C - 1 <= position
        )
    always = sorted({0, max(own - 1, 0), own})
    others = sorted((j for j in score if j not in always), key=lambda j: (-score[j], j))
    best = sorted([*always, *others][:selected])
    return np.array(best + [-1] * (selected - len(best)))
