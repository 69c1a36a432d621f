"""The search for the cheapest deployment: against trying everything, and its bounds against what is simulated."""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.simulator.hardware.profile import load_device
from llmlab.simulator.serving import search
from llmlab.simulator.serving.answer import tables
from llmlab.simulator.serving.deployment import Deployment, resolve
from llmlab.simulator.serving.plan import plan, read_prices, read_sizes, where_to_run
from llmlab.simulator.serving.search import busiest
from llmlab.simulator.serving.simulate import simulate
from llmlab.simulator.serving.slo import parse_slo
from llmlab.simulator.sweep import Store
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
    return plan(MODEL, load(60), SLO, ["h100", "a100"], max_gpus=8, num_seqs=(64, 256), chunks=(512, 2048))


def test_nothing_cheaper_keeps_the_objective(found):
    """Every deployment at the starting sizes that costs less fails when it is simulated."""
    assert found.chosen is not None
    assert found.chosen.kept
    for gpu in ("h100", "a100"):
        for degree in (1, 2, 4, 8):
            for replicas in range(1, 8 // degree + 1):
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
    assert sum(whole["searched"]["parts"].values()) == whole["searched"]["considered"]
    for front in whole["fronts"]:
        edge = [point for point in front["points"] if point["front"]]
        assert [point["y"] for point in edge] == sorted((point["y"] for point in edge), reverse=True)
        assert len({point["x"] for point in edge}) == len(edge)
        assert any(point["chosen"] for point in front["points"])


def without_times(result):
    """Everything but how long it took and who did it."""
    del result["wall_s"], result["said"]
    result["searched"] = {name: result["searched"][name] for name in ("considered", "parts", "simulations")}
    return result


def test_neither_workers_nor_a_store_change_the_answer(tmp_path):
    arguments = (MODEL, load(30, count=60), SLO, ["h100"])
    sizes = {"max_gpus": 2, "num_seqs": (16, 64), "chunks": (512, 2048)}
    one = without_times(plan(*arguments, **sizes).to_json())
    for options in ({"workers": 2}, {"store": tmp_path / "points.db"}, {"store": tmp_path / "points.db"}):
        assert without_times(plan(*arguments, **sizes, **options).to_json()) == one


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray (the `cluster` extra)")
def test_a_ray_cluster_gives_the_same_plan(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    arguments = (MODEL, load(30, count=60), SLO, ["h100"])
    sizes = {"max_gpus": 4, "num_seqs": (16, 64), "chunks": (512, 2048), "explained": False}
    here = without_times(plan(*arguments, **sizes).to_json())
    assert without_times(plan(*arguments, **sizes, run_on="ray", workers=2).to_json()) == here


def test_a_search_that_was_stopped_goes_on(tmp_path):
    """Stopped after some rounds: what was simulated is not again, and the answer is that of an undisturbed search."""
    arguments = (MODEL, load(30, count=60), SLO, ["h100", "a100"])
    sizes = {"max_gpus": 2, "num_seqs": (16, 64), "chunks": (512, 2048), "explained": False}
    whole = without_times(plan(*arguments, **sizes).to_json())
    seen = []

    def interrupt(stage, done, total):
        seen.append(stage)
        if stage.startswith("round") and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan(*arguments, **sizes, store=tmp_path / "points.db", progress=interrupt)
    with Store(tmp_path / "points.db") as opened:
        assert len(opened) == 4
    firsts = []
    resumed = plan(
        *arguments, **sizes, store=tmp_path / "points.db", progress=lambda stage, done, total: firsts.append((stage, done))
    )
    assert next(done for stage, done in firsts if stage.startswith("round")) == 4
    assert without_times(resumed.to_json()) == whole


def test_more_devices_never_raise_the_price_and_a_looser_objective_never_does():
    arguments = (MODEL, load(60, count=120))
    sizes = {"num_seqs": (16, 64), "chunks": (512, 2048), "explained": False}
    prices = []
    for most, kinds in ((1, ["a100"]), (2, ["a100"]), (4, ["a100"]), (4, ["a100", "h100"])):
        found = plan(*arguments, SLO, kinds, max_gpus=most, **sizes).chosen
        prices.append(found.usd_per_hour if found else float("inf"))
    assert prices == sorted(prices, reverse=True)
    assert prices[0] == float("inf") > prices[-1]
    looser = []
    for factor in (1.0, 1.5, 3.0, 100.0):
        looser.append(plan(*arguments, SLO.relaxed(factor), ["a100", "h100"], max_gpus=4, **sizes).chosen.usd_per_hour)
    assert looser == sorted(looser, reverse=True)
    assert looser[-1] < looser[0]


def test_more_devices_never_lower_the_best_goodput():
    """The best goodput over all deployments of at most so many devices."""
    workload = load(200, count=120)
    best = 0.0
    for devices in (1, 2, 4):
        within = [
            Deployment(MODEL, "h100", degree, replicas, max_num_seqs=256, max_num_batched_tokens=2048)
            for degree in (1, 2, 4)
            for replicas in range(1, devices // degree + 1)
        ]
        now = max(simulate(option, workload).summary(SLO)["goodput_requests_per_s"] for option in within)
        assert now >= best
        best = now
    assert best > 0


def test_doubling_the_bandwidth_never_slows_a_lone_request():
    """One request at a time: there is no schedule to upset, so what each step takes decides."""
    profile = load_device("h100")
    faster = replace(profile, device=replace(profile.device, hbm_bytes_per_s=2 * profile.device.hbm_bytes_per_s))
    rng = np.random.default_rng(3)
    alone = Workload(np.arange(30) * 10**11, rng.integers(10, 5000, 30), rng.integers(2, 60, 30))
    slow, fast = (simulate(Deployment(MODEL, device), alone).requests for device in (profile, faster))
    for metric in ("ttft_s", "tpot_s", "e2e_s"):
        assert (fast[metric] <= slow[metric]).all()
    assert fast["tpot_s"].mean() < 0.8 * slow["tpot_s"].mean()


def test_the_reasons_add_up(found):
    """Parts of a latency sum to it; the load curve rises; the headroom lies where the curve breaks."""
    why = found.why
    run = simulate(found.chosen.deployment, load(60))
    for name in ("ttft", "tpot"):
        parts = why["parts"][name]
        assert sum(part["seconds"] for part in parts) == pytest.approx(run.summary()[f"{name}_s"]["mean"], rel=1e-6)
        assert sum(part["share"] for part in parts) == pytest.approx(1)
        assert all(part["seconds"] > 0 for part in parts)
    curve = {row["factor"]: row for row in why["curve"]}
    assert curve[1.0]["kept"]
    assert curve[1.0]["ttft_p99"] == found.chosen.values["ttft_p99"]
    factor = why["headroom"]["factor"]
    assert factor >= 1
    at = simulate(found.chosen.deployment, load(60).at_rate(factor)).summary(SLO)
    assert at["slo_met"]
    beyond = load(60).at_rate(factor + why["headroom"]["known_within"])
    assert not simulate(found.chosen.deployment, beyond).summary(SLO)["slo_met"]
    more = why["more"]
    assert more["headroom_factor"] >= factor
    assert more["usd_per_hour"] == pytest.approx(found.chosen.usd_per_hour / found.chosen.deployment.replicas)
    for change in why["sensitivity"]:
        assert change["holds"] == (change["replicas"] == found.chosen.deployment.replicas)


def test_the_runner_up_says_why_it_lost(found):
    assert ("dearer" in found.why["runner_up"]) or ("costs the same" in found.why["runner_up"])


def test_several_dtypes_and_policies_to_choose_from():
    options = {
        "weight_dtype": "bfloat16,fp8",
        "kv_dtype": ["bfloat16", "fp8"],
        "scheduler": "chunked_prefill,continuous_batching",
        "router": "least_outstanding,round_robin",
    }
    result = plan(
        MODEL, load(20, count=40), SLO, ["h100"], max_gpus=2, num_seqs=(256,), chunks=(2048,), explained=False, **options
    )
    assert result.searched["considered"] == 3 * 2**4
    assert sum(result.searched["parts"].values()) == 3 * 2**4
    dtypes = {(point.deployment.weight_dtype, point.deployment.kv_dtype) for point in result.points}
    assert len(dtypes) == 4
    for name, command in result.commands.items():
        said = result.chosen.deployment.weight_dtype
        assert said in command or name == "trtllm"


def test_an_objective_out_of_reach_has_no_answer_and_says_why():
    slow = plan(MODEL, load(500, count=120), parse_slo("ttft_p99=30ms"), ["a100"], max_gpus=1)
    assert slow.chosen is None
    assert "No deployment of at most 1 devices" in slow.sentences()[0]
    assert slow.binds
    never = plan(MODEL, load(5, count=20), parse_slo("tpot_p99=1us"), ["h100"])
    assert never.chosen is None
    assert "tpot_p99 is at least" in never.binds
    assert never.fronts()[0]["points"] == []


def test_prices_decide():
    workload = load(20, count=100)
    sizes = {"max_gpus": 2, "num_seqs": (64,), "chunks": (2048,), "explained": False}
    cheap = plan(MODEL, workload, SLO, ["h100", "h200"], prices={"h200": 0.01}, **sizes)
    dear = plan(MODEL, workload, SLO, ["h100", "h200"], prices={"h200": 100.0}, **sizes)
    assert cheap.chosen.group[0] == "h200"
    assert dear.chosen.group[0] == "h100"
    assert cheap.prices["h200"]["source"] == "given"
    assert cheap.prices["h100"]["source"]


def test_options_that_fail_only_on_the_busiest_stretch_are_tried_on_the_whole(monkeypatch):
    """A burst in a long calm workload breaks the mean of the burst, not of the whole."""
    calm, burst = np.arange(300) * 10**9, 150 * 10**9 + np.arange(60) * 10**6
    arrival_ns = np.sort(np.concatenate((calm, burst)))
    workload = Workload(arrival_ns, np.full(360, 2000), np.full(360, 20))
    monkeypatch.setattr(search, "WINDOW_S", 20.0)
    sizes = {"max_gpus": 4, "num_seqs": (64,), "chunks": (512, 2048), "explained": False}
    result = plan(MODEL, workload, parse_slo("ttft_mean=400ms"), ["h100"], **sizes)
    assert result.chosen.level == "whole"
    alone = simulate(result.chosen.deployment, busiest(workload)).summary(parse_slo("ttft_mean=400ms"))
    assert not alone["slo_met"]


def test_a_smaller_chunk_is_found_where_only_that_keeps_the_objective():
    """Long prompts in steps of 2048 tokens hold up the decodes beside them, however many replicas there are."""
    workload = Workload(np.arange(80) * 50_000_000, np.full(80, 6000), np.full(80, 150))
    slo = parse_slo("itl_p99=30ms,ttft_p99=20s")
    result = plan(MODEL, workload, slo, ["h100"], max_gpus=8, num_seqs=(64,), chunks=(512, 2048, 8192), explained=False)
    assert result.chosen.deployment.max_num_batched_tokens < 2048
    same_price = [point for point in result.points if point.usd_per_hour <= result.chosen.usd_per_hour]
    large = [point for point in same_price if point.deployment.max_num_batched_tokens >= 2048]
    assert large
    assert not any(point.kept for point in large)


def test_the_busiest_stretch_is_cut_to_a_size_that_is_quick_to_simulate():
    assert busiest(load(10)).span_s <= search.WINDOW_S
    crowded = busiest(load(500, count=60_000))
    assert crowded.span_s == pytest.approx(search.WINDOW_S / 4, rel=0.05)
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


@pytest.mark.parametrize("text", ["", "x", "0", "8,,9", "-3", "1.5"])
def test_bad_sizes_are_named(text):
    with pytest.raises(InputError, match="--max-num-seqs"):
        read_sizes(text, "--max-num-seqs")


def test_two_engines_of_a_kind_are_refused():
    with pytest.raises(InputError, match="two of a kind"):
        where_to_run(["vllm", "sglang"])


@pytest.mark.parametrize("text", ["h100", "h100=", "=3", "h100=x", "h100=nan", "h100=1,h100=2"])
def test_bad_prices_are_named(text):
    with pytest.raises(InputError, match="--price"):
        read_prices(text)
