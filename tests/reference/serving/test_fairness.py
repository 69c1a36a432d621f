"""Laws of priorities, shortest jobs and virtual token counters."""

import itertools

import numpy as np
import pytest

from llmlab.reference.serving._request import Request
from llmlab.reference.serving.chunked_prefill import ChunkedPrefill
from llmlab.reference.serving.fairness import PriorityScheduling, ShortestJobFirst, VirtualTokenCounter, fairness
from llmlab.reference.serving.kv_blocks import KVBlocks

PROMPT, OUTPUT = 1, 2


def service_over_time(scheduler: ChunkedPrefill, requests: list[Request], weights: tuple[int, int]) -> np.ndarray:
    """Weighted service of clients 0 and 1 after each step, as long as both have requests waiting."""
    for request in requests:
        scheduler.add(request)
    served, seen, rows = [0, 0], set(), []
    while {request.client for request in scheduler.waiting} == {0, 1}:
        batch = scheduler.schedule()
        for request in scheduler.running:
            if request.id not in seen:
                seen.add(request.id)
                served[request.client] += weights[0] * request.prompt_tokens
        for part in batch.slices:
            served[part.request.client] += weights[1] * part.emits
        scheduler.complete(batch)
        rows.append(list(served))
    return np.array(rows)


def two_clients(seed: int) -> list[Request]:
    """Client 0 sends short requests, client 1 long ones, 60 each."""
    rng = np.random.default_rng(seed)
    return [
        Request(index, int(rng.integers(1, 8 + 24 * (index % 2))), int(rng.integers(1, 6 + 20 * (index % 2))), client=index % 2)
        for index in range(120)
    ]


def largest_difference(rows: np.ndarray) -> int:
    """Largest difference of the two clients' service over any interval."""
    gap = rows[:, 0] - rows[:, 1]
    return int(gap.max() - gap.min())


@pytest.mark.parametrize("seed", range(6))
def test_two_waiting_clients_are_served_alike_within_the_bound(seed: int) -> None:
    """|W_f - W_g| <= 2 max(w_p longest prompt, w_q tokens that fit), theorem 4.4 of arXiv:2401.00588."""
    blocks = KVBlocks(30, 4)
    scheduler = VirtualTokenCounter(blocks, max_num_seqs=8, max_num_batched_tokens=32)
    rows = service_over_time(scheduler, two_clients(seed), (PROMPT, OUTPUT))
    assert len(rows) > 50
    assert largest_difference(rows) <= 2 * max(PROMPT * 31, OUTPUT * 120)


def test_first_come_first_served_breaks_that_bound() -> None:
    blocks = KVBlocks(30, 4)
    scheduler = ChunkedPrefill(blocks, max_num_seqs=8, max_num_batched_tokens=32)
    requests = two_clients(0) + [Request(1000 + i, 31, 25, client=1) for i in range(100)]
    rows = service_over_time(scheduler, requests, (PROMPT, OUTPUT))
    assert largest_difference(rows) > 2 * max(PROMPT * 31, OUTPUT * 120)


def test_idling_earns_nothing() -> None:
    scheduler = VirtualTokenCounter(KVBlocks(64, 4), max_num_seqs=1, max_num_batched_tokens=16)
    for index in range(5):
        scheduler.add(Request(index, 8, 1, client=0))
    for _ in range(3):
        scheduler.complete(scheduler.schedule())
    scheduler.add(Request(10, 8, 1, client=1))  # it comes late, and is lifted to the one that waits
    assert scheduler.counters[1] == scheduler.counters[0] > 0


def test_nobody_less_urgent_starts_while_somebody_more_urgent_waits() -> None:
    rng = np.random.default_rng(1)
    scheduler = PriorityScheduling(KVBlocks(40, 4), max_num_seqs=3, max_num_batched_tokens=16)
    for index in range(40):
        scheduler.add(Request(index, int(rng.integers(1, 20)), int(rng.integers(1, 9)), priority=int(rng.integers(3))))
    while scheduler.waiting or scheduler.running:
        batch = scheduler.schedule()
        started = [part.request.priority for part in batch.slices if part.start == 0]
        assert all(one <= request.priority for one, request in itertools.product(started, scheduler.waiting))
        scheduler.complete(batch)


def test_shortest_first_lowers_the_mean_wait() -> None:
    def mean_end(policy: type[ChunkedPrefill]) -> float:
        rng = np.random.default_rng(2)
        scheduler = policy(KVBlocks(400, 4), max_num_seqs=2, max_num_batched_tokens=64)
        for index in range(60):
            scheduler.add(Request(index, 4, int(rng.integers(1, 60))))
        ends, step = [], 0
        while scheduler.running or scheduler.waiting:
            step += 1
            ends += [step] * len(scheduler.complete(scheduler.schedule()))
        return float(np.mean(ends))

    assert mean_end(ShortestJobFirst) < 0.85 * mean_end(ChunkedPrefill)


def test_unknown_policies_and_negative_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="is none of"):
        fairness(
            policy="luck",
            num_blocks=4,
            block_tokens=4,
            max_num_seqs=1,
            max_num_batched_tokens=4,
            prefix_caching=False,
            requests=[],
        )
    with pytest.raises(ValueError, match="prompt_weight=-1"):
        VirtualTokenCounter(KVBlocks(4, 4), max_num_seqs=1, max_num_batched_tokens=4, prompt_weight=-1)
