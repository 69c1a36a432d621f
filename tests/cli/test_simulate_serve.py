"""`llmlab simulate serve`: what it prints and writes, and one line with exit code 2 for every bad input."""

import csv
import json

import pytest

from llmlab.cli import main

TRACE = "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i / 4},{100 + i},{1 + i % 7}\n" for i in range(40))


def command(tmp_path, *extra, text=TRACE, **changes):
    (tmp_path / "trace.csv").write_text(text)
    options = {"model": "meta-llama/Llama-3.1-8B", "gpu": "h100", "workload": str(tmp_path / "trace.csv")} | changes
    return ["simulate", "serve", *(part for name, value in options.items() for part in (f"--{name}", value)), *extra]


def assert_one_line(arguments, capsys, said, tmp_path):
    before = {path.name for path in tmp_path.iterdir()} if tmp_path.exists() else set()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("llmlab: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert {path.name for path in tmp_path.iterdir()} == before


def test_json_has_what_a_caller_needs(tmp_path, capsys):
    assert main(command(tmp_path, "--json", "--slo", "ttft_p99=2s,tpot_p99=50ms", "--replicas", "2")) == 0
    found = json.loads(capsys.readouterr().out)
    for metric in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
        assert {"p50", "p90", "p99", "mean"} <= set(found[metric])
        assert 0 < found[metric]["p50"] <= found[metric]["p90"] <= found[metric]["p99"]
    assert found["requests"] == 40
    assert found["slo_met"]
    for key in ("iterations", "simulated_s", "wall_s", "tokens_per_s", "usd_per_million_output_tokens", "utilization"):
        assert found[key] > 0


def test_tables_and_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    requests, timeline = tmp_path / "requests.csv", tmp_path / "timeline.json"
    assert main(command(tmp_path, "--out-requests", str(requests), "--trace", str(timeline))) == 0
    assert "time to first token" in capsys.readouterr().out
    with open(requests) as file:
        assert len(list(csv.DictReader(file))) == 40
    assert json.loads(timeline.read_text())["traceEvents"]


def test_a_workload_file_a_closed_loop_and_a_scaled_rate(tmp_path, capsys):
    (tmp_path / "load.yaml").write_text(
        "requests: 30\narrivals: {process: poisson, rate_per_s: 3}\n"
        "prompt_tokens: {distribution: fixed, tokens: 64}\noutput_tokens: {distribution: fixed, tokens: 8}\n"
    )
    spans = []
    for extra in ([], ["--rate-factor", "4"], ["--clients", "1"], ["--first", "10"]):
        assert main([*command(tmp_path, "--json", *extra), "--workload", str(tmp_path / "load.yaml")]) == 0
        spans.append(json.loads(capsys.readouterr().out))
    assert spans[1]["simulated_s"] < spans[0]["simulated_s"] / 2
    assert spans[2]["mean_in_system"] == pytest.approx(1)
    assert spans[3]["requests"] == 10


ROWS = TRACE.splitlines()


@pytest.mark.parametrize(
    ("trace", "said"),
    [
        ("\n".join([*ROWS[:3], "9,-4,2"]), "prompt_tokens=-4: must be at least 1 (row 3)"),
        ("\n".join([*ROWS[:3], "9,nan,2"]), "prompt_tokens='nan': must be a finite number (row 3)"),
        ("\n".join([ROWS[0], ROWS[3], ROWS[1]]), "is before the row above it (row 2)"),
        (TRACE.replace("output_tokens", "tokens_out"), "has no column output_tokens"),
        ("", "is empty"),
    ],
)
def test_a_bad_trace_is_one_line(tmp_path, capsys, trace, said):
    arguments = command(tmp_path, "--out-requests", str(tmp_path / "out.csv"), text=trace)
    assert_one_line(arguments, capsys, said, tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gpu": "h900"}, "name='h900': unknown"),
        ({"model": "meta-llama/Llama-3.1-70B"}, "does not fit"),
        ({"tp": "5"}, "tensor_parallel=5"),
        ({"slo": "ttft_p99=2"}, "needs a unit"),
        ({"slo": "speed_p99=2s"}, "metric='speed'"),
        ({"slo": "ttft_p99=-2s"}, "must be positive"),
        ({"workload": "nowhere.csv"}, "No such file"),
        ({"out-requests": "somewhere.xlsx"}, "must end in .csv or .parquet"),
        ({"trace": "somewhere.svg"}, "must end in .json"),
        ({"rate-factor": "-1"}, "rate_factor=-1.0 must be positive"),
        ({"rate-factor": "nan"}, "rate_factor=nan must be positive"),
        ({"first": "0"}, "first=0"),
        ({"clients": "0"}, "clients=0"),
        ({"price": "-3"}, "price_usd_per_hour=-3.0"),
        ({"gpu-memory-utilization": "nan"}, "gpu_memory_utilization=nan"),
        ({"replicas": "many"}, "--replicas"),
    ],
)
def test_bad_options_are_one_line(tmp_path, capsys, changes, said):
    arguments = command(tmp_path, **changes)
    assert_one_line(arguments, capsys, said, tmp_path)


def test_a_truncated_config_is_one_line(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 40')
    arguments = command(tmp_path, model=str(tmp_path / "config.json"))
    assert_one_line(arguments, capsys, "config.json", tmp_path)


def test_a_malformed_workload_file_is_one_line(tmp_path, capsys):
    (tmp_path / "load.yaml").write_text("requests: [1, 2\n  arrivals: {")
    arguments = command(tmp_path, workload=str(tmp_path / "load.yaml"))
    assert_one_line(arguments, capsys, "is not YAML", tmp_path)


def test_an_unwritable_place_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = command(tmp_path, "--out-requests", str(tmp_path / "file" / "requests.csv"))
    assert_one_line(arguments, capsys, "requests.csv", tmp_path)
