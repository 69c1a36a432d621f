"""Reading published training runs: what is predicted, what is excluded and why, what is refused."""

import os
from itertools import pairwise
from pathlib import Path

import pytest

from llmlab.harness.validation.fit_training import FITS, RANGES, fit, settings_of, speed_errors, value_of, with_constants
from llmlab.harness.validation.training import (
    OutOfReachError,
    device_of,
    framework_of,
    predict,
    read_rows,
    setting_of,
    summary_tables,
    validate_rows,
    validate_training,
)
from llmlab.reference.errors import InputError
from llmlab.simulator.training.plan import framework, framework_names

HEADER = (
    "id,set,model,layers,hidden,heads,vocab,hardware,gpus,tp,pp,dp,sharding,schedule,mbs,gbs,seq,dtype,recompute,framework,"
)
HEADER += "iter_time_s,tokens_per_s_per_gpu,tflops_per_gpu,mem_gib,note\n"
GOOD = "{id},made,GPT,24,2048,16,51200,{hardware},{gpus},2,{pp},2,,{schedule},{mbs},64,1024,fp16,full,"
GOOD += "{framework},{time},,,{mem},\n"


def file_of(tmp_path, *changes, name="runs.csv"):
    usual = {
        "hardware": "A100-80GB",
        "gpus": "8",
        "pp": "2",
        "schedule": "1F1B",
        "mbs": "2",
        "framework": "Megatron-LM",
        "time": "1.0",
        "mem": "10",
    }
    path = tmp_path / name
    path.write_text(HEADER + "".join(GOOD.format(**{**usual, "id": f"row-{i}", **change}) for i, change in enumerate(changes)))
    return path


def test_a_row_becomes_a_prediction_per_metric(tmp_path):
    result = validate_training([file_of(tmp_path, {})])
    assert [row["metric"] for row in result["rows"]] == ["iter_time_s", "mem_gib"]
    for row in result["rows"]:
        assert row["low"] < row["predicted"] < row["high"]
        assert row["error"] == pytest.approx(row["predicted"] / row["measured"] - 1)
        assert row["source"] == "made"
        assert row["fitted"] is False
    assert result["excluded"] == []
    assert all(isinstance(rows, list) for _, rows in summary_tables(result))


def test_rows_without_measurements_are_predicted_in_every_metric(tmp_path):
    rows = validate_training([file_of(tmp_path, {"time": "", "mem": ""})])["rows"]
    figures = {row["metric"]: row["predicted"] for row in rows}
    assert {row["measured"] for row in rows} == {None}
    assert figures["tokens_per_s_per_gpu"] * 8 * figures["iter_time_s"] == pytest.approx(64 * 1024)


def test_out_of_reach_rows_are_excluded_with_their_reason(tmp_path):
    path = file_of(
        tmp_path,
        {},
        {"hardware": "TPU v4"},
        {"framework": "Homemade"},
        {"gpus": "9"},
        {"pp": "30", "gpus": "120"},
        {"mbs": "5"},
    )
    result = validate_training([path])
    reasons = [one["reason"] for one in result["excluded"]]
    assert len(reasons) == 5
    for reason, part in zip(reasons, ("TPU", "Homemade", "9 devices", "stages are more than", "multiple of dp")):
        assert part in reason
    assert result["summary"]["excluded"] == 5


def test_an_open_microbatch_is_the_quickest_that_fits(tmp_path):
    closed = [setting_of(row) for row in read_rows(file_of(tmp_path, *({"mbs": str(m)} for m in (1, 2, 4, 8))))]
    left_open = setting_of(read_rows(file_of(tmp_path, {"mbs": ""}, name="open.csv"))[0])
    assert predict(left_open).seconds == min(predict(one).seconds for one in closed)
    assert left_open.assumed


@pytest.mark.parametrize("change", [{"time": "soon"}, {"time": "nan"}, {"time": "-1"}, {"gpus": "many"}])
def test_a_cell_that_is_no_number_is_refused(tmp_path, change):
    with pytest.raises(InputError, match=r"runs\.csv:2"):
        read_rows(file_of(tmp_path, change))


@pytest.mark.parametrize("text", ["", "model\nx\n", HEADER])
def test_files_without_columns_or_rows_are_refused(tmp_path, text):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=r"bad\.csv"):
        read_rows(path)


