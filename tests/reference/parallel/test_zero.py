"""Laws of ZeRO: it trains as one process does; memory and traffic are those of the paper."""

import numpy as np
import pytest

from llmlab.reference.parallel._traffic import Traffic
from llmlab.reference.parallel._training import same_training, task, train_alone
from llmlab.reference.parallel.ddp import ddp
from llmlab.reference.parallel.zero import STAGES, Zero, memory_bytes, sent_bytes, zero

WEIGHTS = [np.full((4, 8), 0.1), np.zeros(8), np.full((8, 6), 0.1), np.zeros(10)[:6]]
BATCH = (np.ones((4, 4)), np.zeros((4, 6)))
NUM_PARAMETERS = sum(array.size for array in WEIGHTS)  # 94
EVEN = [np.full((4, 8), 0.1), np.zeros(8), np.full((8, 8), 0.1), np.zeros(8)]  # 112, which 2 and 4 ranks divide


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
def test_training_equals_one_process(stage, num_ranks):
    for optimizer in ("sgd", "adam"):
        drawn = {**task(np.random.default_rng(2), num_ranks, 6), "optimizer": optimizer}
        found = zero(**drawn, num_ranks=num_ranks, stage=stage)
        assert same_training(found, train_alone(**drawn))
        assert not same_training(found, train_alone(**{**drawn, "learning_rate": 0.0501}))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_memory_of_mixed_precision_adam_is_the_papers_figure_1(stage, num_ranks):
    run = Zero(EVEN, num_ranks, stage, precision="mixed")
    size, wanted = 112, (16, 4 + 12 / num_ranks, 2 + 14 / num_ranks, 16 / num_ranks)[stage]
    for _ in range(2):
        for rank in range(num_ranks):
            assert run.device_bytes(rank) == wanted * size == memory_bytes(stage, size, num_ranks)
        run.step((np.ones((4, 4), np.float16), np.zeros((4, 8), np.float16)))


def test_figure_1_of_the_paper_for_7_5_billion_parameters_on_64_ranks():
    assert [round(memory_bytes(stage, 7.5e9, 64) / 1e9, 1) for stage in STAGES] == [120.0, 31.4, 16.6, 1.9]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("num_ranks", [1, 2, 4, 7])
def test_a_rank_sends_what_section_7_says(stage, num_ranks):
    traffic = Traffic()
    batch = (np.ones((num_ranks, 4)), np.zeros((num_ranks, 8)))
    zero(weights=EVEN, batches=[batch] * 2, num_ranks=num_ranks, stage=stage, traffic=traffic)
    wanted = 2 * sent_bytes(stage, 112, num_ranks, weight_bytes=8, gradient_bytes=8)
    assert {traffic.bytes_sent_by(rank) for rank in range(num_ranks)} == {wanted}
    assert traffic.rounds == 2 * (2 + (stage == 3)) * (num_ranks - 1)


def test_stages_1_and_2_send_what_ddp_sends_and_stage_3_half_as_much_again():
    counted = []
    for stage in STAGES:
        traffic = Traffic()
        zero(weights=WEIGHTS, batches=[BATCH], num_ranks=4, stage=stage, traffic=traffic)
        counted.append(traffic.total_bytes)
    traffic = Traffic()
    ddp(weights=WEIGHTS, batches=[BATCH], num_ranks=4, traffic=traffic)
    assert counted == [traffic.total_bytes] * 3 + [traffic.total_bytes * 3 // 2]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offload_leaves_weights_and_gradients_and_moves_four_bytes_a_parameter(stage):
    run = Zero(EVEN, 4, stage, precision="mixed", offload=True)
    run.step((np.ones((4, 4), np.float16), np.zeros((4, 8), np.float16)))
    assert run.host_bytes == 4 * 112
    for rank in range(4):
        assert run.device_bytes(rank) == memory_bytes(stage, 112, 4, offload=True)
        assert run.host_memory_bytes(rank) == 12 * 112 / 4


def test_mixed_precision_rounds_the_weights_and_keeps_the_masters():
    run = Zero(EVEN, 2, 2, precision="mixed", learning_rate=1e-5)
    before = [master.copy() for master in run.masters]
    run.step((np.ones((2, 4), np.float16), np.zeros((2, 8), np.float16)))
    assert run.weights[0].dtype == np.float16
    assert any((master != old).any() for master, old in zip(run.masters, before))
    np.testing.assert_array_equal(np.concatenate(run.masters).astype(np.float16), run.weights[1])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"stage": 4}, "stage=4"),
        ({"num_ranks": 0}, "num_ranks=0"),
        ({"num_ranks": 3}, "does not divide a batch of 4"),
        ({"stage": 0, "offload": True}, "offload needs"),
        ({"optimizer": "lion"}, "lion"),
    ],
)
def test_what_cannot_be_is_refused_with_its_numbers(changed, said):
    with pytest.raises(ValueError, match=said):
        zero(**{"weights": WEIGHTS, "batches": [BATCH], "num_ranks": 2, "stage": 1, **changed})
    with pytest.raises(ValueError, match="int3"):
        Zero(WEIGHTS, 2, 1, precision="int3")


def test_more_ranks_than_parameters_leave_some_with_nothing():
    weights, batch = [np.ones((1, 1)), np.zeros(1)], (np.ones((5, 1)), np.zeros((5, 1)))
    for stage in STAGES:
        found = zero(weights=weights, batches=[batch], num_ranks=5, stage=stage, learning_rate=0.1)
        assert same_training(found, train_alone(weights, [batch], "adam", 0.1))
