"""Power states: ordered, bounded by the sheet, and an estimate that says so."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.hardware.device import device_sheets, load_device_sheet
from llmlab.simulator.serving.deployment import Deployment, resolve
from llmlab.simulator.serving.energy import BASIS, DECODE_SHARE, PREFILL_SHARE, Power, balance_rows


@pytest.mark.parametrize("name", device_sheets())
def test_states_are_ordered_and_within_the_limit(name):
    device = load_device_sheet(name)
    power = Power.of(device, 300)
    assert 0 <= power.idle_w <= power.decode_w <= power.prefill_w <= max(device.power_w, device.idle_power_w)


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_more_rows_never_draw_less(one, two):
    power = Power(70, 490, 640, 295)
    low, high = sorted((one, two))
    assert 490 <= power.watts(low) <= power.watts(high) <= 640


def test_the_mean_weighs_steps_by_their_time():
    power = Power(70, 400, 600, 100)
    reads, computes = BatchShape((), 0, 0, 0), BatchShape(((500, 0),), 0, 0, 1)
    assert power.mean_busy_w([(reads, 3), (computes, 1)]) == 450
    assert power.mean_busy_w([]) == 400


def test_a_product_computes_from_the_ratio_of_the_device_s_limits():
    site = resolve(Deployment("meta-llama/Llama-3.1-8B", "h100"))
    device = site.profile.device
    assert balance_rows(site.cost) == pytest.approx(device.flops_per_s["bfloat16"] / device.hbm_bytes_per_s, rel=0.5)


def test_it_says_that_it_is_an_estimate():
    assert BASIS.startswith("estimate")
    assert DECODE_SHARE < PREFILL_SHARE < 1


@pytest.mark.data
def test_the_shares_are_those_of_the_measured_products(data):
    """Products that read fast draw the decode share of the limit, those that compute fast the prefill share."""
    import pandas as pd

    table = pd.read_csv(data / "operators" / "h200_sxm_vllm0.22.0_gemm_power.csv.gz")
    width = table["gemm_dtype"].map({"bfloat16": 2, "fp8_block": 1})
    seconds = table["latency_ms"] * 1e-3
    device = load_device_sheet("h200")
    computing = 2 * table["m"] * table["n"] * table["k"] / seconds / (device.flops_per_s["bfloat16"] * 2 / width)
    reading = (table["m"] * table["k"] + table["n"] * table["k"]) * width / seconds / device.hbm_bytes_per_s
    share = table["power_w"] / table["power_limit_w"]
    assert share[(reading > 0.8) & (computing < 0.1)].mean() == pytest.approx(DECODE_SHARE, abs=0.01)
    assert share[(computing > 0.6) & (computing <= 0.8)].mean() == pytest.approx(PREFILL_SHARE, abs=0.01)