def test_repeated_ids_are_refused(tmp_path):
    with pytest.raises(InputError, match="twice"):
        read_rows(file_of(tmp_path, {"id": "a"}, {"id": "a"}))
    with pytest.raises(InputError, match="several files"):
        validate_training([file_of(tmp_path, {}), file_of(tmp_path, {}, name="more.csv")])
    with pytest.raises(InputError, match="cannot be read"):
        read_rows(tmp_path / "absent.csv")


def test_hardware_and_framework_names(tmp_path):
    def row(**change):
        return read_rows(file_of(tmp_path, change))[0]

    assert device_of(row(hardware="A100 (8/node NVLink; 4xHDR=800Gb/s per node)")) == ("A100-SXM-80GB", 1e11, 8)
    assert device_of(row(hardware="a100_40gb"))[0] == "A100-SXM-40GB"
    assert device_of(row(hardware="DGX-H100"))[0] == "H100-SXM-80GB"
    assert framework_of(row(framework="zero-bubble (Megatron-LM)")) == "zero-bubble"
    assert framework_of(row(framework="DeepSpeed ZeRO-3")) == "deepspeed-zero3"
    with pytest.raises(OutOfReachError):
        framework_of(row(framework="MegaScale"))


def test_every_fitted_framework_and_constant_exists():
    assert set(FITS) <= set(framework_names())
    for name, (_, constants) in FITS.items():
        for constant in constants:
            low, high = RANGES[constant]
            assert low <= value_of(framework(name), constant) <= high * 1.001


def test_a_fit_finds_the_constants_that_made_the_times(tmp_path):
    names = ("matrix_efficiency.ampere", "launch_s")
    changes = [{"mbs": str(m), "pp": str(p), "gpus": str(4 * p)} for m in (1, 2, 4, 8) for p in (1, 2, 4)]
    true = with_constants(framework("megatron-sc21"), names, [-0.5, -9.0])
    drawn = [setting_of(row) for row in read_rows(file_of(tmp_path, *changes))]
    timed = [{**change, "time": repr(predict(one, true).seconds)} for change, one in zip(changes, drawn)]
    settings = settings_of(read_rows(file_of(tmp_path, *timed, name="timed.csv")))
    before = abs(speed_errors(settings, framework("megatron-sc21"))).mean()
    after = abs(speed_errors(settings, fit(settings, framework("megatron-sc21"), names, 120))).mean()
    assert after < 0.2 * before


DATA = Path(os.environ.get("LLMLAB_DATA", "")) / "training" / "measured_visible.csv.gz"


@pytest.mark.skipif(not DATA.is_file(), reason="needs LLMLAB_DATA with training/measured_visible.csv.gz")
def test_published_runs_are_met_within_the_stated_errors():
    wanted = {
        "vtrain_single",
        "vtrain_multi",
        "megatron_sc21_t1",
        "megascale_t2",
        "megatron_h100_weak",
        "llm_foundry",
        "zero_bubble_t4",
    }
    rows = [row for row in read_rows(DATA) if row.text["set"] in wanted]
    summary = validate_rows(rows)["summary"]
    errors = {(line["source"], line["metric"]): line["mean_abs_error"] for line in summary["speed_by_set"]}
    assert errors["vtrain_single", "iter_time_s"] < 0.08
    assert errors["vtrain_multi", "iter_time_s"] < 0.10
    assert errors["zero_bubble_t4", "tokens_per_s_per_gpu"] < 0.06
    assert errors["megatron_sc21_t1", "iter_time_s"] < 0.07
    assert errors["megascale_t2", "iter_time_s"] < 0.07
    assert errors["megatron_h100_weak", "tflops_per_gpu"] < 0.07
    assert errors["llm_foundry", "tokens_per_s_per_gpu"] < 0.08


@pytest.mark.skipif(not DATA.is_file(), reason="needs LLMLAB_DATA with training/measured_visible.csv.gz")
def test_schedules_rank_as_measured_in_every_setting():
    settings = settings_of([row for row in read_rows(DATA) if row.text["set"] == "zero_bubble_t4"])
    groups = {}
    for setting in settings:
        groups.setdefault((setting.row.text["model"], setting.row.stated["gbs"]), []).append(setting)
    assert len(groups) == 12
    for group in groups.values():
        measured = sorted(group, key=lambda one: one.row.stated["iter_time_s"])
        times = [predict(one).seconds for one in measured]
        for i, (one, slower) in enumerate(pairwise(measured)):
            if slower.row.stated["iter_time_s"] > 1.03 * one.row.stated["iter_time_s"]:
                assert times[i] < times[i + 1], (one.row.row_id, slower.row.row_id)
