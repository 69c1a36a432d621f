"""The means of a closed loop over prefill and decode workers: the loop's own laws."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmlab.harness.validation.fluid import settled


def _step(batch: float) -> float:
    return 0.01 + 1e-4 * batch


@pytest.mark.parametrize("prompts_per_s", [0.5, 5.0, 500.0])
@pytest.mark.parametrize("workers", [1, 3])
def test_clients_are_the_rate_times_the_time_in_the_loop(prompts_per_s: float, workers: int) -> None:
    found = settled(64, 101.0, prompts_per_s, 0.01, _step, workers, 1e9)
    assert found["requests_per_s"] * found["e2e_s"] == pytest.approx(64)


def test_slow_prefill_bounds_the_rate() -> None:
    found = settled(1000, 101.0, 2.0, 0.5, _step, 4, 1e9, rounds=10**6)
    assert found["requests_per_s"] == pytest.approx(2.0, rel=1e-3)


def test_a_full_worker_lets_the_rest_wait() -> None:
    def constant(_: float) -> float:
        return 0.01

    narrow, wide = (settled(100, 101.0, 1e6, 0.0, constant, 1, most, rounds=10**6) for most in (10, 1e9))
    assert narrow["requests_per_s"] == pytest.approx(10.0, rel=1e-3)
    assert wide["requests_per_s"] == pytest.approx(100.0, rel=1e-3)
    assert narrow["ttft_s"] > wide["ttft_s"]


@pytest.mark.parametrize("faster", [lambda b: 0.5 * _step(b), lambda b: _step(b) - 0.005])
def test_faster_steps_never_lower_the_rate(faster: Callable[[float], float]) -> None:
    before, after = (settled(64, 101.0, 20.0, 0.05, step, 2, 1e9) for step in (_step, faster))
    assert after["requests_per_s"] >= before["requests_per_s"]
