"""Linformer: keys and values projected to a fixed length (Wang et al. 2020, arXiv:2006.04768, section 4).

Axes: B batch, T query position, S key position, N head, H head width, R rank, the length keys are projected to.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.attention._masked import EVERY_PAIR, attend, attend_backward
from llmlab.reference.op import Cost, Dims, Op


def linformer(
    q_BTNH: np.ndarray, k_BSNH: np.ndarray, v_BSNH: np.ndarray, project_k_RS: np.ndarray, project_v_RS: np.ndarray
) -> np.ndarray:
    """Attend to R mixtures of the keys instead of S keys; return out_BTNH.

        out = softmax(q (E k)' / sqrt(H)) (F v)      (eq. 7)

    E is `project_k`, F is `project_v`; heads share them, and layers may (section 4, parameter sharing). A mixture holds later
    keys too, so there is no causal form, and S is fixed by the weights. A NaN or infinity in a query stays in that query's
    row.

    Raises:
        ValueError: projections of another length than the keys.

    >>> values = np.array([1.0, 3.0, 5.0, 7.0]).reshape(1, 4, 1, 1); zero = np.zeros((1, 1, 1, 1))
    >>> halves = np.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
    >>> linformer(zero, values, values, halves, halves).ravel()  # the mean of the two means
    array([4.])
    """
    require_length(k_BSNH.shape[1], project_k_RS.shape[1], project_v_RS.shape[1])
    k_BRNH, v_BRNH = np.einsum("rs,bsnh->brnh", project_k_RS, k_BSNH), np.einsum("rs,bsnh->brnh", project_v_RS, v_BSNH)
    return attend(q_BTNH[..., None, :], k_BRNH, v_BRNH, EVERY_PAIR)[..., 0, :]


def require_length(S: int, *projected: int) -> None:
    """Refuse projections made for another number of keys."""
    for length in projected:
        if length != S:
            raise ValueError(f"a projection of {length} keys does not fit S={S}")


def linformer_backward(
    dout_BTNH: np.ndarray,
    q_BTNH: np.ndarray,
    k_BSNH: np.ndarray,
    v_BSNH: np.ndarray,
    project_k_RS: np.ndarray,
    project_v_RS: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """Return (dq_BTNH, dk_BSNH, dv_BSNH, dproject_k_RS, dproject_v_RS)."""
    k_BRNH, v_BRNH = np.einsum("rs,bsnh->brnh", project_k_RS, k_BSNH), np.einsum("rs,bsnh->brnh", project_v_RS, v_BSNH)
    dq_BTN1H, dk_BRNH, dv_BRNH = attend_backward(dout_BTNH[..., None, :], q_BTNH[..., None, :], k_BRNH, v_BRNH, EVERY_PAIR)
    dk_BSNH, dv_BSNH = np.einsum("rs,brnh->bsnh", project_k_RS, dk_BRNH), np.einsum("rs,brnh->bsnh", project_v_RS, dv_BRNH)
    dproject_k_RS, dproject_v_RS = np.einsum("brnh,bsnh->rs", dk_BRNH, k_BSNH), np.einsum("brnh,bsnh->rs", dv_BRNH, v_BSNH)
    return dq_BTN1H[..., 0, :], dk_BSNH, dv_BSNH, dproject_k_RS, dproject_v_RS


def linformer_cost(d: Dims) -> Cost:
    """Both projections over all keys and both matmuls over the R mixtures: linear in T and in S. Everything is read once."""
    token = d["B"] * d["N"] * d["H"]
    return Cost(
        flops=4 * token * d["R"] * (d["S"] + d["T"]),
        elements_read=token * (d["T"] + 2 * d["S"]) + 2 * d["R"] * d["S"],
        elements_written=token * d["T"],
    )


def draw_projection(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """Entries of variance 1 / R, as the Johnson-Lindenstrauss lemma of section 3 has them."""
    return rng.standard_normal((d["R"], d["S"])) * d["R"] ** -0.5


LINFORMER = Op(
    reference=linformer,
    cost=linformer_cost,
    dims={"B": range(1, 3), "T": range(1, 6), "S": range(2, 12), "R": range(2, 5), "N": range(1, 4), "H": range(1, 20)},
    shapes={"linformer base 4k tokens, rank 256": {"B": 1, "T": 4096, "S": 4096, "R": 256, "N": 12, "H": 64}},
    paper="arXiv:2006.04768",
    backward=linformer_backward,
    draw={"project_k_RS": draw_projection, "project_v_RS": draw_projection},
    empty=("B", "T"),
    nonfinite=("q_BTNH",),
    powers={"B": 1, "N": 1, "H": 1, "R": 1},
)
