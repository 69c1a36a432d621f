"""Gated delta rule: the state forgets by a gate and corrects what it holds under a key (Yang et al. 2024, arXiv:2412.06464).

`gated_delta` is the recurrence (eq. 10); `gated_delta_in_chunks` solves one triangular system per chunk, which turns the
corrections of a chunk into matrix products (section 3.3, the extended WY representation).

Axes: B batch, T position, K query/key head, G value heads per query/key head, M query/key width, H value width, C position
in a chunk.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.attention._decayed import chunks, segment_sums
from llmlab.reference.op import Cost, Dims, Op

SOLVED = "corrections of a chunk solve one triangular system: each row is rounded once more by every row before it"
"""Why twins that work in chunks err more than the recurrence."""


def gated_delta(
    q_BTKM: np.ndarray,
    k_BTKM: np.ndarray,
    v_BTKGH: np.ndarray,
    beta_BTKG: np.ndarray,
    log_decay_BTKG: np.ndarray,
    state_BKGMH: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Run the gated delta rule; return (out_BTKGH, state_BKGMH after the last position).

    Keys are expected with unit length, `beta` in (0, 1) is the share of the old value that is replaced, exp(log_decay) is the
    gate alpha; `state` is what came before, zeros at the start. S is kept as (M, H), the transpose of the paper's.

        S_t = alpha_t (I - beta_t k_t k_t') S_{t-1} + beta_t k_t v_t',   out_t = S_t' q_t        (eq. 10)

    There is no 1/sqrt(M) here; libraries scale the query by it. A NaN or infinity in a query stays in that query's row.

    Raises:
        ValueError: q, k, v, beta and log_decay differ in length.

    >>> q = k = np.ones((1, 2, 1, 1)); v = np.array([4.0, 10.0]).reshape(1, 2, 1, 1, 1); beta = np.full((1, 2, 1, 1), 0.5)
    >>> out, _ = gated_delta(q, k, v, beta, np.zeros((1, 2, 1, 1)), np.zeros((1, 1, 1, 1, 1)))
    >>> out.ravel()
    array([2., 6.])
    """
    require_one_length(q_BTKM, k_BTKM, v_BTKGH, beta_BTKG, log_decay_BTKG)
    out_BTKGH = np.empty_like(v_BTKGH)
    for t in range(v_BTKGH.shape[1]):
        state_BKGMH, _ = _step(k_BTKM[:, t], v_BTKGH[:, t], beta_BTKG[:, t], log_decay_BTKG[:, t], state_BKGMH)
        out_BTKGH[:, t] = np.einsum("bkm,bkgmh->bkgh", q_BTKM[:, t], state_BKGMH)
    return out_BTKGH, state_BKGMH.copy()


