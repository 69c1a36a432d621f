"""Attention to a quantized key/value cache: keys per channel, values per token (KIVI, Liu et al. 2024, arXiv:2402.02750).

Keys have a few channels that are large in every token, so a key group is C tokens of one channel; values have none, so a value
group is some channels of one token (section 3.2). The last R tokens, which do not fill a key group yet, stay as they are.

A byte holds U codes of 8 / U bits. Within a value group of W bytes, byte w holds channels w, W + w, 2 W + w, ... from its
lowest bits up, so that channels that lie side by side lie side by side in memory as well.

Axes: B batch, J key group, C tokens of a key group, S = J C quantized tokens, R recent tokens, K key/value head, G query heads
per key/value head, P value group, W bytes of a value group, U codes of a byte, H = P W U head width.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.layers.softmax import softmax
from llmlab.reference.op import Cost, Dims, Draw, Op


def quantized_kv(
    q_BKGH: np.ndarray,
    k_code_BSKPW: np.ndarray,
    k_scale_BJKH: np.ndarray,
    k_zero_BJKH: np.ndarray,
    v_code_BSKPW: np.ndarray,
    v_scale_BSKP: np.ndarray,
    v_zero_BSKP: np.ndarray,
    k_recent_BRKH: np.ndarray,
    v_recent_BRKH: np.ndarray,
) -> np.ndarray:
    """Attend one query per sequence to S quantized and R plain tokens; return out_BKGH.

        x = code scale + zero            (eq. 2; zero is the group's minimum, in the units of x)
        out = softmax(q [k; k_recent]' / sqrt(H)) [v; v_recent]      (algorithm 1)

    How many bits a code has follows from the shapes: with H bytes for a head it has 8, with H / 2 it has 4. A NaN or infinity
    in a query stays in that query's row.

    Raises:
        ValueError: a head width that is not 1, 2 or 4 codes per byte, or tokens that are no whole number of groups.

    >>> byte = np.array([[[[[0x21]]]]], dtype=np.uint8); ones = np.ones((1, 1, 1, 2)); one = np.ones((1, 1, 1, 1))
    >>> none = np.zeros((1, 0, 1, 2))
    >>> quantized_kv(np.zeros((1, 1, 1, 2)), byte, ones, ones, byte, one * 10, one * 5, none, none).ravel()
    array([15., 25.])
    """
    require_shapes(q_BKGH.shape, k_code_BSKPW.shape, k_scale_BJKH.shape)
    H, C = q_BKGH.shape[-1], k_code_BSKPW.shape[1] // max(k_scale_BJKH.shape[1], 1)
    kind = q_BKGH.dtype
    k_BSKH = unpacked(k_code_BSKPW, H).astype(kind) * np.repeat(k_scale_BJKH, C, 1) + np.repeat(k_zero_BJKH, C, 1)
    width = H // v_code_BSKPW.shape[3]
    v_BSKH = unpacked(v_code_BSKPW, H).astype(kind) * np.repeat(v_scale_BSKP, width, 3) + np.repeat(v_zero_BSKP, width, 3)
    keys, values = np.concatenate([k_BSKH, k_recent_BRKH], 1), np.concatenate([v_BSKH, v_recent_BRKH], 1)
    scores_BKGS = np.einsum("bkgh,bskh->bkgs", q_BKGH, keys) * H**-0.5
    return np.einsum("bkgs,bskh->bkgh", softmax(scores_BKGS), values)


def require_shapes(q: tuple[int, ...], k_code: tuple[int, ...], k_scale: tuple[int, ...]) -> int:
    """Codes per byte; refuse shapes that do not fit each other."""
    H, S, J, taken = q[-1], k_code[1], k_scale[1], k_code[3] * k_code[4]
    if taken == 0 or H % taken or H // taken not in (1, 2, 4):
        raise ValueError(f"H={H} channels in {taken} bytes: a byte holds 1, 2 or 4 codes")
    if (S % J if J else S) != 0:
        raise ValueError(f"S={S} tokens are no whole number of J={J} groups")
    return H // taken


def unpacked(code_BSKPW: np.ndarray, H: int) -> np.ndarray:
    """Codes as one number per channel, code_BSKH.

    >>> unpacked(np.array([[0x21, 0x43]], dtype=np.uint8), 4)
    array([1, 3, 2, 4], dtype=uint8)
    """
    codes_per_byte = H // (code_BSKPW.shape[-2] * code_BSKPW.shape[-1])
    bits = 8 // codes_per_byte
    planes = [code_BSKPW >> np.uint8(bits * u) & np.uint8((1 << bits) - 1) for u in range(codes_per_byte)]
    return np.concatenate([plane[..., None, :] for plane in planes], -2).reshape(*code_BSKPW.shape[:-2], H)


def packed(code_BSKH: np.ndarray, groups: int, bits: int) -> np.ndarray:
    """The inverse of `unpacked`: code_BSKPW with P = groups.

    >>> packed(np.array([1, 3, 2, 4], dtype=np.uint8), 1, 4).tolist() == [[0x21, 0x43]]
    True
    """
    codes_per_byte = 8 // bits
    planes = code_BSKH.reshape(*code_BSKH.shape[:-1], groups, codes_per_byte, -1)
    parts = (planes[..., u, :] << np.uint8(bits * u) for u in range(codes_per_byte))
    return np.asarray(sum(parts, np.uint8(0)), dtype=np.uint8)


def quantize(x: np.ndarray, bits: int, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (codes, scale, zero) of groups along `axis`, kept with size 1 (eq. 1): minimum 0, maximum 2^bits - 1.

    >>> quantize(np.array([1.0, 2.0, 7.0]), 2, 0)[0]
    array([0, 0, 3], dtype=uint8)
    """
    zero = x.min(axis, keepdims=True)
    scale = (x.max(axis, keepdims=True) - zero) / (2**bits - 1)
    codes = np.rint((x - zero) / np.where(scale == 0, 1, scale))
    return codes.astype(np.uint8), scale, zero


def quantize_keys(k_BSKH: np.ndarray, *, bits: int, tokens: int, groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (k_code_BSKPW, k_scale_BJKH, k_zero_BJKH): `tokens` tokens of one channel are a group."""
    B, S, K, H = k_BSKH.shape
    codes, scale, zero = quantize(k_BSKH.reshape(B, S // tokens, tokens, K, H), bits, 2)
    return packed(codes.reshape(B, S, K, H), groups, bits), scale[:, :, 0], zero[:, :, 0]


def quantize_values(v_BSKH: np.ndarray, *, bits: int, groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (v_code_BSKPW, v_scale_BSKP, v_zero_BSKP): each token's head is `groups` groups of channels."""
    B, S, K, H = v_BSKH.shape
    codes, scale, zero = quantize(v_BSKH.reshape(B, S, K, groups, H // groups), bits, 4)
    return packed(codes.reshape(B, S, K, H), groups, bits), scale[..., 0], zero[..., 0]


def quantized_kv_cost(d: Dims) -> Cost:
    """Both products and 2 FLOPs to scale and shift each code; 2 FLOPs per multiply-add, exponentials are not counted.

    A byte of codes counts as a quarter of an element: what is timed is float32. All else is read once, the result written once.
    """
    heads, tokens = d["K"] * d["G"], d["S"] + d["R"]
    codes = 2 * d["B"] * d["S"] * d["K"] * d["P"] * d["W"]
    beside = 2 * d["B"] * d["K"] * (d["J"] * d["H"] + d["S"] * d["P"] + d["R"] * d["H"])
    return Cost(
        flops=d["B"] * d["H"] * (4 * heads * tokens + 4 * d["K"] * d["S"]),
        elements_read=codes / 4 + beside + d["B"] * heads * d["H"],
        elements_written=d["B"] * heads * d["H"],
    )


def random_codes(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """Any bytes: every code may occur."""
    return rng.integers(0, 256, (d["B"], d["S"], d["K"], d["P"], d["W"]), dtype=np.uint8)


def _steps(axes: str) -> Draw:
    """Scales that make codes span a few units."""

    def draw(d: Dims, rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(0.5, 2.0, [d[axis] for axis in axes]) * 2.0 ** -(8 // d["U"])

    return draw


QUANTIZED_KV = Op(
    reference=quantized_kv,
    cost=quantized_kv_cost,
    dims={
        "B": range(1, 3),
        "J": range(1, 4),
        "C": range(1, 12),
        "R": range(1, 6),
        "K": range(1, 3),
        "G": range(1, 4),
        "P": range(1, 4),
        "W": range(1, 6),
        "U": range(1, 3),
    },
    derived={"S": lambda d: d["J"] * d["C"], "H": lambda d: d["P"] * d["W"] * d["U"]},
    shapes={
        "llama-3-8b int4 decode 8k": {"B": 1, "J": 256, "C": 32, "R": 32, "K": 8, "G": 4, "P": 4, "W": 16, "U": 2},
        "llama-3-8b int8 decode 8k": {"B": 1, "J": 256, "C": 32, "R": 32, "K": 8, "G": 4, "P": 4, "W": 32, "U": 1},
    },
    paper="arXiv:2402.02750",
    draw={
        "k_code_BSKPW": random_codes,
        "v_code_BSKPW": random_codes,
        "k_scale_BJKH": _steps("BJKH"),
        "v_scale_BSKP": _steps("BSKP"),
    },
    empty=("B", "R"),
    nonfinite=("q_BKGH",),
    powers={"B": 1, "J": 1, "K": 1},
)
