"""Laws of the two-level exchange."""

import numpy as np
import pytest

from llmlab.reference.parallel._traffic import Traffic
from llmlab.reference.parallel.collectives import pairwise_all_to_all
from llmlab.reference.parallel.hierarchical_all_to_all import HIERARCHICAL_ALL_TO_ALL, hierarchical_all_to_all


@pytest.mark.parametrize(("n", "g"), [(1, 1), (2, 1), (4, 4), (6, 2), (6, 3), (12, 4), (16, 8)])
def test_every_rank_gets_what_every_rank_had_for_it(n, g):
    rng = np.random.default_rng(n)
    blocks = [[rng.standard_normal(rng.integers(0, 4)) for _ in range(n)] for _ in range(n)]
    for rank, row in enumerate(hierarchical_all_to_all(blocks=blocks, ranks_per_node=g)):
        for source, block in enumerate(row):
            np.testing.assert_array_equal(block, blocks[source][rank])
        assert len(row) == n


@pytest.mark.parametrize(("n", "g"), [(1, 1), (4, 2), (8, 4), (12, 3), (16, 8), (8, 1), (8, 8)])
def test_messages_and_bytes_are_those_of_the_closed_form(n, g):
    m, blocks = n // g, [[np.ones(4)] * n for _ in range(n)]
    two, flat = Traffic(), Traffic()
    hierarchical_all_to_all(blocks=blocks, ranks_per_node=g, traffic=two)
    pairwise_all_to_all(blocks, flat)
    assert two.rounds == (g - 1) + (m - 1)

    def between(counts):
        return sum(count for (source, destination), count in counts.items() if source // g != destination // g)

    assert between(two.messages) == n * (m - 1)
    assert between(flat.messages) == n * (n - g)
    assert between(two.sent_bytes) == between(flat.sent_bytes) == n * (n - g) * 32
    assert two.total_bytes - between(two.sent_bytes) == n * (g - 1) * m * 32
    assert flat.total_bytes - between(flat.sent_bytes) == n * (g - 1) * 32


def test_what_cannot_be_is_refused_with_its_numbers():
    with pytest.raises(ValueError, match="rank 1 has 1 blocks for 2 ranks"):
        hierarchical_all_to_all(blocks=[[np.ones(1)] * 2, [np.ones(1)]], ranks_per_node=1)
    with pytest.raises(ValueError, match="ranks_per_node=3 does not divide 2 ranks"):
        hierarchical_all_to_all(blocks=[[np.ones(1)] * 2] * 2, ranks_per_node=3)


def test_comparison_refuses_swapped_blocks():
    right = hierarchical_all_to_all(blocks=[[np.array([1.0]), np.array([2.0])]] * 2, ranks_per_node=2)
    assert not HIERARCHICAL_ALL_TO_ALL.same(right, right[::-1])
