"""The reference's schedulers by name, built with what a deployment's features ask for, and the shape of their steps.

Units: tokens, blocks and bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llmlab.reference.errors import InputError
from llmlab.reference.serving._request import NO_ADAPTER, Batch, Scheduler
from llmlab.reference.serving.chunked_prefill import ChunkedPrefill
from llmlab.reference.serving.continuous_batching import ContinuousBatching
from llmlab.reference.serving.dynamic_batching import DynamicBatching
from llmlab.reference.serving.fairness import PriorityScheduling, ShortestJobFirst, VirtualTokenCounter
from llmlab.reference.serving.inflight_batching import GuaranteedNoEvict, GuaranteedPrefillFirst
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.multi_lora import MultiLora
from llmlab.reference.serving.orca import Orca
from llmlab.reference.serving.prefix_cache import PrefixCache
from llmlab.reference.serving.sarathi import Sarathi
from llmlab.reference.serving.speculative import SpeculativeDecoding
from llmlab.reference.serving.splitfuse import SplitFuse
from llmlab.reference.serving.static_batching import StaticBatching
from llmlab.reference.serving.swapping import Swapping
from llmlab.reference.serving.tiered_prefix_cache import TieredPrefixCache
from llmlab.reference.serving.token_attention import TokenAttention
from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.cost.extras import Features

SCHEDULERS: Mapping[str, Callable[..., Scheduler]] = {
    "chunked_prefill": ChunkedPrefill,
    "continuous_batching": ContinuousBatching,
    "static_batching": StaticBatching,
    "dynamic_batching": DynamicBatching,
    "orca": Orca,
    "sarathi": Sarathi,
    "splitfuse": SplitFuse,
    "token_attention": TokenAttention,
    "guaranteed_no_evict": GuaranteedNoEvict,
    "guaranteed_prefill_first": GuaranteedPrefillFirst,
    "max_utilization": ChunkedPrefill,
    "priority": PriorityScheduling,
    "shortest_job": ShortestJobFirst,
    "virtual_token_counter": VirtualTokenCounter,
    "swapping": Swapping,
    "multi_lora": MultiLora,
    "speculative": SpeculativeDecoding,
}

NEEDS: Mapping[str, str] = {
    "swapping": "swap_bytes",
    "multi_lora": "max_loras",
    "speculative": "num_drafts",
    "dynamic_batching": "window_s",
}
"""Schedulers that are nothing without a feature, and features only they have."""

PADDED = (StaticBatching, DynamicBatching)


def check_features(scheduler: str, features: Features) -> None:
    """Refuse a feature its scheduler does not have.

    Raises:
        InputError: the feature, and the scheduler it belongs to.
    """
    for name, feature in NEEDS.items():
        given = getattr(features, feature)
        if given and scheduler != name:
            raise InputError("features", feature, given, f"needs scheduler={name}, not {scheduler}")
        if scheduler == name and not given and feature != "window_s":
            raise InputError("features", feature, given, f"scheduler={name} needs more than 0")


def new_scheduler(
    name: str,
    features: Features,
    *,
    num_blocks: int,
    block_tokens: int,
    block_bytes: float,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    prefix_caching: bool,
) -> Scheduler:
    """A scheduler over an empty pool.

    Args:
        name: a key of `SCHEDULERS`.
        features: what it does beside its policy.
        num_blocks, block_tokens: the pool.
        block_bytes: of one block on all devices of a replica: host memory and disk hold so many.
        max_num_seqs, max_num_batched_tokens: limits of a step.
        prefix_caching: reuse equal prefixes; padded batches cannot.
    """
    kind = SCHEDULERS[name]
    more: dict[str, Any] = {}
    if name == "dynamic_batching":
        more["window_ns"] = round(features.window_s * 1e9)
    if name == "multi_lora":
        more["max_loras"] = features.max_loras
    if name == "speculative":
        more |= {"num_drafts": features.num_drafts, "acceptance": features.acceptance}
    blocks = KVBlocks(num_blocks, block_tokens, num_host_blocks=int(features.swap_bytes // block_bytes))
    cache = None
    if prefix_caching and kind not in PADDED:
        host, disk = (int(size // block_bytes) for size in (features.host_cache_bytes, features.disk_cache_bytes))
        cache = TieredPrefixCache(blocks, host_blocks=host, disk_blocks=disk) if host else PrefixCache(blocks)
    return kind(blocks, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens, prefix_cache=cache, **more)


def shape_of(batch: Batch, scheduler: Scheduler) -> BatchShape:
    """The shape of a step that was just scheduled, with the copies it waits for; those are counted once."""
    moved, disk = batch.swapped_blocks, 0
    cache = getattr(scheduler, "prefix_cache", None)
    if isinstance(cache, TieredPrefixCache):
        copies = cache.take_copies()
        moved += copies.host_to_device + copies.device_to_host
        disk = copies.disk_to_host + copies.host_to_disk
    adapters = tokens = loads = 0
    if isinstance(scheduler, MultiLora):
        with_one = [part for part in batch.slices if part.request.adapter != NO_ADAPTER]
        adapters = len({part.request.adapter for part in with_one})
        tokens = sum(part.tokens for part in with_one)
        loads = scheduler.take_loads()
    return BatchShape(
        tuple(batch.prefill),
        batch.decode_requests,
        batch.decode_context_tokens,
        batch.emitted,
        batch.draft_tokens,
        moved,
        disk,
        adapters,
        tokens,
        loads,
    )
