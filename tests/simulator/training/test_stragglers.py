"""Laws of steps that differ: order statistics, the slowest rank, loading beside training, failures against closed forms."""

from dataclasses import replace

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.simulator.training.failures import goodput, simulate_goodput, young_daly_s
from llmlab.simulator.training.plan import gpt, plan_of
from llmlab.simulator.training.step import predict_step
from llmlab.simulator.training.stragglers import (
    Variation,
    expected_maximum,
    factors,
    loading_waits,
    parse_slow_ranks,
    simulate_steps,
)

MODEL = gpt(24, 2048, 16, 51200, 2048)


def step_of(**changes):
    return predict_step(MODEL, plan_of("megatron", global_batch=64, sequence=2048, **changes), "a100", fit_memory=False)


def working_s(step):
    return step.plan.microbatches * step.stages[0].total_s


@pytest.mark.parametrize("distribution", ["normal", "lognormal"])
@pytest.mark.parametrize("shape", [{"dp": 16}, {"tp": 8, "dp": 2}])
def test_a_step_waits_for_the_expected_maximum_of_its_ranks(distribution, shape):
    step = step_of(**shape)
    drawn = simulate_steps(step, Variation(jitter=0.05, distribution=distribution), steps=4000, seed=1)
    late = (drawn.seconds.mean() - step.seconds) / working_s(step)
    assert late == pytest.approx(expected_maximum(16, 0.05, distribution) - 1.0, rel=0.03)


def test_maxima_of_two_and_three_normals_are_those_of_the_books():
    assert expected_maximum(1, 0.3) == pytest.approx(1.0)
    assert expected_maximum(2, 0.3) == pytest.approx(1.0 + 0.3 / np.pi**0.5)
    assert expected_maximum(3, 0.3) == pytest.approx(1.0 + 0.3 * 1.5 / np.pi**0.5)


@pytest.mark.parametrize("distribution", ["normal", "lognormal"])
def test_factors_have_mean_one_and_the_stated_spread(distribution):
    drawn = factors(np.random.default_rng(0), 200_000, 0.2, distribution)
    assert drawn.mean() == pytest.approx(1.0, abs=0.002)
    assert drawn.std() == pytest.approx(0.2, rel=0.01)


def test_without_variation_every_step_is_the_prediction():
    step = step_of(dp=2, tp=2, pp=4)
    drawn = simulate_steps(step, Variation(), steps=3)
    assert drawn.seconds == pytest.approx([step.seconds] * 3)


def test_one_slow_rank_slows_everyone_by_its_factor_and_is_named():
    step = step_of(dp=8, tp=2)
    drawn = simulate_steps(step, Variation(slow_ranks={5: 1.5}), steps=2)
    assert drawn.seconds == pytest.approx([step.seconds + 0.5 * working_s(step)] * 2)
    assert drawn.to_json()["slowest_rank"] == 5
    both = simulate_steps(step, Variation(slow_ranks={5: 1.5, 9: 1.2}), steps=1)
    assert both.seconds[0] == drawn.seconds[0]


@pytest.mark.parametrize("schedule", ["1f1b", "zb-2p"])
def test_a_slow_stage_sets_the_pace_of_a_pipeline(schedule):
    step = step_of(pp=4, schedule=schedule)
    drawn = simulate_steps(step, Variation(slow_ranks={2: 2.0}), steps=1)
    pace = step.plan.microbatches * 2 * step.stages[2].total_s
    assert pace < drawn.seconds[0] < pace + 3 * sum(stage.total_s for stage in step.stages)


def test_more_ranks_and_more_jitter_never_help():
    means = [
        simulate_steps(step_of(dp=dp), Variation(jitter=jitter), steps=300).to_json()["slowdown"]
        for dp, jitter in ((2, 0.02), (2, 0.1), (16, 0.1))
    ]
    assert 1.0 < means[0] < means[1] < means[2]


def test_the_seed_decides_and_quantiles_are_in_order():
    step = step_of(dp=4)
    one, same, other = (
        simulate_steps(step, Variation(jitter=0.1, device_spread=0.05), steps=50, seed=seed).to_json() for seed in (3, 3, 4)
    )
    assert one == same
    assert one != other
    assert one["p50_s"] <= one["p90_s"] <= one["p99_s"]


@pytest.mark.parametrize(("load", "prefetch", "late"), [(0.5, 2, 0.0), (3.0, 2, 1.0), (0.5, 0, 0.5), (3.0, 0, 3.0)])
def test_loading_hides_behind_training_or_adds_to_it(load, prefetch, late):
    assert loading_waits([2.0] * 50, [load] * 50, prefetch)[10:] == pytest.approx([late] * 40)


def test_prefetching_evens_out_loads_that_jitter():
    loads = factors(np.random.default_rng(0), 2000, 1.0, "lognormal")
    waits = [loading_waits(np.full(2000, 1.5), loads, depth).mean() for depth in (1, 2, 8)]
    assert waits[0] > waits[1] > waits[2]


@pytest.mark.parametrize("restarts_fail", [False, True])
def test_drawn_failures_leave_what_the_closed_form_says(restarts_fail):
    settings = (60.0, 3600.0, 900.0, young_daly_s(60.0, 3600.0))
    expected = goodput(*settings, restarts_fail=restarts_fail)
    drawn = simulate_goodput(*settings, 30_000, np.random.default_rng(0), restarts_fail=restarts_fail)
    for name in ("useful", "checkpoint", "lost_work", "restart"):
        assert getattr(drawn, name) == pytest.approx(getattr(expected, name), rel=0.03)
    assert drawn.useful + drawn.checkpoint + drawn.lost_work + drawn.restart == pytest.approx(1.0)


def test_restarts_that_fail_cost_more():
    assert goodput(60.0, 3600.0, 900.0, restarts_fail=True).useful < goodput(60.0, 3600.0, 900.0).useful


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"jitter": -0.1}, "jitter=-0.1"),
        ({"device_spread": float("nan")}, "device_spread=nan"),
        ({"distribution": "cauchy"}, "distribution='cauchy'"),
        ({"slow_ranks": {99: 2.0}}, "there are 2 ranks"),
        ({"slow_ranks": {0: 0.0}}, "positive finite factor"),
        ({"prefetch": -1}, "prefetch=-1"),
    ],
)
def test_what_cannot_vary_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        simulate_steps(step_of(dp=2), replace(Variation(), **changes))


@pytest.mark.parametrize("words", [["a=2"], ["3"], ["3=fast"], ["3=2", "3=4"]])
def test_slow_ranks_are_said_as_rank_and_factor(words):
    with pytest.raises(InputError, match="slow_rank"):
        parse_slow_ranks(words)
