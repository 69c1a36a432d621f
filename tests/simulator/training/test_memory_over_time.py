"""Memory over a step: its highest point is the closed form, it ends as it began, and layers add up."""

import gzip
import json

import pytest

from llmlab.reference.errors import InputError
from llmlab.reports.memory_figure import memory_figure, save_memory
from llmlab.simulator.tracing import write_trace
from llmlab.simulator.training.memory import activation_bytes_per_layer, fullest_rank, rank_memory
from llmlab.simulator.training.memory_over_time import PARTS, by_layer, fullest_of, memory_over_time
from llmlab.simulator.training.plan import SCHEDULES, ParallelPlan, gpt
from llmlab.simulator.training.step import predict_step
from llmlab.simulator.training.step_timeline import step_timeline

MODEL = gpt(32, 2048, 16, 51200, 2048)


def plan_for(schedule, **changes):
    virtual = 2 if schedule == "interleaved" else 1
    settings = {"dp": 2, "tp": 2, "pp": 4, "global_batch": 32, "framework": "megatron-sc21"}
    return ParallelPlan(**settings | {"schedule": schedule, "virtual_stages": virtual} | changes)


def series(plan):
    step = predict_step(MODEL, plan, "a100", fit_memory=False)
    return memory_over_time(MODEL, plan, step_timeline(step).pipelines[0])


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_highest_point_of_every_rank_is_the_closed_form(schedule, recompute):
    plan = plan_for(schedule, recompute=recompute)
    found = series(plan)
    for one in found:
        closed = rank_memory(MODEL, plan, one.rank)
        for name in PARTS:
            assert one.peak[name] == pytest.approx(getattr(closed, f"{name}_bytes"), rel=1e-9, abs=1.0), name
    assert fullest_of(found).total_bytes.max() == pytest.approx(fullest_rank(MODEL, plan)[1].total_bytes)


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h2", "v-half", "dualpipe"])
def test_a_step_ends_with_what_it_began_with(schedule):
    for one in series(plan_for(schedule)):
        assert one.parts["activations"][-1] == pytest.approx(one.parts["activations"][0])
        assert one.parts["activations"].min() >= -1e-3
        assert (one.when_ns[1:] >= one.when_ns[:-1]).all()
        assert len(set(one.parts["weights"])) == 1


def test_a_timeline_of_other_sizes_is_refused():
    timeline = step_timeline(predict_step(MODEL, plan_for("1f1b"), "a100", fit_memory=False)).pipelines[0]
    with pytest.raises(InputError, match="4 ranks and 16 microbatches"):
        memory_over_time(MODEL, plan_for("1f1b", pp=2), timeline)


def test_without_a_pipeline_one_microbatch_is_held_at_a_time():
    plan = plan_for("1f1b", pp=1)
    (one,) = series(plan)
    assert one.total_bytes.max() == pytest.approx(rank_memory(MODEL, plan).total_bytes)


def test_earlier_ranks_of_1f1b_hold_more():
    peaks = [one.parts["activations"].max() for one in series(plan_for("1f1b"))]
    assert peaks == sorted(peaks, reverse=True)


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zb-v", "dualpipe"])
@pytest.mark.parametrize("pp", [2, 4])
def test_layers_embedding_and_output_matrix_add_up_to_the_rank(schedule, pp):
    plan = plan_for(schedule, pp=pp, recompute="full")
    rank, rows = by_layer(MODEL, plan)
    whole = rank_memory(MODEL, plan, rank)
    for part in ("weights", "gradients", "optimizer", "activations"):
        total = sum(row["number"] * row.get(f"{part}_bytes", 0.0) for row in rows)
        assert total == pytest.approx(getattr(whole, f"{part}_bytes"))


def test_memory_is_in_the_trace_and_in_the_picture(tmp_path):
    found = series(plan_for("zb-h1"))
    path = write_trace(tmp_path / "step.json.gz", [event for one in found for event in one.trace_events(one.rank)])
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    counters = [event for event in events if event["ph"] == "C"]
    assert {event["pid"] for event in counters} == set(range(4))
    highest = max(sum(event["args"].values()) for event in counters)
    assert highest == pytest.approx(fullest_of(found).total_bytes.max())
    assert save_memory(fullest_of(found), 85e9, "a step", tmp_path / "step.png").stat().st_size > 1000
    axes = memory_figure(fullest_of(found), 85e9, "a step").axes[0]
    assert [text.get_text() for text in axes.texts] == ["device: 85 GB"]
    assert axes.get_title(loc="left").startswith(f"a step: {highest / 1e9:.3g} GB at most")


@pytest.mark.parametrize(
    ("tp", "split", "recompute"), [(1, False, "none"), (8, False, "none"), (8, True, "none"), (8, True, "selective")]
)
def test_activations_are_those_of_korthikanti_et_al(tp, split, recompute):
    s, b, h, a = 2048, 2, 12288, 96
    plan = ParallelPlan(
        tp=tp, microbatch=b, sequence=s, sequence_parallel=split, recompute=recompute, framework="megatron-sc21"
    )
    kept, _ = activation_bytes_per_layer(gpt(96, h, a, 51200, s), plan)
    closed = {  # arXiv:2205.05198, equations 1, 2, 4 and 6
        (1, False, "none"): s * b * h * (34 + 5 * a * s / h),
        (8, False, "none"): s * b * h * (10 + 24 / tp + 5 * a * s / (h * tp)),
        (8, True, "none"): s * b * h / tp * (34 + 5 * a * s / h),
        (8, True, "selective"): 34 * s * b * h / tp,
    }
    assert kept == pytest.approx(closed[tp, split, recompute], rel=1e-12)
