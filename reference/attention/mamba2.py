"""Mamba-2: a selective state-space model whose decay is one number per head (Dao and Gu 2024, arXiv:2405.21060).

`mamba2` is the recurrence (eq. 2 with the discretisation of Mamba, arXiv:2312.00752, section 3.6); `mamba2_in_chunks` is
the state-space dual form, masked products inside chunks and a state between them (section 6, listing 1).

Axes: B batch, T position, K group that shares b and c, G heads per group, H head width, M state size, C position in a chunk.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.attention._decayed import chunks, walk, walk_back, walk_in_chunks
from llmlab.reference.op import Cost, Dims, Op


def mamba2(
    x_BTKGH: np.ndarray,
    dt_BTKG: np.ndarray,
    a_KG: np.ndarray,
    b_BTKM: np.ndarray,
    c_BTKM: np.ndarray,
    d_KG: np.ndarray,
    state_BKGMH: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Run the selective state-space model; return (out_BTKGH, state_BKGMH after the last position).

    `dt` is the step size after its softplus and `a` the (negative) rate; `state` is what came before, zeros at the start.

        state_t = exp(dt_t a) state_{t-1} + dt_t b_t x_t',   out_t = state_t' c_t + d x_t        (eq. 2)

    It is linear attention with c as query, b as key, dt x as value, and a decay: attention's G heads per key head are here the
    heads of a group. A NaN or infinity in c stays in its row, one in d in its head.

    Raises:
        ValueError: x, dt, b and c differ in length.

    >>> one = np.ones((1, 2, 1, 1)); x = np.array([8.0, 1.0]).reshape(1, 2, 1, 1, 1)
    >>> out, state = mamba2(x, one, np.array([[np.log(0.5)]]), one, one, np.zeros((1, 1)), np.zeros((1, 1, 1, 1, 1)))
    >>> out.ravel(), state.item()
    (array([8., 5.]), 5.0)
    """
    require_one_length(x_BTKGH, dt_BTKG, b_BTKM, c_BTKM)
    out_BTKGH, state_BKGMH = walk(c_BTKM, b_BTKM, dt_BTKG[..., None] * x_BTKGH, np.exp(dt_BTKG * a_KG), state_BKGMH)
    return out_BTKGH + d_KG[..., None] * x_BTKGH, state_BKGMH


def mamba2_in_chunks(
    x_BTKGH: np.ndarray,
    dt_BTKG: np.ndarray,
    a_KG: np.ndarray,
    b_BTKM: np.ndarray,
    c_BTKM: np.ndarray,
    d_KG: np.ndarray,
    state_BKGMH: np.ndarray,
    *,
    chunk: int = 64,
) -> tuple[np.ndarray, np.ndarray]:
    """The same by state-space duality, `chunk` positions at a time (listing 1)."""
    require_one_length(x_BTKGH, dt_BTKG, b_BTKM, c_BTKM)
    out_BTKGH, state_BKGMH = walk_in_chunks(
        c_BTKM, b_BTKM, dt_BTKG[..., None] * x_BTKGH, dt_BTKG * a_KG, state_BKGMH, chunk=chunk
    )
    return out_BTKGH + d_KG[..., None] * x_BTKGH, state_BKGMH


def require_one_length(x_BTKGH: np.ndarray, dt_BTKG: np.ndarray, b_BTKM: np.ndarray, c_BTKM: np.ndarray) -> None:
    """Refuse inputs of different lengths."""
    if not x_BTKGH.shape[1] == dt_BTKG.shape[1] == b_BTKM.shape[1] == c_BTKM.shape[1]:
        named = {"x": x_BTKGH, "dt": dt_BTKG, "b": b_BTKM, "c": c_BTKM}
        lengths = ", ".join(f"{name} T={x.shape[1]}" for name, x in named.items())
        raise ValueError(f"lengths differ: {lengths}")


