"""Laws of the autoscaler."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.reference.serving.autoscaling import Autoscaler, Predictive, Reactive, autoscaling

LOADS = st.lists(st.integers(0, 60), max_size=40)


@given(LOADS, st.integers(0, 4), st.integers(4, 9), st.integers(1, 5))
def test_the_answer_lies_between_least_and_most(loads, least, most, patience):
    scaler = Autoscaler(Reactive(3.0), least=least, most=most, patience=patience)
    assert all(least <= scaler.tick(load, load, 2) <= most for load in loads)


@given(LOADS, st.integers(1, 6))
def test_a_scale_down_waits_until_the_whole_window_agrees(loads, patience):
    hasty, patient = (Autoscaler(Reactive(3.0, 0.0), least=0, most=99, patience=p) for p in (1, patience))
    wishes = [hasty.tick(0, load, 1) for load in loads]
    answers = [patient.tick(0, load, 1) for load in loads]
    for now, answer in enumerate(answers):
        assert answer == max(wishes[max(0, now + 1 - patience) : now + 1])


def test_a_load_near_the_target_changes_nothing():
    policy = Reactive(target=10, tolerance=0.1)
    assert [policy.wish(0, load, 4) for load in (36, 37, 40, 44, 45)] == [4, 4, 4, 4, 5]
    assert policy.wish(0, 0, 0) == 0


def test_holt_reads_a_straight_line_exactly():
    """With beta = alpha = 1 the trend is the last difference, so a ramp is continued without error."""
    policy = Predictive(per_replica=1.0, ahead=3, alpha=1.0, beta=1.0)
    assert [policy.wish(5 * now, 0, 1) for now in range(2, 8)][1:] == [5 * (now + 3) for now in range(3, 8)]


def test_holt_of_a_constant_is_the_constant():
    policy = Predictive(per_replica=4.0, ahead=10)
    assert {policy.wish(12, 0, 1) for _ in range(50)} == {3}


def test_a_forecast_has_the_replicas_ready_before_the_ramp_needs_them():
    ramp = np.repeat(np.arange(1, 13) * 4, 3).tolist()
    common = {"least": 1, "most": 40, "patience": 1, "arrived": ramp, "served_per_replica": 4, "start_ticks": 3}
    late = autoscaling(policy="reactive", options={"target": 8}, **common)
    early = autoscaling(policy="predictive", options={"per_replica": 4, "ahead": 4}, **common)
    assert sum(unfinished for _, unfinished in early) < sum(unfinished for _, unfinished in late)


def test_bad_arguments_are_named():
    for bad in ({"least": 2, "most": 1}, {"least": 0, "most": 0}, {"least": 0, "most": 1, "patience": 0}):
        with pytest.raises(ValueError, match="need 0 <= least"):
            Autoscaler(Reactive(1.0), **bad)
    with pytest.raises(ValueError, match="target=0"):
        Reactive(0)
    with pytest.raises(ValueError, match="alpha=0"):
        Predictive(1.0, alpha=0)
    with pytest.raises(ValueError, match="policy='oracle'"):
        autoscaling(policy="oracle", options={}, least=0, most=1, patience=1, arrived=[], served_per_replica=1, start_ticks=0)
