"""Block-sparse attention with fixed layouts (Child et al. 2019, arXiv:1904.10509, sections 4.2, 4.3 and 5.5).

Axes: B batch, T query position, S key position, K key/value head, G query heads per key/value head, H head width;
Q query block, M key block, C tokens of a block, L key blocks listed for a query block, P = M - Q key
blocks before the first query. T = Q C, S = M C.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmlab.reference.attention._gathered import Group, attend_groups, attend_groups_backward, block_positions, per_head
from llmlab.reference.op import Cost, Dims, Op


def strided_layout(blocks: int, stride: int) -> list[list[int]]:
    """List for every block the last `stride` ones up to itself and, further back, every `stride`-th (section 4.3).

        A1 = {j: i - j < stride},   A2 = {j: (i - j) mod stride = 0},   both with j <= i, united in one head (section 5.2)

    >>> strided_layout(6, 2)
    [[0], [0, 1], [0, 1, 2], [1, 2, 3], [0, 2, 3, 4], [1, 3, 4, 5]]
    """
    _require_stride(stride)
    return [[j for j in range(i + 1) if i - j < stride or (i - j) % stride == 0] for i in range(blocks)]


def fixed_layout(blocks: int, stride: int, *, summaries: int = 1) -> list[list[int]]:
    """List for every block those of its own stretch of `stride` and the last `summaries` of every earlier stretch.

        A1 = {j: j div stride = i div stride},   A2 = {j: j mod stride >= stride - summaries},   both with j <= i

    >>> fixed_layout(6, 3)
    [[0], [0, 1], [0, 1, 2], [2, 3], [2, 3, 4], [2, 3, 4, 5]]
    """
    _require_stride(stride)
    return [[j for j in range(i + 1) if j // stride == i // stride or j % stride >= stride - summaries] for i in range(blocks)]


def _require_stride(stride: int) -> None:
    if stride < 1:
        raise ValueError(f"stride={stride}: must be at least 1")


def table(layout: Sequence[Sequence[int]]) -> np.ndarray:
    """Return listed_QL of a layout, rows filled up with -1.

    >>> table([[0], [0, 1]])
    array([[ 0, -1],
           [ 0,  1]])
    """
    listed_QL = np.full((len(layout), max(map(len, layout), default=0)), -1)
    for row, blocks in zip(listed_QL, layout):
        row[: len(blocks)] = blocks
    return listed_QL


def block_sparse(
    q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, listed_KQL: np.ndarray, *, causal: bool = True
) -> np.ndarray:
    """Attend every block of queries to the key blocks listed for it; return out_BTKGH.

        out_t = softmax(q_t k_s' / sqrt(H)) v_s   over s in the listed blocks (and s <= t)      (eq. 2)

    Each key head has a layout of its own. Query block i is the (M - Q + i)-th of the sequence. Entries of -1 list nothing; a
    query that sees nothing gives zeros. A NaN or infinity in a query stays in that query's row.

    Raises:
        ValueError: tokens that do not make whole blocks, more query than key blocks, or a block that is listed twice or does
            not exist.

    >>> zero = np.zeros((1, 4, 1, 1, 1)); values = np.array([1.0, 3.0, 9.0, 19.0]).reshape(1, 4, 1, 1)
    >>> block_sparse(zero, values, values, np.array([[[0, -1], [1, -1]]])).ravel()  # two blocks of two, each its own
    array([ 1.,  2.,  9., 14.])
    """
    groups_K = layout_groups(q_BTKGH.shape[1], k_BSKH.shape[1], listed_KQL, causal=causal)
    heads = [attend_groups(q, k, v, groups) for (q, k, v), groups in zip(per_head(q_BTKGH, k_BSKH, v_BSKH), groups_K)]
    return np.concatenate(heads, axis=2)


def block_sparse_backward(
    dout_BTKGH: np.ndarray,
    q_BTKGH: np.ndarray,
    k_BSKH: np.ndarray,
    v_BSKH: np.ndarray,
    listed_KQL: np.ndarray,
    *,
    causal: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, None]:
    """Return (dq_BTKGH, dk_BSKH, dv_BSKH, None); a key block sums the gradients of every block that lists it."""
    groups_K = layout_groups(q_BTKGH.shape[1], k_BSKH.shape[1], listed_KQL, causal=causal)
    heads = [
        attend_groups_backward(dout, q, k, v, groups)
        for (dout, q, k, v), groups in zip(per_head(dout_BTKGH, q_BTKGH, k_BSKH, v_BSKH), groups_K)
    ]
    dq_BTKGH, dk_BSKH, dv_BSKH = (np.concatenate(parts, axis=2) for parts in zip(*heads))
    return dq_BTKGH, dk_BSKH, dv_BSKH, None


def block_size(T: int, S: int, listed_KQL: np.ndarray) -> int:
    """Return the C tokens of a block, the table checked."""
    Q = listed_KQL.shape[1]
    C = max(T // Q if Q else S, 1)
    if C * Q != T or S % C or S < T:
        raise ValueError(f"T={T} and S={S} are not Q={Q} query blocks at the end of whole key blocks")
    M = S // C
    for listed_QL in listed_KQL:
        for listed_L in listed_QL:
            used = listed_L[listed_L >= 0]
            if used.max(initial=-1) >= M or len(set(used.tolist())) < used.size:
                raise ValueError(f"listed blocks {listed_L.tolist()}: not different ones of 0..{M - 1}")
    return C


def layout_groups(T: int, S: int, listed_KQL: np.ndarray, *, causal: bool) -> list[list[Group]]:
    """Return for every key head one group per query block. Unused entries gather block 0 and hide it."""
    C = block_size(T, S, listed_KQL)
    groups_K = []
    for listed_QL in listed_KQL:
        groups = []
        for i, listed_L in enumerate(listed_QL):
            queries = block_positions([i], C)
            keys = block_positions(np.maximum(listed_L, 0), C)
            used = np.repeat(listed_L >= 0, C)
            seen = used & (keys <= queries[:, None] + S - T) if causal else np.broadcast_to(used, (C, keys.size))
            groups.append(Group(queries, keys, seen))
        groups_K.append(groups)
    return groups_K


def block_sparse_cost(d: Dims) -> Cost:
    """Both matmuls over whole listed blocks, unused entries and the hidden half of a diagonal block included.

    Queries are read and results written once; keys and values once for all blocks that list them, at most all of them.
    """
    heads = d["K"] * d["G"]
    return Cost(
        flops=4 * d["B"] * heads * d["Q"] * d["L"] * d["C"] ** 2 * d["H"],
        elements_read=d["B"] * d["H"] * (heads * d["T"] + 2 * d["K"] * d["C"] * min(d["M"], d["Q"] * d["L"]))
        + d["K"] * d["Q"] * d["L"],
        elements_written=d["B"] * d["H"] * heads * d["T"],
    )


def draw_layouts(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """A row lists its own block and up to L - 1 different ones before it, in any order; every head its own."""
    listed_KQL = np.full((d["K"], d["Q"], d["L"]), -1)
    for head in listed_KQL:
        for i, row in enumerate(head):
            own = d["M"] - d["Q"] + i
            before = rng.permutation(own)[: d["L"] - 1]
            row[: before.size + 1] = rng.permutation([own, *before])
    return listed_KQL


BLOCK_SPARSE = Op(
    reference=block_sparse,
    cost=block_sparse_cost,
    dims={
        "B": range(1, 3),
        "Q": range(1, 4),
        "P": range(0, 3),
        "C": range(1, 6),
        "L": range(1, 4),
        "K": range(1, 3),
        "G": range(1, 3),
        "H": range(1, 20),
    },
    derived={"M": lambda d: d["Q"] + d["P"], "T": lambda d: d["Q"] * d["C"], "S": lambda d: d["M"] * d["C"]},
    shapes={
        "sparse transformer 8k tokens, blocks of 64, 23 of 128 listed": {
            "B": 1,
            "Q": 128,
            "P": 0,
            "C": 64,
            "L": 23,
            "K": 8,
            "G": 1,
            "H": 64,
        }
    },
    paper="arXiv:1904.10509",
    backward=block_sparse_backward,
    draw={"listed_KQL": draw_layouts},
    options=({}, {"causal": False}),
    empty=("B",),
    nonfinite=("q_BTKGH",),
    powers={"B": 1, "Q": 1, "C": 2, "L": 1, "K": 1, "G": 1, "H": 1},
)
