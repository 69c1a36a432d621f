"""Metrics of hand-made runs, and of real ones against NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.simulator.serving.cluster import Log
from llmlab.simulator.serving.metrics import good, request_table, statistics, summarize, weighted_statistics
from llmlab.simulator.serving.slo import parse_slo
from llmlab.simulator.workload.workload import Workload

S = 10**9


def by_hand():
    """Two requests served: 3 tokens from 1 s to 4 s after a first token at 2 s; one token at 6 s; a third is refused."""
    workload = Workload([1 * S, 5 * S, 5 * S], [10, 20, 30], [3, 1, 7])
    log = Log.empty(3, 1, record_steps=False)
    log.sent_ns[:] = [1 * S, 5 * S, 5 * S]
    log.scheduled_ns[:2] = [int(1.5 * S), 5 * S]
    log.first_token_ns[:2] = [2 * S, 6 * S]
    log.finished_ns[:2] = [4 * S, 6 * S]
    log.cached_tokens[:] = [0, 15, 0]
    log.replica[:] = [0, 0, 0]
    log.gaps_ns.update({1 * S: 2})
    log.refused[2] = "too long"
    log.busy_ns[0] = 3 * S
    log.num_steps = 4
    return workload, log


def test_definitions_on_a_run_made_by_hand():
    workload, log = by_hand()
    table = request_table(workload, log)
    assert table["ttft_s"][:2].tolist() == [1, 1]
    assert table["e2e_s"][:2].tolist() == [3, 1]
    assert table["tpot_s"][0] == 1
    assert np.isnan(table["tpot_s"][1])
    assert np.isnan(table["e2e_s"][2])
    assert table["queue_s"][:2].tolist() == [0.5, 0]
    found = summarize(
        workload,
        log,
        table,
        devices_per_replica=2,
        usd_per_hour=7200,
        power_w=100,
        idle_power_w=10,
        slo=parse_slo("e2e_max=2s"),
    )
    assert found["requests"] == 3
    assert found["finished"] == 2
    assert found["failed"] == 1
    assert found["simulated_s"] == 5
    assert found["tokens_per_s"] == 4 / 5
    assert found["total_tokens_per_s"] == 34 / 5
    assert found["utilization"] == pytest.approx(0.6)
    assert found["cached_prompt_fraction"] == 0.5
    assert found["usd"] == pytest.approx(10)
    assert found["usd_per_million_output_tokens"] == pytest.approx(2.5e6)
    assert found["energy_j"] == pytest.approx(2 * (3 * 100 + 2 * 10))
    assert found["mean_in_system"] == pytest.approx(4 / 5)
    assert found["goodput_fraction"] == pytest.approx(1 / 3)
    assert found["goodput_requests_per_s"] == pytest.approx(1 / 5)
    assert not found["slo_met"]
    assert found["slo_broken"] == ["e2e_max 3 s > 2 s", "1 requests refused"]
    assert found["itl_s"]["p50"] == 1


def test_a_run_in_which_nothing_finished_has_no_statistics():
    workload = Workload([0], [10], [1])
    log = Log.empty(1, 1, record_steps=False)
    log.sent_ns[0], log.refused[0] = 0, "too long"
    found = summarize(workload, log, request_table(workload, log), slo=parse_slo("ttft_p99=1s"))
    assert found["ttft_s"]["p99"] is None
    assert found["tokens_per_s"] is None
    assert found["goodput_fraction"] == 0
    assert not found["slo_met"]


def test_goodput_asks_for_every_limit_at_once():
    table = {"ttft_s": np.array([1, 9, 1, np.nan]), "tpot_s": np.array([1, 1, 9, np.nan]), "e2e_s": np.array([5, 5, 5, np.nan])}
    assert good(table, parse_slo("ttft_p99=2s,tpot_p50=2s")).tolist() == [True, False, False, False]


@given(st.dictionaries(st.integers(1, 10**12), st.integers(1, 40), min_size=1, max_size=30))
def test_weighted_statistics_are_those_of_the_list_written_out(counts):
    written_out = np.repeat(list(counts), list(counts.values())) / 1e9
    expected = statistics(written_out, ("p99.9",))
    for name, value in weighted_statistics(counts, ("p99.9",)).items():
        assert value == pytest.approx(expected[name], rel=1e-12)
