"""Seconds of one operator on one device, from few physical parameters.

A *form* is a formula; a *curve* is a form with its parameters fitted on measured calls. Every formula is written once, over
NumPy arrays or over plain floats (`xp` is the namespace that supplies ceil, maximum, ...), so that the fit, the tables and
the simulator's inner loop evaluate the same expression. Units: seconds, bytes, FLOPs, tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from llmlab.reference.errors import InputError
from llmlab.simulator.hardware.device import DTYPE_BYTES, Device

FLOATS = SimpleNamespace(
    ceil=math.ceil,
    floor=math.floor,
    maximum=max,
    minimum=min,
    log2=math.log2,
    where=lambda condition, yes, no: yes if condition else no,
)
"""The functions the formulas use, for plain floats: ten times quicker than NumPy on a single number."""

Parameters = Mapping[str, float]
Columns = Mapping[str, Any]


@dataclass(frozen=True)
class Limits:
    """What a formula may know of the device, for operands of one dtype."""

    flops_per_s: float
    bytes_per_s: float
    cores: int
    cache_bytes: float
    link_bytes_per_s: float
    operand_bytes: float
    kv_bytes: float

    @classmethod
    def of(cls, device: Device, dtype: str, kv_dtype: str | None = None) -> Limits:
        """Limits of `device` for this dtype of operands, and of the cache of keys and values."""
        return cls(
            device.peak_flops_per_s(dtype) * device.sustained_share,
            device.hbm_bytes_per_s * device.memory_share,
            device.cores,
            device.last_level_cache_bytes,
            device.link_bytes_per_s,
            DTYPE_BYTES[dtype],
            DTYPE_BYTES[kv_dtype or dtype],
        )


@dataclass(frozen=True)
class Form:
    """A formula: `seconds(parameters, limits, columns, xp)`.

    `parameters` gives (first guess, lowest, highest) of each fitted number, `choices` the values of those that are not
    continuous. A form without parameters takes whatever knots it is given.
    """

    name: str
    seconds: Callable[[Parameters, Limits, Columns, Any], Any]
    parameters: Mapping[str, tuple[float, float, float]]
    choices: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


FORMS: dict[str, Form] = {}


def form(name: str, *, choices: Mapping[str, tuple[float, ...]] | None = None, **parameters: tuple[float, float, float]) -> Any:
    """Register the decorated formula."""

    def add(function: Any) -> Any:
        FORMS[name] = Form(name, function, parameters, choices or {})
        return function

    return add


def _join(a: Any, b: Any, sharpness: Any) -> Any:
    """Between the sum of two times (sharpness 1) and their maximum (large sharpness)."""
    return (a**sharpness + b**sharpness) ** (1.0 / sharpness)


def _throttled(seconds: Any, drop: Any, after_s: Any) -> Any:
    """Long kernels run into the power limit: up to a fraction `drop` slower, half of it at `after_s`."""
    return seconds * (1.0 + drop * seconds / (seconds + after_s))


TILES = ((128, 256), (128, 128), (64, 128), (64, 64))
"""Rows and columns of the output one multiprocessor computes at a time: what vendor libraries choose from."""

SPLITS = (1, 2, 4, 8, 16, 32, 64)
"""Parts the inner dimension is cut into when there are fewer tiles than multiprocessors."""


@form(
    "gemm_tiles",
    latency_s=(1.5e-6, 1e-7, 1e-3),
    launch_floor_s=(1e-7, 1e-8, 1e-3),
    gemv_saves_s=(1e-7, 1e-10, 2e-6),
    tile_s=(2e-6, 1e-9, 1e-4),
    tile_exponent=(0.2, 1e-3, 1.0),
    efficiency=(0.85, 0.2, 1.3),
    small_tile_loss=(0.05, 1e-4, 3.0),
    quantization=(0.3, 1e-3, 1.0),
    inner_step_s=(3e-9, 1e-11, 1e-7),
    split_s=(2.5e-6, 1e-8, 1e-4),
    throttle=(0.06, 1e-4, 2.0),
    throttle_after_s=(1e-3, 1e-5, 1e-1),
    bandwidth=(0.93, 0.2, 1.5),
    ramp_s_per_root_mb=(3e-7, 1e-9, 1e-5),
    sharpness=(2.8, 1.0, 20.0),
    convert_row_s=(1e-11, 1e-12, 1e-7),
    convert_element_s=(1e-15, 1e-16, 1e-10),
)
def gemm_tiles(p: Parameters, limits: Limits, c: Columns, xp: Any = np) -> Any:
    """out[m, n] = x[m, k] w[k, n] in tiles dealt to multiprocessors in waves, joined with the bytes of x, w and out.

    The quickest of the tile sizes and splits of k counts. A lone tile cannot be quicker than `inner_step_s` per element of k;
    starting and writing it costs `tile_s` times a power of the outputs it holds; small tiles run up to four at a time on a
    multiprocessor. 8-bit kernels first convert x, a row at a time. Calls that are not replayed from a captured graph take at
    least `launch_floor_s`.
    """
    return _join(_tiles(p, limits, c, xp), p["launch_floor_s"], 8.0)


@form(
    "gemm_tiles_eager",
    latency_s=(7e-6, 5e-6, 1.2e-5),
    launch_floor_s=(5.5e-5, 1e-6, 1e-3),
    launch_floor_wide_s=(8.5e-5, 1e-6, 1e-3),
    gemv_saves_s=(1e-8, 1e-10, 2e-8),
    tile_s=(3e-6, 1e-7, 8e-6),
    tile_exponent=(0.8, 1e-3, 1.0),
    efficiency=(0.8, 0.2, 1.1),
    small_tile_loss=(0.2, 1e-4, 3.0),
    quantization=(0.3, 1e-3, 1.0),
    inner_step_s=(3e-10, 1e-11, 1e-9),
    split_s=(1e-5, 1e-6, 1e-4),
    throttle=(0.2, 1e-4, 2.0),
    throttle_after_s=(1e-3, 1e-5, 1e-1),
    bandwidth=(0.9, 0.6, 1.0),
    ramp_s_per_root_mb=(4e-7, 1e-9, 2e-6),
    sharpness=(2.5, 1.0, 20.0),
    convert_row_s=(3e-9, 1e-12, 1e-7),
    convert_element_s=(1.5e-12, 1e-16, 1e-10),
)
def gemm_tiles_eager(p: Parameters, limits: Limits, c: Columns, xp: Any = np) -> Any:
    """The same product, timed with a host that submits each call: nothing shorter than its launches shows in the table.

    From 32 rows on another, longer path is launched. What hides below the floors is bounded by what the same products take
    where a whole module was replayed from a captured graph.
    """
    floor = xp.where(c["m"] < 32, p["launch_floor_s"], p["launch_floor_wide_s"])
    return _join(_tiles(p, limits, c, xp), floor, 16.0)


def _tiles(p: Parameters, limits: Limits, c: Columns, xp: Any) -> Any:
    m, n, k = c["m"], c["n"], c["k"]
    per_core = limits.flops_per_s * p["efficiency"] / limits.cores
    step_s = p["inner_step_s"] * limits.operand_bytes / 2.0
    whole, smooth = p["quantization"], 1.0 - p["quantization"]
    best = None
    for rows, columns in TILES:
        # Bytes loaded per FLOP grow as tiles shrink; 128 x 256 is the yardstick.
        loss = 1.0 + p["small_tile_loss"] * ((rows + columns) / (rows * columns) * (128 * 256 / 384) - 1.0)
        tiles = xp.ceil(m / rows) * xp.ceil(n / columns)
        work_s = 2.0 * rows * columns * loss / per_core
        start_s = p["tile_s"] * (xp.minimum(m, rows) * columns / (128.0 * 256.0)) ** p["tile_exponent"]
        together = min(4.0, 128 * 256 / (rows * columns))
        for split in SPLITS:
            units = tiles * split / limits.cores
            waves = whole * xp.ceil(units) + smooth * xp.maximum(units, 1.0)
            starts = whole * xp.ceil(units / together) + smooth * xp.maximum(units / together, 1.0)
            steps = xp.maximum(k / split, 32.0)
            seconds = xp.maximum(waves * steps * work_s, starts * steps * step_s) + starts * start_s
            if split > 1:
                partial = 8.0 * split * m * n  # float32, written and read, mostly within the last-level cache
                slow = xp.where(partial < limits.cache_bytes, 0.4, 1.0)
                seconds = seconds + p["split_s"] + slow * partial / (limits.bytes_per_s * p["bandwidth"])
            best = seconds if best is None else xp.minimum(best, seconds)
    compute = _throttled(best, p["throttle"], p["throttle_after_s"])
    moved = limits.operand_bytes * (m * k + n * k) + 2.0 * m * n
    memory = moved / (limits.bytes_per_s * p["bandwidth"]) + p["ramp_s_per_root_mb"] * (moved / 1e6) ** 0.5
    convert = m * xp.maximum(p["convert_row_s"], k * p["convert_element_s"])
    return p["latency_s"] - p["gemv_saves_s"] * (m == 1) + convert + _join(compute, memory, p["sharpness"])


@form(
    "gemm",
    latency_s=(3e-6, 1e-7, 1e-2),
    efficiency=(0.75, 0.02, 1.3),
    bandwidth=(0.8, 0.05, 1.5),
    half_m=(4.0, 1e-3, 4096.0),
    half_n=(4.0, 1e-3, 4096.0),
    sharpness=(2.0, 1.0, 20.0),
)
def gemm(p: Parameters, limits: Limits, c: Columns, xp: Any = np) -> Any:
    """out[m, n] = x[m, k] w[k, n]: launch + compute joined with the bytes of x, w and out.

    At m = half_m rows the matrix units reach half of their efficiency.
    """
    m, n, k = c["m"], c["n"], c["k"]
    compute = 2.0 * (m + p["half_m"]) * (n + p["half_n"]) * k / (limits.flops_per_s * p["efficiency"])
    memory = (limits.operand_bytes * (m * k + n * k) + 2.0 * m * n) / (limits.bytes_per_s * p["bandwidth"])
    return p["latency_s"] + _join(compute, memory, p["sharpness"])


NARROW_WINDOW = 1024
"""Windows below are served by kernels that walk a band of tiles and have curves of their own; wider ones, by those without."""


def _seen(keys: Any, window: Any, xp: Any) -> Any:
    """Keys in sight: all, or at most the window."""
    return xp.where(window > 0, xp.minimum(keys, xp.maximum(window, 1)), keys)


@form(
    "attention_prefill_tiles",
    choices={"tile_rows": (64.0, 128.0), "tile_keys": (64.0, 128.0), "splits_keys": (0.0, 1.0), "packs_heads": (0.0, 1.0)},
    latency_s=(9e-6, 1e-7, 1e-3),
    latency_per_doubling_s=(1e-6, 1e-10, 1e-4),
    tile_s=(2e-6, 1e-9, 1e-3),
    efficiency=(0.7, 0.02, 1.3),
    width_exponent=(0.35, 1e-3, 2.0),
    key_s=(1.2e-8, 1e-10, 1e-5),
    throttle=(0.2, 1e-4, 2.0),
    throttle_after_s=(3e-2, 1e-5, 1e-1),
    bandwidth=(1.0, 0.02, 1.2),
    key_value_passes=(3.0, 0.5, 8.0),
    sharpness=(2.0, 1.0, 20.0),
)
def attention_prefill_tiles(p: Parameters, limits: Limits, c: Columns, xp: Any = np) -> Any:
    """Causal attention of new tokens to the cached ones and to themselves, in tiles of query rows.

    Multiprocessors share the tiles; a lone long tile takes `key_s` per key. Where heads are packed, the query heads of one
    key head share a tile; where keys are split, idle multiprocessors share a tile's keys. New keys and values are written
    to the cache and read again: `key_value_passes` times their bytes.
    """
    batch, new, cached, width = c["batch"], c["new_tokens"], c["context_tokens"], c["head_width"]
    heads, kv_heads, window = c["heads"], c["kv_heads"], c["window"]
    rows, keys = p["tile_rows"], p["tile_keys"]
    if p["packs_heads"]:
        group = heads / kv_heads
        tile_tokens = xp.maximum(rows / group, 1.0)
        tiles = batch * kv_heads * xp.ceil(new * group / rows)
    else:
        tile_tokens = rows
        tiles = batch * heads * xp.ceil(new / rows)
    mean_keys = cached + 0.5 * (new + xp.minimum(tile_tokens, new))
    in_band = window + tile_tokens
    mean_keys = xp.where(window > 0, xp.minimum(mean_keys, in_band), mean_keys) + 0.5 * keys
    most_keys = cached + new
    most_keys = xp.where(window > 0, xp.minimum(most_keys, in_band), most_keys) + 0.5 * keys
    per_core = limits.flops_per_s * p["efficiency"] * (width / 128.0) ** p["width_exponent"] / limits.cores
    units = tiles / limits.cores
    compute = units * (p["tile_s"] + 4.0 * width * rows * mean_keys / per_core)
    shared = xp.maximum(1.0, xp.minimum(most_keys / keys, 1.0 / units)) if p["splits_keys"] else 1.0
    chain = p["tile_s"] + most_keys * p["key_s"] * (width / 128.0) / shared
    kept = _seen(new + cached, window, xp)
    moved = batch * width * (4.0 * heads * new + 2.0 * limits.kv_bytes * kv_heads * p["key_value_passes"] * kept)
    busy = _join(compute + moved / (limits.bytes_per_s * p["bandwidth"]), chain, p["sharpness"])
    start = p["latency_s"] + p["latency_per_doubling_s"] * xp.log2(1.0 + most_keys / 128.0)
    return start + _throttled(busy, p["throttle"], p["throttle_after_s"])


@form(
    "attention_prefill",
    latency_s=(8e-6, 1e-7, 1e-1),
    efficiency=(0.5, 0.005, 1.3),
    bandwidth=(0.7, 0.02, 1.5),
    half_keys=(64.0, 1e-3, 8192.0),
    row_s=(1e-9, 1e-12, 1e-4),
)
def attention_prefill(p: Parameters, limits: Limits, c: Columns, xp: Any = np) -> Any:
    """Causal attention of new tokens to the cached ones and to themselves: launch + rows + FLOPs + bytes."""
    new, cached, heads = c["new_tokens"], c["context_tokens"], c["heads"]
    mean_keys = _seen(cached + 0.5 * (new + 1.0), c["window"], xp) + p["half_keys"]
    flops = 4.0 * c["batch"] * heads * c["head_width"] * new * mean_keys
    kept = _seen(new + cached, c["window"], xp)
    moved = limits.operand_bytes * 2.0 * heads * new + 2.0 * limits.kv_bytes * c["kv_heads"] * kept
    seconds = flops / (limits.flops_per_s * p["efficiency"]) + p["row_s"] * c["batch"] * heads * new
    return p["latency_s"] + seconds + c["batch"] * c["head_width"] * moved / (limits.bytes_per_s * p["bandwidth"])


@form(
    "attention_decode_waves",
    choices={"splits_lone_heads": (0.0, 1.0), "slots_per_core": (1.0, 2.0)},
    latency_s=(8e-6, 1e-7, 1e-3),
    latency_per_doubling_s=(3e-7, 1e-10, 1e-4),
    grouped_s=(1e-6, 1e-10, 1e-4),
    regrouped_s=(1e-6, 1e-10, 1e-4),
    combine_s=(1e-6, 1e-10, 5e-5),
    unit_s=(3.5e-6, 1e-9, 1e-4),
    head_share=(0.01, 1e-5, 1.0),
    key_s=(1e-8, 1e-12, 1e-6),
    bandwidth=(0.9, 0.2, 1.3),
    cache_bandwidth=(1.3, 0.2, 5.0),
    cache_share=(0.7, 0.05, 3.0),
    sharpness=(2.0, 1.0, 20.0),
)
def attention_decode_waves(p: Parameters, limits: Limits, c: Columns, xp: Any = np) -> Any:
    """One query token per request against its cache; `context_tokens` per request, the new token included.

    A unit is one request's one key head. Units fill the multiprocessors' slots in waves; when there are fewer, a unit's
    keys are split among the idle ones (libraries differ in whether they do so for heads that share no keys) and combined.
    Rearranging queries by key head costs a copy where there are several requests and several key heads.
    """
    batch, heads, kv_heads = c["batch"], c["heads"], c["kv_heads"]
    keys = _seen(c["context_tokens"], c["window"], xp)
    group = heads / kv_heads
    key_bytes = 2.0 * limits.kv_bytes * c["head_width"]
    moved = key_bytes * batch * kv_heads * keys
    cold = xp.minimum(1.0, xp.maximum(0.0, moved / (limits.cache_bytes * p["cache_share"]) - 1.0))
    memory = moved / limits.bytes_per_s * (cold / p["bandwidth"] + (1.0 - cold) / p["cache_bandwidth"])
    slots = limits.cores * p["slots_per_core"]
    units = batch * kv_heads
    most = xp.maximum(1.0, keys / 128.0)
    if not p["splits_lone_heads"]:
        most = xp.where(group > 1, most, 1.0)
    split = xp.where(units >= 0.8 * slots, 1.0, xp.maximum(1.0, xp.minimum(most, slots / units)))
    waves = units * split / slots
    whole = xp.floor(waves + 1e-9)
    rest = xp.maximum(0.0, waves - whole)
    serial = keys / split * p["key_s"] * key_bytes / 512.0 + p["unit_s"] * (1.0 + p["head_share"] * group)
    per_wave = memory / waves
    busy = whole * _join(per_wave, serial, p["sharpness"])
    busy = busy + xp.where(rest > 1e-9, _join(rest * per_wave, serial, p["sharpness"]), 0.0)
    start = p["latency_s"] + p["latency_per_doubling_s"] * xp.log2(1.0 + keys / 128.0)
    start = start + p["combine_s"] * xp.minimum(1.0, split - 1.0)
    copies = xp.where((batch > 1) & (kv_heads > 1), p["regrouped_s"], 0.0)
    return start + busy + xp.where(group > 1, p["grouped_s"] + copies, 0.0)


@form(
    "attention_decode",
    latency_s=(8e-6, 1e-7, 1e-1),
    bandwidth=(0.8, 0.01, 1.5),
    request_s=(2e-8, 1e-10, 1e-2),
    head_s=(1e-9, 1e-12, 1e-3),
    efficiency=(0.5, 0.005, 10.0),
)
def attention_decode(p: Parameters, limits: Limits, c: Columns, xp: Any = np) -> Any:
    """One query token per request against its cache: launch + requests + heads + FLOPs + bytes."""
    batch, keys = c["batch"], _seen(c["context_tokens"], c["window"], xp)
    moved = 2.0 * limits.kv_bytes * batch * c["kv_heads"] * c["head_width"] * keys
    flops = 4.0 * batch * c["heads"] * c["head_width"] * keys
    busy = flops / (limits.flops_per_s * p["efficiency"]) + moved / (limits.bytes_per_s * p["bandwidth"])
    return p["latency_s"] + batch * (p["request_s"] + p["head_s"] * c["heads"]) + busy


@form(
    "attention_decode_mla",
    latency_s=(3e-5, 1e-7, 1e-2),
    launch_floor_s=(1e-7, 1e-8, 1e-2),
    latency_per_doubling_s=(5e-7, 1e-10, 1e-4),
    request_s=(2e-8, 1e-11, 1e-3),
    head_s=(1e-9, 1e-12, 1e-3),
    key_s=(8e-10, 1e-12, 1e-6),
    bandwidth=(0.7, 0.01, 1.3),
    efficiency=(0.5, 0.005, 1.3),
    head_tile=(16.0, 1.0, 128.0),
    sharpness=(3.0, 1.0, 20.0),
)
def attention_decode_mla(p: Parameters, limits: Limits, c: Columns, xp: Any = np) -> Any:
    """One query token per request against latents that all heads share: bytes read once, but all heads' FLOPs.

    Fewer heads than `head_tile` cost as many. Both products run over about the latent's width. A lone request's keys are
    shared among multiprocessors, but take `key_s` each even so. Calls that are not replayed take at least `launch_floor_s`.
    """
    batch, heads, keys = c["batch"], c["heads"], _seen(c["context_tokens"], c["window"], xp)
    elements = batch * keys * c["latent_width"]
    memory = limits.kv_bytes * elements / (limits.bytes_per_s * p["bandwidth"])
    compute = 4.0 * elements * xp.maximum(heads, p["head_tile"]) / (limits.flops_per_s * p["efficiency"])
    busy = _join(_join(memory, compute, p["sharpness"]), p["key_s"] * keys, p["sharpness"])
    start = p["latency_s"] + p["latency_per_doubling_s"] * xp.log2(1.0 + keys / 64.0)
    return _join(start + batch * (p["request_s"] + p["head_s"] * heads) + busy, p["launch_floor_s"], 8.0)


@form(
    "attention_prefill_mla",
    latency_s=(5e-5, 1e-7, 1e-2),
    launch_floor_s=(1e-7, 1e-8, 1e-2),
    token_s=(1e-9, 1e-13, 1e-5),
    efficiency=(0.5, 0.005, 1.3),
    tile_rows=(128.0, 1.0, 512.0),
    bandwidth=(0.5, 0.01, 1.5),
    passes=(6.0, 0.1, 60.0),
    chain_s=(1.2e-8, 1e-11, 1e-5),
    throttle=(0.2, 1e-4, 2.0),
    throttle_after_s=(3e-2, 1e-5, 1e-1),
    sharpness=(2.0, 1.0, 20.0),
)
def attention_prefill_mla(p: Parameters, limits: Limits, c: Columns, xp: Any = np) -> Any:
    """Causal attention of new tokens with keys and values expanded from latents, those of cached tokens anew for every step.

    Expanding a cached token multiplies its latent by the heads' matrices. A tile of `tile_rows` queries sees some keys it
    masks; keys, values, queries and outputs are moved `passes` times; a lone tile takes `chain_s` per key.
    """
    batch, new, cached, heads, width = c["batch"], c["new_tokens"], c["context_tokens"], c["heads"], c["head_width"]
    kept = _seen(cached, c["window"], xp)
    mean_keys = _seen(cached + 0.5 * (new + p["tile_rows"]), c["window"], xp)
    pairs = 4.0 * width * new * mean_keys + 4.0 * c["latent_width"] * width * kept
    compute = batch * heads * pairs / (limits.flops_per_s * p["efficiency"])
    moved = 2.0 * batch * heads * width * p["passes"] * (new + kept)
    chain = p["chain_s"] * (new + kept)
    busy = _join(compute + moved / (limits.bytes_per_s * p["bandwidth"]), chain, p["sharpness"])
    busy = _throttled(busy, p["throttle"], p["throttle_after_s"])
    return _join(p["latency_s"] + p["token_s"] * batch * new + busy, p["launch_floor_s"], 8.0)


@form("memory", latency_s=(2e-6, 1e-8, 1e-2), bandwidth=(0.75, 0.001, 5.0), sharpness=(2.0, 1.0, 20.0))
def memory(p: Parameters, limits: Limits, c: Columns, xp: Any = np) -> Any:
    """Norms, rotations, activations, look-ups: launch joined with bytes moved."""
    return _join(p["latency_s"], c["moved_bytes"] / (limits.bytes_per_s * p["bandwidth"]), p["sharpness"])


@form(
    "collective",
    latency_s=(5e-6, 1e-7, 1e-2),
    rank_s=(1e-6, 1e-9, 1e-3),
    bandwidth=(0.7, 0.005, 2.0),
    root_s=(1e-6, 1e-10, 1e-3),
)
def collective(p: Parameters, limits: Limits, c: Columns, xp: Any = np) -> Any:
    """Start-up per rank + bytes over the link; an all-reduce passes 2 (r-1)/r of the message through each link."""
    ranks, message = c["ranks"], c["message_bytes"]
    wire = 2.0 * (ranks - 1.0) / ranks * message / (limits.link_bytes_per_s * p["bandwidth"])
    return p["latency_s"] + p["rank_s"] * ranks + wire + p["root_s"] * (message / 1048576.0) ** 0.5


@form(
    "collective_ring",
    latency_s=(3.3e-5, 1e-7, 1e-3),
    hop_s=(2e-7, 1e-8, 1e-4),
    slow_hop_s=(4e-6, 1e-7, 1e-3),
    flagged_bytes=(1.0e5, 1e2, 1e9),
    bandwidth=(0.47, 0.005, 2.0),
)
def collective_ring(p: Parameters, limits: Limits, c: Columns, xp: Any = np) -> Any:
    """An all-reduce around a ring: 2 (r-1) hops, each passing 1/r of the message on.

    Small messages carry their flags with the data and hop quickly; from `flagged_bytes` on every hop waits for a fence. That
    is what NCCL does over PCIe. The first guess is fitted on tensor-parallel runs of such cards (static batches, 2 to 8 ranks).
    """
    ranks, message = c["ranks"], c["message_bytes"]
    hops = 2.0 * (ranks - 1.0)
    hop_s = xp.where(message < p["flagged_bytes"], p["hop_s"], p["slow_hop_s"])
    return p["latency_s"] + hops * hop_s + hops / ranks * message / (limits.link_bytes_per_s * p["bandwidth"])


@form(
    "nccl",
    choices={"simple_bytes": (2.0**19, 2.0**20, 2.0**21, 2.0**22)},
    latency_s=(4e-6, 1e-7, 1e-3),
    hop_s=(1e-6, 1e-9, 1e-4),
    root_s=(5e-6, 1e-9, 1e-3),
    flag_bandwidth=(0.4, 0.01, 5.0),
    simple_latency_s=(1e-5, 1e-7, 1e-3),
    simple_hop_s=(2e-6, 1e-9, 1e-4),
    simple_root_s=(5e-6, 1e-9, 1e-3),
    bandwidth=(0.7, 0.005, 2.0),
)
def nccl(p: Parameters, limits: Limits, c: Columns, xp: Any = np) -> Any:
    """A library's ring: start-up, a hop per further rank, and (r-1)/r of the message through each link.

    Small messages carry flags with their data (the LL and LL128 protocols); from `simple_bytes` on fences replace the flags,
    which starts slower and ends faster. Channels are opened as the message grows, which costs with its root. Passes over the
    ring (two of an all-reduce) are in the constants.
    """
    ranks, message = c["ranks"], c["message_bytes"]
    wire = (ranks - 1.0) / ranks * message / limits.link_bytes_per_s
    root = (message / 1048576.0) ** 0.5
    flags = p["latency_s"] + p["hop_s"] * (ranks - 1.0) + p["root_s"] * root + wire / p["flag_bandwidth"]
    simple = p["simple_latency_s"] + p["simple_hop_s"] * (ranks - 1.0) + p["simple_root_s"] * root + wire / p["bandwidth"]
    return xp.where(message < p["simple_bytes"], flags, xp.maximum(simple, flags * (message < 4.0 * p["simple_bytes"])))


ONE_SHOT_BYTES = (2**19, 2**18)
CUSTOM_BYTES = 2**23
"""vLLM's own all-reduce (csrc/custom_all_reduce.cuh): every rank reads all others' values up to half a MiB on 4 ranks and a
quarter on more, at any size on 2; above it sums a part each and gathers; from 8 MiB on the library's ring takes over."""


