"""Seconds of one engine step: the model's operators priced with the device's curves, plus the engine's host time.

Matrix products, norms and collectives depend on the number of rows only, so their sum is tabulated once per row count;
attention is a formula of the requests' lengths. Times are integer nanoseconds, so that every executor gets equal ones.
`assemble` adds the tables up to a step; it is also what the compiled path runs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from llmlab.reference.errors import InputError
from llmlab.simulator.cost import assemble
from llmlab.simulator.cost.assemble import TABLE_ROWS, Tables
from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.cost.curves import FLOATS, FORMS, NARROW_WINDOW, Curve, without_launches
from llmlab.simulator.cost.engine import EngineModel, load_engine
from llmlab.simulator.hardware.device import dtype_name
from llmlab.simulator.hardware.profile import DeviceProfile, load_device
from llmlab.simulator.model.description import (
    Attention,
    Collective,
    Experts,
    Gemm,
    ModelDescription,
    Moved,
    Operator,
    load_model,
)

ONE_SHOT_BANDWIDTH = 0.6
"""Fraction of the link that an exchange reaches in which every rank reads all the others' values."""

KERNELS_OF = {"gemm_tiles_eager": 2, "attention_decode_mla": 5, "moe": 6}
"""Kernels of an operator, by the form of its curve: quantize and multiply; rotate, cache, absorb, attend, expand; choose, sort,
multiply, activate, multiply, sum."""

FP4_SCALES = 1.125
"""NVFP4 stores an 8-bit scale beside every 16 four-bit weights."""

FP4_BANDWIDTH = 0.8
FP4_QUANTIZE_S = 3.0e-6
"""Four-bit against 8-bit products: part of the bandwidth that streaming such weights reaches, and the kernel that quantizes the
operand in front of each. Fitted on 24 published runs of one dense model of 70 billion weights on 1 to 8 B200 (mean error of a
step 2 %), beside 24 runs of the same model in 8 bits that fix everything else."""

DEQUANTIZED_ON_HOPPER = 0.4
"""Part of the matrix units' speed that experts reach on Hopper whose four-bit weights are widened to 16 bits on the way: warps
that convert in registers cannot feed the wide asynchronous products, and the older ones reach 0.63 of those (arXiv 2402.13499)
before the conversion itself. Chosen by hand on 56 published runs of models of 21 and 117 billion weights under vLLM and
TensorRT-LLM, which ask for 0.33 to 0.5; 17 runs under SGLang ask for 0.5 to 1. Tiles hardly filled, whose time is the weights',
lose nothing."""

DECODE_ROWS = 32
"""Numbers of decode requests whose attention is tabulated at once: hardly slower than one alone."""

DECODE_LAUNCH_S = 8.0e-6
"""Start and end of a decode kernel that is no curve's: about what those of the curves take."""

_COMPUTE, _MEMORY, _NETWORK, _HOST = "compute", "HBM bandwidth", "network", "host"


@dataclass(frozen=True)
class _Priced:
    """One operator with its curve."""

    operator: Operator
    curve: Curve
    dtype: str

    @property
    def kind(self) -> str:
        """Key of the breakdown."""
        if isinstance(self.operator, Gemm):
            return "lm_head" if self.operator.name == "lm_head" else "gemm"
        if isinstance(self.operator, Moved):
            return self.operator.name if self.operator.name in ("sampling", "embedding") else "elementwise"
        return {Experts: "moe", Collective: "communication"}[type(self.operator)]


def _grid() -> np.ndarray:
    exact = np.arange(1, TABLE_ROWS + 1)
    above = np.arange(TABLE_ROWS + 32, 8192 + 1, 32)
    far = np.unique(np.round(8192 * 2 ** (np.arange(1, 16 * 9 + 1) / 16)).astype(int))
    return np.concatenate([exact, above, far])


def host_of(profile: DeviceProfile) -> EngineModel:
    """Host constants measured together with the device's curves; generic ones where none were."""
    measured = profile.curves.get("host")
    if measured is None:
        return EngineModel()
    step_s, request_s = (measured.parameters[name] for name in ("step_s", "request_s"))
    return EngineModel("measured", step_s, request_s, 0.0, launch_s=0.0, graph_launch_s=0.0)


