"""One-dimensional tensor parallelism: column- and row-parallel layers (Megatron-LM, Shoeybi et al. 2019, arXiv:1909.08053).

Section 3 of the paper: the first matrix of a pair is cut by columns, the second by rows, so that nothing is exchanged between
them. Two conjugate operators stand around a pair: f is the identity forwards and an all-reduce backwards, g an all-reduce
forwards and the identity backwards. Attention is cut by heads, the feed-forward network by its inner width.

With p ranks and an activation of n = B T D elements, each of the two layers of a block all-reduces n once forwards (g) and
once backwards (f); by rings that is 2 (p - 1) n elements over all ranks each time, so

    elements sent by all ranks = 8 (p - 1) B T D,   rounds = 8 (p - 1)       (one block, forward and backward)

Axes: B batch, T position, D model width, N heads, H head width, F feed-forward width, 3 query, key, value.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.reference.op import Cost, Dims, Procedure
from llmlab.reference.parallel._block import attention_share, attention_share_backward, mlp_share, mlp_share_backward
from llmlab.reference.parallel._exchange import Parts, all_reduce, same_to_rounding, split
from llmlab.reference.parallel._traffic import Traffic


def column_linear(x: Parts, weights: Parts, biases: Parts) -> Parts:
    """Every rank multiplies the whole x by its columns; nothing is sent and the outputs stay cut by columns."""
    return [part @ weight + bias for part, weight, bias in zip(x, weights, biases)]


def column_linear_backward(dout: Parts, x: Parts, weights: Parts, traffic: Traffic) -> tuple[Parts, Parts, Parts]:
    """Return (dx, dweights, dbiases) of `column_linear`; dx is an all-reduce (the operator f)."""
    dx = all_reduce([grad @ weight.T for grad, weight in zip(dout, weights)], traffic)
    dweights = [_rows(part).T @ _rows(grad) for part, grad in zip(x, dout)]
    return dx, dweights, [_rows(grad).sum(0) for grad in dout]


def row_linear(x: Parts, weights: Parts, bias: np.ndarray, traffic: Traffic) -> Parts:
    """Every rank multiplies its columns of x by its rows; an all-reduce sums them (the operator g), then comes the bias."""
    return [total + bias for total in all_reduce([part @ weight for part, weight in zip(x, weights)], traffic)]


def row_linear_backward(dout: Parts, x: Parts, weights: Parts) -> tuple[Parts, Parts, np.ndarray]:
    """Return (dx, dweights, dbias) of `row_linear`; nothing is sent."""
    dx = [grad @ weight.T for grad, weight in zip(dout, weights)]
    dweights = [_rows(part).T @ _rows(grad) for part, grad in zip(x, dout)]
    return dx, dweights, _rows(dout[0]).sum(0)


def _rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


def tensor_1d(
    *,
    x_BTD: np.ndarray,
    qkv_3DNH: np.ndarray,
    proj_NHD: np.ndarray,
    up_DF: np.ndarray,
    up_bias_F: np.ndarray,
    down_FD: np.ndarray,
    down_bias_D: np.ndarray,
    dout_BTD: np.ndarray,
    num_ranks: int,
    traffic: Traffic | None = None,
) -> dict[str, np.ndarray]:
    """Run a block without norms forwards and backwards on `num_ranks`; return out and the gradient of every argument.

        middle = x + attention(x),   out = middle + GELU(middle U + b) V + c

    Raises:
        ValueError: heads or feed-forward width do not divide by the ranks.

    >>> rng = np.random.default_rng(0); traffic = Traffic()
    >>> result = tensor_1d(**tensor_1d_arguments(rng, B=1, T=2, D=4, N=2, H=2, F=8), num_ranks=2, traffic=traffic)
    >>> traffic.total_bytes == 8 * (2 - 1) * (1 * 2 * 4) * 8, traffic.rounds
    (True, 8)
    """
    traffic = Traffic() if traffic is None else traffic
    qkv, proj = split(qkv_3DNH, num_ranks, 2, "heads"), split(proj_NHD, num_ranks, 0, "heads")
    up, up_bias = split(up_DF, num_ranks, 1, "feed-forward width"), split(up_bias_F, num_ranks, 0, "feed-forward width")
    down = split(down_FD, num_ranks, 0, "feed-forward width")
    ranks = range(num_ranks)

    attended = all_reduce([attention_share(x_BTD, qkv[r], proj[r]) for r in ranks], traffic)
    middle = [x_BTD + attended[r] for r in ranks]
    fed = all_reduce([mlp_share(middle[r], up[r], up_bias[r], down[r]) for r in ranks], traffic)
    out = [middle[r] + fed[r] + down_bias_D for r in ranks]

    mlp_grads = [mlp_share_backward(dout_BTD, middle[r], up[r], up_bias[r], down[r]) for r in ranks]
    dmiddle = [dout_BTD + dx for dx in all_reduce([grads[0] for grads in mlp_grads], traffic)]
    attention_grads = [attention_share_backward(dmiddle[r], x_BTD, qkv[r], proj[r]) for r in ranks]
    dx = [dmiddle[r] + part for r, part in enumerate(all_reduce([grads[0] for grads in attention_grads], traffic))]
    return {
        "out": out[-1],
        "dx": dx[-1],
        "dqkv": np.concatenate([grads[1] for grads in attention_grads], axis=2),
        "dproj": np.concatenate([grads[2] for grads in attention_grads]),
        "dup": np.concatenate([grads[1] for grads in mlp_grads], axis=1),
        "dup_bias": np.concatenate([grads[2] for grads in mlp_grads]),
        "ddown": np.concatenate([grads[3] for grads in mlp_grads]),
        "ddown_bias": dout_BTD.sum((0, 1)),
    }


def tensor_1d_arguments(rng: np.random.Generator, *, B: int, T: int, D: int, N: int, H: int, F: int) -> dict[str, np.ndarray]:
    """Draw the arrays of a block, weights scaled by the square root of what they sum over."""
    shapes = {
        "x_BTD": (B, T, D),
        "qkv_3DNH": (3, D, N, H),
        "proj_NHD": (N, H, D),
        "up_DF": (D, F),
        "up_bias_F": (F,),
        "down_FD": (F, D),
        "down_bias_D": (D,),
        "dout_BTD": (B, T, D),
    }
    scale = {"qkv_3DNH": D**-0.5, "proj_NHD": (N * H) ** -0.5, "up_DF": D**-0.5, "down_FD": F**-0.5}
    return {name: rng.standard_normal(shape) * scale.get(name, 1.0) for name, shape in shapes.items()}


def tensor_1d_examples(rng: np.random.Generator) -> dict[str, Any]:
    """Draw a small block on 1, 2 or 4 ranks."""
    ranks = int(rng.choice([1, 2, 4]))
    B, T, D, H = (int(size) for size in rng.integers(1, [3, 6, 12, 5]))
    N, F = (ranks * int(times) for times in rng.integers(1, 4, 2))
    return {**tensor_1d_arguments(rng, B=B, T=T, D=D, N=N, H=H, F=F), "num_ranks": ranks}


def tensor_1d_cost(d: Dims) -> Cost:
    """FLOPs of one rank, forward and backward: three times the products of its weights with B T rows, and its attention.

    Sizes: B, T, D, N, H, F and P ranks. A matrix product of n elements of weight takes 2 B T n FLOPs forwards and twice that
    backwards; q k' and weights times v take 4 B T^2 N H together (masked pairs included). Weights are read twice and their
    gradients written; the activation is read once per layer and pass.
    """
    weights = (4 * d["D"] * d["N"] * d["H"] + 2 * d["D"] * d["F"]) / d["P"]
    rows = d["B"] * d["T"]
    return Cost(
        flops=6 * rows * weights + 12 * rows * d["T"] * d["N"] * d["H"] / d["P"],
        elements_read=2 * weights + 4 * rows * d["D"],
        elements_written=weights + 4 * rows * d["D"],
    )


TENSOR_1D = Procedure(
    reference=tensor_1d,
    examples=tensor_1d_examples,
    paper="arXiv:1909.08053",
    same=same_to_rounding,
    cost=tensor_1d_cost,
)
