"""Error figures and prediction intervals."""

from __future__ import annotations

import numpy as np
import pytest

from llmlab.harness.validation.intervals import (
    FEWEST,
    FEWEST_OF_ENGINE,
    LEVEL,
    STRANGER,
    interval,
    interval_table,
    metric_kind,
    residual_quantiles,
)
from llmlab.harness.validation.summary import error_figures, grouped


def _row(measured: float | None, predicted: float, **more: object) -> dict[str, object]:
    return {
        "metric": "tpot_mean_ms", "load_mode": "static_batch", "source": "s",
        "measured": measured, "predicted": predicted, "low": 0.9 * predicted, "high": 1.1 * predicted, **more,
    }  # fmt: skip


def test_a_perfect_prediction_has_no_error_and_is_covered() -> None:
    figures = error_figures([_row(10.0, 10.0), _row(20.0, 20.0)])
    assert figures == {
        "n": 2, "mean_abs_error": 0.0, "median_abs_error": 0.0, "p90_abs_error": 0.0, "bias": 0.0, "coverage": 1.0,
            "width": 0.2,
    }  # fmt: skip


def test_bias_keeps_its_sign_and_misses_are_not_covered() -> None:
    figures = error_figures([_row(10.0, 15.0), _row(10.0, 13.0)])
    assert figures["bias"] == pytest.approx(0.4)
    assert figures["coverage"] == 0.0


def test_what_was_not_measured_counts_nowhere() -> None:
    assert error_figures([_row(None, 5.0), _row(0.0, 5.0)])["n"] == 0
    assert grouped([_row(None, 5.0)], "source") == []


def test_groups_part_the_rows() -> None:
    rows = [_row(10.0, 11.0, source=source) for source in "abca"]
    table = grouped(rows, "source", "metric")
    assert [(line["source"], line["n"]) for line in table] == [("a", 2), ("b", 1), ("c", 1)]


@pytest.mark.parametrize("spread", [0.05, 0.4])
def test_intervals_cover_fresh_rows_as_often_as_they_say(spread: float) -> None:
    rng = np.random.default_rng(0)
    seen, fresh = (10.0 * np.exp(spread * rng.standard_normal(2000)) for _ in range(2))
    table = interval_table(_row(float(measured), 10.0) for measured in seen)
    low, high = interval(table, "static_batch", "tpot_mean_ms", 10.0)
    assert 0.87 < np.mean((low <= fresh) & (fresh <= high)) < 0.93


def test_few_residuals_fall_back_to_the_coarser_group() -> None:
    rows = [_row(10.0, 10.0)] * (FEWEST - 1) + [_row(20.0, 10.0, metric="ttft_mean_ms")] * FEWEST
    table = interval_table(rows)
    assert "tpot" not in table
    assert interval(table, "static_batch", "tpot_mean_ms", 1.0) == table["any"]
    assert interval(table, "static_batch", "ttft_mean_ms", 1.0) == (1.0, 2.0)


def test_an_interval_always_holds_its_own_prediction() -> None:
    low, high = interval({"tpot": (1.2, 1.4)}, "static_batch", "tpot_mean_ms", 5.0)
    assert low <= 5.0 <= high


def test_a_larger_sample_widens_no_further_than_its_extremes() -> None:
    assert residual_quantiles([1.0]) == (1.0, 1.0)
    assert residual_quantiles(list(np.linspace(0.5, 1.5, 101))) == pytest.approx(
        (0.5 + (1 - LEVEL) / 2, 1.5 - (1 - LEVEL) / 2), abs=0.01
    )


def test_kinds_join_the_percentiles_of_one_latency() -> None:
    assert metric_kind("itl_p99_ms") == metric_kind("itl_p95_ms") == "itl_tail"
    assert metric_kind("itl_p50_ms") == "itl"


def test_each_trust_has_its_own_interval_and_only_coarser_ones_are_stretched():
    sure = [{**_row(10.0 + 0.01 * i, 10.0), "trust": "fitted", "engine": "one"} for i in range(FEWEST)]
    guessed = [{**_row(10.0 + 0.5 * i, 10.0), "trust": "prior", "engine": "two"} for i in range(FEWEST)]
    table = interval_table([*sure, *guessed])

    def width(trust: str, widening: float = 1.0, **more: bool) -> float:
        low, high = interval(table, "static_batch", "tpot_mean_ms", 10.0, widening, engine="one", trust=trust, **more)
        return high - low

    assert width("fitted") < 0.3 < 3 < width("prior")
    assert width("prior", 2.0) == width("prior")
    assert width("unheard of", 2.0) > width("unheard of")
    assert width("fitted", stranger=True) == pytest.approx(STRANGER * width("fitted"))


def test_an_engine_with_many_runs_has_an_interval_of_its_own():
    own = [{**_row(10.0 + 0.01 * i, 10.0), "trust": "fitted", "engine": "one"} for i in range(FEWEST_OF_ENGINE)]
    others = [{**_row(20.0 + 0.1 * i, 10.0), "trust": "fitted", "engine": "two"} for i in range(FEWEST)]
    table = interval_table([*own, *others])
    assert "static_batch/tpot@fitted@one" in table
    assert "static_batch/tpot@fitted@two" not in table
