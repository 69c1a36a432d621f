"""What only admission by the estimated peak promises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.reference.serving._request import Request
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.token_attention import TokenAttention, peak_tokens


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=6))
def test_the_peak_is_the_most_held_at_any_step(lives: list[tuple[int, int]]) -> None:
    steps = range(max(more for _, more in lives) + 1)
    assert peak_tokens(lives) == max(sum(now + t for now, more in lives if more >= t) for t in steps)


def run(predicted: int) -> tuple[int, int]:
    """Preemptions, and most requests at once, of 30 requests whose output is predicted."""
    rng = np.random.default_rng(3)
    scheduler = TokenAttention(KVBlocks(100, 1), max_num_seqs=20, max_num_batched_tokens=100)
    requests = [Request(i, int(rng.integers(2, 9)), int(rng.integers(5, 25)), predicted_tokens=predicted) for i in range(30)]
    for request in requests:
        scheduler.add(request)
    most = 0
    while scheduler.waiting or scheduler.running:
        batch = scheduler.schedule()
        most = max(most, len(scheduler.running))
        scheduler.complete(batch)
    return sum(request.preemptions for request in requests), most


def test_known_outputs_are_never_preempted_and_short_guesses_are() -> None:
    assert run(0)[0] == 0
    preempted, most = run(1)
    assert preempted > 0
    assert most > run(0)[1]


def test_decodes_are_interrupted_every_so_often_only() -> None:
    scheduler = TokenAttention(KVBlocks(400, 1), max_num_seqs=20, max_num_batched_tokens=100, max_wait_steps=3)
    kinds = []
    for index in range(9):
        scheduler.add(Request(index, 5, 30))
        batch = scheduler.schedule()
        kinds.append("prompt" if batch.prefill else "decode")
        scheduler.complete(batch)
    assert kinds == ["prompt", *["decode"] * 3, "prompt", *["decode"] * 3, "prompt"]


def test_a_negative_wait_is_refused() -> None:
    with pytest.raises(ValueError, match="max_wait_steps=-1"):
        TokenAttention(KVBlocks(4, 1), max_num_seqs=1, max_num_batched_tokens=4, max_wait_steps=-1)
