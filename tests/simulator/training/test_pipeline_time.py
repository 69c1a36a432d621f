"""Closed forms of pipelines against the replay of their orders of actions: time, bubble and activations at their fullest."""

from functools import cache

import pytest

from llmlab.reference.errors import InputError
from llmlab.reference.parallel._orders import make_schedule
from llmlab.simulator.training.pipeline_time import (
    BOTH_WAYS,
    FOLDED,
    PAIRED,
    REPLAYED,
    StageTime,
    in_flight,
    pipeline_seconds,
    replayed_seconds,
)
from llmlab.simulator.training.plan import SCHEDULES, microbatches_refused

MADE_FOR_THE_TIMES = ("zb-1p", "zb-2p")
NEAR = {"v-half": 0.02, "v-min": 0.06}
"""How far the closed forms are off where the longest paths of their replays are not all known."""

TIMES = [StageTime(1.0, 1.0, 1.0), StageTime(1.0, 1.2, 0.9), StageTime(1.0, 1.5, 0.7), StageTime(1.0, 2.1, 1.0)]


@cache
def peaks(schedule, ranks, microbatches, virtual=1):
    return make_schedule(REPLAYED[schedule], ranks, microbatches, virtual).peak_activations()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_pipeline_beats_its_slowest_stage(schedule):
    stages = [StageTime(1.0, 1.2, 0.8), StageTime(1.5, 1.5, 1.0), StageTime(1.0, 1.1, 0.9), StageTime(0.9, 1.1, 0.9)]
    whole = pipeline_seconds(schedule, stages, 16, virtual_stages=2)
    assert 16 * 4.0 <= whole <= pipeline_seconds("naive", stages, 16)
    assert pipeline_seconds(schedule, stages, 16, virtual_stages=2, transfer_s=0.1) > whole
    assert pipeline_seconds(schedule, [stages[0]], 16) == pytest.approx(16 * 3.0)


def test_schedules_rank_as_their_bubbles():
    stages = [StageTime(1.0, 1.0, 1.0)] * 8
    order = ["gpipe", "1f1b", "zb-h1", "zb-h2", "zb-2p"]
    times = [pipeline_seconds(name, stages, 32) for name in order]
    assert times == sorted(times, reverse=True)
    assert times[1] - 96 == pytest.approx(7 * 3)
    assert times[2] - 96 == pytest.approx(7 * 1)


def test_unknown_schedule_is_refused():
    with pytest.raises(InputError, match="schedule"):
        pipeline_seconds("other", [StageTime(1, 1, 1)], 1)


@pytest.mark.parametrize("schedule", [name for name in REPLAYED if name not in MADE_FOR_THE_TIMES])
@pytest.mark.parametrize(("ranks", "microbatches"), [(4, 8), (4, 16), (8, 32)])
def test_closed_forms_equal_the_replay_where_stages_are_alike(schedule, ranks, microbatches):
    virtual = 2 if schedule == "interleaved" else 1
    for time in TIMES:
        closed = pipeline_seconds(schedule, [time] * ranks, microbatches, virtual_stages=virtual)
        played = replayed_seconds(schedule, [time] * ranks, microbatches, virtual_stages=virtual)
        assert played == pytest.approx(closed, rel=NEAR.get(schedule, 1e-9))


def test_orders_made_for_the_times_come_near_their_closed_forms():
    time = StageTime(1.0, 1.05, 0.95)
    for schedule in MADE_FOR_THE_TIMES:
        closed = pipeline_seconds(schedule, [time] * 4, 16)
        assert closed <= replayed_seconds(schedule, [time] * 4, 16) * (1 + 1e-9) <= 1.02 * closed


@pytest.mark.parametrize("schedule", [name for name in REPLAYED if name not in MADE_FOR_THE_TIMES])
def test_closed_forms_are_near_the_replay_where_stages_differ_and_hand_overs_take_time(schedule):
    stages = [StageTime(1.0, 1.1, 0.9), *[StageTime(1.1, 1.2, 1.0)] * 6, StageTime(1.2, 1.2, 0.9)]
    virtual = 2 if schedule == "interleaved" else 1
    closed = pipeline_seconds(schedule, stages, 32, virtual_stages=virtual, transfer_s=0.01)
    played = replayed_seconds(schedule, stages, 32, virtual_stages=virtual, transfer_s=0.01)
    assert played == pytest.approx(closed, rel=0.03 + NEAR.get(schedule, 0.0) + 0.02 * (schedule in BOTH_WAYS + FOLDED))


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name not in MADE_FOR_THE_TIMES])
@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 4), (4, 8), (4, 16), (6, 12), (8, 16)])
def test_activations_at_their_fullest_are_those_of_the_order_of_actions(schedule, ranks, microbatches):
    virtual = 2 if schedule == "interleaved" else 1
    held = [in_flight(schedule, ranks, rank, microbatches, virtual) for rank in range(ranks)]
    assert held == peaks(schedule, ranks, microbatches, virtual)


def test_orders_made_for_the_times_stay_under_their_limits():
    assert [in_flight(name, 4, 0, 16) for name in MADE_FOR_THE_TIMES] == [4, 8]
    assert [in_flight(name, 4, 0, 2) for name in MADE_FOR_THE_TIMES] == [2, 2]


def test_half_and_a_third_of_the_activations_of_1f1b():
    assert in_flight("v-half", 16, 0, 64) / in_flight("1f1b", 16, 0, 64) == pytest.approx(1 / 2, abs=0.1)
    assert in_flight("v-min", 16, 0, 64) / in_flight("1f1b", 16, 0, 64) == pytest.approx(1 / 3, abs=0.1)


def test_what_a_schedule_refuses_has_no_order_of_actions():
    for schedule in (*PAIRED, "chimera"):
        for ranks in (2, 3, 4):
            for microbatches in range(1, 13):
                refused = bool(microbatches_refused(schedule, ranks, microbatches))
                try:
                    make_schedule(REPLAYED[schedule], ranks, microbatches)
                except ValueError:
                    assert refused
                else:
                    assert not refused
