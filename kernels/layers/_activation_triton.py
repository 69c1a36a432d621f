"""Activations inside Triton kernels; the name is a compile-time number."""

import triton
import triton.language as tl

from llmlab.reference.layers._activation import named

KINDS = ("gelu", "gelu_tanh", "silu", "relu", "relu2")
BLOCK = 2048
WARPS = 4


def code_of(kind: str) -> int:
    """The number of an activation; ValueError for an unknown name, with the reference's words."""
    named(kind)
    return KINDS.index(kind)


@triton.jit
def value(x, CODE: tl.constexpr):
    """The activation called `KINDS[CODE]` at x, in float32."""
    if CODE == 0:
        out = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif CODE == 1:  # (1 + tanh u) / 2 is the logistic function of 2 u
        out = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    elif CODE == 2:
        out = x / (1.0 + tl.exp(-x))
    elif CODE == 3:
        out = tl.where(x < 0.0, 0.0, x)  # NaN stays
    else:
        positive = tl.where(x < 0.0, 0.0, x)
        out = positive * positive
    return out
