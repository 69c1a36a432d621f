"""Laws of parameter servers."""

import numpy as np
import pytest

from llmlab.reference.parallel._traffic import Traffic
from llmlab.reference.parallel._training import same_training, task, train_alone
from llmlab.reference.parallel.dp import dp, server_bytes

WEIGHTS = [np.full((4, 8), 0.1), np.zeros(8), np.full((8, 8), 0.1), np.zeros(8)]
SIZE = 8 * 112


@pytest.mark.parametrize("num_workers", [1, 2, 3, 5])
@pytest.mark.parametrize("num_servers", [1, 3])
def test_training_equals_one_process(num_workers, num_servers):
    for optimizer in ("sgd", "adam"):
        drawn = {**task(np.random.default_rng(1), num_workers, 6), "optimizer": optimizer}
        found = dp(**drawn, num_workers=num_workers, num_servers=num_servers)
        assert same_training(found, train_alone(**drawn))
        assert not same_training(found, dp(**drawn, num_workers=num_workers, staleness=1))


@pytest.mark.parametrize("num_workers", [1, 2, 4])
@pytest.mark.parametrize("num_servers", [1, 2, 4])
def test_a_worker_moves_the_weights_once_each_way_and_a_server_its_share_for_every_worker(num_workers, num_servers):
    traffic = Traffic()
    batches = [(np.ones((4, 4)), np.zeros((4, 8)))] * 3
    dp(weights=WEIGHTS, batches=batches, num_workers=num_workers, num_servers=num_servers, traffic=traffic)
    for worker in range(num_workers):
        assert traffic.bytes_sent_by(worker) == traffic.bytes_received_by(worker) == 3 * SIZE
    for server in range(num_workers, num_workers + num_servers):
        wanted = 3 * server_bytes(SIZE, num_workers, num_servers)
        assert traffic.bytes_sent_by(server) == traffic.bytes_received_by(server) == wanted
    assert traffic.total_messages == 3 * 2 * num_workers * num_servers
    assert traffic.rounds == 3 * 2 * max(num_workers, num_servers)


def test_stale_gradients_are_those_of_older_weights():
    """On a quadratic, x after t steps of rate r with staleness 1 follows x[t+1] = x[t] - 2 r x[t-1]."""
    weights, batch = [np.ones((1, 1)), np.zeros(1)], (np.zeros((1, 1)), np.full((1, 1), -1.0))
    found = dp(weights=weights, batches=[batch] * 6, num_workers=1, staleness=1, learning_rate=0.1)
    bias = [0.0]
    for step in range(6):
        bias.append(bias[-1] - 0.1 * 2 * (bias[max(0, step - 1)] + 1))
    assert found["weights"][1] == pytest.approx([bias[-1]], rel=1e-12)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"num_workers": 3}, "does not divide a batch of 4"),
        ({"num_servers": 0}, "num_servers=0"),
        ({"staleness": -1}, "staleness=-1"),
        ({"optimizer": "lion"}, "lion"),
    ],
)
def test_what_cannot_be_is_refused_with_its_numbers(changed, said):
    with pytest.raises(ValueError, match=said):
        dp(**{"weights": WEIGHTS, "batches": [(np.ones((4, 4)), np.zeros((4, 8)))], "num_workers": 2, **changed})
