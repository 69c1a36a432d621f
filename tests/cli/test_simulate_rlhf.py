"""`simulate rlhf` prints JSON and tables, draws its pools, and ends with one line for what cannot be."""

import json

from llmlab.cli import main

RUN = ["simulate", "rlhf", "--model", "meta-llama/Llama-3.1-8B", "--gpu", "h100", "--gpus", "8", "--tp", "4"]
SMALL = ["--prompts", "4", "--samples", "2", "--prompt-tokens", "64", "--response-tokens", "64", "--steps", "3"]


def test_two_pools_print_json_and_leave_a_picture_and_a_trace(capsys, tmp_path):
    files = ["--plot", str(tmp_path / "a.png"), "--trace", str(tmp_path / "a.json")]
    pools = ["--placement", "separate", "--writer-gpus", "4", "--staleness", "1"]
    assert main([*RUN, *SMALL, *pools, *files, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert set(shown["pool_busy"]) == {"writers", "trainers"}
    assert sum(shown["phase_share"].values()) > 0.999
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a.json"}


def test_one_pool_prints_tables(capsys):
    assert main([*RUN, *SMALL]) == 0
    assert "Where the time goes" in capsys.readouterr().out


def test_staleness_on_one_pool_ends_with_one_line(capsys):
    assert main([*RUN, *SMALL, "--staleness", "1"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "take separate pools" in said.err
    assert said.err.count("\n") == 1
