"""Days, device hours, dollars and energy of a step and of a run."""

import csv
import gzip
import os
from pathlib import Path

import pytest

from llmlab.reference.errors import InputError
from llmlab.simulator.hardware.device import load_device_sheet
from llmlab.simulator.model.description import load_model
from llmlab.simulator.serving.energy import Power
from llmlab.simulator.training.plan import gpt, plan_of
from llmlab.simulator.training.run_cost import COMPUTING, MOVING, WAITING, run_cost, step_cost
from llmlab.simulator.training.step import predict_step

STEP = predict_step(
    gpt(24, 2048, 16, 51200, 2048), plan_of("megatron", dp=2, tp=2, pp=2, global_batch=32, sequence=2048), "h100"
)


def test_every_second_of_a_step_is_in_one_power_state():
    names = {name.removesuffix("_s") for name in STEP.to_json()["breakdown_s"]}
    assert sorted(COMPUTING + MOVING + WAITING) == sorted(names)


def test_energy_lies_between_idle_and_the_power_limit():
    device, found = load_device_sheet("h100"), step_cost(STEP, "h100")
    mean = sum(found.device_j.values()) / STEP.seconds / STEP.plan.gpus
    assert device.idle_power_w < mean < Power.of(device, 1.0).prefill_w < device.power_w
    assert found.joules == pytest.approx(sum(found.device_j.values()) + found.host_j)


def test_a_run_is_its_steps():
    one, run = step_cost(STEP, "h100"), run_cost(STEP, "h100", 100 * STEP.plan.tokens)
    assert run["steps"] == 100
    assert run["days"] * 86400 == pytest.approx(100 * STEP.seconds)
    assert run["gpu_hours"] == pytest.approx(run["days"] * 24 * STEP.plan.gpus)
    assert run["usd"] == pytest.approx(run["gpu_hours"] * load_device_sheet("h100").price_usd_per_hour)
    assert run["kwh"] * 3.6e6 == pytest.approx(100 * one.joules)
    assert run["energy_basis"].startswith("estimate")


def test_time_that_failures_take_costs_too():
    whole, half = (run_cost(STEP, "h100", 1e9, useful) for useful in (1.0, 0.5))
    for name in ("days", "gpu_hours", "usd", "kwh"):
        assert half[name] == pytest.approx(2 * whole[name])


@pytest.mark.parametrize("tokens", [0.0, -1.0, float("nan"), float("inf"), 10.0])
def test_a_run_needs_tokens(tokens):
    with pytest.raises(InputError, match="tokens"):
        run_cost(STEP, "h100", tokens)


def test_node_power_is_near_what_mlperf_measured():
    """GPT-3 on 64 nodes of eight H100 (MLPerf Training 4.0 power); hosts are of another maker, cooling is not counted."""
    path = Path(os.environ.get("LLMLAB_DATA", "/nowhere")) / "training" / "mlperf_power.csv.gz"
    if not path.is_file():
        pytest.skip("needs LLMLAB_DATA/training/mlperf_power.csv.gz")
    with gzip.open(path, "rt") as file:
        measured = [float(row["mean_node_w"]) for row in csv.DictReader(file) if row["benchmark"] == "gpt3"]
    sizes = {"dp": 16, "tp": 4, "pp": 8, "global_batch": 2048, "sequence": 2048}
    plan = plan_of("nemo", **sizes, precision="fp8", recompute="none")
    shown = step_cost(predict_step(load_model("openai/gpt3-175b"), plan, "h100", fit_memory=False), "h100").to_json()
    node = 8 * (shown["mean_device_w"] + shown["host_w_per_device"])
    for one in measured:
        assert node == pytest.approx(one, rel=0.12)