@form(
    "all_reduce_custom",
    latency_s=(4e-6, 1e-7, 1e-3),
    rank_s=(1e-7, 1e-10, 1e-5),
    one_shot_bandwidth=(0.6, 0.01, 2.0),
    two_shot_latency_s=(8e-6, 1e-7, 1e-3),
    two_shot_rank_s=(3e-7, 1e-10, 1e-5),
    two_shot_bandwidth=(0.6, 0.01, 2.0),
    ring_latency_s=(2e-5, 1e-7, 1e-3),
    ring_rank_s=(2e-6, 1e-9, 1e-4),
    ring_root_s=(5e-6, 1e-9, 1e-3),
    bandwidth=(0.75, 0.005, 2.0),
    sharpness=(2.0, 1.0, 20.0),
)
def all_reduce_custom(p: Parameters, limits: Limits, c: Columns, xp: Any = np) -> Any:
    """One-shot, two-shot or ring, by the message's size: (r-1) M, 2 (r-1)/r M and 2 (r-1)/r M bytes through each link."""
    ranks, message = c["ranks"], c["message_bytes"]
    passed = message / limits.link_bytes_per_s
    start = p["latency_s"] + p["rank_s"] * ranks
    one = start + _join((ranks - 1.0) * passed / p["one_shot_bandwidth"], 1e-9, 1.0)
    halves = 2.0 * (ranks - 1.0) / ranks * passed
    two = _join(p["two_shot_latency_s"] + p["two_shot_rank_s"] * ranks, halves / p["two_shot_bandwidth"], p["sharpness"])
    root = p["ring_root_s"] * (message / 1048576.0) ** 0.5
    ring = p["ring_latency_s"] + p["ring_rank_s"] * ranks + root + halves / p["bandwidth"]
    most = xp.where(ranks > 4, ONE_SHOT_BYTES[1], ONE_SHOT_BYTES[0])
    small = xp.where((ranks <= 2) | (message < most), one, two)
    return xp.where(message < CUSTOM_BYTES, small, ring)


