"""What only adapters promise."""

import numpy as np
import pytest

from llmlab.reference.serving._request import Request
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.multi_lora import MultiLora


def play(max_loras: int) -> tuple[int, int]:
    """Loads and steps of 60 requests over 6 adapters and none."""
    rng = np.random.default_rng(0)
    scheduler = MultiLora(KVBlocks(400, 4), max_num_seqs=8, max_num_batched_tokens=64, max_loras=max_loras)
    for index in range(60):
        scheduler.add(Request(index, 5, int(rng.integers(1, 9)), adapter=int(rng.integers(-1, 6))))
    loads = steps = 0
    while scheduler.waiting or scheduler.running:
        batch = scheduler.schedule()
        used = {part.request.adapter for part in batch.slices} - {-1}
        assert used <= set(scheduler.resident)
        assert len(scheduler.resident) <= max_loras
        loads += scheduler.take_loads()
        steps += 1
        scheduler.complete(batch)
    return loads, steps


def test_only_resident_adapters_run_and_more_places_mean_fewer_loads() -> None:
    few, some, all_of_them = (play(places) for places in (1, 3, 6))
    assert few[0] >= 6
    assert all_of_them[0] == 6
    assert few[1] > some[1] >= all_of_them[1]


def test_no_place_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="max_loras=0"):
        MultiLora(KVBlocks(4, 4), max_num_seqs=1, max_num_batched_tokens=4, max_loras=0)
