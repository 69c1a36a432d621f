"""Vector quantization (van den Oord et al. 2017, arXiv:1711.00937), also residual (Zeghidour et al. 2021, arXiv:2107.03312).

How pictures (DALL-E) and sounds (SoundStream, EnCodec, VALL-E) become tokens: the nearest of C codes, and in the residual form
the nearest code to what the codes before it left over. Axes: B batch, T position, D width, Q codebook, C code.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.op import Cost, Dims, Op


def vq(x_BTD: np.ndarray, codes_QCD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (ids_BTQ, quantized_BTD): the code each codebook chooses, and the sum of the chosen codes.

        k_q = argmin_j |r - e_qj|^2,   r <- r - e_q,k_q,   quantized = sum_q e_q,k_q      (eq. 1-2; algorithm 1 of the second)

    One codebook is plain vector quantization. Of equally near codes the lowest id is taken. A NaN in a vector makes its ids 0.

    Raises:
        ValueError: no codes, or vectors and codes of different width.

    >>> ids, near = vq(np.array([[[2.6]]]), np.array([[[0.0], [2.0]], [[0.0], [0.5]]]))
    >>> ids.tolist(), near.tolist()
    ([[[1, 1]]], [[[2.5]]])
    """
    Q, C, D = codes_QCD.shape
    if not Q or not C:
        raise ValueError(f"{Q} codebooks of {C} codes: needs one of each")
    if x_BTD.shape[-1] != D:
        raise ValueError(f"vectors of width {x_BTD.shape[-1]}, codes of width {D}")
    left_BTD, ids = x_BTD, []
    for codes_CD in codes_QCD:
        away_BTC = np.sum((left_BTD[..., None, :] - codes_CD) ** 2, axis=-1)
        ids_BT = np.argmin(away_BTC, axis=-1)
        left_BTD = left_BTD - codes_CD[ids_BT]
        ids.append(ids_BT)
    ids_BTQ = np.stack(ids, axis=-1)
    return ids_BTQ, dequantized(ids_BTQ, codes_QCD)


def dequantized(ids_BTQ: np.ndarray, codes_QCD: np.ndarray) -> np.ndarray:
    """Return the sum of the codes; the first q ids alone give a coarser answer."""
    chosen = [codes_QCD[q][ids_BTQ[..., q]] for q in range(ids_BTQ.shape[-1])]
    return np.sum(chosen, axis=0)


def losses(x_BTD: np.ndarray, quantized_BTD: np.ndarray, *, beta: float = 0.25) -> tuple[float, np.ndarray, np.ndarray]:
    """Return (loss, dx_BTD, dquantized_BTD) of codebook and commitment, means over all elements (eq. 3, last two terms).

        |sg(x) - e|^2 + beta |x - sg(e)|^2      (sg lets no gradient through)

    What comes after the quantizer passes its gradient straight through to x, as if quantized were x.
    """
    apart_BTD = x_BTD - quantized_BTD
    loss = (1 + beta) * float(np.mean(apart_BTD**2))
    slope_BTD = 2 * apart_BTD / apart_BTD.size
    return loss, beta * slope_BTD, -slope_BTD


def moved_codes(
    codes_CD: np.ndarray, count_C: np.ndarray, sum_CD: np.ndarray, x_BTD: np.ndarray, ids_BT: np.ndarray, *, decay: float = 0.99
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step of codes following the mean of their vectors; return (codes_CD, count_C, sum_CD) (appendix A.1, eq. 6-8).

    A code that nobody ever chose stays where it is.
    """
    chosen_BTC = ids_BT[..., None] == np.arange(len(codes_CD))
    count_C = decay * count_C + (1 - decay) * chosen_BTC.sum((0, 1))
    sum_CD = decay * sum_CD + (1 - decay) * np.einsum("btc,btd->cd", chosen_BTC.astype(x_BTD.dtype), x_BTD)
    used_C1 = count_C[:, None] > 0
    return np.where(used_C1, sum_CD / np.where(used_C1, count_C[:, None], 1), codes_CD), count_C, sum_CD


def vq_cost(d: Dims) -> Cost:
    """Distances of every vector to every code (subtract, square, add), the rest over, and the sum of the chosen codes."""
    vectors = d["B"] * d["T"]
    return Cost(
        flops=vectors * d["Q"] * d["D"] * (3 * d["C"] + 2),
        elements_read=vectors * d["D"] + d["Q"] * d["C"] * d["D"],
        elements_written=vectors * (d["Q"] + d["D"]),
    )


VQ = Op(
    reference=vq,
    cost=vq_cost,
    dims={"B": range(1, 4), "T": range(1, 6), "D": range(1, 7), "Q": range(1, 5), "C": range(1, 9)},
    shapes={"encodec 24 kHz, 6 kbit/s, 10 s": {"B": 1, "T": 750, "D": 128, "Q": 8, "C": 1024}},
    paper="arXiv:1711.00937",
    nonfinite=(),  # a NaN is nearest to nothing: its ids are 0 and the sum of codes is finite
    powers={"T": 1, "Q": 1},
)
