"""Longformer's attention: a dilated window and global tokens (Beltagy et al. 2020, arXiv:2004.05150, section 3.1).

Axes: B batch, T position, N head, H head width, P global tokens, which come first, R = T - P local ones.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.attention._gathered import Group, attend_groups, attend_groups_backward
from llmlab.reference.attention._masked import EVERY_PAIR, attend, attend_backward
from llmlab.reference.op import Cost, Dims, Op

WINDOW = 512  # section 4.1's pretrained models: 256 tokens on each side


def longformer(
    q_BTNH: np.ndarray,
    k_BTNH: np.ndarray,
    v_BTNH: np.ndarray,
    global_q_BPNH: np.ndarray,
    global_k_BTNH: np.ndarray,
    global_v_BTNH: np.ndarray,
    *,
    window: int = WINDOW,
    dilation: int = 1,
) -> np.ndarray:
    """Attend local tokens to their window and the global tokens, global tokens to everything; return out_BTNH.

        token t >= P sees  {t + dilation j : |j| <= window / 2}  and  {0 .. P - 1},   token t < P sees all

    The first P tokens are global ([CLS], the question). They attend with projections of their own, global_q, global_k and
    global_v; local tokens see them through the local keys and values, and see each of them once. There is no causal mask,
    and q, k, v of global tokens are used as keys only. Scores are scaled by 1 / sqrt(H). A NaN or infinity in a query stays
    in that query's row.

    Raises:
        ValueError: a window that is odd or negative, a dilation below 1, or more global tokens than tokens.

    >>> zero = np.zeros((1, 5, 1, 1)); values = np.array([1.0, 2.0, 4.0, 8.0, 16.0]).reshape(1, 5, 1, 1)
    >>> longformer(zero, zero, values, zero[:, :0], zero, values, window=2).ravel()  # no global token
    array([ 1.5       ,  2.33333333,  4.66666667,  9.33333333, 12.        ])
    >>> longformer(zero, zero, values, zero[:, :1], zero, values, window=0).ravel()  # the first one is global
    array([6.2, 1.5, 2.5, 4.5, 8.5])
    """
    P = global_q_BPNH.shape[1]
    groups = window_groups(q_BTNH.shape[1], P, window=window, dilation=dilation)
    local_BTNH = attend_groups(q_BTNH[..., None, :], k_BTNH, v_BTNH, groups)[..., 0, :]
    global_BPNH = attend(global_q_BPNH[..., None, :], global_k_BTNH, global_v_BTNH, EVERY_PAIR)[..., 0, :]
    return np.concatenate([global_BPNH, local_BTNH[:, P:]], axis=1)


def require_pattern(T: int, P: int, window: int, dilation: int) -> None:
    """Refuse what describes no pattern."""
    if window < 0 or window % 2:
        raise ValueError(f"window={window}: must be even and not negative, half of it on each side")
    if dilation < 1:
        raise ValueError(f"dilation={dilation}: must be at least 1")
    if P > T:
        raise ValueError(f"P={P} global tokens of T={T}")


def window_groups(T: int, P: int, *, window: int, dilation: int) -> list[Group]:
    """Return one group per local token: its window, cut off at both ends, and the global tokens."""
    require_pattern(T, P, window, dilation)
    reach = dilation * np.arange(-(window // 2), window // 2 + 1)
    groups = []
    for t in range(P, T):
        inside = t + reach
        keys = np.concatenate([np.arange(P), inside[(inside >= P) & (inside < T)]])
        groups.append(Group(np.array([t]), keys))
    return groups


def longformer_backward(
    dout_BTNH: np.ndarray,
    q_BTNH: np.ndarray,
    k_BTNH: np.ndarray,
    v_BTNH: np.ndarray,
    global_q_BPNH: np.ndarray,
    global_k_BTNH: np.ndarray,
    global_v_BTNH: np.ndarray,
    *,
    window: int = WINDOW,
    dilation: int = 1,
) -> tuple[np.ndarray, ...]:
    """Return the gradients of the six inputs; local queries of global tokens get none."""
    P = global_q_BPNH.shape[1]
    groups = window_groups(q_BTNH.shape[1], P, window=window, dilation=dilation)
    dq, dk, dv = attend_groups_backward(dout_BTNH[..., None, :], q_BTNH[..., None, :], k_BTNH, v_BTNH, groups)
    dglobal_q, dglobal_k, dglobal_v = attend_backward(
        dout_BTNH[:, :P, :, None], global_q_BPNH[..., None, :], global_k_BTNH, global_v_BTNH, EVERY_PAIR
    )
    return dq[..., 0, :], dk, dv, dglobal_q[..., 0, :], dglobal_k, dglobal_v


def longformer_pairs(T: int, P: int, *, window: int = WINDOW, dilation: int = 1) -> int:
    """Count the (query, key) pairs.

    >>> longformer_pairs(5, 0, window=2), longformer_pairs(5, 1, window=0), longformer_pairs(6, 0, window=2, dilation=3)
    (13, 13, 12)
    """
    local = T - P
    steps = min(window // 2, max(local - 1, 0) // dilation)  # further steps leave the text from every token
    inside = local + 2 * (steps * local - dilation * steps * (steps + 1) // 2)
    return inside + local * P + P * T


def longformer_cost(d: Dims, *, window: int = WINDOW) -> Cost:
    """Both matmuls over the pairs seen, 2 FLOPs per multiply-add; exponentials are not counted.

    Six arrays are read once, of the local queries and of the global keys and values only what is used.
    """
    token = d["B"] * d["N"] * d["H"]
    keys = 2 * d["T"] * token if d["P"] else 0
    return Cost(
        flops=4 * token * longformer_pairs(d["T"], d["P"], window=window),
        elements_read=token * (d["T"] + 2 * d["T"]) + keys,
        elements_written=token * d["T"],
    )


LONGFORMER = Op(
    reference=longformer,
    cost=longformer_cost,
    dims={"B": range(1, 3), "P": range(0, 3), "R": range(6, 14), "N": range(1, 3), "H": range(1, 20)},
    derived={"T": lambda d: d["P"] + d["R"]},
    shapes={
        "longformer-base 4k tokens, one global": {"B": 1, "P": 1, "R": 4095, "N": 12, "H": 64},
        "longformer-base question of 32 over 4k tokens": {"B": 1, "P": 32, "R": 4064, "N": 12, "H": 64},
    },
    paper="arXiv:2004.05150",
    backward=longformer_backward,
    options=({}, {"window": 2}, {"window": 4, "dilation": 2}),
    empty=("B",),
    nonfinite=("q_BTNH",),
    powers={"B": 1, "R": 1, "N": 1, "H": 1},
)
