"""What one layer costs forward and backward, on one rank, for one microbatch.

The operators are the model description's own; training adds the two products of every matrix's backward (towards the input
and towards the weights), dropouts with their residual additions, the loss, and attention's backward. A host that submits
kernels one by one bounds small layers: a layer takes the join of what the device needs and of what the host needs.

Units: seconds, bytes, FLOPs, tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from llmlab.reference.errors import InputError
from llmlab.simulator.cost.curves import FLOATS
from llmlab.simulator.hardware.device import DTYPE_BYTES, Device
from llmlab.simulator.hardware.profile import DeviceProfile, load_device
from llmlab.simulator.model.description import Attention, Experts, Gemm, ModelDescription, Moved
from llmlab.simulator.training.plan import Framework, ParallelPlan, framework

FORWARD_KERNELS = 18.0
BACKWARD_KERNELS = 30.0
"""Kernels of a layer: two norms, four matrices, attention, biases, dropouts and copies; twice the products backward."""

SCORE_BYTES_FORWARD = 13.0
SCORE_BYTES_BACKWARD = 14.0
"""Bytes moved per attention score that is written out: product, softmax, dropout with its mask, and the product after."""

ATTENTION_BACKWARD = 2.5
"""Five products backward for two forward in fused attention, which computes its scores again (arXiv:2307.08691)."""

WIDTH_EXPONENT = 0.3
"""Narrow heads fill the matrix units less: speed of fused attention against head width / 128, to this power."""

ATTENTION_START_S = 1e-5

BATCHED_PRODUCT_EFFICIENCY = 0.55
"""Part of the peak that products of single heads reach where scores are written out."""

NARROW = ("fp8", "fp4")
"""Dtypes whose products convert their operands first; router, output matrix and attention stay at 16 bits."""

HOST_JOIN = 4.0
"""Sharpness of the join of device and host time: launches run ahead, but not without bound."""


@dataclass(frozen=True)
class PassCost:
    """Device seconds of the parts of a layer (or of embedding and head), and kernels the host submits."""

    forward_s: float = 0.0
    backward_input_s: float = 0.0
    backward_weight_s: float = 0.0
    attention_s: float = 0.0
    forward_kernels: float = 0.0
    backward_kernels: float = 0.0
    flops: float = 0.0

    def scaled(self, layers: float) -> PassCost:
        """The same of so many layers."""
        return PassCost(*(layers * value for value in self.__dict__.values()))


def training_flops(
    model: ModelDescription, sequences: int, sequence: int, *, recompute: bool = False, causal: bool = False
) -> float:
    """FLOPs of one optimizer step: 6 per weight and token, plus attention scores, of all `sequences` together.

    With `recompute` the forward pass counts twice (hardware FLOPs: 96 B s l h^2 (1 + s/6h + V/16lh) for a GPT,
    arXiv:2104.04473 eq. 3). `causal` counts only scores in sight.

    >>> from llmlab.simulator.training.plan import gpt
    >>> B, s, l, h, V = 4, 2048, 24, 2304, 51200
    >>> hardware = 96 * B * s * l * h**2 * (1 + s / (6 * h) + V / (16 * l * h))
    >>> bool(abs(training_flops(gpt(l, h, 24, V, s), B, s, recompute=True) / hardware - 1) < 1e-3)
    True
    """
    layers, per_position, tables = _weights_at_work(model)
    scores = 2.0 * sequence * per_position * (0.5 if causal else 1.0)
    return 2.0 * sequences * sequence * ((4.0 if recompute else 3.0) * (layers + scores) + 3.0 * tables)


@lru_cache(maxsize=256)
def _weights_at_work(model: ModelDescription) -> tuple[int, int, int]:
    """Weights of layers a token meets, query width of all layers with scores, weights of the output matrix."""
    c = model.config
    tables = c.vocab_size * c.hidden_size
    tied = tables * (1 if c.tie_word_embeddings else 2) + c.learned_positions * c.hidden_size
    return c.num_active_parameters - tied, c.query_width * (model.layers - sum(c.linear_layers)), tables


def _gemm_seconds(profile: DeviceProfile, dtype: str) -> Callable[[float, float, float], float]:
    curve, limits = profile.curve("gemm", dtype), profile.limits(dtype)
    return lambda m, n, k: float(curve.seconds(limits, {"m": max(m, 1.0), "n": max(n, 1.0), "k": max(k, 1.0)}, FLOATS))


@lru_cache(maxsize=65536)
def _product(device: str, dtype: str, m: float, n: float, k: float) -> float:
    return _gemm_seconds(_profile(device), dtype)(m, n, k)


@lru_cache(maxsize=64)
def _profile(device: str) -> DeviceProfile:
    return load_device(device)


def math_dtype(precision: str) -> str:
    """The dtype matrices are multiplied in, by the names of the curves (half precision runs at the bfloat16 rate)."""
    return {"float16": "bfloat16", "fp8": "fp8", "nvfp4": "fp4", "float32": "float32"}.get(precision, "bfloat16")


def check_precision(device: Device, precision: str, where: str = "plan") -> None:
    """Refuse 4-bit products on a device without 4-bit matrix units.

    Raises:
        InputError: it has none.
    """
    if precision == "nvfp4" and "fp4" not in device.flops_per_s:
        raise InputError(where, "precision", precision, f"{device.name} has no 4-bit matrix units")


def layer_cost(model: ModelDescription, device: str, plan: ParallelPlan, habits: Framework | None = None) -> PassCost:
    """One layer (the mean over layers where they differ) for one microbatch on one rank, collectives not counted."""
    return _cost(model, device, _key(device, plan, habits), "layer")


def ends_cost(
    model: ModelDescription, device: str, plan: ParallelPlan, habits: Framework | None = None
) -> tuple[PassCost, PassCost]:
    """Embedding, and final norm with output matrix and loss, for one microbatch on one rank."""
    key = _key(device, plan, habits)
    return _cost(model, device, key, "embedding"), _cost(model, device, key, "head")


@dataclass(frozen=True)
class _Key:
    """All a layer's cost depends on beside model and device."""

    batch: int
    sequence: int
    tp: int
    cp: int
    ep: int
    split: bool
    precision: str
    fused: bool
    efficiency: float
    memory_efficiency: float
    attention_efficiency: float
    fp8_efficiency: float
    expert_efficiency: float
    tensor: str
    side: int
    depth: int
    einsum_dispatch: bool
    capacity_factor: float


