"""Gated linear units: SwiGLU, GeGLU, ReGLU (Shazeer 2020, arXiv:2002.05202, section 2), the part between the projections.

Axes: B batch, T position, F feed-forward width.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.layers._activation import named
from llmlab.reference.op import Cost, Dims, Op


def glu(gate_BTF: np.ndarray, up_BTF: np.ndarray, *, kind: str = "silu") -> np.ndarray:
    """Multiply one projection by the activation of the other; return out_BTF.

        out = activation(gate) * up

    `kind` names the activation as in `layers.activations`: silu makes SwiGLU, gelu or gelu_tanh GeGLU, relu ReGLU. A NaN
    in either input gives NaN; so does an infinity times 0.

    Raises:
        ValueError: no activation is called `kind`.

    >>> glu(np.array([[[-1.0, 2.0]]]), np.array([[[5.0, 5.0]]]), kind="relu")
    array([[[ 0., 10.]]])
    """
    function, _ = named(kind)
    with np.errstate(invalid="ignore"):  # infinity times 0: the NaN is the answer
        return function(gate_BTF) * up_BTF


def glu_backward(
    dout_BTF: np.ndarray, gate_BTF: np.ndarray, up_BTF: np.ndarray, *, kind: str = "silu"
) -> tuple[np.ndarray, np.ndarray]:
    """Return (dgate_BTF, dup_BTF)."""
    function, slope = named(kind)
    return dout_BTF * up_BTF * slope(gate_BTF), dout_BTF * function(gate_BTF)


def glu_cost(d: Dims) -> Cost:
    """SiLU as negate, exp, add, divide, and the product: 5 FLOPs per element; two arrays read, one written."""
    elements = d["B"] * d["T"] * d["F"]
    return Cost(flops=5 * elements, elements_read=2 * elements, elements_written=elements)


GLU = Op(
    reference=glu,
    cost=glu_cost,
    dims={"B": range(1, 4), "T": range(1, 6), "F": range(1, 40)},
    shapes={
        "llama-2-7b 4k tokens": {"B": 1, "T": 4096, "F": 11008},
        "llama-3-8b decode batch 32": {"B": 32, "T": 1, "F": 14336},
    },
    paper="arXiv:2002.05202",
    backward=glu_backward,
    options=({}, {"kind": "gelu"}, {"kind": "gelu_tanh"}, {"kind": "relu"}, {"kind": "relu2"}),
    empty=("B", "T", "F"),
    powers={"B": 1, "T": 1, "F": 1},
)
