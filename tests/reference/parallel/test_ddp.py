"""Laws of bucketed data parallelism."""

import numpy as np
import pytest

from llmlab.reference.parallel._traffic import Traffic
from llmlab.reference.parallel._training import Optimizer, flatten, gradients, same_training, task, train_alone
from llmlab.reference.parallel.ddp import assign_buckets, ddp, overlapped


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_equals_one_process(num_ranks, optimizer):
    drawn = {**task(np.random.default_rng(4), num_ranks, 8), "optimizer": optimizer}
    together = ddp(**drawn, num_ranks=num_ranks, bucket_bytes=64)
    assert same_training(together, train_alone(**drawn))
    assert not same_training(together, train_alone(**{**drawn, "learning_rate": 0.0501}))


@pytest.mark.parametrize("bucket_bytes", [1, 40, 200, 1 << 20])
def test_a_rank_sends_twice_the_gradients_less_its_share_however_they_are_cut(bucket_bytes):
    weights = [np.ones((4, 8)), np.ones(8), np.ones((8, 4)), np.ones(4)]
    batches = [(np.ones((4, 4)), np.zeros((4, 4)))] * 3
    traffic = Traffic()
    ddp(weights=weights, batches=batches, num_ranks=4, bucket_bytes=bucket_bytes, first_bucket_bytes=1, traffic=traffic)
    size = 8 * flatten(weights).size
    assert {traffic.bytes_sent_by(rank) for rank in range(4)} == {3 * 2 * 3 * size // 4}
    buckets = len(assign_buckets([weight.nbytes for weight in weights[::-1]], [1, bucket_bytes]))
    assert traffic.rounds == 3 * buckets * 6


def test_buckets_are_those_of_torch():
    dist = pytest.importorskip("torch.distributed")
    import torch

    rng = np.random.default_rng(0)
    for _ in range(200):
        sizes = rng.integers(1, 30, rng.integers(1, 20)).tolist()
        half = rng.random(len(sizes)) < 0.3
        limits = sorted(rng.integers(1, 200, rng.integers(1, 4)).tolist())
        tensors = [torch.zeros(size, dtype=torch.float16 if h else torch.float32) for size, h in zip(sizes, half)]
        expected, _ = dist._compute_bucket_assignment_by_size(tensors, limits)
        assert assign_buckets([t.numel() * t.element_size() for t in tensors], limits, [t.dtype for t in tensors]) == expected


def test_every_parameter_is_in_one_bucket_and_a_full_bucket_would_have_closed_earlier():
    sizes, limit = [5, 50, 1, 1, 20, 30, 7], 40
    buckets = assign_buckets(sizes, [limit])
    assert sorted(place for bucket in buckets for place in bucket) == list(range(len(sizes)))
    for bucket in buckets:
        assert sum(sizes[place] for place in bucket[:-1]) < limit
    assert assign_buckets([], [limit]) == []


def test_overlap_hides_all_but_the_last_bucket_where_the_network_keeps_up():
    spans = overlapped([1.0, 2.0, 3.0], [0.5, 0.5, 0.5])
    assert spans[-1][1] - 3.0 == 0.5
    assert overlapped([1.0, 2.0, 3.0], [5.0, 5.0, 5.0])[-1][1] == 16.0  # and nothing but the first wait where it does not


def test_what_cannot_be_is_refused_with_its_numbers():
    batch = (np.ones((3, 1)), np.ones((3, 1)))
    weights = [np.ones((1, 1)), np.zeros(1)]
    with pytest.raises(ValueError, match="num_ranks=2 does not divide a batch of 3"):
        ddp(weights=weights, batches=[batch], num_ranks=2)
    with pytest.raises(ValueError, match="lion"):
        ddp(weights=weights, batches=[batch], num_ranks=3, optimizer="lion")
    with pytest.raises(ValueError, match="limits"):
        assign_buckets([1], [])


def test_gradients_equal_central_differences():
    drawn = task(np.random.default_rng(8), 2, 1)
    weights, batch = drawn["weights"], drawn["batches"][0]
    _, found = gradients(weights, batch)
    rng = np.random.default_rng(1)
    way = [rng.standard_normal(one.shape) for one in weights]

    def loss(step):
        return gradients([one + step * d for one, d in zip(weights, way)], batch)[0]

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert slope == pytest.approx(sum(np.sum(g * d) for g, d in zip(found, way)), rel=1e-6)


def test_adam_takes_first_steps_of_the_learning_rate():
    moved = Optimizer("adam", 0.1, np.zeros(3)).step(np.zeros(3), np.array([5.0, -1e-3, 2.0]))
    assert moved == pytest.approx([-0.1, 0.1, -0.1], rel=1e-4)
