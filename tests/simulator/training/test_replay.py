"""Both loops give the same times; the times are those of definitions, closed forms and published bubble rates."""

import csv
import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.reference.errors import InputError
from llmlab.reference.parallel._orders import LOOPED, SCHEDULES, bubble_time, make_schedule, zb_auto
from llmlab.simulator.training.replay import Durations, even, graph_by_name, replay

SIZES = {"dualpipe": (4, 8), "dualpipe_v": (3, 7), "chimera": (4, 8), "interleaved": (3, 6)}


def example(name):
    return make_schedule(name, *SIZES.get(name, (3, 5)), 2 if name in LOOPED else 1)


def uneven(schedule, seed, paired):
    rng = np.random.default_rng(seed)
    action_ns = rng.integers(0, 1000, (4, schedule.num_stages))
    hand_over_ns = rng.integers(0, 300, (2, schedule.num_stages)) * rng.integers(0, 2)
    return Durations(action_ns, hand_over_ns, int(rng.integers(500, 1001)) if paired else None)


@pytest.mark.parametrize("name", SCHEDULES)
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32), paired=st.booleans())
def test_the_compiled_longest_path_is_the_simulation_bit_for_bit(name, seed, paired):
    schedule = example(name)
    durations = uneven(schedule, seed, paired)
    quick, readable = replay(schedule, durations), replay(schedule, durations, loop="simpy")
    for rank in range(schedule.num_ranks):
        assert quick.start_ns[rank].tolist() == readable.start_ns[rank].tolist()
        assert quick.end_ns[rank].tolist() == readable.end_ns[rank].tolist()


def test_the_comparison_of_loops_can_fail():
    schedule = example("1f1b")
    durations = uneven(schedule, 0, False)
    longer = Durations(durations.action_ns + 1, durations.hand_over_ns)
    assert replay(schedule, durations).end_ns[0].tolist() != replay(schedule, longer, loop="simpy").end_ns[0].tolist()


@pytest.mark.parametrize("name", SCHEDULES)
def test_nothing_starts_before_what_it_needs_and_a_rank_does_one_thing_at_a_time(name):
    schedule = example(name)
    durations = uneven(schedule, 7, False)
    timeline = replay(schedule, durations)
    ends = {action: end for _, action, _, end in timeline.actions()}
    for rank, action, start, _ in timeline.actions():
        for need in schedule.needs(action):
            away = schedule.rank_of[need.stage] != rank
            assert start >= ends[need] + away * durations.hand_over_ns[int(need.kind != "F"), need.stage]
    for starts, stops in zip(timeline.start_ns, timeline.end_ns):
        assert (starts[1:] >= stops[:-1]).all()


