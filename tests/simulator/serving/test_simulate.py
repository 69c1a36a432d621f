"""Whole deployments: pure functions of their inputs, sized by their memory, exported faithfully."""

import csv
import gzip
import json
from dataclasses import replace

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.serving.deployment import Deployment, resolve
from llmlab.simulator.serving.simulate import simulate
from llmlab.simulator.serving.slo import parse_slo
from llmlab.simulator.workload import synthetic
from llmlab.simulator.workload.workload import Workload

EIGHT_B = Deployment("meta-llama/Llama-3.1-8B", "h100")


@pytest.fixture(scope="module")
def workload():
    rng = np.random.default_rng(0)
    return Workload(
        synthetic.poisson(300, 10, rng), synthetic.lognormal(300, 500, 1, rng, high=6000), rng.integers(1, 300, 300)
    )


@pytest.fixture(scope="module")
def result(workload):
    return simulate(EIGHT_B, workload, record="steps")


def test_equal_runs_are_equal_and_the_seed_matters_only_to_a_random_router(workload):
    two = replace(EIGHT_B, replicas=2)
    assert simulate(two, workload).log.finished_ns == simulate(two, workload, seed=7).log.finished_ns
    drawn = replace(two, router="random")
    assert simulate(drawn, workload).log.finished_ns == simulate(drawn, workload).log.finished_ns
    assert simulate(drawn, workload).log.finished_ns != simulate(drawn, workload, seed=7).log.finished_ns


def test_a_single_request_is_the_sum_of_the_cost_model_s_steps():
    site = resolve(EIGHT_B)
    log = simulate(site, Workload([0], [1000], [4])).log
    frontend_ns = round(site.engine.host_request_s * 1e9)
    steps = [site.cost.step_ns(BatchShape(((1000, 0),), 0, 0, 1))]
    steps += [site.cost.step_ns(BatchShape((), 1, 1000 + i, 1)) for i in range(1, 4)]
    assert log.first_token_ns == [frontend_ns + steps[0]]
    assert log.finished_ns == [frontend_ns + sum(steps)]


def test_everything_finishes_and_is_counted(result, workload):
    summary = result.summary(parse_slo("ttft_p99=2s,tpot_p99=50ms"))
    assert summary["finished"] == 300
    assert summary["output_tokens"] == workload.output_tokens.sum()
    assert 0 < summary["utilization"] <= 1
    assert sum(summary["bound_by"].values()) == pytest.approx(1)
    assert sum(result.breakdown.values()) == pytest.approx(1)
    assert result.step_interval()[0] <= 1 <= result.step_interval()[1]
    json.dumps(summary, allow_nan=False)


def test_more_replicas_never_lower_the_goodput(workload):
    slo = parse_slo("ttft_p99=60ms,tpot_p99=12ms")
    good = [simulate(replace(EIGHT_B, replicas=n), workload.at_rate(5)).summary(slo)["goodput_fraction"] for n in (1, 2, 4)]
    assert good == sorted(good)


def test_a_faster_device_is_never_slower(workload):
    slow, fast = (simulate(replace(EIGHT_B, device=device), workload).summary() for device in ("a100", "h100"))
    for metric in ("ttft_s", "tpot_s", "e2e_s"):
        assert fast[metric]["mean"] < slow[metric]["mean"]


def test_gives_up_only_on_an_objective_that_is_broken(workload):
    hopeless = parse_slo("tpot_p99=1ms")
    assert simulate(EIGHT_B, workload, give_up=hopeless).log.gave_up
    met = parse_slo("tpot_p99=10s")
    result = simulate(EIGHT_B, workload, give_up=met)
    assert not result.log.gave_up
    assert result.log.finished_ns == simulate(EIGHT_B, workload).log.finished_ns


