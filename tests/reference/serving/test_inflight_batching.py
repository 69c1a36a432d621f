"""What only admission to the end promises."""

from llmlab.reference.serving._request import Request
from llmlab.reference.serving.chunked_prefill import ChunkedPrefill
from llmlab.reference.serving.inflight_batching import GuaranteedNoEvict
from llmlab.reference.serving.kv_blocks import KVBlocks


def most_running(policy: type[ChunkedPrefill]) -> tuple[int, int]:
    """Most requests at once, and preemptions, of 8 requests that end with 8 blocks each on 20."""
    scheduler = policy(KVBlocks(20, 4), max_num_seqs=8, max_num_batched_tokens=64)
    requests = [Request(index, 4, 29) for index in range(8)]
    for request in requests:
        scheduler.add(request)
    most = 0
    while scheduler.waiting or scheduler.running:
        batch = scheduler.schedule()
        most = max(most, len(scheduler.running))
        scheduler.complete(batch)
    return most, sum(request.preemptions for request in requests)


def test_no_evict_runs_what_fits_to_the_end_and_max_utilization_preempts() -> None:
    assert most_running(GuaranteedNoEvict) == (2, 0)
    most, preemptions = most_running(ChunkedPrefill)
    assert most > 2
    assert preemptions > 0


def test_a_promise_ends_with_its_request() -> None:
    scheduler = GuaranteedNoEvict(KVBlocks(4, 4), max_num_seqs=2, max_num_batched_tokens=16)
    scheduler.add(Request(0, 4, 9))
    scheduler.add(Request(1, 4, 9))
    for _ in range(9):
        batch = scheduler.schedule()
        assert [part.request.id for part in batch.slices] == [0]
        scheduler.complete(batch)
    assert [part.request.id for part in scheduler.schedule().slices] == [1]
