"""`llmlab plan serve`: the answer on the command line, and one line with exit code 2 for every bad input."""

import json

import pytest

from llmlab.cli import main

TRACE = "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i / 10},{200 + 7 * (i % 31)},{5 + i % 40}\n" for i in range(120))


def command(tmp_path, *extra, text=TRACE, **changes):
    (tmp_path / "trace.csv").write_text(text)
    options = {
        "model": "meta-llama/Llama-3.1-8B",
        "workload": str(tmp_path / "trace.csv"),
        "slo": "ttft_p99=1s,tpot_p99=30ms",
        "gpu": "h100,a100",
        "max-gpus": "2",
        "workers": "1",
        "max-num-seqs": "32,64",
        "max-num-batched-tokens": "512,2048",
    } | changes
    return ["plan", "serve", *(part for name, value in options.items() for part in (f"--{name}", value)), *extra]


def test_the_answer_as_data_and_as_a_picture(tmp_path, capsys):
    assert main(command(tmp_path, "--json", "--out-picture", str(tmp_path / "front.svg"))) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["chosen"]["gpu"] == "a100"
    assert found["chosen"]["kept"]
    assert found["command"].startswith("vllm serve meta-llama/Llama-3.1-8B --tensor-parallel-size 1 ")
    assert found["binds"]
    picture = (tmp_path / "front.svg").read_text()
    assert picture.count("promised: ") == 2
    assert "Where the chosen option" in picture
    assert f"${found['chosen']['usd_per_hour']:.2f} an hour" in picture
    assert "<svg" in picture
    assert main(command(tmp_path, "--json", "--out-picture", str(tmp_path / "again.svg"))) == 0
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "front.svg").read_bytes()


def test_the_answer_in_words(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(command(tmp_path, "--out-picture", str(tmp_path / "front.png"))) == 0
    said = capsys.readouterr().out
    for part in (
        "Cheapest for ttft_p99=1s",
        "What binds:",
        "vllm serve",
        "chosen",
        "US$/h",
        "per minute",
        "Headroom",
        "sglang",
    ):
        assert part in said
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_no_answer_is_exit_code_one(tmp_path, capsys):
    assert main(command(tmp_path, slo="tpot_p99=1us")) == 1
    assert "No deployment of at most 2 devices" in capsys.readouterr().out


ROWS = TRACE.splitlines()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"slo": ""}, "METRIC_STATISTIC=AMOUNT"),
        ({"slo": "ttft_p99=-1s"}, "must be positive"),
        ({"slo": "ttft_p99=2"}, "needs a unit"),
        ({"slo": "joy_p99=2s"}, "metric='joy'"),
        ({"engine": "steam"}, "name='steam': unknown"),
        ({"max-num-seqs": "many"}, "must be a whole number"),
        ({"max-num-seqs": "64", "max-num-batched-tokens": "32"}, "must not pass max_num_batched_tokens=32"),
        ({"scheduler": "magic"}, "scheduler='magic'"),
        ({"router": ","}, "names nothing"),
        ({"weight-dtype": "bf17"}, "not one of"),
        ({"workers": "0"}, "must be at least 1"),
        ({"store": "no/such/folder/points.db"}, "cannot be used as a store"),
        ({"gpu": "h100,h999"}, "name='h999': unknown"),
        ({"gpu": ","}, "names no device"),
        ({"model": "meta-llama/Llama-3.1-405B"}, "does not fit anywhere"),
        ({"model": "nobody/nothing"}, "neither a known model"),
        ({"workload": "nowhere.csv"}, "No such file"),
        ({"max-gpus": "0"}, "max_gpus=0"),
        ({"price": "h100=free"}, "must read GPU=DOLLARS"),
        ({"price": "h200=2"}, "is not among the devices asked for"),
        ({"out-picture": "front.gif"}, "must end in .png or .svg or .pdf"),
        ({"rate-factor": "0"}, "rate_factor=0.0 must be positive"),
        ({"text": "\n".join([*ROWS[:4], "9,-4,2"])}, "prompt_tokens=-4: must be at least 1 (row 4)"),
        ({"text": "\n".join([*ROWS[:4], "9,4,nan"])}, "output_tokens='nan': must be a finite number (row 4)"),
        ({"text": "\n".join([ROWS[0], ROWS[4], ROWS[2]])}, "is before the row above it (row 2)"),
        ({"text": TRACE.replace("arrival_s", "when")}, "has no column arrival_s"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, changes, said):
    arguments = command(tmp_path, **changes)
    before = {path.name for path in tmp_path.iterdir()}
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("llmlab: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_truncated_config_is_one_line(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 4096, "num_')
    assert main(command(tmp_path, model=str(tmp_path / "config.json"))) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "config.json" in captured.err


def test_a_shipped_workload_by_name_and_a_store_that_is_read_back(tmp_path, capsys):
    arguments = command(
        tmp_path, "--json", "--no-explain", workload="azure_conversation", first="60", store=str(tmp_path / "p.db")
    )
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["workload"] == "azure_conversation.yaml"
    assert (tmp_path / "p.db").exists()
    assert main(arguments) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["points"] == found["points"]
    assert again["chosen"] == found["chosen"]


def test_an_objective_out_of_reach_ends_with_code_1_and_says_why(tmp_path, capsys):
    assert main(command(tmp_path, slo="tpot_p99=1us")) == 1
    said = capsys.readouterr().out
    assert "No deployment of at most 2 devices" in said
    assert "tpot_p99 is at least" in said


@pytest.mark.data
@pytest.mark.slow
def test_a_70b_model_on_a_real_trace(tmp_path, capsys, data):
    trace = data / "traces" / "azure2023_conv.csv.gz"
    arguments = command(
        tmp_path,
        "--json",
        model="meta-llama/Llama-3.1-70B",
        workload=str(trace),
        slo="ttft_p99=2s,tpot_p99=50ms",
        gpu="h100,h200",
        workers="2",
        first="5000",
        **{"max-gpus": "32"},
    )
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chosen"]["simulated"] == "whole"
    assert found["chosen"]["ttft_p99_s"] <= 2
    assert found["chosen"]["tpot_p99_s"] <= 0.05
    assert found["chosen"]["tensor_parallel"] >= 2
    assert "HBM capacity" in found["binds"]
    assert found["runner_up"]["usd_per_hour"] >= found["chosen"]["usd_per_hour"]
