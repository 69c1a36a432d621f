"""The `vllm bench serve` file of a run: its numbers are the run's, its statistics NumPy's, and it reads back as a workload."""

import json

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.simulator.serving.bench_result import bench_result, write_bench_result
from llmlab.simulator.serving.deployment import Deployment
from llmlab.simulator.serving.simulate import simulate
from llmlab.simulator.serving.slo import parse_slo
from llmlab.simulator.workload import synthetic
from llmlab.simulator.workload.spec import load_workload
from llmlab.simulator.workload.workload import Workload


@pytest.fixture(scope="module")
def run():
    rng = np.random.default_rng(0)
    workload = Workload(
        synthetic.poisson(60, 8.0, rng), synthetic.lognormal(60, 300, 1.0, rng), synthetic.lognormal(60, 20, 0.8, rng)
    )
    return simulate(Deployment("meta-llama/Llama-3.1-8B", "h100", 1, 2), workload)


def test_statistics_are_those_of_the_run(run):
    found = bench_result(run, parse_slo("ttft_p99=2s"))
    table = run.requests
    for name, column in (("ttft", "ttft_s"), ("tpot", "tpot_s"), ("e2el", "e2e_s")):
        milliseconds = table[column][np.isfinite(table[column])] * 1e3
        assert found[f"mean_{name}_ms"] == pytest.approx(milliseconds.mean())
        assert found[f"std_{name}_ms"] == pytest.approx(milliseconds.std())
        for p in (50, 90, 99):
            assert found[f"p{p}_{name}_ms"] == pytest.approx(np.percentile(milliseconds, p))
    gaps = np.repeat(list(run.log.gaps_ns), list(run.log.gaps_ns.values())) / 1e6
    assert len(gaps) == (run.workload.output_tokens - 1).sum()
    assert found["median_itl_ms"] == pytest.approx(np.median(gaps))
    assert found["p99_itl_ms"] == pytest.approx(np.percentile(gaps, 99))
    assert found["completed"] == 60
    assert found["total_output_tokens"] == run.workload.output_tokens.sum()
    assert found["output_throughput"] * found["duration"] == pytest.approx(found["total_output_tokens"])


def test_the_file_reads_back_as_the_workload_that_was_sent(run, tmp_path):
    path = write_bench_result(run, tmp_path / "result.json")
    again = load_workload(path)
    assert again.prompt_tokens.tolist() == run.workload.prompt_tokens.tolist()
    assert np.abs(np.diff(again.arrival_ns) - np.diff(run.workload.arrival_ns)).max() <= 1
    assert json.loads(path.read_text())["num_prompts"] == 60
    with pytest.raises(InputError, match="json"):
        write_bench_result(run, tmp_path / "result.csv")
