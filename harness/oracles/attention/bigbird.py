"""transformers' BigBird attention, given our random blocks, as oracle of attention.bigbird.

It wants at least one random block per row; the case without any is FlexAttention's.
"""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.attention._flex import flex
from llmlab.reference.attention.bigbird import BIGBIRD


def transformers_bigbird(
    q_BTNH: np.ndarray, k_BTNH: np.ndarray, v_BTNH: np.ndarray, random_NMR: np.ndarray, *, training: bool
) -> np.ndarray:
    """The block-sparse path of BigBirdBlockSparseAttention; in evaluation it puts block 0 for every random one."""
    import torch
    from transformers import BigBirdConfig
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel

    B, T, N, H = q_BTNH.shape
    M, R = random_NMR.shape[1:]
    C = T // M
    config = BigBirdConfig(hidden_size=N * H, num_attention_heads=N, block_size=C, num_random_blocks=R)
    layer = BigBirdBlockSparseAttention(config, seed=0).double().train(training)
    if training:
        layer._bigbird_block_rand_mask_with_head = lambda **sizes: list(random_NMR[:, 1:-1])
    q, k, v = (torch.from_numpy(x).transpose(1, 2) for x in (q_BTNH, k_BTNH, v_BTNH))
    blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(B, T, dtype=torch.float64), C)
    with torch.no_grad():
        out = layer.bigbird_block_sparse_attention(
            q, k, v, band, rows, columns, blocked, blocked, N, R, H, C, C, B, T, T, seed=0, plan_from_length=[T],
            plan_num_rand_blocks=[R],
        )[0]  # fmt: skip
    return out.reshape(B, T, N, H).numpy()


@oracle(BIGBIRD, library="transformers BigBirdBlockSparseAttention", needs=("torch", "transformers"))
def bigbird(q_BTNH: np.ndarray, k_BTNH: np.ndarray, v_BTNH: np.ndarray, random_NMR: np.ndarray) -> np.ndarray:
    M, R = random_NMR.shape[1:]
    if R:
        return transformers_bigbird(q_BTNH, k_BTNH, v_BTNH, random_NMR, training=True)
    C = q_BTNH.shape[1] // M

    def seen(t, s):  # type: ignore[no-untyped-def]
        i, j = t // C, s // C
        return ((i - j).abs() <= 1) | (i == 0) | (i == M - 1) | (j == 0) | (j == M - 1)

    return flex(q_BTNH[..., None, :], k_BTNH, v_BTNH, seen)[0][..., 0, :]
