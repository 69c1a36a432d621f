"""Sequence parallelism: norms and dropout on sequence shards (Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2).

Outside the matrices of a tensor-parallel block every rank would repeat the norms, dropouts and residual sums on the whole
activation. Cut along the sequence they take 1/p of the time and memory: the activation is all-gathered where a column-parallel
matrix starts and reduce-scattered where a row-parallel one ends; backwards the two change places. As an all-reduce is a
reduce-scatter and an all-gather, nothing more is sent than by tensor parallelism alone. With n = B T D elements and p ranks,
over all ranks, forward and backward of one block:

    8 (p - 1) n           as in parallel.tensor_1d
    2 (p - 1) n           more where the gathered inputs are not kept but gathered again backwards (as the paper does)
    2 (p - 1) 5 D         the gradients of what every rank holds whole: two norms' weights and biases, and one bias

Axes: B batch, T position, D model width, N heads, H head width, F feed-forward width, 3 query, key, value.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.reference.layers.layer_norm import layer_norm, layer_norm_backward
from llmlab.reference.op import Procedure
from llmlab.reference.parallel._block import attention_share, attention_share_backward, mlp_share, mlp_share_backward
from llmlab.reference.parallel._exchange import all_gather, all_reduce, reduce_scatter, same_to_rounding, split
from llmlab.reference.parallel._traffic import Traffic
from llmlab.reference.parallel.tensor_1d import tensor_1d_arguments


def sequence(
    *,
    x_BTD: np.ndarray,
    norm_weight_1_D: np.ndarray,
    norm_bias_1_D: np.ndarray,
    qkv_3DNH: np.ndarray,
    proj_NHD: np.ndarray,
    keep_attention_BTD: np.ndarray,
    norm_weight_2_D: np.ndarray,
    norm_bias_2_D: np.ndarray,
    up_DF: np.ndarray,
    up_bias_F: np.ndarray,
    down_FD: np.ndarray,
    down_bias_D: np.ndarray,
    keep_mlp_BTD: np.ndarray,
    dout_BTD: np.ndarray,
    keep_fraction: float,
    num_ranks: int,
    store_gathered: bool = True,
    traffic: Traffic | None = None,
) -> dict[str, np.ndarray]:
    """Run a block with norms and dropout forwards and backwards on sequence shards; return out and every gradient.

        middle = x + dropout(attention(norm_1(x))),   out = middle + dropout(GELU(norm_2(middle) U + b) V + c)

    `keep_*` says which elements dropout keeps; those are divided by `keep_fraction`.

    Raises:
        ValueError: positions, heads or feed-forward width do not divide by the ranks, or keep_fraction is not in (0, 1].

    >>> rng = np.random.default_rng(0); traffic = Traffic()
    >>> drawn = sequence_arguments(rng, B=1, T=2, D=4, N=2, H=2, F=8)
    >>> result = sequence(**drawn, keep_fraction=0.9, num_ranks=2, traffic=traffic)
    >>> traffic.total_bytes == (8 * (2 - 1) * (1 * 2 * 4) + 2 * (2 - 1) * 5 * 4) * 8
    True
    """
    if not 0 < keep_fraction <= 1:
        raise ValueError(f"keep_fraction={keep_fraction} is not in (0, 1]")
    traffic = Traffic() if traffic is None else traffic
    x, dout = split(x_BTD, num_ranks, 1, "positions"), split(dout_BTD, num_ranks, 1, "positions")
    keep_1 = [keep / keep_fraction for keep in split(keep_attention_BTD, num_ranks, 1, "positions")]
    keep_2 = [keep / keep_fraction for keep in split(keep_mlp_BTD, num_ranks, 1, "positions")]
    qkv, proj = split(qkv_3DNH, num_ranks, 2, "heads"), split(proj_NHD, num_ranks, 0, "heads")
    up, up_bias = split(up_DF, num_ranks, 1, "feed-forward width"), split(up_bias_F, num_ranks, 0, "feed-forward width")
    down = split(down_FD, num_ranks, 0, "feed-forward width")
    ranks = range(num_ranks)

    normed_1 = [layer_norm(part, norm_weight_1_D, norm_bias_1_D) for part in x]
    whole_1 = all_gather(normed_1, traffic, axis=1)
    attended = reduce_scatter([attention_share(whole_1[r], qkv[r], proj[r]) for r in ranks], traffic, axis=1)
    middle = [x[r] + attended[r] * keep_1[r] for r in ranks]
    normed_2 = [layer_norm(part, norm_weight_2_D, norm_bias_2_D) for part in middle]
    whole_2 = all_gather(normed_2, traffic, axis=1)
    fed = reduce_scatter([mlp_share(whole_2[r], up[r], up_bias[r], down[r]) for r in ranks], traffic, axis=1)
    out = [middle[r] + (fed[r] + down_bias_D) * keep_2[r] for r in ranks]

    dfed = [dout[r] * keep_2[r] for r in ranks]
    dfed_whole = all_gather(dfed, traffic, axis=1)
    whole_2 = whole_2 if store_gathered else all_gather(normed_2, traffic, axis=1)
    mlp_grads = [mlp_share_backward(dfed_whole[r], whole_2[r], up[r], up_bias[r], down[r]) for r in ranks]
    dnormed_2 = reduce_scatter([grads[0] for grads in mlp_grads], traffic, axis=1)
    norm_2 = [layer_norm_backward(dnormed_2[r], middle[r], norm_weight_2_D, norm_bias_2_D) for r in ranks]
    dmiddle = [dout[r] + norm_2[r][0] for r in ranks]

    dattended = all_gather([dmiddle[r] * keep_1[r] for r in ranks], traffic, axis=1)
    whole_1 = whole_1 if store_gathered else all_gather(normed_1, traffic, axis=1)
    attention_grads = [attention_share_backward(dattended[r], whole_1[r], qkv[r], proj[r]) for r in ranks]
    dnormed_1 = reduce_scatter([grads[0] for grads in attention_grads], traffic, axis=1)
    norm_1 = [layer_norm_backward(dnormed_1[r], x[r], norm_weight_1_D, norm_bias_1_D) for r in ranks]
    dx = [dmiddle[r] + norm_1[r][0] for r in ranks]

    replicated = [np.stack([*norm_1[r][1:], *norm_2[r][1:], dfed[r].sum((0, 1))]) for r in ranks]
    dweight_1, dbias_1, dweight_2, dbias_2, ddown_bias = all_reduce(replicated, traffic)[-1]
    return {
        "out": np.concatenate(out, axis=1),
        "dx": np.concatenate(dx, axis=1),
        "dnorm_weight_1": dweight_1,
        "dnorm_bias_1": dbias_1,
        "dnorm_weight_2": dweight_2,
        "dnorm_bias_2": dbias_2,
        "dqkv": np.concatenate([grads[1] for grads in attention_grads], axis=2),
        "dproj": np.concatenate([grads[2] for grads in attention_grads]),
        "dup": np.concatenate([grads[1] for grads in mlp_grads], axis=1),
        "dup_bias": np.concatenate([grads[2] for grads in mlp_grads]),
        "ddown": np.concatenate([grads[3] for grads in mlp_grads]),
        "ddown_bias": ddown_bias,
    }


def sequence_arguments(
    rng: np.random.Generator, *, B: int, T: int, D: int, N: int, H: int, F: int, keep: float = 0.9
) -> dict[str, np.ndarray]:
    """Draw the arrays of a block with norms and dropout masks."""
    drawn = tensor_1d_arguments(rng, B=B, T=T, D=D, N=N, H=H, F=F)
    drawn |= {f"norm_{kind}_{number}_D": rng.standard_normal(D) for kind in ("weight", "bias") for number in (1, 2)}
    return drawn | {f"keep_{name}_BTD": rng.random((B, T, D)) < keep for name in ("attention", "mlp")}


def sequence_examples(rng: np.random.Generator) -> dict[str, Any]:
    """Draw a small block on 1, 2 or 4 ranks."""
    ranks = int(rng.choice([1, 2, 4]))
    B, D, H = (int(size) for size in rng.integers([1, 3, 1], [3, 12, 5]))
    T, N, F = (ranks * int(times) for times in rng.integers(1, 4, 3))
    drawn = sequence_arguments(rng, B=B, T=T, D=D, N=N, H=H, F=F, keep=0.8)
    return {**drawn, "keep_fraction": 0.8, "num_ranks": ranks, "store_gathered": bool(rng.random() < 0.5)}


SEQUENCE = Procedure(
    reference=sequence,
    examples=sequence_examples,
    paper="arXiv:2205.05198",
    same=same_to_rounding,
)
