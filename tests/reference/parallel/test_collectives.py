"""Laws of the collectives: what is sent equals the closed forms, whatever the number of ranks and the size."""

import math

import numpy as np
import pytest

from llmlab.reference.parallel._traffic import Traffic
from llmlab.reference.parallel.collectives import (
    ALGORITHMS,
    COLLECTIVES,
    collective,
    double_binary_tree_all_reduce,
    double_tree,
    ring_all_reduce,
    volume,
)

EVERY = [(operation, algorithm) for operation, algorithms in ALGORITHMS.items() for algorithm in algorithms]
CLOSED = [pair for pair in EVERY if pair[1] not in ("double_binary_tree", "bruck")]
RANKS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16)


def allowed(operation, algorithm, num_ranks):
    return algorithm != "halving_doubling" or operation == "all_reduce" or num_ranks & (num_ranks - 1) == 0


def expected(operation, parts, root):
    n, total = len(parts), sum(parts)
    if operation == "all_reduce":
        return [total] * n
    if operation == "broadcast":
        return [parts[root]] * n
    if operation == "reduce_scatter":
        return np.array_split(total.ravel(), n)
    if operation == "all_gather":
        return [np.concatenate([part.ravel() for part in parts])] * n
    cuts = [np.array_split(part.ravel(), n) for part in parts]
    return [np.concatenate([cuts[source][rank] for source in range(n)]) for rank in range(n)]


@pytest.mark.parametrize(("operation", "algorithm"), EVERY)
def test_every_rank_ends_with_what_the_operation_says(operation, algorithm):
    rng = np.random.default_rng(0)
    for n in filter(lambda n: allowed(operation, algorithm, n), RANKS):
        for shape in ((0,), (1,), (7,), (3, 5), (2 * n,)):
            parts = [rng.integers(-9, 10, shape).astype(np.float32) for _ in range(n)]
            before = [part.copy() for part in parts]
            root, per_node = int(rng.integers(n)), max(size for size in (1, 2, 3) if n % size == 0)
            results = collective(operation=operation, algorithm=algorithm, parts=parts, root=root, ranks_per_node=per_node)
            for got, wanted in zip(results, expected(operation, parts, root), strict=True):
                np.testing.assert_array_equal(got, wanted, strict=True)
            for result in results:
                result.fill(77)  # what comes out is nobody's input
            for part, kept in zip(parts, before):
                np.testing.assert_array_equal(part, kept)


@pytest.mark.parametrize(("operation", "algorithm"), CLOSED)
def test_counted_traffic_equals_the_closed_form(operation, algorithm):
    for n in filter(lambda n: allowed(operation, algorithm, n), RANKS):
        per_node = max(size for size in (1, 2, 4) if n % size == 0)
        size = 16 * n * n  # every cut is even
        traffic = Traffic()
        whole = size if operation != "all_gather" else size // n
        collective(
            operation=operation, algorithm=algorithm, parts=[np.ones(whole)] * n, ranks_per_node=per_node, traffic=traffic
        )
        predicted = volume(operation, algorithm, n, 8 * size, ranks_per_node=per_node)
        assert traffic.rounds == predicted.rounds
        assert max(traffic.bytes_sent_by(rank) for rank in range(n)) == pytest.approx(predicted.sent_bytes, rel=1e-12)


def test_ring_all_reduce_sends_all_but_two_chunks_where_the_size_does_not_divide():
    for n, size in ((4, 10), (3, 7), (5, 3), (2, 0)):
        traffic = Traffic()
        ring_all_reduce([np.ones(size)] * n, traffic)
        chunks = [8 * len(chunk) for chunk in np.array_split(np.ones(size), n)]
        for rank in range(n):
            assert traffic.bytes_sent_by(rank) == 2 * 8 * size - chunks[rank] - chunks[(rank + 1) % n]
        assert traffic.total_messages == 2 * n * (n - 1)