def test_bubble_of_a_flush_is_the_closed_form():
    for name, p, m, v in (("gpipe", 4, 8, 1), ("1f1b", 8, 32, 1), ("interleaved", 4, 16, 2)):
        schedule = make_schedule(name, p, m, v)
        timeline = replay(schedule, even(schedule, 1000, 1000, 1000))
        assert timeline.bubble_fraction == pytest.approx((p - 1) / (v * m + p - 1), rel=1e-12)
        assert timeline.idle_ns == [(p - 1) * 3000 // v] * p


def test_pairs_that_run_beside_each_other_give_the_bubble_of_the_paper():
    for name in ("dualpipe", "dualpipe_v"):
        schedule = make_schedule(name, 8, 20)
        timeline = replay(schedule, even(schedule, 1000, 1200, 800, pair_permille=1000))
        assert timeline.makespan_ns - 20 * 3000 == bubble_time(name, 8, 20, 1, 1000, 1200, 800)
        quicker = replay(schedule, even(schedule, 1000, 1200, 800, pair_permille=800))
        assert quicker.makespan_ns < timeline.makespan_ns


def test_activations_over_time_peak_where_the_order_says_and_end_at_none():
    schedule = make_schedule("zb_h1", 4, 8)
    timeline = replay(schedule, even(schedule, 10, 10, 10))
    for rank, peak in enumerate(schedule.peak_activations()):
        over = timeline.activations(rank)
        assert max(held for _, held in over) == peak
        assert over[-1][1] == 0


def test_a_graph_is_built_once_and_answers_any_durations():
    graph = graph_by_name("1f1b", 4, 8)
    assert graph_by_name("1f1b", 4, 8) is graph
    schedule = make_schedule("1f1b", 4, 8)
    for seed in range(3):
        durations = uneven(schedule, seed, False)
        assert graph.makespan_ns(durations) == replay(schedule, durations, loop="simpy").makespan_ns


def test_trace_is_what_happened(tmp_path):
    schedule = make_schedule("1f1b", 2, 3)
    timeline = replay(schedule, even(schedule, 2000, 1000, 1000))
    events = json.loads(timeline.write_trace(tmp_path / "a.json").read_text())["traceEvents"]
    drawn = [event for event in events if event["ph"] == "X"]
    assert len(drawn) == 12
    assert sum(event["dur"] for event in drawn) == sum(timeline.busy_ns) / 1e3
    assert json.loads(gzip.decompress(timeline.write_trace(tmp_path / "a.json.gz").read_bytes()))["traceEvents"] == events
    with pytest.raises(InputError, match=r"must end in \.json"):
        timeline.write_trace(tmp_path / "a.txt")


def test_bad_arguments_are_named():
    schedule = make_schedule("1f1b", 2, 2)
    with pytest.raises(ValueError, match="loop='fast'"):
        replay(schedule, even(schedule, 1, 1, 1), loop="fast")
    with pytest.raises(ValueError, match="for 2 stages"):
        replay(schedule, even(make_schedule("1f1b", 3, 3), 1, 1, 1))
    with pytest.raises(InputError, match="forward=-1"):
        even(schedule, -1, 1, 1)


PUBLISHED = Path(os.environ.get("LLMLAB_DATA", "")) / "training" / "zero_bubble_bubble_rates.csv.gz"
STAGE_LAYERS = {"1.5B": 3, "6.2B": 4, "14.6B": 3, "28.3B": 2}
"""Layers per rank of the models of arXiv:2401.10241, table 3: interleaved there gives every layer a stage of its own."""
HEADS_WIDTH = {"1.5B": (24, 2304), "6.2B": (32, 4096), "14.6B": (40, 5120), "28.3B": (48, 6144)}
"""The same table; sequences there have 1,024 tokens."""


@pytest.mark.data
@pytest.mark.skipif(not PUBLISHED.is_file(), reason="needs LLMLAB_DATA with training/zero_bubble_bubble_rates.csv.gz")
def test_measured_times_give_the_published_bubble_rates():
    with gzip.open(PUBLISHED, "rt") as lines:
        rows = list(csv.DictReader(lines))
    assert rows
    for row in rows:
        p, m = int(row["p"]), int(row["m"])
        F, I, W, comm = (round(1e6 * float(row[f"T_{name}_ms"])) for name in ("F", "B", "W", "comm"))

        def rate(schedule, F=F, I=I, W=W, comm=comm):
            return replay(schedule, even(schedule, F, I, W, comm)).steady_bubble_fraction

        for name, column, within in (
            ("1f1b", "1F1B", 1e-4),
            ("zb_h1", "ZB_H1", 1e-4),
            ("zb_h2", "ZB_H2", 1e-4),
            ("interleaved", "1F1B_I", 4e-3),
        ):
            virtual = STAGE_LAYERS[row["model"]] if name == "interleaved" else 1
            found = rate(make_schedule(name, p, m, virtual))
            assert found == pytest.approx(float(row[f"bubble_{column}"]), abs=within), (row["model"], p, m, name)
        if p <= 8 and m <= 32:  # the search for an order takes seconds on larger ones
            times = {"forward": F, "backward_input": I, "backward_weight": W, "hand_over": comm}
            heads, width = HEADS_WIDTH[row["model"]]
            scores = 5 * heads * 1024 / width
            freed = (2 + scores) / (34 + scores)
            for limit, column, within in ((p, "ZB_1p", 1e-4), (2 * p, "ZB_2p", 1.5e-3)):
                schedule = zb_auto(p, m, **times, max_activations=limit, freed_by_input=freed)
                assert max(schedule.peak_activations(freed_by_input=freed)) <= limit
                assert rate(schedule) == pytest.approx(float(row[f"bubble_{column}"]), abs=within)