@form("collective_knots")
def collective_knots(p: Parameters, limits: Limits, c: Columns, xp: Any = np) -> Any:
    """Straight lines between few points of log time over log size, per number of ranks (`r4.65536` = 64 KiB on 4 ranks).

    Protocols change with the size, so no single latency and bandwidth fit. Below the first point the time is constant, above
    the last proportional to the size; between numbers of ranks it is interpolated in log2, beyond them continued. Where the
    link is not the measured one (`link_bytes_per_s`), what exceeds the smallest message's time scales with it.
    """
    message, ranks = np.broadcast_arrays(np.maximum(c["message_bytes"], 1.0), np.asarray(c["ranks"], dtype=float))
    curves = knots_of(p)
    known = sorted(curves)
    columns = [_on_knots(curves[rank], message) for rank in known]
    slower = p["link_bytes_per_s"] / limits.link_bytes_per_s
    columns = [first + (whole - first) * slower for first, whole in columns]
    if len(known) == 1:
        return columns[0]
    at = np.log2(np.asarray(known, dtype=float))
    where = np.log2(np.maximum(ranks, 1.0))
    left = np.clip(np.searchsorted(at, where, side="right") - 1, 0, len(known) - 2)
    stack = np.log(np.stack(columns))
    low, high = (np.take_along_axis(stack, (left + i)[None, ...], axis=0)[0] for i in (0, 1))
    return np.exp(low + (high - low) * (where - at[left]) / (at[left + 1] - at[left]))


