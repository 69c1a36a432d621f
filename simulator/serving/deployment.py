"""What is deployed: a model on replicas of tensor-parallel devices, under one engine configuration.

Units: tokens, bytes, US dollars.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from llmlab.reference.errors import InputError
from llmlab.reference.serving._request import Scheduler
from llmlab.reference.serving.chunked_prefill import ChunkedPrefill
from llmlab.reference.serving.continuous_batching import ContinuousBatching
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.prefix_cache import PrefixCache
from llmlab.reference.serving.router import ROUTERS
from llmlab.simulator.cost.engine import EngineModel, load_engine
from llmlab.simulator.cost.step import StepCost
from llmlab.simulator.hardware.profile import DeviceProfile, load_device
from llmlab.simulator.model.description import ModelDescription, kv_capacity_tokens, load_model

SCHEDULERS: Mapping[str, Callable[..., Scheduler]] = {
    "chunked_prefill": ChunkedPrefill,
    "continuous_batching": ContinuousBatching,
}


@dataclass(frozen=True)
class Deployment:
    """One way to serve a model.

    Attributes:
        model: preset name, path of a `config.json`, or a description.
        device: device name, path of a profile, or a profile.
        tensor_parallel: devices one replica spans.
        expert_parallel: groups of them that the experts are dealt to.
        attention_data_parallel: groups of them that each attend for a part of the requests.
        replicas: equal copies behind the router.
        scheduler: a key of `SCHEDULERS`.
        max_num_seqs: requests a replica runs at once; the engine's default where None.
        max_num_batched_tokens: tokens of one step (chunk size of prefill); the engine's default where None.
        block_tokens: tokens of one KV block.
        gpu_memory_utilization: part of the device memory the engine may fill.
        prefix_caching: reuse KV blocks of equal prefixes.
        weight_dtype: of the matrices.
        kv_dtype: of the cache of keys and values.
        engine: host constants, by name or as they are.
        router: a key of `ROUTERS`.
        kv_blocks: blocks per replica where they are known; from the memory left over where None.
        max_model_tokens: longest request served; the model's context where None, 0 for no limit.
        price_usd_per_hour: of one device; the device's default where None.
    """

    model: str | ModelDescription
    device: str | DeviceProfile
    tensor_parallel: int = 1
    replicas: int = 1
    scheduler: str = "chunked_prefill"
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_tokens: int = 16
    gpu_memory_utilization: float = 0.9
    prefix_caching: bool = True
    weight_dtype: str = "bfloat16"
    kv_dtype: str = "bfloat16"
    engine: str | EngineModel = "vllm"
    router: str = "least_outstanding"
    kv_blocks: int | None = None
    max_model_tokens: int | None = None
    price_usd_per_hour: float | None = None
    expert_parallel: int = 1
    attention_data_parallel: int = 1

    def __post_init__(self) -> None:
        """Check what can be checked without loading anything.

        Raises:
            InputError: a count below 1, or an unknown scheduler or router.
        """
        counts = ("tensor_parallel", "replicas", "max_num_seqs", "max_num_batched_tokens", "block_tokens", "kv_blocks")
        for field in (*counts, "expert_parallel", "attention_data_parallel"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise InputError("deployment", field, value, "must be at least 1")
        if self.scheduler not in SCHEDULERS:
            raise InputError("deployment", "scheduler", self.scheduler, f"is none of {', '.join(SCHEDULERS)}")
        if self.router not in ROUTERS:
            raise InputError("deployment", "router", self.router, f"is none of {', '.join(ROUTERS)}")
        if self.price_usd_per_hour is not None and not 0 <= self.price_usd_per_hour < float("inf"):
            raise InputError("deployment", "price_usd_per_hour", self.price_usd_per_hour, "must not be negative")

    @property
    def devices(self) -> int:
        """Devices of all replicas."""
        return self.tensor_parallel * self.replicas


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
        blocks = KVBlocks(self.kv_blocks, self.deployment.block_tokens)
        return SCHEDULERS[self.deployment.scheduler](
            blocks,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            prefix_cache=PrefixCache(blocks) if self.deployment.prefix_caching else None,
        )


@lru_cache(maxsize=128)
def _step_cost(
    model: ModelDescription | str,
    device: DeviceProfile | str,
    tensor_parallel: int,
    weight_dtype: str,
    kv_dtype: str,
    engine: EngineModel | str,
    expert_parallel: int,
    attention_data_parallel: int,
    versions: tuple[int, ...],  # of the files behind names, so that a file written anew is read anew
) -> StepCost:
    return StepCost(
        load_model(model) if isinstance(model, str) else model,
        load_device(device) if isinstance(device, str) else device,
        tensor_parallel=tensor_parallel,
        weight_dtype=weight_dtype,
        kv_dtype=kv_dtype,
        engine=load_engine(engine) if isinstance(engine, str) else engine,
        expert_parallel=expert_parallel,
        attention_data_parallel=attention_data_parallel,
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
        )
        kv_blocks = tokens // deployment.block_tokens
        if kv_blocks < 1:
            raise InputError(cost.profile.device.name, "kv_blocks", kv_blocks, f"{tokens} tokens of KV cache fill no block")
    return Site(deployment, cost.model, cost.profile, engine, cost, kv_blocks, seqs, batched)
