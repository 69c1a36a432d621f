"""The training commands: tables, JSON, and one line with exit code 2 for plans that cannot be."""

import gzip
import json

import pytest

from llmlab.cli import main

STEP = ["simulate", "train", "--model", "openai/gpt3-13b", "--gpu", "a100", "--gpus", "16", "--global-batch", "64"]
SPLIT = ["--tp", "8", "--pp", "2"]


def test_a_step_prints_json_that_adds_up(capsys):
    assert main([*STEP, *SPLIT, "--failure-gpu-hours", "50000", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["gpus"] == 16
    assert sum(shown["breakdown_s"].values()) == pytest.approx(shown["iteration_s"])
    assert 0 < shown["long_run"]["useful"] < 1


def test_a_step_prints_tables(capsys):
    assert main([*STEP, *SPLIT, "--replay"]) == 0
    assert "Where the seconds go" in capsys.readouterr().out


def test_a_step_leaves_a_picture_and_every_ranks_timeline(capsys, tmp_path):
    files = ["--plot", str(tmp_path / "step.svg"), "--trace", str(tmp_path / "step.json.gz")]
    assert main([*STEP, *SPLIT, *files, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    events = json.loads(gzip.decompress((tmp_path / "step.json.gz").read_bytes()))["traceEvents"]
    assert {event["pid"] for event in events} == set(range(16))
    assert max(event["ts"] + event["dur"] for event in events if event["ph"] == "X") / 1e6 == pytest.approx(
        shown["iteration_s"], rel=0.02
    )
    assert main([*STEP, *SPLIT, "--trace", str(tmp_path / "step.txt")]) == 2
    assert "must end in" in capsys.readouterr().err


def test_steps_that_differ_have_quantiles(capsys):
    vary = ["--jitter", "0.05", "--slow-rank", "3=1.2", "--load-s", "0.5", "--steps", "20"]
    assert main([*STEP, *SPLIT, *vary, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["steps"]["p99_s"] >= first["steps"]["p50_s"] > first["iteration_s"]
    assert main([*STEP, *SPLIT, *vary, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == first


def test_a_step_has_a_run_a_picture_and_a_trace(capsys, tmp_path):
    files = ["--memory-plot", str(tmp_path / "memory.svg"), "--trace", str(tmp_path / "step.json")]
    assert main([*STEP, *SPLIT, "--tokens", "300e9", *files, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["run"]["gpu_hours"] == pytest.approx(shown["run"]["days"] * 24 * 16)
    assert shown["energy"]["energy_basis"].startswith("estimate")
    assert (tmp_path / "memory.svg").read_text().startswith("<?xml")
    assert json.loads((tmp_path / "step.json").read_text())["traceEvents"]


@pytest.mark.parametrize(
    "given",
    [
        ["--framework", "colossalai-2d", "--tp", "4", "--pp", "4", "--microbatch", "2"],
        ["--framework", "colossalai-2.5d", "--tp", "8", "--tensor-depth", "2", "--pp", "2", "--microbatch", "4"],
        ["--framework", "colossalai-3d", "--tp", "8", "--pp", "2", "--microbatch", "4"],
        ["--framework", "pipedream", "--tp", "8", "--pp", "2"],
        ["--framework", "gspmd", "--tp", "4", "--pp", "2"],
        ["--framework", "deepspeed-zero3", "--offload", "--offload-weights"],
        ["--framework", "megatron", "--tp", "4", "--pp", "2", "--schedule", "zb-v", "--optimizer", "muon"],
    ],
)
def test_presets_run_from_the_command_line(capsys, given):
    assert main([*STEP, *given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["iteration_s"] > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--precision", "nvfp4", "--tp", "8"], "no 4-bit matrix units"),
        (["--optimizer", "lion"], "optimizer"),
        (["--framework", "colossalai-3d", "--tp", "4"], "must form a cube"),
        (["--tp", "8", "--tokens", "5"], "tokens"),
        (["--tp", "8", "--memory-plot", "memory.txt"], "memory.txt"),
        (["--tp", "8", "--trace", "step.txt"], "step.txt"),
        (["--jitter", "-1"], "jitter=-1"),
        (["--slow-rank", "99=2"], "slow_rank=99"),
        (["--tp", "3"], "gpus=16"),
        (["--gpu", "abacus"], "abacus"),
        (["--framework", "homemade"], "homemade"),
        (["--pp", "4", "--virtual-stages", "7"], "virtual_stages=7"),
        (["--microbatch", "64"], "global_batch"),
        (["--recompute", "some"], "recompute"),
        (["--framework", "ddp"], "does not fit"),
    ],
)
def test_a_plan_that_cannot_be_ends_with_one_line(capsys, changes, words):
    assert main([*STEP, *(SPLIT if changes[0] in ("--jitter", "--slow-rank") else ()), *changes]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert said.err.count("\n") == 1


def test_the_search_prints_the_winner_why_and_flags(capsys):
    command = [
        "plan",
        "train",
        "--model",
        "openai/gpt3-13b",
        "--gpu",
        "a100",
        "--gpus",
        "32",
        "--global-batch",
        "64",
        "--seq",
        "2048",
    ]
    assert main([*command, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["plans"][0]["iteration_s"] <= shown["plans"][-1]["iteration_s"]
    assert set(shown["launch"]) == {"megatron-lm", "torchtitan", "deepspeed"}
    assert "--tensor-model-parallel-size" in shown["launch"]["megatron-lm"]["flags"]
    assert shown["launch"]["megatron-lm"]["iteration_s"] >= shown["plans"][0]["iteration_s"]
    assert main(command) == 0
    assert "Why" in capsys.readouterr().out


def test_validation_refuses_what_is_no_table(capsys, tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("a,b\n1,2\n")
    assert main(["validate", "training", "--runs", str(path), "--json"]) == 2
    assert "runs.csv" in capsys.readouterr().err


def test_validation_prints_rows_and_summary(capsys, tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(
        "id,model,hardware,gpus,tp,pp,dp,mbs,gbs,seq,framework,iter_time_s\n"
        "r,openai/gpt3-13b,A100,16,8,2,1,1,64,2048,Megatron-LM,20\n"
    )
    assert main(["validate", "training", "--runs", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["row_id"] for row in shown["rows"]] == ["r"]
    assert shown["summary"]["speed"]["n"] == 1
    assert main(["validate", "training", "--runs", str(path)]) == 0
    assert "Speed by set" in capsys.readouterr().out
