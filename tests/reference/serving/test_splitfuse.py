"""What only forward passes of a fixed size promise."""

import numpy as np

from llmlab.reference.serving._request import Request
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.splitfuse import SplitFuse


def test_every_pass_has_exactly_its_tokens_while_prompts_last() -> None:
    rng = np.random.default_rng(0)
    scheduler = SplitFuse(KVBlocks(1000, 4), max_num_seqs=20, max_num_batched_tokens=32)
    for index in range(20):
        scheduler.add(Request(index, int(rng.integers(1, 100)), 3))
    sizes = []
    while scheduler.waiting or scheduler.running:
        batch = scheduler.schedule()
        left = sum(request.prompt_tokens for request in scheduler.waiting)
        sizes.append((batch.tokens, left))
        scheduler.complete(batch)
    assert all(tokens == 32 for tokens, left in sizes if left)
    assert sum(left > 0 for _, left in sizes) > 10


def test_a_request_without_a_block_stalls_and_keeps_its_cache() -> None:
    scheduler = SplitFuse(KVBlocks(4, 1), max_num_seqs=2, max_num_batched_tokens=4)
    first, second = Request(0, 2, 2), Request(1, 2, 2)
    scheduler.add(first)
    scheduler.add(second)
    scheduler.complete(scheduler.schedule())
    batch = scheduler.schedule()  # both need a fifth block: nothing moves, the latest gives way
    assert ([part.request.id for part in batch.slices], [request.id for request in batch.preempted]) == ([], [1])
    batch = scheduler.schedule()
    assert [part.request.id for part in batch.slices] == [0]