def _step(
    k_BKM: np.ndarray, v_BKGH: np.ndarray, beta_BKG: np.ndarray, log_decay_BKG: np.ndarray, state_BKGMH: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (state_BKGMH, missing_BKGH): how far what the decayed state holds under the key is from the value."""
    decayed_BKGMH = np.exp(log_decay_BKG)[..., None, None] * state_BKGMH
    missing_BKGH = v_BKGH - np.einsum("bkm,bkgmh->bkgh", k_BKM, decayed_BKGMH)
    written_BKGMH = np.einsum("bkm,bkgh->bkgmh", k_BKM, beta_BKG[..., None] * missing_BKGH)
    return decayed_BKGMH + written_BKGMH, missing_BKGH


def gated_delta_in_chunks(
    q_BTKM: np.ndarray,
    k_BTKM: np.ndarray,
    v_BTKGH: np.ndarray,
    beta_BTKG: np.ndarray,
    log_decay_BTKG: np.ndarray,
    state_BKGMH: np.ndarray,
    *,
    chunk: int = 64,
) -> tuple[np.ndarray, np.ndarray]:
    """The same, `chunk` positions at a time: the corrections u of a chunk solve one triangular system.

        (I + beta L (k k') below the diagonal) u = beta (v - a k S),  out = a q S + (L q k') u,  S' = a_C S + (a_C / a k)' u

    with L the decay between two positions and a that since the start of the chunk (section 3.3).
    """
    require_one_length(q_BTKM, k_BTKM, v_BTKGH, beta_BTKG, log_decay_BTKG)
    out_BTKGH = np.empty_like(v_BTKGH)
    for part in chunks(v_BTKGH.shape[1], chunk):
        q_BCKM, k_BCKM, v_BCKGH, beta_BCKG = q_BTKM[:, part], k_BTKM[:, part], v_BTKGH[:, part], beta_BTKG[:, part]
        beta_BKGC1 = np.moveaxis(beta_BCKG, 1, -1)[..., None]
        between_BKGCD = np.exp(segment_sums(log_decay_BTKG[:, part]))
        since_BKGC1 = np.exp(np.cumsum(np.moveaxis(log_decay_BTKG[:, part], 1, -1), axis=-1))[..., None]
        held_BKGCH = since_BKGC1 * np.einsum("bckm,bkgmh->bkgch", k_BCKM, state_BKGMH)
        overlap_BKGCD = np.tril(beta_BKGC1 * between_BKGCD * np.einsum("bckm,bdkm->bkcd", k_BCKM, k_BCKM)[:, :, None], -1)
        wanted_BKGCH = beta_BKGC1 * (np.einsum("bckgh->bkgch", v_BCKGH) - held_BKGCH)
        u_BKGCH = _solve_unit_lower(overlap_BKGCD, wanted_BKGCH)
        weights_BKGCD = between_BKGCD * np.einsum("bckm,bdkm->bkcd", q_BCKM, k_BCKM)[:, :, None]
        before_BKGCH = since_BKGC1 * np.einsum("bckm,bkgmh->bkgch", q_BCKM, state_BKGMH)
        out_BTKGH[:, part] = np.moveaxis(before_BKGCH + weights_BKGCD @ u_BKGCH, 3, 1)
        left_BKGCH = between_BKGCD[..., -1, :, None] * u_BKGCH
        state_BKGMH = since_BKGC1[..., -1:, :] * state_BKGMH + np.einsum("bckm,bkgch->bkgmh", k_BCKM, left_BKGCH)
    return out_BTKGH, state_BKGMH.copy()


def _solve_unit_lower(below_BKGCD: np.ndarray, right_BKGCH: np.ndarray) -> np.ndarray:
    """Solve (I + below) u = right, `below` strictly lower triangular, by forward substitution."""
    u_BKGCH = right_BKGCH.copy()
    for c in range(1, u_BKGCH.shape[-2]):
        u_BKGCH[..., c, :] -= np.einsum("bkgd,bkgdh->bkgh", below_BKGCD[..., c, :c], u_BKGCH[..., :c, :])
    return u_BKGCH


def require_one_length(
    q_BTKM: np.ndarray, k_BTKM: np.ndarray, v_BTKGH: np.ndarray, beta_BTKG: np.ndarray, log_decay_BTKG: np.ndarray
) -> None:
    """Refuse inputs of different lengths."""
    lengths = [x.shape[1] for x in (q_BTKM, k_BTKM, v_BTKGH, beta_BTKG, log_decay_BTKG)]
    if len(set(lengths)) > 1:
        named = ", ".join(f"{name} T={T}" for name, T in zip(("q", "k", "v", "beta", "log_decay"), lengths))
        raise ValueError(f"lengths differ: {named}")


def gated_delta_backward(
    dout_BTKGH: np.ndarray,
    dstate_BKGMH: np.ndarray,
    q_BTKM: np.ndarray,
    k_BTKM: np.ndarray,
    v_BTKGH: np.ndarray,
    beta_BTKG: np.ndarray,
    log_decay_BTKG: np.ndarray,
    state_BKGMH: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """Return (dq_BTKM, dk_BTKM, dv_BTKGH, dbeta_BTKG, dlog_decay_BTKG, dstate_BKGMH), walking the recurrence backwards.

    With R the decayed state, m = v - R' k what is missing under the key, and S = R + beta k m':

        dm = beta dS' k,  dk = beta dS m - R dm,  dR = dS - k dm',  dlog_decay = <dR, R>
    """
    before, missing = [state_BKGMH], []
    for t in range(v_BTKGH.shape[1]):
        after_BKGMH, missing_BKGH = _step(k_BTKM[:, t], v_BTKGH[:, t], beta_BTKG[:, t], log_decay_BTKG[:, t], before[-1])
        before.append(after_BKGMH)
        missing.append(missing_BKGH)
    dq_BTKM, dk_BTKM, dv_BTKGH = np.empty_like(q_BTKM), np.empty_like(k_BTKM), np.empty_like(v_BTKGH)
    dbeta_BTKG, dlog_decay_BTKG = np.empty_like(beta_BTKG), np.empty_like(beta_BTKG)
    for t in reversed(range(v_BTKGH.shape[1])):
        decay_BKG11 = np.exp(log_decay_BTKG[:, t])[..., None, None]
        decayed_BKGMH = decay_BKG11 * before[t]
        dstate_BKGMH = dstate_BKGMH + np.einsum("bkm,bkgh->bkgmh", q_BTKM[:, t], dout_BTKGH[:, t])
        written_BKGH = np.einsum("bkgmh,bkm->bkgh", dstate_BKGMH, k_BTKM[:, t])
        dmissing_BKGH = beta_BTKG[:, t, :, :, None] * written_BKGH
        dq_BTKM[:, t] = np.einsum("bkgmh,bkgh->bkm", before[t + 1], dout_BTKGH[:, t])
        dk_BTKM[:, t] = np.einsum("bkgmh,bkg,bkgh->bkm", dstate_BKGMH, beta_BTKG[:, t], missing[t])
        dk_BTKM[:, t] -= np.einsum("bkgmh,bkgh->bkm", decayed_BKGMH, dmissing_BKGH)
        dv_BTKGH[:, t] = dmissing_BKGH
        dbeta_BTKG[:, t] = np.einsum("bkgh,bkgh->bkg", written_BKGH, missing[t])
        ddecayed_BKGMH = dstate_BKGMH - np.einsum("bkm,bkgh->bkgmh", k_BTKM[:, t], dmissing_BKGH)
        dlog_decay_BTKG[:, t] = np.einsum("bkgmh,bkgmh->bkg", ddecayed_BKGMH, decayed_BKGMH)
        dstate_BKGMH = decay_BKG11 * ddecayed_BKGMH
    return dq_BTKM, dk_BTKM, dv_BTKGH, dbeta_BTKG, dlog_decay_BTKG, dstate_BKGMH.copy()


def gated_delta_cost(d: Dims) -> Cost:
    """The recurrence, 2 FLOPs per multiply-add; exponentials are not counted.

    Per value head and step M H to decay the state, 2 M H to look up the key, 2 M H to write, 2 M H to read, 2 H for the
    correction. Everything is read once and written once; the state stays in caches between steps.
    """
    rows, kept = d["B"] * d["T"] * d["K"] * d["G"], d["B"] * d["K"] * d["G"] * d["M"] * d["H"]
    return Cost(
        flops=rows * (7 * d["M"] * d["H"] + 2 * d["H"]),
        elements_read=rows * (d["H"] + 2) + 2 * d["B"] * d["T"] * d["K"] * d["M"] + kept,
        elements_written=rows * d["H"] + kept,
    )


def gated_delta_in_chunks_cost(d: Dims, *, chunk: int = 64) -> Cost:
    """The chunked form, whole squares counted, products of keys and queries once per key head; exponentials are not counted.

    A chunk of C positions takes 4 C C M per key head, and per value head 3 C C to weigh both squares, (C C - 1) H to solve,
    2 C C H within the chunk, 6 C M H to look up, read and extend the state, 2 M H to decay and join it, 6 C H elementwise,
    C C - 1 sums of logs of the decay.
    """
    M, H = d["M"], d["H"]
    flops = 0
    for C in (part.stop - part.start for part in chunks(d["T"], chunk)):
        flops += d["K"] * 4 * C * C * M
        per_head = 3 * C * C + (C - 1) * (C + 1) * H + 2 * C * C * H + 6 * C * M * H + 2 * M * H + 6 * C * H
        flops += d["K"] * d["G"] * (per_head + C * C - 1)
    whole = gated_delta_cost(d)
    return Cost(d["B"] * flops, whole.elements_read, whole.elements_written)


def unit_keys(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """Random directions: keys are normalised before they get here."""
    k_BTKM = rng.standard_normal((d["B"], d["T"], d["K"], d["M"]))
    return k_BTKM / np.linalg.norm(k_BTKM, axis=-1, keepdims=True)


def shares(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """Between 0 and 1, as a sigmoid gives them."""
    return rng.random((d["B"], d["T"], d["K"], d["G"]))


def log_decays(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """Decays from nearly 1 down to about 0.4 per position."""
    return -rng.exponential(0.2, (d["B"], d["T"], d["K"], d["G"]))


GATED_DELTA = Op(
    reference=gated_delta,
    cost=gated_delta_cost,
    dims={
        "B": range(1, 3),
        "T": range(1, 79, 7),
        "K": range(1, 3),
        "G": range(1, 3),
        "M": range(1, 20, 3),
        "H": range(1, 20, 3),
    },
    shapes={
        "qwen3-next-80b prefill 2k": {"B": 1, "T": 2048, "K": 16, "G": 2, "M": 128, "H": 128},
        "qwen3-next-80b decode batch 8": {"B": 8, "T": 1, "K": 16, "G": 2, "M": 128, "H": 128},
    },
    paper="arXiv:2412.06464",
    backward=gated_delta_backward,
    draw={"k_BTKM": unit_keys, "beta_BTKG": shares, "log_decay_BTKG": log_decays},
    empty=("B", "T"),
    nonfinite=("q_BTKM",),
    powers={"B": 1, "T": 1, "G": 1, "H": 1},
)
