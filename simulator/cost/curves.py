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
    ceil=math.ceil, maximum=max, minimum=min, sqrt=math.sqrt, log2=math.log2, exp=math.exp, where=lambda c, a, b: a if c else b
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
            device.peak_flops_per_s(dtype),
            device.hbm_bytes_per_s,
            device.cores,
            device.last_level_cache_bytes,
            device.link_bytes_per_s,
            DTYPE_BYTES[dtype],
            DTYPE_BYTES[kv_dtype or dtype],
        )


@dataclass(frozen=True)
class Form:
    """A formula: `seconds(parameters, limits, columns, xp)` and, per parameter, (first guess, lowest, highest)."""

    name: str
    seconds: Callable[[Parameters, Limits, Columns, Any], Any]
    parameters: Mapping[str, tuple[float, float, float]]
    columns: tuple[str, ...]


FORMS: dict[str, Form] = {}


def form(name: str, columns: tuple[str, ...], **parameters: tuple[float, float, float]) -> Callable[[Any], Any]:
    """Register the decorated formula."""

    def add(function: Any) -> Any:
        FORMS[name] = Form(name, function, parameters, columns)
        return function

    return add


def _join(a: Any, b: Any, sharpness: Any) -> Any:
    """Between the sum of two times (sharpness 1) and their maximum (large sharpness)."""
    return (a**sharpness + b**sharpness) ** (1.0 / sharpness)


@form(
    "gemm",
    ("m", "n", "k"),
    latency_s=(3e-6, 1e-7, 1e-3),
    efficiency=(0.75, 0.02, 1.1),
    bandwidth=(0.8, 0.05, 1.5),
    half_m=(64.0, 0.0, 4096.0),
    sharpness=(2.0, 1.0, 20.0),
)
def gemm(p: Parameters, limits: Limits, c: Columns, xp: Any = np) -> Any:
    """out[m, n] = x[m, k] w[k, n]: launch + compute joined with the bytes of x, w and out."""
    m, n, k = c["m"], c["n"], c["k"]
    compute = 2.0 * (m + p["half_m"]) * n * k / (limits.flops_per_s * p["efficiency"])
    memory = (limits.operand_bytes * (m * k + n * k) + 2.0 * m * n) / (limits.bytes_per_s * p["bandwidth"])
    return p["latency_s"] + _join(compute, memory, p["sharpness"])


@form(
    "attention_prefill",
    ("batch", "new_tokens", "context_tokens", "heads", "kv_heads", "head_width", "window"),
    latency_s=(8e-6, 1e-7, 1e-2),
    efficiency=(0.6, 0.005, 1.1),
    bandwidth=(0.7, 0.02, 1.5),
    half_tokens=(128.0, 0.0, 8192.0),
)
def attention_prefill(p: Parameters, limits: Limits, c: Columns, xp: Any = np) -> Any:
    """Causal attention of new tokens to the cached ones and to themselves."""
    new, cached = c["new_tokens"], c["context_tokens"]
    pairs = new * (cached + 0.5 * (new + 1.0))
    flops = 4.0 * c["batch"] * c["heads"] * c["head_width"] * pairs
    moved = c["batch"] * c["head_width"] * (4.0 * c["heads"] * new + 2.0 * limits.kv_bytes * c["kv_heads"] * (new + cached))
    compute = flops * (1.0 + p["half_tokens"] / (new + cached)) / (limits.flops_per_s * p["efficiency"])
    return p["latency_s"] + compute + moved / (limits.bytes_per_s * p["bandwidth"])


@form(
    "attention_decode",
    ("batch", "context_tokens", "heads", "kv_heads", "head_width", "window"),
    latency_s=(8e-6, 1e-7, 1e-2),
    bandwidth=(0.8, 0.02, 1.5),
    request_s=(2e-8, 0.0, 1e-4),
)
def attention_decode(p: Parameters, limits: Limits, c: Columns, xp: Any = np) -> Any:
    """One query token per request against its cache; `context_tokens` per request, the new token included."""
    moved = 2.0 * limits.kv_bytes * c["batch"] * c["kv_heads"] * c["head_width"] * c["context_tokens"]
    return p["latency_s"] + p["request_s"] * c["batch"] + moved / (limits.bytes_per_s * p["bandwidth"])


@form(
    "memory",
    ("moved_bytes",),
    latency_s=(2e-6, 1e-8, 1e-2),
    bandwidth=(0.75, 0.001, 3.0),
)
def memory(p: Parameters, limits: Limits, c: Columns, xp: Any = np) -> Any:
    """Norms, rotations, activations, look-ups: launch + bytes moved."""
    return p["latency_s"] + c["moved_bytes"] / (limits.bytes_per_s * p["bandwidth"])


@form(
    "collective",
    ("ranks", "message_bytes"),
    latency_s=(8e-6, 1e-7, 1e-2),
    rank_s=(1e-6, 0.0, 1e-3),
    bandwidth=(0.7, 0.005, 2.0),
    half_root_s=(0.0, 0.0, 1e-3),
)
def collective(p: Parameters, limits: Limits, c: Columns, xp: Any = np) -> Any:
    """Start-up per rank + bytes over the link; an all-reduce passes 2 (r-1)/r of the message through each link."""
    ranks, message = c["ranks"], c["message_bytes"]
    wire = 2.0 * (ranks - 1.0) / ranks * message / (limits.link_bytes_per_s * p["bandwidth"])
    return p["latency_s"] + p["rank_s"] * ranks + wire + p["half_root_s"] * xp.sqrt(message / 1048576.0)


@form(
    "moe",
    ("tokens", "hidden", "inter", "experts_per_token", "experts"),
    latency_s=(3e-5, 1e-7, 1e-2),
    efficiency=(0.5, 0.01, 1.1),
    bandwidth=(0.7, 0.02, 1.5),
    half_m=(64.0, 0.0, 4096.0),
)
def moe(p: Parameters, limits: Limits, c: Columns, xp: Any = np) -> Any:
    """Gate, up and down projections of the experts the tokens visit, routed evenly."""
    tokens, experts, visits = c["tokens"], c["experts"], c["experts_per_token"]
    active = experts * (1.0 - (1.0 - visits / experts) ** tokens)
    rows = tokens * visits + active * p["half_m"]
    weights = 3.0 * c["hidden"] * c["inter"]
    compute = 2.0 * rows * weights / (limits.flops_per_s * p["efficiency"])
    return p["latency_s"] + _join(compute, active * weights * limits.operand_bytes / (limits.bytes_per_s * p["bandwidth"]), 2.0)


@form("host", ("requests",), step_s=(1e-3, 0.0, 1.0), request_s=(1e-5, 0.0, 1e-1))
def host(p: Parameters, limits: Limits, c: Columns, xp: Any = np) -> Any:
    """Scheduling, preparing inputs and handling outputs of one step."""
    return p["step_s"] + p["request_s"] * c["requests"]


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
        wanted = set(FORMS[self.form].parameters)
        if wanted != set(self.parameters):
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
        return cls(form_name, {name: guess for name, (guess, _, _) in FORMS[form_name].parameters.items()})
