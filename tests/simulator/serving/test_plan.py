"""The search for the cheapest deployment: against trying everything, and its bounds against what is simulated."""

import json
from dataclasses import replace

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.simulator.serving import plan as planning
from llmlab.simulator.serving.answer import tables
from llmlab.simulator.serving.bounds import bounds
from llmlab.simulator.serving.deployment import Deployment, resolve
from llmlab.simulator.serving.plan import busiest, plan, read_prices
from llmlab.simulator.serving.simulate import simulate
from llmlab.simulator.serving.slo import parse_slo
from llmlab.simulator.workload import synthetic
from llmlab.simulator.workload.workload import Workload

MODEL = "meta-llama/Llama-3.1-8B"
SLO = parse_slo("ttft_p99=400ms,tpot_p99=20ms")


def load(rate, count=250, seed=0):
    rng = np.random.default_rng(seed)
    return Workload(
        synthetic.poisson(count, rate, rng), synthetic.lognormal(count, 600, 0.8, rng, high=4000), rng.integers(10, 200, count)
    )


@pytest.fixture(scope="module")
def found():
    return plan(MODEL, load(60), SLO, ["h100", "a100"], max_gpus=16)


def test_nothing_cheaper_keeps_the_objective(found):
    """Every deployment at the starting sizes that costs less fails when it is simulated."""
    assert found.chosen is not None
    assert found.chosen.kept
    for gpu in ("h100", "a100"):
        for degree in (1, 2, 4, 8):
            for replicas in range(1, 16 // degree + 1):
                cheaper = Deployment(MODEL, gpu, degree, replicas, max_num_seqs=256, max_num_batched_tokens=2048)
                site = resolve(cheaper)
                if site.usd_per_hour < found.chosen.usd_per_hour:
                    assert (
                        not simulate(site, load(60), give_up=SLO).summary(SLO)["slo_met"]
                        or simulate(site, load(60), give_up=SLO).log.gave_up
                    )


def test_the_answer_keeps_the_objective_when_simulated_again(found):
    summary = simulate(found.chosen.deployment, load(60)).summary(SLO)
    assert summary["slo_met"]
    assert summary["ttft_s"]["p99"] == found.chosen.values["ttft_p99"]


def test_the_safe_option_keeps_the_objective_at_the_slow_end(found):
    assert found.stretch > 1
    slowly = simulate(found.chosen.deployment, load(60), stretch=found.stretch)
    assert slowly.summary(SLO)["slo_met"] == found.robust
    assert simulate(found.safe.deployment, load(60), stretch=found.stretch).summary(SLO)["slo_met"]
    assert found.safe.usd_per_hour >= found.chosen.usd_per_hour


def test_the_runner_up_costs_no_less_and_differs(found):
    assert found.runner_up.usd_per_hour >= found.chosen.usd_per_hour
    assert (found.runner_up.group, found.runner_up.deployment.replicas) != (
        found.chosen.group,
        found.chosen.deployment.replicas,
    )


def test_words_table_command_and_data_agree(found):
    said = " ".join(found.sentences())
    for part in (found.chosen.label, found.runner_up.label, "What binds", f"--tensor-parallel-size {found.chosen.group[1]}"):
        assert part in said
    assert found.command.startswith(f"vllm serve {MODEL} ")
    assert f"--max-num-seqs {found.chosen.deployment.max_num_seqs} " in found.command
    title, rows = tables(found)[0]
    assert MODEL in title
    assert next(row for row in rows if row[""] == "chosen")["gpu"] == found.chosen.group[0]
    whole = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert whole["chosen"]["kept"]
    assert {front["metric"] for front in whole["fronts"]} == {"ttft_p99", "tpot_p99"}
    for front in whole["fronts"]:
        edge = [point for point in front["points"] if point["front"]]
        assert [point["y"] for point in edge] == sorted((point["y"] for point in edge), reverse=True)
        assert len({point["x"] for point in edge}) == len(edge)
        assert any(point["chosen"] for point in front["points"])


def test_a_bound_only_drops_what_simulation_drops_too(found):
    """Lone-request bounds are below the fastest run, and fewer replicas than the bound never keep the objective."""
    workload = load(150)
    for gpu in ("h100", "a100"):
        site = resolve(Deployment(MODEL, gpu, max_num_seqs=256, max_num_batched_tokens=2048))
        idle = simulate(site, replace(workload, arrival_ns=np.arange(len(workload)) * 10**11)).summary()
        for metric, statistic in (("tpot", "max"), ("ttft", "p50"), ("ttft", "p99")):
            limit = idle[f"{metric}_s"][statistic] * 1.001
            assert not bounds(site, workload, parse_slo(f"{metric}_{statistic}={limit}s")).reason
        least = bounds(site, workload, SLO).replicas
        assert not simulate(replace(site, deployment=replace(site.deployment, replicas=least)), workload).log.refused
    assert "a lone request takes" in bounds(site, workload, parse_slo("tpot_p50=1us")).reason
    assert "a lone prompt" in bounds(site, workload, parse_slo("ttft_p99=1ms")).reason


def test_the_number_of_workers_changes_nothing():
    arguments = (MODEL, load(30, count=60), SLO, ["h100"])
    one, two = (plan(*arguments, max_gpus=4, workers=workers).to_json() for workers in (1, 2))
    for result in (one, two):
        del result["wall_s"]
    assert one == two


def test_an_objective_out_of_reach_has_no_answer_and_says_why():
    slow = plan(MODEL, load(500, count=120), parse_slo("ttft_p99=30ms"), ["a100"], max_gpus=1)
    assert slow.chosen is None
    assert "No deployment of at most 1 devices" in slow.sentences()[0]
    assert slow.binds
    never = plan(MODEL, load(5, count=20), parse_slo("tpot_p99=1us"), ["h100"])
    assert never.chosen is None
    assert "ms per token" in never.binds
    assert never.fronts()[0]["points"] == []


def test_prices_decide():
    workload = load(20, count=100)
    cheap = plan(MODEL, workload, SLO, ["h100", "h200"], max_gpus=2, prices={"h200": 0.01})
    dear = plan(MODEL, workload, SLO, ["h100", "h200"], max_gpus=2, prices={"h200": 100.0})
    assert cheap.chosen.group[0] == "h200"
    assert dear.chosen.group[0] == "h100"
    assert cheap.prices["h200"]["source"] == "given"
    assert cheap.prices["h100"]["source"]


def test_options_that_fail_only_on_the_busiest_stretch_are_tried_on_the_whole(monkeypatch):
    """A burst in a long calm workload breaks the mean of the burst, not of the whole."""
    calm, burst = np.arange(300) * 10**9, 150 * 10**9 + np.arange(60) * 10**6
    arrival_ns = np.sort(np.concatenate((calm, burst)))
    workload = Workload(arrival_ns, np.full(360, 2000), np.full(360, 20))
    monkeypatch.setattr(planning, "WINDOW_S", 20.0)
    result = plan(MODEL, workload, parse_slo("ttft_mean=400ms"), ["h100"], max_gpus=4)
    assert result.chosen.level == "whole"
    window = [p for p in result.points if p.level == "window" and p.deployment == result.chosen.deployment]
    assert not window[0].kept


def test_a_smaller_chunk_is_found_where_only_that_keeps_the_objective():
    """Long prompts in steps of 2048 tokens hold up the decodes beside them, however many replicas there are."""
    workload = Workload(np.arange(80) * 50_000_000, np.full(80, 6000), np.full(80, 150))
    slo = parse_slo("itl_p99=30ms,ttft_p99=20s")
    result = plan(MODEL, workload, slo, ["h100"], max_gpus=8)
    assert result.chosen.deployment.max_num_batched_tokens < 2048
    dearer = [point for point in result.points if point.deployment.max_num_batched_tokens == 2048 and point.kept]
    assert all(point.usd_per_hour > result.chosen.usd_per_hour for point in dearer)


def test_the_busiest_stretch_is_cut_to_a_size_that_is_quick_to_simulate():
    assert busiest(load(10)).span_s <= planning.WINDOW_S
    crowded = busiest(load(500, count=60_000))
    assert crowded.span_s == pytest.approx(planning.WINDOW_S / 4, rel=0.05)
    closed = load(10).with_clients(3)
    assert busiest(closed) is closed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gpus": ["h900"]}, "unknown"),
        ({"gpus": []}, "names no device"),
        ({"model": "meta-llama/Llama-3.1-405B", "gpus": ["a100"]}, "does not fit anywhere"),
        ({"model": "nobody/nothing"}, "neither a known model"),
        ({"max_gpus": 0}, "max_gpus=0"),
        ({"prices": {"h200": 2.0}}, "is not among the devices asked for"),
        ({"prices": {"h100": -2.0}}, "must be positive"),
        ({"engine": "steam"}, "unknown"),
        ({"gpu_memory_utilization": 0.0}, "gpu_memory_utilization=0.0"),
    ],
)
def test_bad_input_is_named(changes, said):
    arguments = {"model": MODEL, "workload": load(5, count=10), "slo": SLO, "gpus": ["h100"]} | changes
    with pytest.raises(InputError, match=said):
        plan(**arguments)


@pytest.mark.parametrize("text", ["h100", "h100=", "=3", "h100=x", "h100=nan", "h100=1,h100=2"])
def test_bad_prices_are_named(text):
    with pytest.raises(InputError, match="--price"):
        read_prices(text)
