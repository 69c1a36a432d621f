"""Devices, links and nodes as data: what is listed, how it is found, and how a wrong file is refused."""

import pytest

from llmlab.reference.errors import InputError
from llmlab.simulator.hardware.device import (
    DTYPE_BYTES,
    Device,
    Peaks,
    device_sheets,
    dtype_name,
    links,
    load_device_sheet,
    nodes,
    read_devices,
)

ONE = """
- name: one
  generation: test
  hbm_bytes: 1e9
  hbm_bytes_per_s: 1e11
  flops_per_s: {float32: 1e12}
  cores: 4
  last_level_cache_bytes: 1000000
"""


@pytest.mark.parametrize("alias", ["h100", "H100-80GB-SXM", "H100-SXM-80GB", "NVIDIA H100 80GB HBM3", "h100_sxm", "H100 80GB"])
def test_one_device_has_many_names(alias):
    assert load_device_sheet(alias).name == "H100-SXM-80GB"


def test_no_two_devices_share_a_name():
    names = [name.lower().replace("_", "-") for device in device_sheets().values() for name in {device.name, *device.aliases}]
    unique = {
        (device.name, name.lower().replace("_", "-"))
        for device in device_sheets().values()
        for name in (device.name, *device.aliases)
    }
    assert len({name for _, name in unique}) == len(unique), sorted(names)


def test_an_unknown_device_lists_the_known_ones():
    with pytest.raises(InputError, match=r"name='h999'.*A100-SXM-40GB.*H200-SXM-141GB.*B200"):
        load_device_sheet("h999")


@pytest.mark.parametrize("name", list(device_sheets()))
def test_every_device_says_where_its_figures_come_from(name):
    device = load_device_sheet(name)
    assert device.source
    assert device.price_source
    assert device.price_usd_per_hour > 0
    assert device.power_w > device.idle_power_w > 0
    assert device.link in links()
    assert set(device.flops_per_s) <= {*DTYPE_BYTES, "tfloat32"}
    flops_per_byte = device.peak_flops_per_s("bfloat16") / device.hbm_bytes_per_s
    assert 30 < flops_per_byte < 600  # a slipped digit would leave this range


def test_newer_generations_are_faster():
    rates = [load_device_sheet(name).hbm_bytes_per_s for name in ("a100-40gb", "a100", "h100", "h200", "b200")]
    assert rates == sorted(rates)


@pytest.mark.parametrize("name", list(nodes()))
def test_nodes_are_made_of_listed_parts(name):
    node = nodes()[name]
    assert load_device_sheet(node.device).name == node.device
    assert {node.link, node.network} <= set(links())


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("cores: 4", "cores: -4", "cores"),
        ("cores: 4", "cores: many", "cores"),
        ("cores: 4", "", "cores"),
        ("float32: 1e12", "float32: .nan", "float32"),
        ("hbm_bytes: 1e9", "hbm_gb: 1", "hbm_gb"),
        ("- name: one", "name: one", "cannot be read"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, old, new, named):
    (tmp_path / "own.yaml").write_text(ONE)
    assert read_devices(tmp_path / "own.yaml")["one"].hbm_bytes == 10**9
    (tmp_path / "own.yaml").write_text(ONE.replace(old, new))
    with pytest.raises(InputError, match=named):
        read_devices(tmp_path / "own.yaml")


def test_dtypes_have_one_name():
    assert {dtype_name(alias) for alias in ("bf16", "BFloat16", "torch.bfloat16")} == {"bfloat16"}
    with pytest.raises(InputError, match="float7"):
        dtype_name("float7")


def test_a_missing_dtype_runs_at_the_16_bit_rate():
    assert load_device_sheet("a100").peak_flops_per_s("fp8") == 312e12
    assert load_device_sheet("h100").peak_flops_per_s("fp8") > 1.9e15


def test_measured_peaks_become_a_device():
    device = Peaks("this", 8 << 30, 2e10, {"float32": 1e11}, 2, 1 << 25).device()
    assert isinstance(device, Device)
    assert device.fitted
    assert device.peak_flops_per_s("bfloat16") == 1e11
