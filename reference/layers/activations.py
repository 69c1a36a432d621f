"""Pointwise activations: GELU exact and by tanh, SiLU, ReLU, squared ReLU.

GELU: Hendrycks and Gimpel 2016 (arXiv:1606.08415). SiLU: the same and Ramachandran et al. 2017 (arXiv:1710.05941). Squared
ReLU: So et al. 2021 (arXiv:2109.08668). Axes: B batch, T position, F feed-forward width.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.layers._activation import named
from llmlab.reference.op import Cost, Dims, Op


def activations(x_BTF: np.ndarray, *, kind: str = "gelu") -> np.ndarray:
    """Apply the activation called `kind` to every element; return out_BTF.

        gelu       x P(Z <= x), Z standard normal
        gelu_tanh  x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2
        silu       x / (1 + exp(-x))
        relu       max(x, 0)
        relu2      max(x, 0)^2

    NaN gives NaN and +inf gives +inf; -inf gives NaN for the three that multiply it by 0, and 0 for the ReLUs.

    Raises:
        ValueError: no activation is called `kind`.

    >>> activations(np.array([[[-2.0, 0.0, 3.0]]]), kind="relu2")
    array([[[0., 0., 9.]]])
    >>> activations(np.array([[[1.0]]]), kind="gelu").round(6).item()  # 84.1345 % lie below one standard deviation
    0.841345
    """
    function, _ = named(kind)
    with np.errstate(invalid="ignore"):  # -inf times 0: the NaN is the answer
        return function(x_BTF)


def activations_backward(dout_BTF: np.ndarray, x_BTF: np.ndarray, *, kind: str = "gelu") -> tuple[np.ndarray]:
    """Return (dx_BTF,); the ReLUs' derivative at 0 is 0."""
    _, slope = named(kind)
    return (dout_BTF * slope(x_BTF),)


def activations_cost(d: Dims) -> Cost:
    """Exact GELU as scale, erf, add, halve and multiply: 5 FLOPs per element; x read once, out written once."""
    elements = d["B"] * d["T"] * d["F"]
    return Cost(flops=5 * elements, elements_read=elements, elements_written=elements)


ACTIVATIONS = Op(
    reference=activations,
    cost=activations_cost,
    dims={"B": range(1, 4), "T": range(1, 6), "F": range(1, 40)},
    shapes={
        "gpt-2 batch 8 of 1k tokens": {"B": 8, "T": 1024, "F": 3072},
        "bert-large batch 16 of 512 tokens": {"B": 16, "T": 512, "F": 4096},
    },
    paper="arXiv:1606.08415",
    backward=activations_backward,
    options=({}, {"kind": "gelu_tanh"}, {"kind": "silu"}, {"kind": "relu"}, {"kind": "relu2"}),
    empty=("B", "T", "F"),
    powers={"B": 1, "T": 1, "F": 1},
)
