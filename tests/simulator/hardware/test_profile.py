"""Profiles: the shipped ones, what a device without its own falls back on, and how a broken file is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.simulator.cost.curves import FORMS, Curve, Limits
from llmlab.simulator.hardware.device import device_sheets, load_device_sheet
from llmlab.simulator.hardware.profile import PRIOR_WIDENING, PROFILES, load_device, load_profile

SHIPPED = sorted(path.stem for path in PROFILES.glob("*.json"))


def test_profiles_of_three_devices_ship():
    assert {"a100_sxm", "h100_sxm", "h200_sxm"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profiles_say_where_they_come_from_and_how_far_off_they_are(name):
    profile = load_profile(PROFILES / f"{name}.json")
    assert profile.device.profile == name
    assert profile.device.fitted
    assert profile.provenance["date"]
    assert all(table["repository"] and table["licence"] and table["rows"] for table in profile.provenance["tables"])
    for kind in ("gemm.bfloat16", "attention_prefill.bfloat16", "attention_decode.bfloat16"):
        curve = profile.curves[kind]
        assert curve.held_out["rows"] >= 20
        assert 0 < curve.held_out["mean_absolute_error"] < 1
        assert curve.residuals["0.05"] < curve.residuals["0.5"] < curve.residuals["0.95"]
    assert (PROFILES / f"{name}.json").stat().st_size < 60_000


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_curve_is_positive_and_never_falls_as_work_grows(name):
    profile = load_profile(PROFILES / f"{name}.json")
    grown = np.array([1.0, 2.0, 7.0, 16.0, 100.0, 128.0, 513.0, 4096.0])
    base = {
        "gemm": {"m": grown, "n": 4096.0, "k": 4096.0},
        "attention_prefill": {"batch": 1, "new_tokens": grown + 1, "context_tokens": 100.0},
        "attention_decode": {"batch": 4, "context_tokens": grown},
        "moe": {
            "tokens": grown,
            "hidden": 2048,
            "inter": 768,
            "experts_per_token": 8,
            "handled": 8,
            "experts": 128,
            "matrices": 3,
            "ranks": 1,
        },
        "attention_decode_mla": {"batch": grown, "context_tokens": 900, "heads": 16, "latent_width": 576, "window": 0},
        "attention_prefill_mla": {
            "batch": 2,
            "new_tokens": grown,
            "context_tokens": 900,
            "heads": 16,
            "head_width": 160,
            "latent_width": 576,
            "window": 0,
        },
        "memory": {"moved_bytes": grown * 1e4},
        "collective": {"ranks": 4, "message_bytes": grown * 1e4},
        "host": {"batch": grown},
    }
    heads = {"heads": 32, "kv_heads": 8, "head_width": 128, "window": 0}
    for key, curve in profile.curves.items():
        kind = key.split(".")[0].removesuffix("_windowed").removesuffix("_parallel")
        columns = base.get(kind, base["collective"]) | (heads if kind.startswith("attention") else {})
        seconds = np.asarray(curve.seconds(profile.limits(), columns))
        assert np.isfinite(seconds).all(), key
        assert (seconds > 0).all(), key
        assert (np.diff(seconds) >= -1e-3 * seconds[1:]).all(), key


@pytest.mark.parametrize("name", list(device_sheets()))
def test_every_device_has_curves_and_strangers_say_so(name):
    profile = load_device(name)
    assert profile.device.name == name
    assert profile.curve("gemm", "bfloat16").rows > 0
    if profile.device.fitted:
        assert profile.widening == 1
        assert not profile.notes
    else:
        assert profile.widening == PRIOR_WIDENING
        assert "curves are those of" in profile.notes[0]


def test_widening_moves_quantiles_away_from_one():
    own, prior = load_device("h100"), load_device("b200")
    curve = own.curve("gemm", "bfloat16")
    assert prior.quantile(curve, "0.95") > own.quantile(curve, "0.95") > 1
    assert prior.quantile(curve, "0.05") < own.quantile(curve, "0.05") < 1


def test_a_saved_profile_reads_back_the_same(tmp_path):
    profile = load_device("h100")
    profile.save(tmp_path / "again.json")
    again = load_device(tmp_path / "again.json")
    assert again.device == profile.device
    assert again.to_json() == profile.to_json()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c.pop("device"), "device"),
        (lambda c: c.pop("curves"), "curves"),
        (lambda c: c.update(device="h999"), "h999"),
        (lambda c: c["curves"]["gemm.bfloat16"].update(form="guess"), "guess"),
        (lambda c: c["curves"]["gemm.bfloat16"]["parameters"].pop("efficiency"), "parameters"),
        (lambda c: c["curves"]["gemm.bfloat16"]["parameters"].update(efficiency=float("nan")), "efficiency"),
        (lambda c: c["curves"]["gemm.bfloat16"].update(extra=1), "extra"),
    ],
)
def test_a_broken_profile_is_named(tmp_path, change, named):
    content = load_device("h100").to_json()
    change(content)
    (tmp_path / "broken.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=named):
        load_profile(tmp_path / "broken.json")


def test_a_truncated_or_absent_profile_is_named(tmp_path):
    (tmp_path / "cut.json").write_text(json.dumps(load_device("h100").to_json())[:500])
    with pytest.raises(InputError, match=r"cut\.json.*not a JSON file"):
        load_profile(tmp_path / "cut.json")
    with pytest.raises(InputError, match=r"absent\.json"):
        load_device(tmp_path / "absent.json")


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.parameters])
def test_a_prior_exists_for_every_formula(name):
    assert set(Curve.prior(name).parameters) == set(FORMS[name].parameters) | set(FORMS[name].choices)


def test_a_ring_through_the_host_takes_more_than_switched_links_and_a_bridge_less():
    card, switched = load_device("H100-NVL-94GB"), load_device("H100-SXM-80GB")
    seconds = {}
    for name, profile, ranks in (("bridge", card, 2), ("ring", card, 8), ("switch", switched, 8)):
        curve, link = profile.collective("all_reduce", ranks)
        limits = replace(profile.limits(), link_bytes_per_s=link)
        seconds[name] = float(curve.seconds(limits, {"ranks": ranks, "message_bytes": 32e6}))
    assert max(seconds["switch"], seconds["bridge"]) < seconds["ring"]


def test_small_messages_of_a_ring_hop_quicker_than_fenced_ones():
    ring, limits = Curve.prior("collective_ring"), load_device("L40S").limits()
    small, large = (float(ring.seconds(limits, {"ranks": 8, "message_bytes": size})) for size in (64e3, 128e3))
    assert large > 2 * small


def test_shares_of_peaks_lower_the_limits():
    sheet = load_device_sheet("L40S")
    whole = replace(sheet, memory_share=1.0, sustained_share=1.0)
    assert Limits.of(sheet, "fp8").bytes_per_s < Limits.of(whole, "fp8").bytes_per_s
    assert Limits.of(sheet, "fp8").flops_per_s < Limits.of(whole, "fp8").flops_per_s


def test_more_devices_than_the_link_joins_wait_for_the_network():
    inside, across, rack = load_device("h100"), load_device("h100"), load_device("gb200")
    assert across.collective("all_reduce", 16)[1] < inside.collective("all_reduce", 8)[1]
    assert across.collective("all_reduce", 16)[1] > across.device.node_link_bytes_per_s
    assert across.collective("all_to_all", 16)[1] == across.device.node_link_bytes_per_s
    assert rack.collective("all_to_all", 64)[1] == rack.device.link_bytes_per_s


def test_a_device_alone_in_its_node_reaches_others_over_the_network():
    alone = replace(load_device("H100-SXM-80GB").device, devices_per_node=1, link_devices=0)
    profile = replace(load_device("H100-SXM-80GB"), device=alone)
    assert 0 < profile.collective("all_reduce", 2)[1] <= alone.node_link_bytes_per_s
