"""What a step takes beyond the model's own operators: copies to slower memories, low-rank adapters, guesses of next tokens.

    copies      blocks x bytes of a block / bandwidth of the way, not hidden behind the step
    adapters    loads x bytes of an adapter / host link; then per step the larger of reading the distinct adapters and of
                2 r (k + n) FLOPs per token and product (S-LoRA arXiv:2311.03285, Punica arXiv:2310.18547), and two kernels each
    guesses     a draft model or an EAGLE layer (arXiv:2401.15077) runs once per guess; Medusa's heads (arXiv:2401.10774) run
                once, all together; n-grams of the prompt cost nothing. The target's own rows are in `BatchShape.new_tokens`.

Units: seconds, bytes, tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from llmlab.reference.errors import InputError
from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.cost.step import StepCost
from llmlab.simulator.model.description import Gemm, ModelDescription, load_model

DRAFTERS = ("draft", "medusa", "eagle", "ngram")
"""Where guesses come from: a draft model, heads on the last layer, one more layer, n-grams of the prompt."""

ADAPTER_KERNEL_S = 2.5e-6
"""One launch of the kernels that shrink to the rank and expand from it; an estimate, two per product and layer."""

REACHED = 0.8
"""Part of the peak that streaming an adapter or a head reaches; an estimate."""


@dataclass(frozen=True)
class Features:
    """What an engine does beside plain serving; nothing by default.

    Attributes:
        swap_bytes: host memory of a replica that preempted requests swap to (scheduler `swapping`).
        host_cache_bytes: host memory of a replica that keeps prefix blocks the device gives up.
        disk_cache_bytes: disk behind that.
        disk_bytes_per_s: bandwidth of the disk.
        max_loras: low-rank adapters on the device at once; 0 for none.
        lora_rank: of every adapter.
        drafter: one of `DRAFTERS`, or empty for no speculative decoding.
        num_drafts: guesses per decode and step.
        acceptance: probability that a guess holds, given that those before it did.
        draft_model: name or path of the draft model.
        window_s: longest wait for a full batch (scheduler `dynamic_batching`).
    """

    swap_bytes: float = 0.0
    host_cache_bytes: float = 0.0
    disk_cache_bytes: float = 0.0
    disk_bytes_per_s: float = 5e9
    max_loras: int = 0
    lora_rank: int = 16
    drafter: str = ""
    num_drafts: int = 0
    acceptance: float = 0.7
    draft_model: str = ""
    window_s: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            InputError: a negative size, an unknown drafter, or a drafter without guesses or without its model.
        """
        for name in ("swap_bytes", "host_cache_bytes", "disk_cache_bytes", "max_loras", "num_drafts", "window_s"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise InputError("features", name, value, "must be a finite number, at least 0")
        for name in ("disk_bytes_per_s", "lora_rank"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError("features", name, getattr(self, name), "must be positive")
        if not 0 <= self.acceptance <= 1:
            raise InputError("features", "acceptance", self.acceptance, "must lie in [0, 1]")
        if self.drafter and self.drafter not in DRAFTERS:
            raise InputError("features", "drafter", self.drafter, f"is none of {', '.join(DRAFTERS)}")
        if bool(self.drafter) != bool(self.num_drafts):
            raise InputError("features", "num_drafts", self.num_drafts, "goes together with a drafter")
        if (self.drafter == "draft") != bool(self.draft_model):
            raise InputError("features", "draft_model", self.draft_model, "goes together with drafter=draft")
        if self.disk_cache_bytes and not self.host_cache_bytes:
            raise InputError("features", "disk_cache_bytes", self.disk_cache_bytes, "needs host_cache_bytes: blocks pass there")

    @property
    def plain(self) -> bool:
        """Whether nothing here has a cost."""
        return not (self.swap_bytes or self.host_cache_bytes or self.max_loras or self.drafter)


NO_FEATURES = Features()


def read_features(texts: Iterable[str]) -> Features:
    """Features from texts NAME=VALUE.

    Raises:
        InputError: a text without "=", an unknown name, or a value of another type or out of range.

    >>> read_features(["drafter=eagle", "num_drafts=3"]).num_drafts
    3
    """
    kinds: dict[str, Any] = {item.name: type(item.default) for item in fields(Features)}
    values: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or name not in kinds:
            raise InputError("features", name, text, f"expected NAME=VALUE with a name of {', '.join(kinds)}")
        try:
            values[name] = kinds[name](value)
        except ValueError:
            raise InputError("features", name, value, f"expected {kinds[name].__name__}") from None
    return Features(**values)


class ExtraCost:
    """A `StepCost` and what the features add; everything else is the step's own.

    Args:
        step: prices the model's operators.
        features: what comes on top.
        block_tokens: tokens of a KV block.

    Raises:
        InputError: an unknown draft model.
    """

    def __init__(self, step: StepCost, features: Features, *, block_tokens: int) -> None:
        self.step, self.features = step, features
        model, tp, device = step.model, step.tensor_parallel, step.profile.device
        self.block_bytes = model.kv_bytes_per_token(tp, step.kv_dtype) * block_tokens  # per device
        self.host_bytes_per_s = device.host_link_bytes_per_s
        self.limits = step.profile.limits("bfloat16", step.kv_dtype)
        operators = model.operators(tp, weight_dtype=step.weight_dtype)
        products = [one for one in operators if isinstance(one, Gemm) and one.name not in ("lm_head", "router")]
        self.products = sum(one.count for one in products)
        self.adapter_elements = features.lora_rank * sum(one.count * (one.k + one.n) for one in products)  # per device
        self.adapter_bytes = 2.0 * self.adapter_elements

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)

    @cached_property
    def drafter(self) -> StepCost | None:
        """Prices a pass of the draft model or of the EAGLE layer; without host work of its own."""
        step = self.step
        if self.features.drafter == "draft":
            model = load_model(self.features.draft_model)
        elif self.features.drafter == "eagle":
            model = one_layer(step.model)
        else:
            return None
        return StepCost(
            model,
            step.profile,
            tensor_parallel=step.tensor_parallel,
            weight_dtype="bfloat16",
            kv_dtype=step.kv_dtype,
            engine=step.engine.with_constants(host_step_s=0.0, host_request_step_s=0.0),
        )

    @property
    def head_bytes(self) -> float:
        """Bytes of one Medusa head per device: a residual layer and an output projection."""
        config = self.step.model.config
        return 2.0 * config.hidden_size * (config.hidden_size + config.vocab_size) / self.step.tensor_parallel

    @property
    def device_bytes(self) -> float:
        """Memory per device that adapters and drafter take from the cache of keys and values."""
        size = self.features.max_loras * self.adapter_bytes
        if self.drafter is not None:
            size += self.drafter.model.weight_bytes(self.step.tensor_parallel, "bfloat16")
        if self.features.drafter == "medusa":
            size += self.features.num_drafts * self.head_bytes
        return size

    @property
    def kv_share(self) -> float:
        """Part of the memory for keys and values that the target gets; the draft model keeps its own."""
        if self.drafter is None:
            return 1.0
        own = self.step.model.kv_bytes_per_token(self.step.tensor_parallel, self.step.kv_dtype)
        return own / (own + self.drafter.model.kv_bytes_per_token(self.step.tensor_parallel, self.step.kv_dtype))

    def copies_s(self, shape: BatchShape) -> float:
        """Seconds of copying KV blocks to and from slower memories."""
        to_disk = shape.disk_blocks * self.block_bytes * self.step.tensor_parallel / self.features.disk_bytes_per_s
        return shape.moved_blocks * self.block_bytes / self.host_bytes_per_s + to_disk

    def adapters_s(self, shape: BatchShape) -> float:
        """Seconds of loading adapters and of multiplying with them."""
        loads = shape.adapter_loads * self.adapter_bytes / self.host_bytes_per_s
        if not shape.adapters:
            return loads
        read = shape.adapters * self.adapter_bytes / (REACHED * self.limits.bytes_per_s)
        computed = 2.0 * shape.adapter_tokens * self.adapter_elements / (REACHED * self.limits.flops_per_s)
        return loads + max(read, computed) + 2 * self.products * ADAPTER_KERNEL_S

    def drafts_s(self, shape: BatchShape) -> float:
        """Seconds of making the guesses, and of showing prompts to the drafter."""
        decoding = shape.decode_requests
        if self.features.drafter == "medusa" and shape.draft_tokens:
            read = self.features.num_drafts * self.head_bytes
            computed = decoding * read  # 2 FLOPs per 2-byte weight and row
            return max(read / (REACHED * self.limits.bytes_per_s), computed / (REACHED * self.limits.flops_per_s))
        if self.drafter is None:
            return 0.0
        total = 0.0
        if shape.prefill:
            total += self.drafter.seconds(BatchShape(shape.prefill, 0, 0, 0))
        if shape.draft_tokens:
            once = self.drafter.seconds(BatchShape((), decoding, shape.decode_context_tokens, decoding))
            total += shape.draft_tokens / decoding * once
        return total

    def seconds(self, shape: BatchShape) -> float:
        """Seconds of the step with everything."""
        return self.step.seconds(shape) + self.copies_s(shape) + self.adapters_s(shape) + self.drafts_s(shape)

    def step_ns(self, shape: BatchShape) -> int:
        """Whole nanoseconds of the step, at least 1 for one that computes anything."""
        return math.ceil(self.seconds(shape) * 1e9)

    def breakdown(self, shape: BatchShape) -> dict[str, float]:
        """Seconds by operator kind; their sum is `seconds`."""
        added = {"copies": self.copies_s(shape), "adapters": self.adapters_s(shape), "drafts": self.drafts_s(shape)}
        return {**self.step.breakdown(shape), **{kind: seconds for kind, seconds in added.items() if seconds}}

    def binding(self, shape: BatchShape) -> str:
        """What takes most of the step."""
        added: Mapping[str, float] = {"host link": self.copies_s(shape), "drafter": self.drafts_s(shape)}
        name = max(added, key=lambda one: added[one])
        return name if added[name] > 0.5 * self.seconds(shape) else self.step.binding(shape)


def one_layer(model: ModelDescription) -> ModelDescription:
    """A model like this one with its first layer only, as EAGLE's drafter is."""
    kinds = {name: getattr(model.config, name)[:1] for name in ("windowed_layers", "sparse_layers", "linear_layers")}
    return replace(model, config=replace(model.config, num_hidden_layers=1, **kinds))
