"""What only static batches promise."""

import numpy as np
import pytest

from llmlab.reference.serving import _queue
from llmlab.reference.serving._request import Request
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.prefix_cache import PrefixCache
from llmlab.reference.serving.static_batching import StaticBatching, static_batching


def test_a_batch_takes_as_many_steps_as_its_longest_output_and_ends_together() -> None:
    scheduler = StaticBatching(KVBlocks(64, 4), max_num_seqs=3, max_num_batched_tokens=64)
    for index, (prompt, output) in enumerate([(4, 2), (9, 7), (1, 1), (5, 3)]):
        scheduler.add(Request(index, prompt, output))
    rows, finished = [], []
    while scheduler.waiting or scheduler.running:
        batch = scheduler.schedule()
        rows.append((len(batch.prefill) or batch.decode_requests, batch.tokens))
        finished.append([request.id for request in scheduler.complete(batch)])
    assert rows == [(3, 27)] + [(3, 3)] * 6 + [(1, 5)] + [(1, 1)] * 2  # 3 x 9 padded prompt tokens
    assert finished == [[]] * 6 + [[0, 1, 2]] + [[]] * 2 + [[3]]


def test_nobody_joins_a_batch_that_runs() -> None:
    for seed in range(50):
        drawn = _queue.example(np.random.default_rng(seed)) | {"prefix_caching": False}
        running: set[int] = set()
        for slices, _, finished, _ in static_batching(**drawn):
            new = {id_ for id_, start, *_ in slices if start == 0}
            assert not (new and running)
            running = (running | new) - set(finished)


def test_every_row_holds_the_longest_prompt_and_output_from_the_start() -> None:
    blocks = KVBlocks(64, 1)
    scheduler = StaticBatching(blocks, max_num_seqs=2, max_num_batched_tokens=64)
    scheduler.add(Request(0, 10, 1))
    scheduler.add(Request(1, 2, 6))
    scheduler.schedule()
    assert 64 - blocks.free_blocks == 2 * (10 + 6 - 1)


def test_what_it_cannot_do_is_refused() -> None:
    blocks = KVBlocks(4, 4)
    with pytest.raises(ValueError, match="no prefix cache"):
        StaticBatching(blocks, max_num_seqs=1, max_num_batched_tokens=8, prefix_cache=PrefixCache(blocks))
    with pytest.raises(ValueError, match="passes max_num_batched_tokens=8"):
        StaticBatching(blocks, max_num_seqs=1, max_num_batched_tokens=8).add(Request(0, 9, 1))
