"""Laws of fully sharded data parallelism."""

import numpy as np
import pytest

from llmlab.reference.parallel._traffic import Traffic
from llmlab.reference.parallel._training import same_training, task, train_alone
from llmlab.reference.parallel.fsdp import Fsdp, fsdp
from llmlab.reference.parallel.zero import sent_bytes, zero

WEIGHTS = [np.full((4, 8), 0.1), np.zeros(8), np.full((8, 12), 0.1), np.zeros(12), np.full((12, 4), 0.1), np.zeros(4)]
UNITS = [8 * 40, 8 * 108, 8 * 52]
BATCH = (np.ones((4, 4)), np.zeros((4, 4)))


@pytest.mark.parametrize("reshard", [True, False])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
def test_training_equals_one_process(reshard, num_ranks):
    for optimizer in ("sgd", "adam"):
        drawn = {**task(np.random.default_rng(6), num_ranks, 6), "optimizer": optimizer}
        found = fsdp(**drawn, num_ranks=num_ranks, reshard_after_forward=reshard)
        assert same_training(found, train_alone(**drawn))
        assert not same_training(found, train_alone(**{**drawn, "learning_rate": 0.0501}))


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_resharding_sends_what_zero_3_sends_and_keeping_what_ddp_sends(num_ranks):
    size = sum(UNITS) // 8
    for reshard, stage in ((True, 3), (False, 0)):
        traffic = Traffic()
        fsdp(weights=WEIGHTS, batches=[BATCH], num_ranks=num_ranks, reshard_after_forward=reshard, traffic=traffic)
        wanted = sent_bytes(stage, size, num_ranks, weight_bytes=8, gradient_bytes=8)
        assert {traffic.bytes_sent_by(rank) for rank in range(num_ranks)} == {wanted}
        assert traffic.rounds == (3 if reshard else 2) * 3 * (num_ranks - 1)


@pytest.mark.parametrize(
    ("settings", "peak"),
    [
        ({"reshard_after_forward": True}, max(UNITS)),
        ({"reshard_after_forward": False}, sum(UNITS)),
        ({"reshard_after_forward": True, "keep_last": True}, max(UNITS)),
    ],
)
def test_gathered_weights_reach_the_largest_unit_or_all_of_them(settings, peak):
    run = Fsdp(WEIGHTS, 4, **settings)
    run.step(BATCH)
    assert (run.gathered_bytes, run.peak_gathered_bytes) == (0, peak)


def test_keeping_the_last_unit_saves_its_second_gather():
    traffics = []
    for keep_last in (False, True):
        run = Fsdp(WEIGHTS, 4, keep_last=keep_last)
        run.step(BATCH)
        traffics.append(run.traffic.bytes_sent_by(0))
    assert traffics[0] - traffics[1] == UNITS[-1] * 3 // 4


def test_a_rank_keeps_its_share_of_weights_and_adam_states():
    run = Fsdp(WEIGHTS, 4)
    run.step(BATCH)
    assert {run.sharded_bytes(rank) for rank in range(4)} == {3 * sum(UNITS) // 4}


def test_fsdp_and_zero_3_give_the_same_weights():
    drawn = task(np.random.default_rng(3), 3, 4)
    assert same_training(fsdp(**drawn, num_ranks=3), zero(**drawn, num_ranks=3, stage=3))


def test_what_cannot_be_is_refused_with_its_numbers():
    with pytest.raises(ValueError, match="num_ranks=0"):
        fsdp(weights=WEIGHTS, batches=[], num_ranks=0)
    with pytest.raises(ValueError, match="num_ranks=3 does not divide a batch of 4"):
        fsdp(weights=WEIGHTS, batches=[BATCH], num_ranks=3)
    with pytest.raises(ValueError, match="lion"):
        fsdp(weights=WEIGHTS, batches=[], num_ranks=2, optimizer="lion")
