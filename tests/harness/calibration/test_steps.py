"""The fit recovers a known machine from its steps, ignores stalls, and keeps what it cannot explain."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: steps come from the engine")

from llmlab.harness.calibration.steps import LEAST_DRIFT, _drift, fit_steps, head_share, with_idle
from llmlab.harness.runtime.engine import Step
from llmlab.reference.models._config import ModelConfig
from llmlab.simulator.cost.batch import BatchShape

CONFIG = ModelConfig("one", "llama", 8, 12, 1, 1, 1, 8, vocab_size=34)


def truth(shape: BatchShape) -> float:
    """Rows cost in steps of a plateau and a slope, attention by tokens and pairs."""
    share = head_share(CONFIG)
    curve = 4e-3 * (1 - share) * max(1, shape.new_tokens / 20) + 4e-3 * share * max(shape.emitted > 0, shape.emitted / 20)
    pairs = sum(new * (cached + (new + 1) / 2) for new, cached in shape.prefill)
    return 1e-3 + curve + 2e-6 * shape.decode_context_tokens + 1e-7 * pairs + 5e-4 * len(shape.prefill)


def shapes(count: int, seed: int) -> list[BatchShape]:
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(count):
        decodes = int(rng.integers(0, 13))
        prompts = tuple((int(rng.integers(2, 100)), int(rng.integers(0, 3)) * 64) for _ in range(rng.integers(decodes == 0, 3)))
        context = int(rng.integers(1, 400, decodes).sum())
        drawn.append(BatchShape(prompts, decodes, context, decodes + int(rng.integers(0, len(prompts) + 1))))
    return drawn


def steps(count: int, seed: int, noise: float = 0.0, stalls: float = 0.0) -> list[Step]:
    rng = np.random.default_rng(seed + 1)
    made, now = [], 0.0
    for shape in shapes(count, seed):
        seconds = truth(shape) * float(np.exp(noise * rng.standard_normal())) * (10.0 if rng.random() < stalls else 1.0)
        made.append(Step(now, seconds, 0.0, shape, 0))
        now += seconds
    return made


def test_a_machine_without_noise_is_recovered() -> None:
    fit = fit_steps(steps(2000, 0), CONFIG)
    errors = [fit.seconds(shape) / truth(shape) - 1 for shape in shapes(500, 1)]
    assert np.abs(errors).max() < 0.05  # where the curve bends between two knots
    assert fit.held_out_error < 0.01
    assert fit.drift == LEAST_DRIFT


def test_noise_averages_out_and_is_kept_as_spread() -> None:
    fit = fit_steps(steps(2000, 2, noise=0.1), CONFIG)
    errors = [fit.seconds(shape) / truth(shape) - 1 for shape in shapes(500, 3)]
    assert np.median(np.abs(errors)) < 0.02
    assert np.log(fit.ratios).std() == pytest.approx(0.1, rel=0.15)


def test_stalls_raise_the_total_but_do_not_bend_the_formula() -> None:
    stalled = steps(2000, 4, stalls=0.02)
    fit = fit_steps(stalled, CONFIG)
    ratio = np.array([fit.seconds(shape) / truth(shape) for shape in shapes(500, 5)])
    assert 1.02 < np.median(ratio) < 1.06  # 2 % of the steps counted three times as long
    assert ratio.std() < 0.02


def test_other_days_differ_by_seed_and_average_to_the_prediction() -> None:
    fit = fit_steps(steps(800, 6, noise=0.05), CONFIG)
    drawn = shapes(400, 7)
    plain = sum(fit.step_ns(shape) for shape in drawn)
    totals = []
    for seed in range(30):
        one, again = (fit.unsteady_ns(np.random.default_rng(seed)) for _ in range(2))
        totals.append(sum(map(one, drawn)))
        assert totals[-1] == sum(map(again, drawn))
    assert len(set(totals)) > 20
    assert np.mean(totals) == pytest.approx(plain, rel=0.03)


def test_an_empty_step_takes_no_time_and_no_step_less_than_a_nanosecond() -> None:
    fit = fit_steps(steps(100, 8), CONFIG)
    assert fit.seconds(BatchShape((), 0, 0, 0)) == 0.0
    assert fit.step_ns(BatchShape((), 0, 0, 0)) == 1
    assert set(fit.as_dict()) >= {"steps", "drift", "pair_s", "matrix_products_s"}


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="10 steps are too few"):
        fit_steps(steps(10, 9), CONFIG)


def test_slower_steps_after_pauses_are_measured_and_quicker_ones_ignored():
    whole = steps(2000, 0)
    fit = fit_steps(whole, CONFIG)
    slow = [replace(step, duration_s=1.3 * fit.seconds(step.shape)) for step in whole[:40]]
    assert with_idle(fit, slow).after_idle == pytest.approx(1.3)
    quick = [replace(step, duration_s=0.5 * fit.seconds(step.shape)) for step in whole[:40]]
    assert with_idle(fit, quick).after_idle == 1.0


def test_a_stall_longer_than_a_stretch_leaves_the_drift_a_number():
    whole = steps(2000, 0)
    longest = replace(whole[700], duration_s=30.0)
    assert 0 < fit_steps([*whole[:700], longest, *whole[701:]], CONFIG).drift < 1
    assert _drift(np.array([0, 2, 2]), np.ones(3), np.ones(3)) == LEAST_DRIFT
