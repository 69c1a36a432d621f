"""Laws every batching policy obeys."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.harness.oracle import oracles_of
from llmlab.reference.op import Procedure
from llmlab.reference.serving import _queue
from llmlab.reference.serving._request import Batch, Request
from llmlab.reference.serving.chunked_prefill import CHUNKED_PREFILL, ChunkedPrefill
from llmlab.reference.serving.continuous_batching import CONTINUOUS_BATCHING, ContinuousBatching
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.prefix_cache import PrefixCache, block_hashes

POLICIES = (ChunkedPrefill, ContinuousBatching)
both = pytest.mark.parametrize("policy", POLICIES)
seeds = st.integers(0, 2**32 - 1)


def build(policy: type[_queue.Queue], drawn: dict[str, Any], **more: Any) -> _queue.Queue:
    blocks = KVBlocks(drawn["num_blocks"], drawn["block_tokens"])
    return policy(
        blocks,
        max_num_seqs=drawn["max_num_seqs"],
        max_num_batched_tokens=drawn["max_num_batched_tokens"],
        prefix_cache=PrefixCache(blocks) if drawn["prefix_caching"] else None,
        **more,
    )


def steps(scheduler: _queue.Queue, requests: list[Request], arrive_at: list[int]) -> Iterator[tuple[Batch, list[Request]]]:
    """Drive to the end; yield each batch before it is completed, with what it finished filled in afterwards."""
    coming = sorted(range(len(requests)), key=lambda index: (arrive_at[index], index))
    step = 0
    while coming or scheduler.waiting or scheduler.running:
        while coming and arrive_at[coming[0]] <= step:
            scheduler.add(requests[coming.pop(0)])
        batch, finished = scheduler.schedule(), []
        yield batch, finished
        finished += scheduler.complete(batch)
        step += 1


def acceptable(policy: type[_queue.Queue], drawn: dict[str, Any]) -> tuple[list[Request], list[int]]:
    """Fresh requests of a draw that the scheduler does not refuse, and when they arrive."""
    kept, arrive_at = [], []
    for index, one in enumerate(drawn["requests"]):
        request = Request(index, len(one["prompt"]), one["output_tokens"], block_hashes(one["prompt"], drawn["block_tokens"]))
        try:
            build(policy, drawn).add(request)
        except ValueError:
            continue
        kept.append(request)
        arrive_at.append(one["step"])
    return kept, arrive_at


@both
@settings(max_examples=150, deadline=None)
@given(seed=seeds)
def test_every_request_emits_what_it_asked_for_and_every_block_comes_back(policy: type[_queue.Queue], seed: int) -> None:
    drawn = _queue.example(np.random.default_rng(seed))
    requests, arrive_at = acceptable(policy, drawn)
    scheduler = build(policy, drawn)
    emitted = dict.fromkeys((request.id for request in requests), 0)
    finished = []
    for batch, done in steps(scheduler, requests, arrive_at):
        for part in batch.slices:
            emitted[part.request.id] += part.emits
        finished.append(done)
    assert emitted == {request.id: request.output_tokens for request in requests}
    assert sorted(request.id for done in finished for request in done) == sorted(emitted)
    assert scheduler.blocks.free_blocks == drawn["num_blocks"]
    assert all(request.blocks == [] for request in requests)


@both
@settings(max_examples=150, deadline=None)
@given(seed=seeds)
def test_a_step_keeps_its_limits_and_its_sums(policy: type[_queue.Queue], seed: int) -> None:
    drawn = _queue.example(np.random.default_rng(seed))
    requests, arrive_at = acceptable(policy, drawn)
    scheduler = build(policy, drawn)
    for batch, _ in steps(scheduler, requests, arrive_at):
        assert batch.slices or not scheduler.waiting, "a step that computes nothing while requests are there"
        assert sum(part.tokens for part in batch.slices) == batch.tokens <= drawn["max_num_batched_tokens"]
        assert len(scheduler.running) <= drawn["max_num_seqs"]
        assert len({part.request.id for part in batch.slices}) == len(batch.slices)
        ones = [part for part in batch.slices if part.tokens == 1]
        assert batch.decode_requests == len(ones)
        assert batch.decode_context_tokens == sum(part.start + 1 for part in ones)
        assert batch.prefill == [(part.tokens, part.start) for part in batch.slices if part.tokens > 1]
        assert batch.emitted == sum(part.emits for part in batch.slices)
        for part in batch.slices:
            request = part.request
            assert part.start == request.computed_tokens
            assert part.emits == (part.start + part.tokens == request.known_tokens)
            assert len(request.blocks) == scheduler.blocks.blocks_for(part.start + part.tokens)


@both
@settings(max_examples=150, deadline=None)
@given(seed=seeds)
def test_first_admissions_follow_arrival(policy: type[_queue.Queue], seed: int) -> None:
    drawn = _queue.example(np.random.default_rng(seed))
    requests, arrive_at = acceptable(policy, drawn)
    admitted: list[int] = []
    for batch, _ in steps(build(policy, drawn), requests, arrive_at):
        admitted += [part.request.id for part in batch.slices if part.request.id not in admitted]
    arrival = sorted(range(len(requests)), key=lambda index: (arrive_at[index], index))
    assert admitted == [requests[index].id for index in arrival]


@both
@settings(max_examples=150, deadline=None)
@given(seed=seeds)
def test_a_preempted_request_computes_prompt_and_output_again(policy: type[_queue.Queue], seed: int) -> None:
    drawn = _queue.example(np.random.default_rng(seed)) | {"prefix_caching": False}
    requests, arrive_at = acceptable(policy, drawn)
    preempted_at: dict[int, int] = {}
    for batch, _ in steps(build(policy, drawn), requests, arrive_at):
        for part in batch.slices:
            if part.request.id in preempted_at:
                assert part.start == 0
                del preempted_at[part.request.id]
        preempted_at |= {request.id: request.known_tokens for request in batch.preempted}
        for request in batch.preempted:
            assert request.missing_tokens == request.known_tokens
            assert request.blocks == []
    assert not preempted_at


@both
@settings(max_examples=100, deadline=None)
@given(seed=seeds)
def test_prefix_hits_change_no_count_of_tokens_emitted(policy: type[_queue.Queue], seed: int) -> None:
    drawn = _queue.example(np.random.default_rng(seed))
    emitted = []
    for caching in (False, True):
        requests, arrive_at = acceptable(policy, drawn | {"prefix_caching": caching})
        counts = dict.fromkeys((request.id for request in requests), 0)
        computed = 0
        for batch, _ in steps(build(policy, drawn | {"prefix_caching": caching}), requests, arrive_at):
            computed += batch.tokens
            for part in batch.slices:
                counts[part.request.id] += part.emits
        emitted.append(counts)
    assert emitted[0] == emitted[1]


@pytest.mark.parametrize("component", [CHUNKED_PREFILL, CONTINUOUS_BATCHING], ids=lambda component: component.id)
def test_the_log_equals_the_slow_model_on_many_draws(component: Procedure) -> None:
    (oracle,) = oracles_of(component)
    preempted = hits = 0
    for seed in range(300):
        drawn = component.examples(np.random.default_rng(seed))
        log = component.reference(**drawn)
        assert log == oracle.function(**drawn), seed
        preempted += sum(len(ids) for _, ids, _, _ in log)
        firsts = {id_: start for slices, *_ in reversed(log) for id_, start, *_ in slices}
        hits += sum(start > 0 for start in firsts.values())
    assert min(preempted, hits) > 20, "the draws are too tame to show anything"


@both
def test_a_request_that_can_never_fit_is_refused_at_once(policy: type[_queue.Queue]) -> None:
    scheduler = policy(KVBlocks(4, 4), max_num_seqs=2, max_num_batched_tokens=64)
    scheduler.add(Request(0, 10, 7))  # the last of 17 tokens is emitted, never stored
    with pytest.raises(ValueError, match="need 5 blocks"):
        scheduler.add(Request(1, 10, 8))
    for prompt, output in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least 1 token"):
            scheduler.add(Request(2, prompt, output))
    assert [request.id for request in scheduler.waiting] == [0]


@both
@pytest.mark.parametrize("limits", [(0, 4), (5, 4)])
def test_impossible_limits_are_refused(policy: type[_queue.Queue], limits: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="max_num_seqs"):
        policy(KVBlocks(4, 4), max_num_seqs=limits[0], max_num_batched_tokens=limits[1])


@both
def test_a_cache_of_another_pool_is_refused(policy: type[_queue.Queue]) -> None:
    with pytest.raises(ValueError, match="another pool"):
        policy(KVBlocks(4, 4), max_num_seqs=1, max_num_batched_tokens=4, prefix_cache=PrefixCache(KVBlocks(4, 4)))


@both
def test_ending_a_request_early_releases_it_wherever_it_is(policy: type[_queue.Queue]) -> None:
    scheduler = policy(KVBlocks(8, 4), max_num_seqs=1, max_num_batched_tokens=16)
    first, second = Request(0, 4, 9), Request(1, 4, 9)
    scheduler.add(first)
    scheduler.add(second)
    batch = scheduler.schedule()
    scheduler.finish(first)  # while its batch runs
    assert scheduler.complete(batch) == []
    scheduler.finish(second)
    assert (scheduler.blocks.free_blocks, first.generated_tokens, scheduler.running, len(scheduler.waiting)) == (8, 0, [], 0)
    with pytest.raises(ValueError, match="neither"):
        scheduler.finish(second)