def _key(device: str, plan: ParallelPlan, habits: Framework | None) -> _Key:
    habits = habits or framework(plan.framework)
    return _Key(
        plan.microbatch,
        plan.sequence,
        plan.tp,
        plan.cp,
        plan.ep,
        plan.sequence_parallel,
        plan.precision,
        habits.fused_attention,
        habits.efficiency(_profile(device).device.generation),
        habits.memory_efficiency,
        habits.attention_efficiency,
        habits.fp8_efficiency if plan.precision in ("fp8", "nvfp4") else 1.0,
        habits.expert_efficiency,
        plan.tensor,
        plan.tensor_side,
        plan.tensor_depth,
        habits.einsum_dispatch,
        habits.capacity_factor,
    )


def local_product(key: _Key, m: float, n: float, k: float) -> tuple[float, float, float, int]:
    """Sizes of the products a rank computes of out[m, n] = x[m, k] w[k, n] shared by grid or cube, and how many.

    A grid multiplies blocks step by step (SUMMA); a cube multiplies one pair of blocks per rank.
    """
    if key.tensor == "3d":
        return m / key.side, n / key.side, k / key.side, 1
    return m / (key.side * key.depth), n / key.side, k / key.side, key.side


@lru_cache(maxsize=16384)
def _cost(model: ModelDescription, device: str, key: _Key, what: str) -> PassCost:
    batch, sequence, tp, cp, ep, split = key.batch, key.sequence, key.tp, key.cp, key.ep, key.split
    precision, efficiency = key.precision, key.efficiency
    profile, dtype = _profile(device), math_dtype(precision)
    tokens = batch * sequence // cp
    moved_per_s = profile.limits().bytes_per_s * key.memory_efficiency
    spread = 1 if key.tensor == "1d" else tp  # grids and cubes split rows, widths and heads: whole operators, a part of each
    found = model.operators(tp // spread)
    layers = model.layers
    width = DTYPE_BYTES["float32" if precision == "float32" else "bfloat16"]
    forward = towards_input = towards_weight = attention = flops = 0.0
    ends = {"lm_head", "embedding", "sampling"}
    for item in found:
        if what == "layer" and getattr(item, "name", "") in ends:
            continue
        if what != "layer" and getattr(item, "name", "") not in ({"lm_head"} if what == "head" else {"embedding"}):
            continue
        count = item.count / layers if what == "layer" else 1.0
        if isinstance(item, Gemm):
            matrix_dtype = dtype if what == "layer" and item.part != "router" else ("bfloat16" if dtype in NARROW else dtype)
            m, n, k = float(tokens), float(item.n), float(item.k)
            if key.tensor != "1d":
                m, n, k, times = local_product(key, m, n, k)
                count *= times
            reached = efficiency * (key.fp8_efficiency if matrix_dtype in NARROW else 1.0)
            forward += count * _product(device, matrix_dtype, m, n, k) / reached
            towards_input += count * _product(device, matrix_dtype, m, k, n) / reached
            towards_weight += count * _product(device, matrix_dtype, n, k, m) / reached
            flops += count * 6.0 * m * n * k
        elif isinstance(item, Experts):
            local = max(1, item.experts // ep)
            visits = item.visits * key.capacity_factor
            split_by = tp if ep > 1 else 1  # experts are whole where ranks share them out: each takes its part of the tokens
            rows = max(1.0, tokens * visits / split_by / local)
            inter = item.inter * split_by
            for n, k in ((2.0 * inter, float(item.hidden)), (float(item.hidden), float(inter))):
                reached = efficiency * key.fp8_efficiency * key.expert_efficiency
                forward += count * local * _product(device, dtype, rows, n, k) / reached
                towards_input += count * local * _product(device, dtype, rows, k, n) / reached
                towards_weight += count * local * _product(device, dtype, n, k, rows) / reached
                flops += count * local * 6.0 * rows * n * k
            permuted = count * tokens * item.visits / split_by * item.hidden * 4 * width / moved_per_s
            if key.einsum_dispatch:  # one-hot [token, expert x capacity] times tokens, there and back
                sizes = tokens * visits / split_by, float(item.hidden), float(tokens)
                permuted += 2.0 * count * _product(device, "bfloat16", *sizes) / efficiency
            forward += permuted
            towards_input += permuted
        elif isinstance(item, Moved):
            part = tp if item.name == "norm" and split else spread
            seconds = count * item.elements_per_row * tokens * width / part / moved_per_s
            forward += seconds
            towards_input += 1.5 * seconds  # gradients in and out, and the saved input
        elif isinstance(item, Attention):
            one, back, work = _attention(item, device, key, moved_per_s, spread)
            attention += count * one
            forward += count * one
            towards_input += count * back
            flops += count * work
    c = model.config
    if what == "layer":
        part = tp if split else spread
        dropouts = 2.0 * 3.5 * c.hidden_size * tokens * width / part / moved_per_s if not c.gated_mlp else 0.0
        forward, towards_input = forward + dropouts, towards_input + dropouts
    if what == "head":
        loss = tokens * c.vocab_size / tp * 4.0 / moved_per_s  # one float32 pass over the logits
        forward, towards_input = forward + 3.0 * loss, towards_input + 2.0 * loss
    kernels = (FORWARD_KERNELS, BACKWARD_KERNELS) if what == "layer" else (6.0, 8.0)
    return PassCost(forward, towards_input, towards_weight, attention, *kernels, flops)


def _attention(item: Attention, device: str, key: _Key, moved_per_s: float, spread: int) -> tuple[float, float, float]:
    """Seconds forward and backward and FLOPs of attention of one layer, of which `spread` ranks take a part each."""
    heads = item.heads / spread
    batch, sequence, cp, efficiency = key.batch, key.sequence, key.cp, key.efficiency
    tokens = sequence // cp
    seen = min(sequence, item.window) if item.window else sequence
    work = 12.0 * batch * tokens * seen * heads * item.head_width
    if key.fused:
        per_s = _profile(device).limits().flops_per_s * key.attention_efficiency * (item.head_width / 128.0) ** WIDTH_EXPONENT
        one = work / 6.0 / per_s + ATTENTION_START_S
        return one, ATTENTION_BACKWARD * one, 0.5 * work
    profile = _profile(device)
    scores = float(batch) * heads * tokens * sequence
    products = 4.0 * scores * item.head_width / (profile.limits().flops_per_s * BATCHED_PRODUCT_EFFICIENCY * efficiency)
    one = products + SCORE_BYTES_FORWARD * scores / moved_per_s
    return one, 2.0 * products + SCORE_BYTES_BACKWARD * scores / moved_per_s, work


NEWTON_SCHULZ_STEPS = 5
"""Iterations of Muon's orthogonalization (Jordan et al. 2024; arXiv:2502.16982, section 2.1)."""


@lru_cache(maxsize=256)
def orthogonalization_flops(model: ModelDescription) -> float:
    """FLOPs of Muon's update of one layer (the mean): per step X X', its square, and both times X, of every matrix n <= m.

    >>> from llmlab.simulator.training.plan import gpt
    >>> h, one = 1024, gpt(2, 1024, 16, 51200, 1024)
    >>> square, wide = 5 * 6.0 * h**3, 5 * (4.0 * h * h * 4 * h + 2.0 * h**3)
    >>> bool(orthogonalization_flops(one) == 4 * square + 2 * wide)
    True
    """
    total = 0.0
    for layer in range(model.layers):
        for shape in model.config.layer_shapes(layer).values():
            if len(shape) >= 2:
                short, long = sorted(shape[-2:])
                count = math.prod(shape[:-2])
                total += NEWTON_SCHULZ_STEPS * count * (4.0 * short * short * long + 2.0 * short**3)
    return total / model.layers


def joined(device_s: float, host_s: float) -> float:
    """Seconds where a host submits kernels ahead of a device: the join of both.

    >>> joined(1.0, 0.0), joined(0.0, 2.0)
    (1.0, 2.0)
    """
    longest = max(device_s, host_s)
    if longest == 0.0:
        return 0.0
    return float(longest * ((device_s / longest) ** HOST_JOIN + (host_s / longest) ** HOST_JOIN) ** (1.0 / HOST_JOIN))
