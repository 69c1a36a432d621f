"""What only chunked prefill promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.harness.oracle import oracles_of
from llmlab.reference.serving._request import Request
from llmlab.reference.serving.chunked_prefill import CHUNKED_PREFILL, ChunkedPrefill
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.prefix_cache import PrefixCache, block_hashes


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), longest=st.none() | st.integers(1, 4))
def test_no_decode_waits_for_a_prompt(seed: int, longest: int | None) -> None:
    drawn = CHUNKED_PREFILL.examples(np.random.default_rng(seed))
    decoding: set[int] = set()
    for slices, preempted, finished, _ in CHUNKED_PREFILL.reference(**drawn, max_chunk_tokens=longest):
        assert decoding <= {id_ for id_, *_ in slices} | set(preempted)
        assert all(tokens <= (longest or tokens) for _, _, tokens, _ in slices)
        decoding = (decoding - set(preempted)) | {id_ for id_, _, _, emits in slices if emits}
        decoding -= set(finished)


def test_chunks_of_one_prompt_are_bounded_and_equal_the_slow_model() -> None:
    (oracle,) = oracles_of(CHUNKED_PREFILL)
    for seed in range(100):
        drawn = {**CHUNKED_PREFILL.examples(np.random.default_rng(seed)), "max_chunk_tokens": 1 + seed % 4}
        assert CHUNKED_PREFILL.reference(**drawn) == oracle.function(**drawn), seed


def test_a_long_prompt_is_computed_in_pieces_beside_a_decode() -> None:
    scheduler = ChunkedPrefill(KVBlocks(32, 4), max_num_seqs=2, max_num_batched_tokens=4)
    scheduler.add(Request(0, 3, 9))
    scheduler.complete(scheduler.schedule())
    scheduler.add(Request(1, 8, 1))
    seen = []
    for _ in range(3):
        batch = scheduler.schedule()
        seen.append([(part.request.id, part.start, part.tokens, part.emits) for part in batch.slices])
        scheduler.complete(batch)
    assert seen == [
        [(0, 3, 1, True), (1, 0, 3, False)],
        [(0, 4, 1, True), (1, 3, 3, False)],
        [(0, 5, 1, True), (1, 6, 2, True)],
    ]


def test_only_what_was_not_computed_before_is_prefilled() -> None:
    blocks = KVBlocks(16, 4)
    cache = PrefixCache(blocks)
    scheduler = ChunkedPrefill(blocks, max_num_seqs=2, max_num_batched_tokens=32, prefix_cache=cache)
    for index, expected in enumerate([(0, 10), (8, 2)]):
        request = Request(index, 10, 1, block_hashes(range(10), 4))
        scheduler.add(request)
        batch = scheduler.schedule()
        assert [(part.start, part.tokens) for part in batch.slices] == [expected]
        scheduler.complete(batch)
        assert request.cached_tokens == expected[0]
    assert (cache.hit_tokens, cache.queried_tokens) == (8, 16)


def test_a_chunk_length_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="max_chunk_tokens=0"):
        ChunkedPrefill(KVBlocks(4, 4), max_num_seqs=1, max_num_batched_tokens=4, max_chunk_tokens=0)