def knots_of(p: Parameters) -> dict[int, list[tuple[float, float]]]:
    """Ranks -> (log message bytes, log seconds), ascending."""
    curves: dict[int, list[tuple[float, float]]] = {}
    for name, seconds in p.items():
        if name.startswith("r") and "." in name:
            ranks, message = name[1:].split(".")
            curves.setdefault(int(ranks), []).append((math.log(float(message)), math.log(seconds)))
    return {ranks: sorted(points) for ranks, points in curves.items()}


def _on_knots(points: list[tuple[float, float]], message: Any) -> tuple[float, Any]:
    x, y = (np.array(column) for column in zip(*points))
    inside = np.exp(np.interp(np.log(message), x, y))
    return math.exp(y[0]), inside * np.maximum(1.0, message / math.exp(x[-1]))


@form(
    "moe",
    latency_s=(2e-5, 1e-7, 1e-2),
    latency_per_doubling_s=(1e-6, 1e-10, 1e-3),
    expert_s=(1e-8, 1e-11, 1e-4),
    token_s=(1e-9, 1e-13, 1e-5),
    efficiency=(0.5, 0.01, 1.3),
    bandwidth=(0.7, 0.02, 1.5),
    half_m=(32.0, 1e-3, 4096.0),
    half_n=(32.0, 1e-3, 4096.0),
    spread=(0.9, 0.05, 1.0),
    imbalance=(0.1, 1e-4, 1.0),
    sharpness=(2.0, 1.0, 20.0),
)
def moe(p: Parameters, limits: Limits, c: Columns, xp: Any = np) -> Any:
    """The projections (`matrices` of them: gate, up and down, or two) of the experts the tokens visit on one device.

    Tokens choosing evenly leave E (1 - (1 - k/E)^T) experts active; `spread` below 1 says they choose among fewer. With
    experts dealt to several `ranks` the busiest is waited for: its visits are ranks**imbalance times the mean. Sorting and
    activations run over the `handled` visits per token, which are all of them where every device holds every token.
    """
    tokens, experts, ranks = c["tokens"], c["experts"], c["ranks"]
    visits = c["experts_per_token"] * ranks ** p["imbalance"]
    reached = experts * p["spread"]
    share = xp.minimum(visits / reached, 1.0 - 1e-9)
    active = reached * (1.0 - (1.0 - share) ** tokens)
    rows = tokens * visits + active * p["half_m"]
    weights = c["matrices"] * c["hidden"] * c["inter"]
    compute = 2.0 * rows * c["matrices"] * c["hidden"] * (c["inter"] + p["half_n"]) / (limits.flops_per_s * p["efficiency"])
    moved = active * weights * limits.operand_bytes + 4.0 * tokens * visits * (c["hidden"] + 2.0 * c["inter"])
    busy = _join(compute, moved / (limits.bytes_per_s * p["bandwidth"]), p["sharpness"])
    start = p["latency_s"] + p["latency_per_doubling_s"] * xp.log2(1.0 + tokens) + p["expert_s"] * experts
    return start + p["token_s"] * tokens * c["handled"] * (c["hidden"] + c["inter"]) / 4096.0 + busy


