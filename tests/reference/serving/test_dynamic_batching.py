"""What only dynamic batches promise."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.reference.serving.dynamic_batching import DynamicBatching, dynamic_batching
from llmlab.reference.serving.kv_blocks import KVBlocks

ROOMY = {"num_blocks": 1000, "block_tokens": 16, "max_num_batched_tokens": 1000, "max_num_seqs": 4, "step_ns": 10}


def requests(*at_ns: int) -> list[dict[str, int]]:
    return [{"at_ns": at, "prompt_tokens": 3, "output_tokens": 1} for at in at_ns]


def test_a_batch_starts_when_it_is_full_or_its_oldest_has_waited_the_window() -> None:
    log = dynamic_batching(window_ns=100, requests=requests(0, 30, 60, 90, 200, 250), **ROOMY)
    assert log == [(90, [0, 1, 2, 3], [0, 1, 2, 3]), (300, [4, 5], [4, 5])]


def test_without_a_window_nobody_waits_for_company() -> None:
    assert [start for start, *_ in dynamic_batching(window_ns=0, requests=requests(0, 30, 60), **ROOMY)] == [0, 30, 60]


@settings(deadline=None)
@given(st.lists(st.integers(0, 500), max_size=12), st.integers(0, 200))
def test_nobody_waits_longer_than_the_window_and_the_steps_before(at_ns: list[int], window_ns: int) -> None:
    log = dynamic_batching(window_ns=window_ns, requests=requests(*at_ns), **ROOMY)
    started = {index: start for start, ids, _ in log for index in ids}
    assert sorted(started) == list(range(len(at_ns)))
    for index, start in started.items():
        assert 0 <= start - at_ns[index] <= window_ns + 10 * len(at_ns)


def test_a_negative_window_is_refused() -> None:
    with pytest.raises(ValueError, match="window_ns=-1"):
        DynamicBatching(KVBlocks(4, 4), max_num_seqs=1, max_num_batched_tokens=8, window_ns=-1)
