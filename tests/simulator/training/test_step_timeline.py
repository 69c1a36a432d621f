"""Laws of a step's timeline: it ends when the prediction does, no rank does two things, and everything is there."""

import itertools
import json

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.reports.step_figure import save_step, step_figure
from llmlab.simulator.tracing import write_trace
from llmlab.simulator.training.plan import gpt, plan_of
from llmlab.simulator.training.step import predict_step
from llmlab.simulator.training.step_timeline import step_timeline
from llmlab.simulator.training.stragglers import Variation, first_step_factors, simulate_steps

MODEL = gpt(24, 2048, 16, 51200, 2048)


def step_of(**changes):
    given = {"dp": 2, "tp": 2, "pp": 4, "global_batch": 32, "sequence": 2048} | changes
    return predict_step(MODEL, plan_of("megatron", **given), "a100", fit_memory=False, replayed=True)


@pytest.mark.parametrize(
    "changes",
    [{}, {"pp": 1}, {"schedule": "gpipe"}, {"schedule": "interleaved", "virtual_stages": 2}, {"dp": 1, "tp": 1}],
)
def test_a_timeline_ends_when_the_prediction_does(changes):
    step = step_of(**changes)
    timeline = step_timeline(step)
    assert timeline.makespan_ns / 1e9 == pytest.approx(step.seconds, rel=1e-6)
    assert max(event.end_ns for event in timeline.events()) == timeline.makespan_ns


def test_a_rank_never_does_two_things_at_once():
    busy: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for event in step_timeline(step_of(schedule="zb-h1")).events():
        if event.kind != "P":
            busy.setdefault((event.replica, event.stage), []).append((event.start_ns, event.end_ns))
    for spans in busy.values():
        spans.sort()
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


def test_every_microbatch_goes_forward_and_back_on_every_stage():
    step = step_of()
    events = list(step_timeline(step).events())
    for kind in "FB":
        done = {(event.replica, event.stage, event.microbatch) for event in events if event.kind == kind}
        assert len(done) == 2 * 4 * step.plan.microbatches
    crossings = sum(event.kind == "P" for event in events)
    assert crossings == 2 * step.plan.microbatches * 2 * 3  # replicas, forward and back, boundaries
    assert {event.kind for event in events} >= {"C", "D", "O", "S"}


def test_collectives_in_layers_take_their_share():
    step = step_of(tp=8, dp=1)
    stage = max(range(4), key=lambda i: step.stages[i].total_s)
    drawn = sum(e.end_ns - e.start_ns for e in step_timeline(step).events() if e.kind == "C" and e.stage == stage)
    assert drawn / 1e9 == pytest.approx(step.breakdown.tensor_s, rel=0.05)


def test_a_drawn_step_is_the_first_of_those_simulated():
    step = step_of()
    varied = Variation(jitter=0.1, slow_ranks={3: 1.3})
    timeline = step_timeline(step, first_step_factors(step, varied, seed=5))
    first = simulate_steps(step, varied, steps=1, seed=5).seconds[0]
    assert timeline.makespan_ns / 1e9 == pytest.approx(first, rel=1e-6)


def test_every_rank_has_its_tracks_in_the_trace(tmp_path):
    timeline = step_timeline(step_of())
    path = write_trace(tmp_path / "step.json", timeline.trace_events())
    events = json.loads(path.read_text())["traceEvents"]
    assert {event["pid"] for event in events} == set(range(16))
    assert write_trace(tmp_path / "again.json", timeline.trace_events()).read_bytes() == path.read_bytes()


def test_the_picture_has_a_row_per_stage_and_a_colour_per_kind(tmp_path):
    step = step_of()
    alike = step_figure(step_timeline(step)).axes[0]
    assert len(alike.get_yticklabels()) == 4
    assert len(alike.collections) == 4 + 6
    assert "all 4 stages of one of 2 equal replicas" in alike.get_title(loc="left")
    unlike = step_figure(step_timeline(step, first_step_factors(step, Variation(slow_ranks={3: 1.3}), seed=5))).axes[0]
    assert len(unlike.get_yticklabels()) == 8
    assert len(unlike.collections) == 8 + 6
    assert save_step(step_timeline(step_of(pp=1)), tmp_path / "a.png").stat().st_size > 1000


def test_what_cannot_be_drawn_is_refused():
    huge = step_timeline(step_of(dp=1, tp=8, global_batch=8192), np.ones((4, 1)))
    with pytest.raises(InputError, match="take fewer microbatches"):
        list(huge.trace_events())
