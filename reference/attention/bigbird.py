"""BigBird's block attention: global, window and random blocks (Zaheer et al. 2020, arXiv:2007.14062, section 2 and appendix D).

Axes: B batch, T position, N head, H head width; M block, C tokens of a block, R random blocks listed. T = M C.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.attention._gathered import Group, attend_groups, attend_groups_backward, block_positions, per_head
from llmlab.reference.op import Cost, Dims, Op


def bigbird(q_BTNH: np.ndarray, k_BTNH: np.ndarray, v_BTNH: np.ndarray, random_NMR: np.ndarray) -> np.ndarray:
    """Attend blocks of tokens to global, neighbouring and random blocks; return out_BTNH.

        block i sees  {0, M - 1}  (global),  {i - 1, i, i + 1}  (window),  random_NMR[n, i];   blocks 0 and M - 1 see all

    This is the internal construction (ITC): the global tokens are the first and the last block of the text. What a block
    sees is a set, the row of an adjacency matrix, so a block that is listed twice counts once (softmax over N(i), eq. 1).
    Random blocks are drawn once per head, see `random_blocks`. There is no causal mask. A NaN or infinity in a query stays in
    that query's row.

    Raises:
        ValueError: tokens that do not make M blocks, or a random block that does not exist.

    >>> zero = np.zeros((1, 6, 1, 1)); values = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]).reshape(1, 6, 1, 1)
    >>> none = np.zeros((1, 6, 0), int)
    >>> bigbird(zero, zero, values, none).ravel().round(3)  # token 2 sees 0, 1, 2, 3 and 5
    array([10.5 ,  9.75,  9.4 , 12.2 , 14.25, 10.5 ])
    """
    heads = [
        attend_groups(q_BT1H[..., None, :], k_BT1H, v_BT1H, block_groups(q_BTNH.shape[1], random_MR))[..., 0, :]
        for (q_BT1H, k_BT1H, v_BT1H), random_MR in zip(per_head(q_BTNH, k_BTNH, v_BTNH), random_NMR)
    ]
    return np.concatenate(heads, axis=2)


def seen_blocks(random_MR: np.ndarray) -> list[list[int]]:
    """Return for every block the blocks it sees, ascending.

    >>> seen_blocks(np.array([[0], [4], [1], [2], [0], [0]]))
    [[0, 1, 2, 3, 4, 5], [0, 1, 2, 4, 5], [0, 1, 2, 3, 5], [0, 2, 3, 4, 5], [0, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    """
    M = len(random_MR)
    if random_MR.size and not (random_MR.min() >= 0 and random_MR.max() < M):
        raise ValueError(f"random blocks {random_MR.min()}..{random_MR.max()}: not all in 0..{M - 1}")
    everything = list(range(M))
    return [everything if i in (0, M - 1) else sorted({0, i - 1, i, i + 1, M - 1, *random_MR[i].tolist()}) for i in range(M)]


def block_groups(T: int, random_MR: np.ndarray) -> list[Group]:
    """Return one group per block of queries."""
    C = tokens_per_block(T, len(random_MR))
    return [Group(block_positions([i], C), block_positions(seen, C)) for i, seen in enumerate(seen_blocks(random_MR))]


def tokens_per_block(T: int, M: int) -> int:
    """Return C, checked."""
    if M < 1 or T % M:
        raise ValueError(f"T={T} tokens are not M={M} whole blocks")
    return T // M


def random_blocks(M: int, R: int, rng: np.random.Generator) -> np.ndarray:
    """Draw random_MR: R different blocks for each, none of them global or in its window.

    Raises:
        ValueError: fewer than R blocks are left to draw from.
    """
    if max(M - 5, 0) < R:
        raise ValueError(f"R={R}: of M={M} blocks only {max(M - 5, 0)} are neither global nor in every window")
    far = [[j for j in range(1, M - 1) if abs(i - j) > 1] for i in range(M)]
    return np.array([rng.permutation(blocks)[:R] for blocks in far], dtype=np.int64).reshape(M, R)


def bigbird_backward(
    dout_BTNH: np.ndarray, q_BTNH: np.ndarray, k_BTNH: np.ndarray, v_BTNH: np.ndarray, random_NMR: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, None]:
    """Return (dq_BTNH, dk_BTNH, dv_BTNH, None)."""
    heads = []
    for (dout, q, k, v), random_MR in zip(per_head(dout_BTNH, q_BTNH, k_BTNH, v_BTNH), random_NMR):
        groups = block_groups(q_BTNH.shape[1], random_MR)
        dq, dk, dv = attend_groups_backward(dout[..., None, :], q[..., None, :], k, v, groups)
        heads.append((dq[..., 0, :], dk, dv))
    dq_BTNH, dk_BTNH, dv_BTNH = (np.concatenate(parts, axis=2) for parts in zip(*heads))
    return dq_BTNH, dk_BTNH, dv_BTNH, None


def bigbird_cost(d: Dims) -> Cost:
    """Both matmuls over the blocks seen where random ones are new (`random_blocks`): 4 + R for the blocks beside the global
    ones, 5 + R for those further in, M for the two global ones. Everything is read once.
    """
    token = d["B"] * d["N"] * d["H"]
    inner, beside = max(d["M"] - 4, 0), 2
    blocks = 2 * d["M"] + beside * (4 + d["R"]) + inner * (5 + d["R"])
    return Cost(
        flops=4 * token * blocks * d["C"] ** 2,
        elements_read=3 * token * d["T"] + d["N"] * d["M"] * d["R"],
        elements_written=token * d["T"],
    )


def draw_random(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """Every head its own."""
    return np.stack([random_blocks(d["M"], d["R"], rng) for _ in range(d["N"])])


BIGBIRD = Op(
    reference=bigbird,
    cost=bigbird_cost,
    dims={"B": range(1, 3), "M": range(8, 11), "C": range(1, 5), "R": range(0, 4), "N": range(1, 3), "H": range(1, 20)},
    derived={"T": lambda d: d["M"] * d["C"]},
    shapes={"bigbird-base 4k tokens, blocks of 64": {"B": 1, "M": 64, "C": 64, "R": 3, "N": 12, "H": 64}},
    paper="arXiv:2007.14062",
    backward=bigbird_backward,
    draw={"random_NMR": draw_random},
    empty=("B",),
    nonfinite=("q_BTNH",),
    powers={"B": 1, "M": 1, "C": 2, "N": 1, "H": 1},
)
