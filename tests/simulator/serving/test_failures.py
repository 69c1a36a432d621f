"""Laws of the drawn outages."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.reference.errors import InputError
from llmlab.simulator.serving.failures import Failures, Fault, Outage, Retries, draw_outages, merged, place, spells


def test_a_part_is_up_mtbf_of_mtbf_and_mttr():
    """The share of time down over many cycles is MTTR / (MTBF + MTTR) within four standard errors."""
    fault = Fault(mtbf_s=1000, mttr_s=100)
    shares = []
    for seed in range(40):
        down = sum(up - down for down, up in spells(fault, 1e6, np.random.default_rng(seed))) / 1e9
        shares.append(1 - down / 1e6)
    error = np.std(shares) / np.sqrt(40)
    assert abs(np.mean(shares) - fault.availability) < 4 * error
    assert error < 1e-3
    assert fault.availability == 1000 / 1100


def test_a_replica_of_many_devices_fails_as_often_as_they_do_together():
    """A replica of eight devices is up availability**8 of the time."""
    outages, faults = draw_outages(
        Failures(gpu=Fault(2e4, 500)), devices=[8] * 60, devices_per_node=[8] * 60, horizon_s=1e6, seed=3
    )
    down = np.zeros(60)
    for outage in outages:
        down[outage.replica] += (min(outage.up_ns, 10**15) - outage.down_ns) / 1e15
    assert abs((1 - down).mean() - (2e4 / 20500) ** 8) < 4 * down.std() / np.sqrt(60)
    assert faults["gpu"] > len(outages)  # some overlapped


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), max_size=20))
def test_merged_outages_are_disjoint_and_cover_the_same_time(drawn):
    outages = [(start, start + length) for start, length in drawn]
    joined = merged(outages)
    assert all(a[1] < b[0] for a, b in pairwise(joined))
    assert {t for a, b in joined for t in range(a, b)} == {t for a, b in outages for t in range(a, b)}


def test_a_node_takes_all_its_replicas_down_and_a_port_only_its_own():
    node, _ = draw_outages(Failures(node=Fault(1000, 10)), devices=[4, 4, 4], devices_per_node=[8] * 3, horizon_s=1e5, seed=1)
    first = {(o.down_ns, o.up_ns) for o in node if o.replica == 0}
    assert first == {(o.down_ns, o.up_ns) for o in node if o.replica == 1}
    assert not first & {(o.down_ns, o.up_ns) for o in node if o.replica == 2}
    port, _ = draw_outages(Failures(network=Fault(1000, 10)), devices=[4, 4], devices_per_node=[8] * 2, horizon_s=1e5, seed=1)
    assert not {o.down_ns for o in port if o.replica == 0} & {o.down_ns for o in port if o.replica == 1}


def test_equal_seeds_draw_equal_outages_in_order():
    def draw(seed):
        return draw_outages(Failures(gpu=Fault(100, 5)), devices=[1, 2], devices_per_node=[8, 8], horizon_s=2000, seed=seed)

    assert draw(1) == draw(1) != draw(2)
    outages = draw(1)[0]
    assert outages == sorted(outages, key=lambda outage: (outage.down_ns, outage.replica))
    assert all(isinstance(outage, Outage) and outage.down_ns < outage.up_ns for outage in outages)
    more = draw_outages(Failures(gpu=Fault(100, 5)), devices=[1, 2, 1], devices_per_node=[8] * 3, horizon_s=2000, seed=1)[0]
    assert [o for o in more if o.replica < 2] == outages  # another replica changes nothing for the others


def test_replicas_share_nodes_and_never_straddle():
    assert place([2, 2, 2, 2, 2], [8] * 5) == [[0], [0], [0], [0], [1]]
    assert place([8, 1, 1], [8, 4, 8]) == [[0], [1], [2]]
    assert place([3, 3, 3], [8] * 3) == [[0], [0], [1]]


def test_pauses_grow_and_are_bounded():
    retries = Retries(limit=2, backoff_s=0.5, factor=3)
    assert [retries.pause_ns(n) for n in (1, 2, 3)] == [500_000_000, 1_500_000_000, 4_500_000_000]
    assert Retries(factor=10).pause_ns(10_000) == 32_000_000 * 10**9
    for bad in ({"limit": -1}, {"backoff_s": -1.0}, {"factor": 0.5}):
        with pytest.raises(InputError, match="retries"):
            Retries(**bad)
    with pytest.raises(InputError, match="mtbf_s=0"):
        Fault(0, 1)
