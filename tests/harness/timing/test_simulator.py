"""The measurement of the simulator itself, on a run of a moment."""

import pytest

from llmlab.harness.timing.simulator import Case, measure, measure_apart, table


def test_both_loops_take_the_same_steps_and_say_how_long():
    readable, quick = (measure(Case(path, 150, 2, 30.0)) for path in ("simpy", "compiled"))
    assert readable["iterations"] == quick["iterations"] > 150
    assert readable["ttft_p99_s"] == quick["ttft_p99_s"]
    for found in (readable, quick):
        assert found["iterations_per_s"] * found["seconds"] == pytest.approx(found["iterations"])


def test_a_process_of_its_own_reports_the_same_run():
    case = Case("simpy", 60, 1, 30.0)
    here, apart = measure(case), measure_apart(case)
    assert here["iterations"] == apart["iterations"]
    assert apart["peak_rss_bytes"] > 10_000_000
    assert table([apart])[0]["steps"] == apart["iterations"]
