"""What is deployed: a model on replicas of tensor-parallel devices, under one engine configuration.

Units: tokens, bytes, US dollars.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

from llmlab.reference.errors import InputError
from llmlab.reference.serving._request import Scheduler
from llmlab.reference.serving.router import ROUTERS
from llmlab.simulator.cost.engine import EngineModel
from llmlab.simulator.cost.extras import NO_FEATURES, ExtraCost, Features
from llmlab.simulator.cost.step import StepCost
from llmlab.simulator.hardware.profile import DeviceProfile, load_device
from llmlab.simulator.model.description import ModelDescription, kv_capacity_tokens, load_model
from llmlab.simulator.serving.presets import engine_of, preset_of
from llmlab.simulator.serving.schedulers import SCHEDULERS, check_features, new_scheduler


@dataclass(frozen=True)
class Deployment:
    """One way to serve a model.

    Attributes:
        model: preset name, path of a `config.json`, or a description.
        device: device name, path of a profile, or a profile.
        tensor_parallel: devices one replica spans.
        expert_parallel: groups of them that the experts are dealt to.
        attention_data_parallel: groups of them that each attend for a part of the requests.
        pipeline_parallel: stages of a replica, each of `tensor_parallel` devices.
        replicas: equal copies behind the router.
        scheduler: a key of `SCHEDULERS`; the engine's where not given.
        max_num_seqs: requests a replica runs at once; the engine's default where None.
        max_num_batched_tokens: tokens of one step (chunk size of prefill); the engine's default where None.
        block_tokens: tokens of one KV block; the engine's where not given.
        gpu_memory_utilization: part of the device memory the engine may fill.
        prefix_caching: reuse KV blocks of equal prefixes; the engine's default where not given.
        weight_dtype: of the matrices.
        kv_dtype: of the cache of keys and values.
        engine: by name (host constants and the defaults of `presets.yaml`), or host constants as they are.
        router: a key of `ROUTERS`.
        kv_blocks: blocks per replica where they are known; from the memory left over where None.
        max_model_tokens: longest request served; the model's context where None, 0 for no limit.
        price_usd_per_hour: of one device; the device's default where None.
        features: swapping, offload, adapters, speculative decoding, batching window; none by default.
    """

    model: str | ModelDescription
    device: str | DeviceProfile
    tensor_parallel: int = 1
    replicas: int = 1
    scheduler: str = cast(str, None)
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_tokens: int = cast(int, None)
    gpu_memory_utilization: float = 0.9
    prefix_caching: bool = cast(bool, None)
    weight_dtype: str = "bfloat16"
    kv_dtype: str = "bfloat16"
    engine: str | EngineModel = "vllm"
    router: str = "least_outstanding"
    kv_blocks: int | None = None
    max_model_tokens: int | None = None
    price_usd_per_hour: float | None = None
    expert_parallel: int = 1
    attention_data_parallel: int = 1
    pipeline_parallel: int = 1
    features: Features = NO_FEATURES

    def __post_init__(self) -> None:
        """Check what can be checked without loading anything.

        Raises:
            InputError: a count below 1, an unknown scheduler or router, or features that do not go together.
        """
        preset = preset_of(self.engine if isinstance(self.engine, str) else self.engine.name)
        for name in ("scheduler", "block_tokens", "prefix_caching"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(preset, name))
        counts = ("tensor_parallel", "replicas", "max_num_seqs", "max_num_batched_tokens", "block_tokens", "kv_blocks")
        for field in (*counts, "expert_parallel", "attention_data_parallel", "pipeline_parallel"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise InputError("deployment", field, value, "must be at least 1")
        if self.scheduler not in SCHEDULERS:
            raise InputError("deployment", "scheduler", self.scheduler, f"is none of {', '.join(SCHEDULERS)}")
        check_features(self.scheduler, self.features)
        if self.router not in ROUTERS:
            raise InputError("deployment", "router", self.router, f"is none of {', '.join(ROUTERS)}")
        if self.price_usd_per_hour is not None and not 0 <= self.price_usd_per_hour < float("inf"):
            raise InputError("deployment", "price_usd_per_hour", self.price_usd_per_hour, "must not be negative")

    @property
    def devices(self) -> int:
        """Devices of all replicas."""
        return self.tensor_parallel * self.pipeline_parallel * self.replicas


@dataclass(frozen=True)
class Site:
    """A deployment with everything it names loaded and sized: what a simulation needs.

    Attributes:
        kv_blocks: per replica.
        max_num_seqs: resolved, and never above `max_num_batched_tokens`.
    """

    deployment: Deployment
    model: ModelDescription
    profile: DeviceProfile
    engine: EngineModel
    cost: StepCost
    kv_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int

    @property
    def price_usd_per_hour(self) -> float:
        """Of one device."""
        given = self.deployment.price_usd_per_hour
        return self.profile.device.price_usd_per_hour if given is None else given

    @property
    def usd_per_hour(self) -> float:
        """Of all devices."""
        return self.price_usd_per_hour * self.deployment.devices

    @property
    def longest_tokens(self) -> int | None:
        """Longest request served."""
        limit = self.deployment.max_model_tokens
        return self.model.max_context_tokens if limit is None else limit or None

    def new_scheduler(self) -> Scheduler:
        """A fresh scheduler over an empty pool of blocks."""
        deployment = self.deployment
        return new_scheduler(
            deployment.scheduler,
            deployment.features,
            num_blocks=self.kv_blocks,
            block_tokens=deployment.block_tokens,
            block_bytes=deployment.block_tokens
            * deployment.tensor_parallel
            * self.model.kv_bytes_per_token(deployment.tensor_parallel, self.cost.kv_dtype),
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            prefix_caching=deployment.prefix_caching,
        )


@lru_cache(maxsize=24)  # each grows to tens of megabytes of tables
def _step_cost(
    model: ModelDescription | str,
    device: DeviceProfile | str,
    tensor_parallel: int,
    weight_dtype: str,
    kv_dtype: str,
    engine: EngineModel | str,
    expert_parallel: int,
    attention_data_parallel: int,
    pipeline_parallel: int,
    versions: tuple[int, ...],  # of the files behind names, so that a file written anew is read anew
) -> StepCost:
    return StepCost(
        load_model(model) if isinstance(model, str) else model,
        load_device(device) if isinstance(device, str) else device,
        tensor_parallel=tensor_parallel,
        weight_dtype=weight_dtype,
        kv_dtype=kv_dtype,
        engine=engine_of(engine) if isinstance(engine, str) else engine,
        expert_parallel=expert_parallel,
        attention_data_parallel=attention_data_parallel,
        pipeline_parallel=pipeline_parallel,
    )


def _version(named: object) -> int:
    if not isinstance(named, str) or not Path(named).exists():
        return 0
    path = Path(named)
    return (path / "config.json" if path.is_dir() else path).stat().st_mtime_ns


def resolve(deployment: Deployment) -> Site:
    """Load model, device and engine, and size the KV cache.

    Raises:
        InputError: an unknown model, device or engine, an impossible tensor-parallel degree, or a model that does not fit.
    """
    key = (
        deployment.model,
        deployment.device,
        deployment.tensor_parallel,
        deployment.weight_dtype,
        deployment.kv_dtype,
        deployment.engine,
        deployment.expert_parallel,
        deployment.attention_data_parallel,
        deployment.pipeline_parallel,
        (_version(deployment.model), _version(deployment.device)),
    )
    hashable = not isinstance(deployment.device, DeviceProfile)  # a profile holds dictionaries
    cost = _step_cost(*key) if hashable else _step_cost.__wrapped__(*key)
    engine = cost.engine
    batched = deployment.max_num_batched_tokens or engine.max_num_batched_tokens
    seqs = deployment.max_num_seqs or min(engine.max_num_seqs, batched)
    if seqs > batched:
        raise InputError("deployment", "max_num_seqs", seqs, f"must not pass max_num_batched_tokens={batched}")
    kv_blocks = deployment.kv_blocks
    extra = None if deployment.features.plain else ExtraCost(cost, deployment.features, block_tokens=deployment.block_tokens)
    if kv_blocks is None:
        tokens = kv_capacity_tokens(
            cost.model,
            cost.profile.device,
            deployment.tensor_parallel,
            gpu_memory_utilization=deployment.gpu_memory_utilization,
            weight_dtype=deployment.weight_dtype,
            kv_dtype=deployment.kv_dtype,
            max_num_batched_tokens=batched,
            expert_parallel=deployment.expert_parallel,
            attention_data_parallel=deployment.attention_data_parallel,
            pipeline_parallel=deployment.pipeline_parallel,
        )
        if extra is not None:  # adapters and a drafter take their part first
            per_token = cost.model.kv_bytes_per_token(deployment.tensor_parallel, deployment.kv_dtype)
            tokens = int((tokens - extra.device_bytes / per_token) * extra.kv_share)
        kv_blocks = tokens // deployment.block_tokens
        if kv_blocks < 1:
            raise InputError(cost.profile.device.name, "kv_blocks", kv_blocks, f"{tokens} tokens of KV cache fill no block")
    priced = cost if extra is None else cast(StepCost, extra)  # it answers whatever a step's cost is asked
    return Site(deployment, cost.model, cost.profile, engine, priced, kv_blocks, seqs, batched)