def test_csv_and_parquet_hold_the_same_table(result, tmp_path):
    import pandas as pd

    result.write_requests(tmp_path / "r.csv")
    result.write_requests(tmp_path / "r.parquet")
    with open(tmp_path / "r.csv") as file:
        rows = list(csv.DictReader(file))
    frame = pd.read_parquet(tmp_path / "r.parquet")
    assert list(rows[0]) == list(frame.columns)
    assert list(rows[0])[:4] == ["request_id", "arrival_s", "prompt_tokens", "output_tokens"]
    assert len(rows) == len(frame) == 300
    for row, ttft_s in zip(rows, frame["ttft_s"]):
        assert float(row["ttft_s"]) == pytest.approx(ttft_s, abs=1e-9)
    with pytest.raises(InputError, match="must end in"):
        result.write_requests(tmp_path / "r.xlsx")


def test_the_timeline_holds_every_step_and_three_spans_per_request(result, tmp_path):
    events = json.loads(result.write_trace(tmp_path / "t.json").read_text())["traceEvents"]
    packed = json.loads(gzip.decompress(result.write_trace(tmp_path / "t.json.gz").read_bytes()))["traceEvents"]
    assert events == packed
    steps = [event for event in events if event["ph"] == "X"]
    assert len(steps) == result.log.num_steps
    assert sum(event["dur"] for event in steps) == pytest.approx(sum(result.log.busy_ns) / 1e3)
    for kind in "be":
        assert sum(event["ph"] == kind for event in events) == 3 * 300


def test_the_timeline_needs_recorded_steps(workload):
    with pytest.raises(ValueError, match="no steps were recorded"):
        next(simulate(EIGHT_B, workload.first(2)).trace_events())


def test_memory_sets_the_blocks():
    one, two = resolve(EIGHT_B), resolve(replace(EIGHT_B, gpu_memory_utilization=0.5))
    assert one.kv_blocks > two.kv_blocks
    assert resolve(replace(EIGHT_B, kv_blocks=123)).kv_blocks == 123
    assert resolve(replace(EIGHT_B, price_usd_per_hour=2.0, tensor_parallel=2, replicas=3)).usd_per_hour == 12


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "meta-llama/Llama-3.1-70B"}, "does not fit"),
        ({"device": "tpu-v9"}, "unknown; known"),
        ({"model": "nobody/nothing"}, "neither a known model"),
        ({"tensor_parallel": 3}, "must divide"),
        ({"replicas": 0}, "replicas=0"),
        ({"scheduler": "oracle"}, "scheduler='oracle'"),
        ({"router": "psychic"}, "router='psychic'"),
        ({"engine": "steam"}, "unknown; known"),
        ({"weight_dtype": "int3"}, "not one of"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization=1.5"),
        ({"max_num_seqs": 64, "max_num_batched_tokens": 32}, "max_num_seqs=64"),
        ({"price_usd_per_hour": -1.0}, "price_usd_per_hour=-1.0"),
    ],
)
def test_what_cannot_be_deployed_is_named(changes, said):
    with pytest.raises(InputError, match=said):
        resolve(replace(EIGHT_B, **changes))


def test_prefix_identities_must_fit_the_blocks():
    workload = Workload([0], [64], [1], (np.arange(4),), 16)
    with pytest.raises(InputError, match="block_tokens=24"):
        simulate(replace(EIGHT_B, block_tokens=24), workload)
    simulate(replace(EIGHT_B, block_tokens=24, prefix_caching=False), workload)


def test_the_model_s_context_limits_a_request():
    workload = Workload([0, 0], [10, 4000], [10, 200])
    deployment = replace(EIGHT_B, model="meta-llama/Llama-2-7b-hf", max_model_tokens=None)
    assert set(simulate(deployment, workload).log.refused) == {1}
    assert not simulate(replace(deployment, max_model_tokens=0), workload).log.refused


@pytest.mark.data
@pytest.mark.slow
def test_the_whole_azure_trace(data):
    from llmlab.simulator.workload.trace import read_trace

    trace = read_trace(data / "traces" / "azure2023_conv.csv.gz")
    deployment = Deployment("meta-llama/Llama-3.1-70B", "h100", tensor_parallel=4, replicas=2)
    summary = simulate(deployment, trace).summary()
    assert summary["finished"] == len(trace)
    assert summary["output_tokens"] == trace.output_tokens.sum()
