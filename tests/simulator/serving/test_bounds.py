"""Bounds are bounds: no step is quicker, no run is faster, and no option they exclude keeps the objective."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.serving.bounds import bounds, context_rate, demand, rates
from llmlab.simulator.serving.deployment import Deployment, resolve
from llmlab.simulator.serving.plan import plan
from llmlab.simulator.serving.search import judge
from llmlab.simulator.serving.simulate import simulate
from llmlab.simulator.serving.slo import parse_slo
from llmlab.simulator.workload import synthetic
from llmlab.simulator.workload.workload import Workload

MODEL = "meta-llama/Llama-3.1-8B"


@st.composite
def steps(draw, most_seqs=48, most_tokens=1500):
    """Any step a scheduler may choose: prompts in pieces, of which some emit, and decodes."""
    pieces = draw(st.lists(st.tuples(st.integers(2, 700), st.integers(0, 9000)), max_size=4))
    budget = most_tokens
    prefill = []
    for new, old in pieces:
        if new <= budget:
            prefill.append((new, old))
            budget -= new
    decodes = draw(st.integers(0 if prefill else 1, min(most_seqs - len(prefill), budget)))
    context = sum(draw(st.integers(1, 9000)) for _ in range(min(decodes, 3))) + max(0, decodes - 3) * draw(st.integers(1, 9000))
    emitted = draw(st.integers(0, decodes + len(prefill)))
    return BatchShape(tuple(prefill), decodes, context if decodes else 0, emitted)


LIMITS = {"max_num_seqs": 48, "max_num_batched_tokens": 1500}
SITES = {
    "one device": resolve(Deployment(MODEL, "h100", **LIMITS)),
    "four devices": resolve(Deployment(MODEL, "a100", 4, engine="trtllm", **LIMITS)),
    "another generation": resolve(Deployment(MODEL, "l40s", 2, engine="sglang", **LIMITS)),
    "two stages": resolve(Deployment(MODEL, "h100", 2, pipeline_parallel=2, **LIMITS)),
    "requests dealt out": resolve(
        Deployment(
            "deepseek-ai/DeepSeek-V3", "h200", 8, attention_data_parallel=8, expert_parallel=8, weight_dtype="fp8", **LIMITS
        )
    ),
    "experts dealt out": resolve(Deployment("mistralai/Mixtral-8x7B-v0.1", "h200", 4, expert_parallel=4, **LIMITS)),
}
LINES = {
    name: rates(site.cost, 48, 1500, context_rate(site.cost, 48, 10_000)) for name, site in SITES.items()
}  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(shape=steps(), name=st.sampled_from(sorted(SITES)))
def test_no_step_is_quicker_than_its_bound(shape, name):
    extra = shape.new_tokens - shape.emitted
    seconds = SITES[name].cost.seconds(shape)
    for line in LINES[name]:
        bound = line.extra_s * extra + line.emitted_s * shape.emitted + line.context_s * shape.decode_context_tokens
        assert seconds >= bound * (1 - 1e-12)


def test_some_bound_is_near_a_full_step():
    """A bound of nothing would pass the test above."""
    for name, site in SITES.items():
        if site.cost.tables.stages > 1:
            continue
        full = BatchShape(((1453, 0),), 47, 47 * 600, 48)
        best = max(
            line.extra_s * (1500 - 48) + line.emitted_s * 48 + line.context_s * 47 * 600 for line in LINES[name]
        )  # fmt: skip
        assert best > 0.6 * site.cost.seconds(full)


def random_case(seed):
    """A workload, a small space, and an objective about as strict as some options can keep."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(30, 60))
    prompts = synthetic.lognormal(count, float(rng.choice([300, 1500, 4000])), 1.0, rng, high=12_000)
    outputs = synthetic.lognormal(count, float(rng.choice([10, 80, 200])), 0.7, rng, high=600)
    hashes = synthetic.shared_prompts(prompts, 3, 256, 16, rng) if seed == 2 else ()
    arrivals = synthetic.gamma(count, float(rng.choice([2, 20, 100])), float(rng.choice([0.5, 1, 2])), rng)
    load = Workload(arrivals, prompts, outputs, hashes)
    gpus = [str(gpu) for gpu in rng.permutation(["h100", "a100", "l40s"])[:2]]
    options = [
        Deployment(MODEL, gpu, degree, replicas, max_num_seqs=seqs, max_num_batched_tokens=chunk)
        for gpu, degree, seqs, chunk in itertools.product(gpus, (1, 2), (4, 64), (128, 2048))
        for replicas in range(1, 3 // degree + 1)
    ]
    return load, gpus, options


@pytest.mark.parametrize("seed", range(4))
def test_the_search_finds_what_trying_everything_finds(seed):
    """Every option is simulated to its end; no bound is above what happened, and the plan is the cheapest that keeps it."""
    load, gpus, options = random_case(seed)
    runs = [simulate(option, load) for option in options]
    metric = ("ttft_p90", "tpot_p90", "e2e_mean", "tpot_mean")[seed]
    name, statistic = metric.split("_")
    reached = np.array([run.summary()[f"{name}_s"][statistic] for run in runs])
    first = np.array([run.summary()["ttft_s"]["p50"] for run in runs])
    slo = parse_slo(f"{metric}={np.quantile(reached, 0.4)}s,ttft_p50={np.quantile(first, 0.6)}s")
    points = [judge(run, slo, "whole") for run in runs]
    for point in points:
        found = bounds(resolve(point.deployment), load, slo)
        for clause, value in (found.values or {}).items():
            assert value <= point.values[clause] * (1 + 1e-9)
        if point.kept:
            assert not found.reason
            assert found.replicas <= point.deployment.replicas
    best = min((point.order for point in points if point.kept), default=None)
    found = plan(MODEL, load, slo, gpus, max_gpus=3, num_seqs=(4, 64), chunks=(128, 2048), explained=False)
    assert (found.chosen.order[:2] if found.chosen else None) == (best[:2] if best else None)
    counted = found.searched
    assert counted["considered"] == len(options) == sum(counted["parts"].values())
    tried = {point.deployment.max_num_seqs for point in found.points}
    assert tried <= {4, 64}


def test_work_that_one_replica_cannot_do_is_refused_and_needs_as_many_as_the_bound_says():
    rng = np.random.default_rng(5)
    load = Workload(synthetic.poisson(400, 100.0, rng), np.full(400, 1500), np.full(400, 150))
    site = resolve(Deployment(MODEL, "a100", max_num_seqs=256, max_num_batched_tokens=2048))
    slo = parse_slo("ttft_p99=1s,tpot_p99=100ms")
    least = bounds(site, load, slo).replicas
    assert least >= 2
    for replicas in range(1, least):
        run = simulate(replace(site.deployment, replicas=replicas), load)
        assert not run.summary(slo)["slo_met"]


def test_a_lone_request_decides_where_no_number_of_replicas_helps():
    load = Workload(np.arange(20) * 10**9, np.full(20, 3000), np.full(20, 50))
    site = resolve(Deployment(MODEL, "h100", max_num_seqs=64, max_num_batched_tokens=2048))
    assert "tpot_p50 is at least" in bounds(site, load, parse_slo("tpot_p50=1us")).reason
    assert "ttft_p99 is at least" in bounds(site, load, parse_slo("ttft_p99=1ms")).reason
    assert "e2e_mean is at least" in bounds(site, load, parse_slo("e2e_mean=50ms")).reason
    assert not bounds(site, load, parse_slo("ttft_p99=1s")).reason


def test_clauses_without_a_deadline_bound_no_replicas():
    load = Workload(np.arange(20) * 10**6, np.full(20, 3000), np.full(20, 50))
    assert len(demand(load, parse_slo("itl_p99=1s")).rows) == 0
    assert len(demand(load, parse_slo("tpot_p99=1s")).rows) == 0
    assert len(demand(load.with_clients(4), parse_slo("ttft_p99=1s")).rows) == 0
    assert len(demand(load, parse_slo("ttft_p99=1s")).rows) > 0


def test_what_can_never_fit_is_named():
    load = Workload(np.zeros(1), np.array([60_000]), np.array([10]))
    site = resolve(Deployment(MODEL, "h100", kv_blocks=100, max_num_seqs=4, max_num_batched_tokens=512))
    assert "HBM capacity" in bounds(site, load, parse_slo("ttft_p99=9s")).reason
    long = Workload(np.zeros(1), np.array([200_000]), np.array([10]))
    assert "context" in bounds(site, long, parse_slo("ttft_p99=9s")).reason