def mamba2_backward(
    dout_BTKGH: np.ndarray,
    dstate_BKGMH: np.ndarray,
    x_BTKGH: np.ndarray,
    dt_BTKG: np.ndarray,
    a_KG: np.ndarray,
    b_BTKM: np.ndarray,
    c_BTKM: np.ndarray,
    d_KG: np.ndarray,
    state_BKGMH: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """Return (dx_BTKGH, ddt_BTKG, da_KG, db_BTKM, dc_BTKM, dd_KG, dstate_BKGMH).

    The step size acts twice, on the decay and on the input:  ddt = exp(dt a) a ddecay + sum dv x
    """
    decay_BTKG = np.exp(dt_BTKG * a_KG)
    dc_BTKM, db_BTKM, dv_BTKGH, ddecay_BTKG, dbefore_BKGMH = walk_back(
        dout_BTKGH, dstate_BKGMH, c_BTKM, b_BTKM, dt_BTKG[..., None] * x_BTKGH, decay_BTKG, state_BKGMH
    )
    dlog_BTKG = decay_BTKG * ddecay_BTKG
    dx_BTKGH = dt_BTKG[..., None] * dv_BTKGH + d_KG[..., None] * dout_BTKGH
    ddt_BTKG = a_KG * dlog_BTKG + np.sum(dv_BTKGH * x_BTKGH, axis=-1)
    da_KG = np.sum(dlog_BTKG * dt_BTKG, axis=(0, 1))
    dd_KG = np.sum(dout_BTKGH * x_BTKGH, axis=(0, 1, 4))
    return dx_BTKGH, ddt_BTKG, da_KG, db_BTKM, dc_BTKM, dd_KG, dbefore_BKGMH


def mamba2_cost(d: Dims) -> Cost:
    """The recurrence, 2 FLOPs per multiply-add; exponentials are not counted.

    Per head and step 3 M H to decay and extend the state, 2 M H to read it, 3 H for dt x and the skip, 1 for dt a. Everything
    is read once and written once; the state stays in caches between steps.
    """
    heads = d["K"] * d["G"]
    rows, kept = d["B"] * d["T"] * heads, d["B"] * heads * d["M"] * d["H"]
    return Cost(
        flops=rows * (5 * d["M"] * d["H"] + 3 * d["H"] + 1),
        elements_read=rows * (d["H"] + 1) + 2 * d["B"] * d["T"] * d["K"] * d["M"] + 2 * heads + kept,
        elements_written=rows * d["H"] + kept,
    )


def mamba2_in_chunks_cost(d: Dims, *, chunk: int = 64) -> Cost:
    """The chunked form, whole squares counted, the scores once per group; exponentials are not counted.

    A chunk of C positions takes 2 C C M per group, and per head C C to weigh the scores, 2 C C H within the chunk, 4 C M H to
    read and extend the state, 2 M H to decay and join it, 6 C H and C elementwise, C C - 1 sums of logs of the decay.
    """
    M, H, heads = d["M"], d["H"], d["K"] * d["G"]
    flops = 0
    for C in (part.stop - part.start for part in chunks(d["T"], chunk)):
        flops += d["K"] * 2 * C * C * M
        flops += heads * (C * C * (1 + 2 * H) + 4 * C * M * H + 2 * M * H + 6 * C * H + C + C * C - 1)
    whole = mamba2_cost(d)
    return Cost(d["B"] * flops, whole.elements_read, whole.elements_written)


def step_sizes(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """Between 0.001 and 1, evenly in the logarithm."""
    return np.exp(rng.uniform(np.log(0.001), 0, (d["B"], d["T"], d["K"], d["G"])))


def rates(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """Between -1 and -16, as Mamba-2 starts them."""
    return -rng.uniform(1, 16, (d["K"], d["G"]))


MAMBA2 = Op(
    reference=mamba2,
    cost=mamba2_cost,
    dims={
        "B": range(1, 3),
        "T": range(1, 79, 7),
        "K": range(1, 3),
        "G": range(1, 4),
        "H": range(1, 20, 3),
        "M": range(1, 20, 3),
    },
    shapes={
        "mamba2-370m prefill 2k": {"B": 1, "T": 2048, "K": 1, "G": 32, "H": 64, "M": 128},
        "mamba2-2.7b prefill 2k": {"B": 1, "T": 2048, "K": 1, "G": 80, "H": 64, "M": 128},
        "mamba2-2.7b decode batch 8": {"B": 8, "T": 1, "K": 1, "G": 80, "H": 64, "M": 128},
    },
    paper="arXiv:2405.21060",
    backward=mamba2_backward,
    draw={"dt_BTKG": step_sizes, "a_KG": rates},
    empty=("B", "T"),
    nonfinite=("c_BTKM", "d_KG"),
    powers={"B": 1, "T": 1, "G": 1, "H": 1, "M": 1},
)