def without_launches(parameters: Parameters) -> Parameters:
    """The same parameters with the host's launches taken out, which are the engine's and priced there."""
    return {name: 1e-12 if name.startswith("launch_floor") else value for name, value in parameters.items()}


@form("host", step_s=(1e-3, 1e-9, 1.0), request_s=(1e-5, 1e-12, 1e-1))
def host(p: Parameters, limits: Limits, c: Columns, xp: Any = np) -> Any:
    """Scheduling, preparing inputs and handling outputs of one step."""
    return p["step_s"] + p["request_s"] * c["batch"]


@dataclass(frozen=True)
class Curve:
    """A form and its fitted parameters.

    Attributes:
        residuals: quantile -> measured / predicted, over the calls left out of the fit.
        held_out: rows, mean absolute relative error and bias over those calls.
        source: the table it was fitted on.
    """

    form: str
    parameters: Parameters
    residuals: Mapping[str, float] = field(
        default_factory=lambda: {"0.05": 0.7, "0.25": 0.85, "0.5": 1.0, "0.75": 1.15, "0.95": 1.4}
    )
    rows: int = 0
    held_out: Mapping[str, float] = field(default_factory=dict)
    source: str = "datasheet prior"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise InputError("profile", "form", self.form, f"unknown; known: {', '.join(FORMS)}")
        wanted = set(FORMS[self.form].parameters) | set(FORMS[self.form].choices)
        if wanted and wanted != set(self.parameters):
            raise InputError("profile", f"{self.form}.parameters", sorted(self.parameters), f"expected {sorted(wanted)}")
        for name, value in self.parameters.items():
            if not math.isfinite(value):
                raise InputError("profile", f"{self.form}.{name}", value, "must be a finite number")

    def seconds(self, limits: Limits, columns: Columns, xp: Any = np) -> Any:
        """Evaluate the formula."""
        return FORMS[self.form].seconds(self.parameters, limits, columns, xp)

    @classmethod
    def prior(cls, form_name: str) -> Curve:
        """The form's first guess, with the wide interval of a formula nobody measured."""
        known = FORMS[form_name]
        return cls(
            form_name,
            {name: guess for name, (guess, _, _) in known.parameters.items()}
            | {name: values[-1] for name, values in known.choices.items()},
        )