def test_ring_all_reduce_sends_what_no_algorithm_can_avoid():
    """Patarasuk and Yuan, theorem 1: some rank must send at least 2 (n-1)/n of the array."""
    for algorithm in ALGORITHMS["all_reduce"]:
        for n in (2, 4, 8):
            traffic = Traffic()
            collective(operation="all_reduce", algorithm=algorithm, parts=[np.ones(8 * n)] * n, traffic=traffic)
            assert max(traffic.bytes_sent_by(rank) for rank in range(n)) >= 2 * (n - 1) / n * 64 * n


@pytest.mark.parametrize("n", range(1, 40))
def test_each_rank_is_inner_in_at_most_one_of_the_two_trees(n):
    first, second = double_tree(n)
    assert sum(parent < 0 for parent in first) == sum(parent < 0 for parent in second) == 1
    both = set(first) & set(second) - {-1}
    assert len(both) <= n % 2
    for tree in (first, second):
        assert max((tree.count(rank) for rank in range(n)), default=0) <= 2
        for rank in range(n):
            depth, at = 0, rank
            while tree[at] >= 0:
                depth, at = depth + 1, tree[at]
            assert depth <= max(1, n - 1).bit_length() + 1


@pytest.mark.parametrize("n", [4, 5, 8, 16, 33])
def test_two_trees_send_twice_the_array_and_segments_hide_the_depth(n):
    rounds = []
    for segments in (1, 2, 8):
        traffic = Traffic()
        double_binary_tree_all_reduce([np.ones(64)] * n, traffic, segments)
        assert traffic.total_messages == 2 * 2 * (n - 1) * segments
        assert max(traffic.bytes_sent_by(rank) for rank in range(n)) <= 2.5 * 64 * 8
        assert traffic.total_bytes == 2 * (n - 1) * 64 * 8
        assert traffic.rounds >= 4 * segments
        rounds.append(traffic.rounds)
    assert rounds[2] < 8 * rounds[0]


def test_bruck_needs_a_logarithm_of_rounds_and_pays_in_bytes():
    for n in (2, 4, 8, 16):
        traffic = Traffic()
        collective(operation="all_to_all", algorithm="bruck", parts=[np.ones(n)] * n, traffic=traffic)
        assert traffic.rounds == math.log2(n)
        assert {traffic.bytes_sent_by(rank) for rank in range(n)} == {8 * n // 2 * int(math.log2(n))}


def test_between_nodes_goes_a_gth_of_what_a_ring_over_all_sends():
    n, per_node, size = 16, 4, 16 * 16
    traffic = Traffic()
    parts = [np.ones(size)] * n
    collective(operation="all_reduce", algorithm="hierarchical", parts=parts, ranks_per_node=per_node, traffic=traffic)
    between = sum(b for (s, d), b in traffic.sent_bytes.items() if s // per_node != d // per_node)
    assert between == n * 2 * (3 / 4) * size * 8 / per_node


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"algorithm": "carrier pigeon"}, "carrier pigeon"),
        ({"parts": []}, "at least one rank"),
        ({"parts": [np.ones(2), np.ones(3)]}, "rank 1"),
        ({"root": 2}, "root=2"),
        ({"operation": "reduce_scatter", "algorithm": "halving_doubling", "parts": [np.ones(3)] * 3}, "power of two"),
        ({"algorithm": "hierarchical", "ranks_per_node": 3}, "ranks_per_node=3"),
    ],
)
def test_what_cannot_be_is_refused_with_its_numbers(changed, said):
    settings = {"operation": "all_reduce", "algorithm": "ring", "parts": [np.ones(2)] * 2, **changed}
    with pytest.raises(ValueError, match=said):
        collective(**settings)


def test_comparison_refuses_a_sum_off_by_one():
    right = collective(operation="all_reduce", algorithm="ring", parts=[np.ones(4)] * 2)
    assert COLLECTIVES.same(right, right)
    assert not COLLECTIVES.same(right, [right[0], right[1] + 1])