_GRID = _grid()
_ROWS = _GRID.tolist()
_CONTEXTS = [2.0 ** (i / 8) for i in range(8 * 21 + 1)]


class StepCost:
    """Prices steps of one model on one tensor-parallel group of equal devices under one engine.

    Args:
        model: what is served.
        profile: one device of the group.
        tensor_parallel: devices in the group (of one pipeline stage).
        pipeline_parallel: such groups that hold a part of the layers each; `assemble.seconds` says how a step is then priced.
        weight_dtype: of the matrices; int4 and fp4 are multiplied in bfloat16 where the device has no such arithmetic.
        kv_dtype: of the cache of keys and values.
        expert_parallel, attention_data_parallel: how the group shares experts and requests, see `ModelDescription.operators`.
        engine: host constants; those measured with the profile, or generic ones, when not given.

    Raises:
        InputError: an unknown dtype, or a degree the model's heads do not allow.
    """

    def __init__(
        self,
        model: ModelDescription,
        profile: DeviceProfile,
        *,
        tensor_parallel: int = 1,
        weight_dtype: str = "bfloat16",
        kv_dtype: str = "bfloat16",
        expert_parallel: int = 1,
        attention_data_parallel: int = 1,
        pipeline_parallel: int = 1,
        engine: EngineModel | None = None,
    ) -> None:
        self.model, self.profile, self.tensor_parallel = model, profile, tensor_parallel
        degrees = {"expert_parallel": expert_parallel, "attention_data_parallel": attention_data_parallel}
        self.weight_dtype, self.kv_dtype = dtype_name(weight_dtype), dtype_name(kv_dtype)
        self.engine = engine or host_of(profile)
        if not 1 <= pipeline_parallel <= model.layers:
            raise InputError(model.name, "pipeline_parallel", pipeline_parallel, f"must lie in 1 to {model.layers} layers")
        self.pipeline_parallel = pipeline_parallel
        operators = model.operators(
            tensor_parallel, weight_dtype=self.weight_dtype, pipeline_parallel=pipeline_parallel, **degrees
        )
        wide = "bfloat16" if self.weight_dtype in ("fp8", "fp8_block", "int8", "int4", "fp4") else self.weight_dtype
        self._rows = [
            _Priced(operator, *self._curve(operator, wide)) for operator in operators if not isinstance(operator, Attention)
        ]
        self._attention = [operator for operator in operators if isinstance(operator, Attention)]
        self._prompt_kv = self.kv_dtype if self.engine.prefill_from_cache else wide
        self._prefill_curve = profile.curve("attention_prefill", wide, self._prompt_kv)
        self._decode_curve = profile.curve("attention_decode", wide, self.kv_dtype)
        limits = profile.limits(wide, self.kv_dtype)
        if model.weight_bytes(tensor_parallel, self.weight_dtype, **degrees) > limits.cache_bytes:
            limits = replace(limits, cache_bytes=1.0)  # between two visits of a layer the weights have swept the cache
        limits = replace(limits, flops_per_s=limits.flops_per_s * self.engine.sustained_compute)
        self._attention_limits = limits
        self._groups = [self._group(group, wide) for group in self._attention]
        self.kernels = sum(operator.count for operator in operators) + 2 * model.layers
        collectives = sum(operator.count for operator in operators if isinstance(operator, Collective))
        self._gaps_s = self.kernels * self.engine.kernel_gap_s + collectives * self.engine.collective_gap_s
        # Engines brought decode kernels of their own to Blackwell; what a Hopper kernel took says nothing of those.
        self._newer_kernels = profile.device.generation == "blackwell" and not profile.device.fitted
        self._decode_tables: dict[int, list[float]] = {}
        self._kinds: dict[tuple[str, int], Mapping[str, float]] = {}
        self._exact = {rows: self._table(rows) for rows in ("tokens", "emitted")}
        # A plain list answers in 30 ns where an array takes 100.
        self.tables = Tables(
            tokens_s=[0.0, *self._exact["tokens"][:TABLE_ROWS].tolist()],
            emitted_s=[0.0, *self._exact["emitted"][:TABLE_ROWS].tolist()],
            rows=_ROWS,
            tokens_far_s=self._exact["tokens"].tolist(),
            emitted_far_s=self._exact["emitted"].tolist(),
            contexts=_CONTEXTS,
            decode_s=self._decode_tables,
            decode_launch_s=sum(group.count * curve.parameters.get("latency_s", 0.0) for group, _, _, curve in self._groups),
            gaps_s=self._gaps_s,
            launch_s=self.kernels * self.engine.launch_s,
            graph_launch_s=self.engine.graph_launch_s,
            graph_tokens=self.engine.graph_tokens if self.engine.cuda_graph else -1,
            host_step_s=self.engine.host_step_s,
            host_request_step_s=self.engine.host_request_step_s,
            stages=pipeline_parallel,
        )

    @staticmethod
    def cached(
        model: str,
        device: str,
        *,
        tensor_parallel: int = 1,
        weight_dtype: str = "bfloat16",
        kv_dtype: str = "bfloat16",
        engine: str = "vllm",
    ) -> StepCost:
        """The same from names, made once per combination."""
        return _cached(model, device, tensor_parallel, weight_dtype, kv_dtype, engine)

    def _group(self, group: Attention, wide: str) -> tuple[Attention, dict[str, int], Curve, Curve]:
        """Head counts, and the curves of prefill and decode of one group of equal layers."""
        columns = {"heads": group.heads, "kv_heads": group.kv_heads, "head_width": group.head_width, "window": group.window}
        if group.latent_width:
            columns["latent_width"] = group.latent_width
        suffix = "_mla" if group.kind == "mla" else "_windowed" if 0 < group.window < NARROW_WINDOW else ""
        prefill = self.profile.curve("attention_prefill" + suffix, wide, self._prompt_kv)
        decode = self.profile.curve("attention_decode" + suffix, wide, self.kv_dtype)
        prefill, decode = (replace(curve, parameters=self._captured(curve)) for curve in (prefill, decode))
        return group, columns, prefill, decode

    def _captured(self, curve: Curve) -> Mapping[str, float]:
        """A curve's parameters without the host's part, which is the engine's."""
        parameters = without_launches(curve.parameters)
        kernels = KERNELS_OF.get(curve.form, 0)
        if kernels and self.engine.captured_kernel_s:
            start = min(parameters["latency_s"], kernels * self.engine.captured_kernel_s)
            parameters = {**parameters, "latency_s": start}
        return parameters

    def _borrows_fp8(self, dtype: str) -> bool:
        """Whether four-bit products run in four-bit arithmetic nobody timed: then the 8-bit curve, put right, is the prior."""
        return dtype == "fp4" and "gemm.fp4" not in self.profile.curves and "fp4" in self.profile.device.flops_per_s

    def _widens(self, dtype: str) -> bool:
        """Whether four-bit weights become 16-bit operands of a device whose fast products take theirs from shared memory."""
        return dtype in ("fp4", "int4") and self.profile.device.generation == "hopper"

    def _curve(self, operator: Operator, wide: str) -> tuple[Curve, str]:
        profile = self.profile
        if isinstance(operator, Gemm):
            dtype = self.model.part_dtype(operator.part, self.weight_dtype)
            as_wide = self.engine.static_scales and dtype in ("fp8", "int8")
            return profile.curve("gemm", wide if as_wide else "fp8" if self._borrows_fp8(dtype) else dtype), dtype
        if isinstance(operator, Experts):
            dtype = self.model.part_dtype("experts", self.weight_dtype)
            return profile.curve("moe_parallel" if operator.ranks > 1 else "moe", dtype), dtype
        if isinstance(operator, Collective):
            return profile.collective(operator.kind, operator.ranks or self.tensor_parallel)[0], wide
        if isinstance(operator, Moved):
            return profile.curve("memory", operator.name), wide
        raise TypeError(f"{operator} has no curve of rows")

    def _seconds(self, priced: _Priced, rows: np.ndarray) -> np.ndarray:
        """Seconds of all `count` calls of one operator, per number of rows."""
        operator, limits = priced.operator, self.profile.limits(priced.dtype, self.kv_dtype)
        limits = replace(limits, flops_per_s=limits.flops_per_s * self.engine.sustained_compute)
        if isinstance(operator, Gemm | Moved) and operator.share != 1.0:  # requests attended for on other devices
            rows = np.ceil(rows * operator.share)
        if isinstance(operator, Gemm):
            columns: dict[str, Any] = {"m": rows, "n": operator.n, "k": operator.k}
        elif isinstance(operator, Experts):
            columns = {
                "tokens": rows,
                "hidden": operator.hidden,
                "inter": operator.inter,
                "experts_per_token": operator.visits,
                "handled": operator.handled,
                "experts": operator.experts,
                "matrices": 3.0,
                "ranks": operator.ranks,
            }
        elif isinstance(operator, Moved):
            columns = {"moved_bytes": rows * operator.elements_per_row * operator.itemsize}
        else:
            assert isinstance(operator, Collective)
            ranks = operator.ranks or self.tensor_parallel
            columns = {"ranks": ranks, "message_bytes": rows * operator.bytes_per_row}
            link = self.profile.collective(operator.kind, ranks)[1]
            limits = replace(limits, link_bytes_per_s=link)
        parameters = self._captured(priced.curve)
        if isinstance(operator, Experts) and self._widens(priced.dtype):
            slower = {name: parameters[name] * DEQUANTIZED_ON_HOPPER for name in ("efficiency", "half_m")}
            parameters = {**parameters, **slower}
        share = self.engine.elementwise_share if priced.kind == "elementwise" else 1.0
        form = FORMS[priced.curve.form].seconds
        if isinstance(operator, Gemm) and self._borrows_fp8(priced.dtype):
            limits = replace(limits, operand_bytes=limits.operand_bytes * FP4_SCALES / FP4_BANDWIDTH)
            parameters = {**parameters, "latency_s": parameters["latency_s"] + FP4_QUANTIZE_S}
        seconds = np.asarray(form(parameters, limits, columns, np))
        if isinstance(operator, Gemm) and self.engine.gemm_share != 1.0:
            seconds = seconds - (1.0 - self.engine.gemm_share) * form(parameters, limits, columns | {"m": 1.0}, np)
        if isinstance(operator, Collective) and operator.kind == "all_reduce" and self.engine.one_shot_rows:
            start = form(parameters, limits, columns | {"message_bytes": 0.0 * rows + 1.0}, np)
            others = (self.tensor_parallel - 1.0) * columns["message_bytes"]
            one_shot = start + others / (limits.link_bytes_per_s * ONE_SHOT_BANDWIDTH)
            seconds = np.where(rows <= self.engine.one_shot_rows, one_shot, seconds)
        return seconds * (operator.count * share)

    def _table(self, which: str) -> np.ndarray:
        rows = _GRID.astype(float)
        total = np.zeros(len(rows))
        for priced in self._rows:
            if getattr(priced.operator, "rows", "tokens") == which:
                total += self._seconds(priced, rows)
        return np.maximum.accumulate(total)  # more rows never take less

    def prefill_s(self, prompts: Any, total: Any, pairs: Any, xp: Any = FLOATS) -> Any:
        """Seconds of prefill attention over all layers.

        One kernel serves all prompts of a step: it is priced as that many equal prompts with the same number of new tokens
        and of (query, key) pairs in all. `xp` supplies ceil, maximum, ...: the compiled path records the formula through it,
        so no branch here or in a form may depend on the three numbers except by `xp.where`.
        """
        if self.pipeline_parallel > 1:  # of one micro-batch
            parts = xp.minimum(float(self.pipeline_parallel), prompts)
            prompts, total, pairs = xp.ceil(prompts / parts), total / parts, pairs / parts
        new = total / prompts
        cached = xp.maximum(0.0, pairs / total - 0.5 * new)
        seconds = 0.0
        for group, heads, curve, _ in self._groups:
            here = prompts if group.share == 1.0 else xp.ceil(prompts * group.share)
            columns = {"batch": here, "new_tokens": new, "context_tokens": cached}
            seconds = seconds + group.count * curve.seconds(self._attention_limits, columns | heads, xp)
        return seconds

    def _sums(self, shape: BatchShape) -> tuple[int, int, int, int, int, float]:
        """What `assemble` wants to know of a step; makes the decode table it will look into."""
        prompts = len(shape.prefill)
        prefill = 0.0
        if prompts:
            total = sum(fresh for fresh, _ in shape.prefill)
            pairs = sum(fresh * (old + 0.5 * fresh) for fresh, old in shape.prefill)
            prefill = self.prefill_s(prompts, total, pairs)
        if shape.decode_requests:
            self.decode_table(math.ceil(shape.decode_requests / min(self.pipeline_parallel, shape.decode_requests)))
        return shape.new_tokens, shape.emitted, prompts, shape.decode_requests, shape.decode_context_tokens, prefill

    def decode_table(self, batch: int) -> list[float]:
        """Seconds of decode attention of this many requests at each of `tables.contexts`; made `DECODE_ROWS` at a time."""
        table = self._decode_tables.get(batch)
        if table is None:
            first = batch - (batch - 1) % DECODE_ROWS
            batches = np.arange(first, first + DECODE_ROWS)
            contexts, total = np.array(_CONTEXTS), np.zeros((DECODE_ROWS, len(_CONTEXTS)))
            for group, heads, _, curve in self._groups:
                here = np.ceil(batches * group.share)[:, None]
                columns = {"batch": here, "context_tokens": contexts, **heads}
                if (self.engine.decode_key_core_s or self._newer_kernels) and not group.kind:
                    total += group.count * self._plain_decode_s(here, contexts, heads)
                else:
                    total += group.count * np.asarray(curve.seconds(self._attention_limits, columns))
            self._decode_tables.update(zip(batches.tolist(), np.maximum.accumulate(total, axis=1).tolist()))
            table = self._decode_tables[batch]
        return table

    def _plain_decode_s(self, batch: np.ndarray, contexts: np.ndarray, heads: Mapping[str, int]) -> np.ndarray:
        """One layer of decode attention by the engine's own kernel: a start, then reading the cache or its work per key."""
        engine, limits = self.engine, self._attention_limits
        keys = batch * np.minimum(contexts, heads["window"] or np.inf)
        read = 2.0 * limits.kv_bytes * keys * heads["kv_heads"] * heads["head_width"]
        group = heads["heads"] // heads["kv_heads"]
        if engine.decode_group and group != engine.decode_group:
            key_core_s = engine.decode_query_core_s * group
        else:
            key_core_s = engine.decode_key_core_s if group > 1 else 0.0
        compute_s = key_core_s * keys * heads["kv_heads"] * heads["head_width"] / 128 / limits.cores
        return DECODE_LAUNCH_S + np.maximum(read / (limits.bytes_per_s * engine.decode_bandwidth), compute_s)

    def device_s(self, shape: BatchShape) -> float:
        """Seconds the devices compute and communicate."""
        return assemble.device_s(self.tables, *self._sums(shape))

    def _launch_s(self, shape: BatchShape) -> float:
        """Seconds the host needs to submit the step's kernels."""
        return assemble.launch_s(self.tables, shape.new_tokens, len(shape.prefill))

    def host_s(self, shape: BatchShape) -> float:
        """Seconds of host work that no device work hides."""
        return assemble.host_s(self.tables, shape.decode_requests + len(shape.prefill))

    def seconds(self, shape: BatchShape) -> float:
        """Seconds of the step: the device's, or the launches' where those take longer, and the host's on top."""
        return assemble.seconds(self.tables, *self._sums(shape))

    def step_ns(self, shape: BatchShape) -> int:
        """Whole nanoseconds of the step, at least 1 for one that computes anything."""
        return math.ceil(self.seconds(shape) * 1e9)

    def _by_kind(self, which: str, rows: int) -> Mapping[str, float]:
        """Seconds of the operators on this many rows, by kind; kept, for a formula on one number costs a millisecond."""
        if (known := self._kinds.get((which, rows))) is None:
            known = defaultdict(float)
            for priced in self._rows:
                if rows and getattr(priced.operator, "rows", "tokens") == which:
                    known[priced.kind] += float(self._seconds(priced, np.array([float(rows)]))[0])
            self._kinds[which, rows] = known
        return known

    def breakdown(self, shape: BatchShape) -> dict[str, float]:
        """Seconds by operator kind; their sum is `seconds`."""
        parts: dict[str, float] = defaultdict(float)
        if not shape.new_tokens:
            return {}
        tokens, emitted, prompts, batch, context, prefill = self._sums(shape)
        if self.pipeline_parallel > 1:
            part = assemble.micro_batch(self.pipeline_parallel, tokens, emitted, prompts, batch, context)
            tokens, emitted, batch, context = part
        for which, rows in (("tokens", tokens), ("emitted", emitted)):
            for kind, seconds in self._by_kind(which, rows).items():
                parts[kind] += seconds
        parts["attention_prefill"] += prefill
        parts["attention_decode"] += assemble.attention_s(self.tables, prompts, batch, context, 0.0)
        parts["gaps"] = self._gaps_s
        parts["launch"] = max(0.0, self._launch_s(shape) - sum(parts.values()))
        parts["host"] = self.host_s(shape)
        parts["table"] = self.seconds(shape) - sum(parts.values())  # rounding of the tabulated sum, next to nothing
        return {kind: seconds for kind, seconds in parts.items() if abs(seconds) > 1e-12}

    def binding(self, shape: BatchShape) -> str:
        """What takes most of the step: compute, HBM bandwidth, network or host."""
        totals = dict.fromkeys((_COMPUTE, _MEMORY, _NETWORK, _HOST), 0.0)
        for kind, seconds in self.breakdown(shape).items():
            if kind in ("launch", "host", "gaps"):
                totals[_HOST] += seconds
            elif kind == "communication":
                totals[_NETWORK] += seconds
            elif kind == "attention_prefill":
                totals[_COMPUTE] += seconds
            elif kind in ("attention_decode", "elementwise", "embedding", "sampling"):
                totals[_MEMORY] += seconds
            elif kind != "table":
                rows = float(shape.emitted if kind == "lm_head" else shape.new_tokens)
                if kind == "moe":
                    experts = self.model.config
                    rows = rows * experts.num_experts_per_tok / experts.num_experts
                totals[_COMPUTE if rows > self._balance_rows() else _MEMORY] += seconds
        return max(totals, key=lambda name: totals[name])

    def _balance_rows(self) -> float:
        """Rows at which a large matrix product takes as long to compute as its weights to load."""
        limits = self.profile.limits(self.weight_dtype)
        return limits.flops_per_s * limits.operand_bytes / (2.0 * limits.bytes_per_s)

    def interval(self, shape: BatchShape, low: str = "0.05", high: str = "0.95") -> tuple[float, float]:
        """Factors on `seconds` between which a measured step should lie, from the curves' residuals at these quantiles.

        Layers repeat the same shapes, so the error of one operator kind is common to all its calls, while those of
        different kinds are independent: within a kind errors add up, across kinds their squares do.
        """
        parts = self.breakdown(shape)
        total = sum(parts.values())
        if not total:
            return 1.0, 1.0
        down = up = 0.0
        for kind, seconds in parts.items():
            curve = self._residual_curves.get(kind)
            if curve is None:
                continue
            share = seconds / total
            down += (share * (1.0 - self.profile.quantile(curve, low))) ** 2
            up += (share * (self.profile.quantile(curve, high) - 1.0)) ** 2
        return max(0.05, 1.0 - math.sqrt(down)), 1.0 + math.sqrt(up)

    @property
    def _residual_curves(self) -> Mapping[str, Curve]:
        return {
            **{priced.kind: priced.curve for priced in self._rows},
            "attention_prefill": self._prefill_curve,
            "attention_decode": self._decode_curve,
        }


@lru_cache(maxsize=24)
def _cached(model: str, device: str, tensor_parallel: int, weight_dtype: str, kv_dtype: str, engine: str) -> StepCost:
    return StepCost(
        load_model(model),
        load_device(device),
        tensor_parallel=tensor_parallel,
        weight_dtype=weight_dtype,
        kv_dtype=kv_dtype,
        engine=load_engine(engine),
    )
