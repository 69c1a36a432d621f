"""What only Orca promises."""

import pytest

from llmlab.reference.serving._request import Request
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.orca import Orca


def test_a_whole_prompt_joins_the_decodes_of_an_iteration() -> None:
    scheduler = Orca(KVBlocks(64, 1), max_num_seqs=3, max_num_batched_tokens=64)
    scheduler.add(Request(0, 5, 4))
    scheduler.complete(scheduler.schedule())
    scheduler.add(Request(1, 20, 2))
    batch = scheduler.schedule()
    assert (batch.prefill, batch.decode_requests, batch.emitted) == ([(20, 0)], 1, 2)


def test_memory_does_not_change_while_requests_run() -> None:
    blocks = KVBlocks(64, 1)
    scheduler = Orca(blocks, max_num_seqs=3, max_num_batched_tokens=64)
    scheduler.add(Request(0, 5, 4))
    held = []
    while scheduler.waiting or scheduler.running:
        batch = scheduler.schedule()
        held.append(64 - blocks.free_blocks)
        scheduler.complete(batch)
    assert held == [8] * 4


def test_a_prompt_longer_than_an_iteration_is_refused() -> None:
    with pytest.raises(ValueError, match="passes max_num_batched_tokens=8"):
        Orca(KVBlocks(64, 1), max_num_seqs=1, max_num_batched_tokens=8).add(Request(0, 9, 1))
