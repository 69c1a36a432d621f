"""Token embedding with a padding index, and the output projection tied to it (Press and Wolf 2016, arXiv:1608.05859).

Axes: B batch, T position, V vocabulary, D model width.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.op import Cost, Dims, Op


def embedding(ids_BT: np.ndarray, weight_VD: np.ndarray, *, padding_index: int | None = None) -> np.ndarray:
    """Look up one row of the table per token; return out_BTD.

    The row at `padding_index` is looked up like any other; it only receives no gradient (as in torch.nn.Embedding). NaN and
    infinities come out where their row is looked up.

    Raises:
        ValueError: an id outside 0 .. V-1, or such a padding index.

    >>> embedding(np.array([[2, 0]]), np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))
    array([[[3., 3.],
            [1., 1.]]])
    """
    check_ids(ids_BT, weight_VD.shape[0], padding_index)
    return weight_VD[ids_BT]


def check_ids(ids_BT: np.ndarray, vocabulary: int, padding_index: int | None) -> None:
    """Raise ValueError naming the first id that the table does not hold."""
    wrong = ids_BT[(ids_BT < 0) | (ids_BT >= vocabulary)]
    if wrong.size:
        raise ValueError(f"id={wrong.flat[0]}: not in 0..{vocabulary - 1}")
    if padding_index is not None and not 0 <= padding_index < vocabulary:
        raise ValueError(f"padding_index={padding_index}: not in 0..{vocabulary - 1}")


def tied_logits(hidden_BTD: np.ndarray, weight_VD: np.ndarray) -> np.ndarray:
    """Score every token by the dot product with its own embedding; return logits_BTV. The table serves both ends."""
    return np.einsum("btd,vd->btv", hidden_BTD, weight_VD)


def embedding_backward(
    dout_BTD: np.ndarray, ids_BT: np.ndarray, weight_VD: np.ndarray, *, padding_index: int | None = None
) -> tuple[None, np.ndarray]:
    """Return (None, dweight_VD): each looked-up row gathers the gradients of all its positions; the padding row none."""
    dweight_VD = np.zeros_like(weight_VD)
    np.add.at(dweight_VD, ids_BT, dout_BTD)
    if padding_index is not None:
        dweight_VD[padding_index] = 0
    return None, dweight_VD


def embedding_cost(d: Dims) -> Cost:
    """No arithmetic; every id once, at most each row of the table once, out written once."""
    positions = d["B"] * d["T"]
    rows = min(positions, d["V"])
    return Cost(flops=0, elements_read=positions + rows * d["D"], elements_written=positions * d["D"])


def draw_ids(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """Token ids uniform over the vocabulary."""
    return rng.integers(0, d["V"], (d["B"], d["T"]))


EMBEDDING = Op(
    reference=embedding,
    cost=embedding_cost,
    dims={"B": range(1, 4), "T": range(1, 8), "V": range(1, 12), "D": range(1, 40)},
    shapes={
        "llama-3-8b 8k tokens": {"B": 1, "T": 8192, "V": 128256, "D": 4096},
        "gpt-2 batch 8 of 1k tokens": {"B": 8, "T": 1024, "V": 50257, "D": 768},
    },
    paper="arXiv:1608.05859",
    backward=embedding_backward,
    draw={"ids_BT": draw_ids},
    empty=("B", "T"),
    nonfinite=("weight_VD",),
)
