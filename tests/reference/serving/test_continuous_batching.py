"""What only continuous batching with whole prompts promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.reference.serving._request import Request
from llmlab.reference.serving.continuous_batching import CONTINUOUS_BATCHING, ContinuousBatching
from llmlab.reference.serving.kv_blocks import KVBlocks


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_step_never_mixes_prompts_with_decodes_and_never_splits_a_prompt(seed: int) -> None:
    drawn = {**CONTINUOUS_BATCHING.examples(np.random.default_rng(seed)), "prefix_caching": False}
    for slices, *_ in CONTINUOUS_BATCHING.reference(**drawn):
        assert len({start == 0 for _, start, _, _ in slices}) <= 1
        assert all(emits for *_, emits in slices)


def test_a_prompt_stops_the_decodes_for_one_step() -> None:
    scheduler = ContinuousBatching(KVBlocks(32, 4), max_num_seqs=2, max_num_batched_tokens=16)
    scheduler.add(Request(0, 3, 9))
    scheduler.complete(scheduler.schedule())
    scheduler.add(Request(1, 8, 2))
    shapes = []
    for _ in range(2):
        batch = scheduler.schedule()
        shapes.append((batch.prefill, batch.decode_requests))
        scheduler.complete(batch)
    assert shapes == [([(8, 0)], 0), ([], 2)]


def test_a_request_that_could_not_be_recomputed_in_one_step_is_refused() -> None:
    scheduler = ContinuousBatching(KVBlocks(99, 4), max_num_seqs=2, max_num_batched_tokens=16)
    scheduler.add(Request(0, 10, 7))
    with pytest.raises(ValueError, match="max_num_batched_tokens=16"):
        scheduler.add(Request(1, 10, 8))


def test_a_watermark_keeps_blocks_free_on_admission() -> None:
    blocks = KVBlocks(8, 4)
    scheduler = ContinuousBatching(blocks, max_num_seqs=4, max_num_batched_tokens=64, watermark_blocks=2)
    for index in range(3):
        scheduler.add(Request(index, 12, 2))
    assert len(scheduler.schedule().slices) == 2
    assert blocks.free_blocks == 2
