"""Laws of guessing ahead."""

import math

import pytest

from llmlab.reference.serving._request import Request
from llmlab.reference.serving.chunked_prefill import chunked_prefill
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.speculative import SpeculativeDecoding, example, expected_tokens, speculative


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("drafts", [1, 4])
def test_tokens_per_step_follow_equation_one(acceptance: float, drafts: int) -> None:
    """(1 - a^(k+1)) / (1 - a), within four standard errors."""
    scheduler = SpeculativeDecoding(
        KVBlocks(2000, 16), max_num_seqs=20, max_num_batched_tokens=512, num_drafts=drafts, acceptance=acceptance, seed=7
    )
    for index in range(20):
        scheduler.add(Request(index, 4, 400))
    counts = []
    while scheduler.running or scheduler.waiting:
        batch = scheduler.schedule()
        scheduler.complete(batch)
        counts += [1 + part.accepted for part in batch.slices if part.drafts == drafts]
    expected = expected_tokens(acceptance, drafts)
    if acceptance < 1:
        assert expected == pytest.approx((1 - acceptance ** (drafts + 1)) / (1 - acceptance))
    mean = sum(counts) / len(counts)
    deviation = math.sqrt(sum((count - mean) ** 2 for count in counts) / len(counts) ** 2)
    assert abs(mean - expected) <= 4 * deviation + 1e-12


def test_without_guesses_it_is_chunked_prefill() -> None:
    import numpy as np

    for seed in range(100):
        drawn = example(np.random.default_rng(seed)) | {"num_drafts": 0}
        plain = {key: value for key, value in drawn.items() if key not in ("num_drafts", "acceptance", "seed")}
        assert speculative(**drawn) == chunked_prefill(**plain)


def test_the_cache_of_rejected_guesses_is_dropped() -> None:
    blocks = KVBlocks(64, 1)
    scheduler = SpeculativeDecoding(blocks, max_num_seqs=1, max_num_batched_tokens=16, num_drafts=5, acceptance=0.0)
    scheduler.add(Request(0, 4, 10))
    scheduler.complete(scheduler.schedule())
    batch = scheduler.schedule()
    assert (batch.tokens, 64 - blocks.free_blocks) == (6, 10)
    scheduler.complete(batch)
    assert 64 - blocks.free_blocks == 5


def test_impossible_guesses_are_refused() -> None:
    with pytest.raises(ValueError, match=r"acceptance=1\.5"):
        SpeculativeDecoding(KVBlocks(4, 4), max_num_seqs=1, max_num_batched_tokens=4, num_drafts=1, acceptance=1.5)
