"""What only memories behind the device promise."""

import numpy as np
import pytest

from llmlab.reference.serving._request import Request
from llmlab.reference.serving.chunked_prefill import ChunkedPrefill
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.prefix_cache import block_hashes
from llmlab.reference.serving.tiered_prefix_cache import TieredPrefixCache, example, tiered_prefix_cache


def test_capacities_hold_and_what_a_memory_gives_was_put_there() -> None:
    for seed in range(150):
        drawn = example(np.random.default_rng(seed))
        up = down = from_disk = to_disk = 0
        for _, host, disk, copied in tiered_prefix_cache(**drawn):
            assert host <= drawn["host_blocks"]
            assert disk <= drawn["disk_blocks"]
            up, down, from_disk, to_disk = (a + b for a, b in zip((up, down, from_disk, to_disk), copied))
            assert up <= down
            assert from_disk <= to_disk


def hits(host_blocks: int, disk_blocks: int) -> int:
    """Prompt tokens found when five chats of 8 blocks take turns on a device of 20 blocks."""
    blocks = KVBlocks(20, 4)
    cache = TieredPrefixCache(blocks, host_blocks=host_blocks, disk_blocks=disk_blocks)
    scheduler = ChunkedPrefill(blocks, max_num_seqs=2, max_num_batched_tokens=64, prefix_cache=cache)
    found = 0
    for turn in range(20):
        request = Request(turn, 33, 2, block_hashes([turn % 5] * 33, 4))
        scheduler.add(request)
        while scheduler.waiting or scheduler.running:
            scheduler.complete(scheduler.schedule())
        found += request.cached_tokens
    return found


def test_memory_behind_the_device_never_loses_a_hit_and_enough_of_it_keeps_all() -> None:
    alone, some, disk, enough = hits(0, 0), hits(16, 0), hits(16, 40), hits(100, 0)
    assert alone <= some <= disk == enough == 15 * 32
    assert alone < enough


def test_a_negative_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match="host_blocks=-1"):
        TieredPrefixCache(KVBlocks(4, 4), host_blocks=-1)
