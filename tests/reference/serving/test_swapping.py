"""What only swapping promises."""

import numpy as np
import pytest

from llmlab.reference.serving._request import Request
from llmlab.reference.serving.continuous_batching import ContinuousBatching
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.swapping import Swapping


def play(policy: type[ContinuousBatching], host_blocks: int) -> tuple[int, int, int]:
    """Tokens computed, blocks copied and preemptions of 12 requests on a pool too small for them."""
    rng = np.random.default_rng(0)
    scheduler = policy(KVBlocks(12, 4, num_host_blocks=host_blocks), max_num_seqs=6, max_num_batched_tokens=64)
    requests = [Request(index, int(rng.integers(2, 12)), int(rng.integers(5, 20))) for index in range(12)]
    for request in requests:
        scheduler.add(request)
    tokens = copied = 0
    while scheduler.waiting or scheduler.running:
        batch = scheduler.schedule()
        tokens += batch.tokens
        copied += batch.swapped_blocks
        scheduler.complete(batch)
    return tokens, copied, sum(request.preemptions for request in requests)


def test_a_swapped_request_computes_nothing_twice() -> None:
    rng = np.random.default_rng(0)
    needed = sum(int(rng.integers(2, 12)) + int(rng.integers(5, 20)) - 1 for _ in range(12))
    tokens, copied, preemptions = play(Swapping, 64)
    assert tokens == needed
    assert preemptions > 0
    assert copied > 0
    assert copied % 2 == 0  # what goes out comes back
    assert play(ContinuousBatching, 0)[0] > needed


def test_without_host_memory_it_recomputes() -> None:
    assert play(Swapping, 0) == play(ContinuousBatching, 0)


def test_host_blocks_are_not_freed_twice() -> None:
    pool = KVBlocks(4, 4, num_host_blocks=4)
    host = pool.swap_out(pool.allocate(2))
    pool.free_host(host)
    assert pool.free_host_blocks == 4
    with pytest.raises(ValueError, match="not all are in use"):
        pool.free_host(host)


def test_a_swapped_request_that_is_cancelled_leaves_host_memory() -> None:
    blocks = KVBlocks(4, 1, num_host_blocks=4)
    scheduler = Swapping(blocks, max_num_seqs=2, max_num_batched_tokens=8)
    requests = [Request(index, 2, 3) for index in range(2)]
    for request in requests:
        scheduler.add(request)
    scheduler.complete(scheduler.schedule())
    scheduler.schedule()
    assert requests[1].host_blocks
    scheduler.finish(requests[1])
    assert (blocks.free_host_blocks, requests[1].host_blocks) == (4, [])
