"""`llmlab workload` and the result file of a simulated run, from the command line."""

import json

import pytest

from llmlab.cli import main

SPEC = """requests: 200
arrivals: {process: gamma, rate_per_s: 8, cv: 1.5}
prompt_tokens: {distribution: lognormal, mean: 300, cv: 0.8}
output_tokens: {distribution: uniform, low: 5, high: 40}
"""


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "load.yaml"
    path.write_text(SPEC)
    return path


def test_describe_gives_the_numbers(spec, capsys):
    assert main(["workload", "describe", str(spec), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["requests"] == 200
    assert found["prompt_tokens"]["p50"] > 100
    assert main(["workload", "describe", str(spec)]) == 0
    assert "gap_cv" in capsys.readouterr().out


def test_a_run_becomes_a_result_file_a_trace_and_a_twin(spec, tmp_path, capsys):
    result, twin, picture = tmp_path / "run.json", tmp_path / "twin.yaml", tmp_path / "twin.png"
    run = ["simulate", "serve", "--model", "meta-llama/Llama-3.1-8B", "--gpu", "h100", "--workload", str(spec)]
    assert main([*run, "--out-bench", str(result), "--json"]) == 0
    saved = json.loads(result.read_text())
    assert saved["completed"] == 200
    assert saved["mean_ttft_ms"] > 0
    assert main(["workload", "fit", str(result), "--out", str(twin), "--plot", str(picture), "--json"]) == 0
    out = capsys.readouterr().out
    assert '"gap_cv"' in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["workload", "describe", str(twin), "--json"]) == 0
    assert main([*run[:-1], str(twin), "--first", "20", "--json"]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["workload", "describe", "nowhere.csv"],
        ["workload", "fit", "LOAD", "--out", "twin.txt"],
        ["workload", "fit", "LOAD", "--plot", "twin.doc"],
        [
            "simulate",
            "serve",
            "--model",
            "meta-llama/Llama-3.1-8B",
            "--gpu",
            "h100",
            "--workload",
            "LOAD",
            "--out-bench",
            "x.csv",
        ],
    ],
)
def test_mistakes_end_with_one_line(arguments, spec, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main([str(spec) if word == "LOAD" else word for word in arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before
