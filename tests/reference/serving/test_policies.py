"""Laws every batching policy obeys, whatever it admits, pads, swaps or guesses."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.harness.oracle import oracles_of
from llmlab.reference.catalog import components
from llmlab.reference.serving import _queue
from llmlab.reference.serving._request import Request
from llmlab.reference.serving.chunked_prefill import ChunkedPrefill
from llmlab.reference.serving.continuous_batching import ContinuousBatching
from llmlab.reference.serving.dynamic_batching import DynamicBatching
from llmlab.reference.serving.fairness import PriorityScheduling, ShortestJobFirst, VirtualTokenCounter
from llmlab.reference.serving.inflight_batching import GuaranteedNoEvict, GuaranteedPrefillFirst
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.multi_lora import MultiLora
from llmlab.reference.serving.orca import Orca
from llmlab.reference.serving.prefix_cache import PrefixCache, block_hashes
from llmlab.reference.serving.sarathi import Sarathi
from llmlab.reference.serving.speculative import SpeculativeDecoding
from llmlab.reference.serving.splitfuse import SplitFuse
from llmlab.reference.serving.static_batching import StaticBatching
from llmlab.reference.serving.swapping import Swapping
from llmlab.reference.serving.tiered_prefix_cache import TieredPrefixCache
from llmlab.reference.serving.token_attention import TokenAttention

POLICIES: dict[str, Callable[..., Any]] = {
    "static": StaticBatching,
    "dynamic": DynamicBatching,
    "continuous": ContinuousBatching,
    "chunked": ChunkedPrefill,
    "orca": Orca,
    "sarathi": Sarathi,
    "splitfuse": SplitFuse,
    "token_attention": TokenAttention,
    "no_evict": GuaranteedNoEvict,
    "no_evict_whole": GuaranteedPrefillFirst,
    "priority": PriorityScheduling,
    "shortest": ShortestJobFirst,
    "vtc": VirtualTokenCounter,
    "swapping": Swapping,
    "lora": lambda blocks, **limits: MultiLora(blocks, max_loras=2, **limits),
    "speculative": lambda blocks, **limits: SpeculativeDecoding(blocks, num_drafts=3, acceptance=0.6, **limits),
}
PADDED = {"static", "dynamic"}
RESERVING = {"static", "dynamic", "orca", "no_evict", "no_evict_whole"}
IN_ORDER = set(POLICIES) - {"priority", "shortest", "vtc", "lora"}
every = pytest.mark.parametrize("name", POLICIES)
seeds = st.integers(0, 2**32 - 1)
HOST_BLOCKS = 6


def draw(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    drawn = _queue.example(rng)
    drawn["requests"].sort(key=lambda request: request["step"])
    for request in drawn["requests"]:
        request |= {"client": int(rng.integers(3)), "priority": int(rng.integers(3)), "adapter": int(rng.integers(-1, 4))}
    drawn["tiers"] = bool(rng.random() < 0.5)
    return drawn


def build(name: str, drawn: dict[str, Any]) -> Any:
    blocks = KVBlocks(drawn["num_blocks"], drawn["block_tokens"], num_host_blocks=HOST_BLOCKS)
    cache = None
    if drawn["prefix_caching"] and name not in PADDED:
        cache = TieredPrefixCache(blocks, host_blocks=4, disk_blocks=3) if drawn["tiers"] else PrefixCache(blocks)
    limits = {key: drawn[key] for key in ("max_num_seqs", "max_num_batched_tokens")}
    return POLICIES[name](blocks, prefix_cache=cache, **limits)


@every
@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_nothing_is_lost_made_twice_or_leaked(name: str, seed: int) -> None:
    """In = finished + waiting + running + refused after every step; budgets hold; at the end every block is back."""
    drawn = draw(seed)
    scheduler = build(name, drawn)
    coming = list(enumerate(drawn["requests"]))
    requests: dict[int, Request] = {}
    refused: set[int] = set()
    finished: list[int] = []
    emitted: dict[int, int] = {}
    begun: list[int] = []
    step = 0
    while coming or scheduler.waiting or scheduler.running:
        assert step < 3000, "it does not end"
        while coming and coming[0][1]["step"] <= step:
            index, one = coming.pop(0)
            hashes = block_hashes(one["prompt"], drawn["block_tokens"])
            labels = {key: one[key] for key in ("client", "priority", "adapter")}
            request = Request(index, len(one["prompt"]), one["output_tokens"], hashes, **labels)
            try:
                scheduler.add(request)
            except ValueError:
                refused.add(index)
                continue
            requests[index], emitted[index] = request, 0
        batch = scheduler.schedule()
        assert batch.slices or batch.preempted or not (scheduler.waiting or scheduler.running), "it could run and does not"
        assert sum(part.tokens for part in batch.slices) <= drawn["max_num_batched_tokens"]
        assert len(scheduler.running) <= drawn["max_num_seqs"]
        assert len({part.request.id for part in batch.slices}) == len(batch.slices)
        if name in PADDED:
            assert batch.tokens >= sum(part.tokens for part in batch.slices)
        else:
            assert batch.tokens == sum(part.tokens for part in batch.slices)
            assert batch.emitted == sum(part.emits + part.drafts for part in batch.slices)
        if name in RESERVING:
            assert not batch.preempted
        held: dict[int, int] = {}
        for request in scheduler.running:
            assert request.blocks, "it runs without memory"
            for block in request.blocks:
                held[block] = held.get(block, 0) + 1
        assert all(scheduler.blocks.references(block) == count for block, count in held.items())
        assert scheduler.blocks.free_blocks == drawn["num_blocks"] - len(held)
        swapped = [block for request in scheduler.waiting for block in request.host_blocks]
        assert len(set(swapped)) == len(swapped) == HOST_BLOCKS - scheduler.blocks.free_host_blocks
        for part in batch.slices:
            if part.request.id not in begun:
                begun.append(part.request.id)
        done = scheduler.complete(batch)
        for part in batch.slices:
            emitted[part.request.id] += part.emits + part.accepted
        finished += [request.id for request in done]
        inside = sorted([*finished, *(r.id for r in scheduler.waiting), *(r.id for r in scheduler.running)])
        assert inside == sorted(requests)
        step += 1
    assert sorted(finished) == sorted(requests)
    assert emitted == {index: request.output_tokens for index, request in requests.items()}
    assert scheduler.blocks.free_blocks == drawn["num_blocks"]
    assert scheduler.blocks.free_host_blocks == HOST_BLOCKS
    assert all(not request.blocks and not request.host_blocks for request in requests.values())
    assert refused | set(finished) == set(range(len(drawn["requests"])))
    if name in IN_ORDER:
        assert begun == sorted(begun), "first come was not first served"


@every
def test_ending_a_request_early_releases_it_wherever_it_is(name: str) -> None:
    scheduler = build(name, {"num_blocks": 8, "block_tokens": 4, "prefix_caching": False, "max_num_seqs": 1,
                             "max_num_batched_tokens": 16})  # fmt: skip
    first, second = Request(0, 4, 9), Request(1, 4, 9)
    scheduler.add(first)
    scheduler.add(second)
    batch = scheduler.schedule()
    scheduler.finish(first)  # while its batch runs
    assert scheduler.complete(batch) == []
    scheduler.finish(second)
    assert (scheduler.blocks.free_blocks, first.generated_tokens, scheduler.running, len(scheduler.waiting)) == (8, 0, [], 0)


@pytest.mark.parametrize(
    "component",
    [
        "static_batching", "dynamic_batching", "orca", "sarathi", "splitfuse", "token_attention", "inflight_batching",
        "fairness", "swapping", "multi_lora", "speculative", "tiered_prefix_cache",
    ],
)  # fmt: skip
def test_the_log_equals_the_slow_model_on_many_draws(component: str) -> None:
    found = components()[f"serving.{component}"]
    (oracle,) = oracles_of(found)
    different = set()
    for seed in range(100):
        drawn = found.examples(np.random.default_rng(seed))
        log = found.reference(**drawn)
        assert log == oracle.function(**drawn), seed
        different.add(str(log))
    assert len(different) > 50, "the draws are too tame to show anything"
