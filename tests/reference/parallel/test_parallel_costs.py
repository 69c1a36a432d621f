"""Costs of the parallel procedures are what their references count."""

import numpy as np
import pytest

from llmlab.reference.parallel._traffic import Traffic
from llmlab.reference.parallel.collectives import COLLECTIVES, ring_all_reduce
from llmlab.reference.parallel.ddp import DDP, ddp
from llmlab.reference.parallel.dp import DP, dp
from llmlab.reference.parallel.fsdp import FSDP, fsdp
from llmlab.reference.parallel.hierarchical_all_to_all import HIERARCHICAL_ALL_TO_ALL, hierarchical_all_to_all
from llmlab.reference.parallel.zero import ZERO, zero

WEIGHTS = [np.ones((4, 8)), np.zeros(8), np.ones((8, 8)), np.zeros(8)]
BATCHES = [(np.ones((12, 4)), np.zeros((12, 8)))]


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize(
    ("procedure", "train"),
    [
        (DDP, lambda n, traffic: ddp(weights=WEIGHTS, batches=BATCHES, num_ranks=n, traffic=traffic)),
        (ZERO, lambda n, traffic: zero(weights=WEIGHTS, batches=BATCHES, num_ranks=n, stage=3, traffic=traffic)),
        (FSDP, lambda n, traffic: fsdp(weights=WEIGHTS, batches=BATCHES, num_ranks=n, traffic=traffic)),
        (DP, lambda n, traffic: dp(weights=WEIGHTS, batches=BATCHES, num_workers=n, traffic=traffic)),
    ],
)
def test_a_training_step_sends_what_its_cost_says(procedure, train, n):
    traffic = Traffic()
    train(n, traffic)
    cost = procedure.cost({"N": n, "P": 112, "B": 12})
    assert traffic.total_bytes == 8 * cost.elements_written == 8 * cost.elements_read
    assert cost.flops == 6 * 112 * 12


@pytest.mark.parametrize(("n", "g"), [(1, 1), (4, 2), (8, 4)])
def test_collectives_send_what_their_cost_says(n, g):
    ring, two = Traffic(), Traffic()
    ring_all_reduce([np.ones(10)] * n, ring)
    assert COLLECTIVES.cost is not None
    assert HIERARCHICAL_ALL_TO_ALL.cost is not None
    assert ring.total_bytes == 8 * COLLECTIVES.cost({"N": n, "E": 10}).elements_written
    hierarchical_all_to_all(blocks=[[np.ones(5)] * n] * n, ranks_per_node=g, traffic=two)
    assert two.total_bytes == 8 * HIERARCHICAL_ALL_TO_ALL.cost({"N": n, "G": g, "E": 5}).elements_written
