"""Laws of the request routers."""

from collections import Counter

import numpy as np
import pytest

from llmlab.reference.serving._request import Request
from llmlab.reference.serving.router import ROUTERS, PrefixAffinity, make_router, route


def never(count):
    return [10**9] * count


@pytest.mark.parametrize("policy", ROUTERS)
def test_one_replica_takes_everything(policy):
    assert route(policy=policy, num_replicas=1, arrivals=[[1]] * 5, finish_after=never(5), seed=3) == [0] * 5


def test_round_robin_gives_every_replica_the_same_number():
    assert set(
        Counter(route(policy="round_robin", num_replicas=7, arrivals=[[]] * 70, finish_after=never(70), seed=0)).values()
    ) == {10}


def test_least_outstanding_never_lets_loads_differ_by_more_than_one_while_nothing_finishes():
    chosen = route(policy="least_outstanding", num_replicas=5, arrivals=[[]] * 53, finish_after=never(53), seed=0)
    for end in range(1, 54):
        load = np.bincount(chosen[:end], minlength=5)
        assert load.max() - load.min() <= 1


def test_two_choices_balance_far_better_than_one():
    """n balls in n bins: the fullest holds about ln n / ln ln n with one choice, ln ln n / ln 2 with two (Mitzenmacher)."""
    fullest = {
        policy: np.mean(
            [
                np.bincount(
                    route(policy=policy, num_replicas=512, arrivals=[[]] * 512, finish_after=never(512), seed=seed)
                ).max()
                for seed in range(3)
            ]
        )
        for policy in ("random", "power_of_two")
    }
    assert fullest["power_of_two"] <= 4 < fullest["random"]


def test_prefix_affinity_keeps_a_conversation_together_and_gives_up_when_unbalanced():
    router = PrefixAffinity(3, balance=4)
    first = [router.route(Request(i, 33, 1, (7, 8))) for i in range(5)]
    assert first == [0] * 5
    assert router.route(Request(5, 33, 1, (7, 8))) != 0


def test_prefix_affinity_forgets_what_was_sent_longest_ago():
    router = PrefixAffinity(2, capacity_blocks=2)
    assert router.route(Request(0, 9, 1, (1, 2))) == 0
    router.sent[0].move_to_end(1)
    router.finished(0)
    assert router.route(Request(1, 9, 1, (3,))) == 0
    assert router.matched(0, (1,)) == 1
    assert router.matched(0, (2,)) == 0


def test_random_draws_are_uniform():
    counts = np.bincount(route(policy="random", num_replicas=4, arrivals=[[]] * 2000, finish_after=[1] * 2000, seed=1))
    assert abs(counts - 500).max() < 4 * np.sqrt(2000 * 0.25 * 0.75)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="policy='fastest'"):
        make_router("fastest", 2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="num_replicas=0"):
        make_router("random", 0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="replica=1 has no outstanding request"):
        make_router("round_robin", 2, np.random.default_rng(0)).finished(1)
    with pytest.raises(ValueError, match="len"):
        route(policy="random", num_replicas=1, arrivals=[[]], finish_after=[], seed=0)


@pytest.mark.parametrize("policy", ROUTERS)
def test_what_is_down_gets_nothing_and_comes_back(policy):
    chosen = route(
        policy=policy, num_replicas=3, arrivals=[[]] * 60, finish_after=[2] * 60, seed=2, outages=[(0, 10, 30), (2, 15, 20)]
    )
    assert 0 not in chosen[10:30]
    assert set(chosen[15:20]) == {1}
    if policy in ("round_robin", "random", "power_of_two"):
        assert {0, 2} <= set(chosen[30:])


def test_old_reports_make_the_shortest_queue_a_herd():
    """Until the first report of it arrives, everything goes to the replica that was empty."""
    fresh = route(policy="least_outstanding", num_replicas=4, arrivals=[[]] * 40, finish_after=[8] * 40, seed=0)
    old = route(policy="least_outstanding", num_replicas=4, arrivals=[[]] * 40, finish_after=[8] * 40, seed=0, stale=10)
    assert fresh[:4] == [0, 1, 2, 3]
    assert old[:10] == [0] * 10
    assert len(set(old[10:20])) <= 2


def test_kv_aware_weighs_a_known_prefix_against_a_queue():
    router = make_router("kv_aware", 2, np.random.default_rng(0), block_tokens=16)
    long, short = tuple(range(64)), tuple(range(100, 104))
    assert [router.route(Request(i, 1025, 1, long)) for i in range(4)] == [0] * 4  # 1024 known tokens outweigh three in line
    assert router.route(Request(4, 65, 1, short)) == 1
    router.finished(1)
    router.lost(0)
    assert router.route(Request(5, 1025, 1, long)) == 1


def test_a_router_with_nothing_up_says_so():
    router = make_router("random", 1, np.random.default_rng(0))
    router.allow(0, False)
    with pytest.raises(ValueError, match="no replica is up"):
        router.route(Request(0, 1, 1))
    with pytest.raises(ValueError, match="stale=-1"):
        router.delay(-1)
