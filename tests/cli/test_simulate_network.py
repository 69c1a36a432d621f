"""`simulate network` prints JSON and tables, writes a trace, and ends with one line for what cannot be."""

import json
from pathlib import Path

import pytest

from llmlab.cli import main
from llmlab.simulator.training import topology

EXAMPLE = str(Path(topology.__file__).parent / "examples" / "fat_tree_2to1.yaml")
RUN = ["simulate", "network", "--topology", EXAMPLE, "--collective", "all_reduce", "--bytes", "1e8", "--ranks", "0-63"]


def test_groups_across_an_oversubscribed_tree_contend(capsys, tmp_path):
    trace = tmp_path / "flows.json"
    spread = ["--groups", "8", "--layout", "strided", "--algorithm", "halving_doubling", "--trace", str(trace)]
    assert main([*RUN, *spread, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["slowdown"] > 1.5
    assert shown["busiest_links"][0]["link"].startswith("leaf")
    events = json.loads(trace.read_text())["traceEvents"]
    assert len({event["args"]["group"] for event in events if event["ph"] == "X"}) == 8


def test_tables_name_the_algorithms(capsys):
    assert main([*RUN, "--slow-link", "leaf0.0>spine0.0=3"]) == 0
    assert "hierarchical_tree" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--algorithm", "star"], "star"),
        (["--ranks", "0-999"], "ranks=128"),
        (["--groups", "7"], "groups=7"),
        (["--plot", "flows.doc"], "flows.doc"),
        (["--trace", "flows.txt"], "flows.txt"),
        (["--slow-link", "a=b"], "from>to=factor"),
        (["--topology", "missing.yaml"], "missing.yaml"),
    ],
)
def test_what_cannot_be_ends_with_one_line(capsys, changes, words):
    assert main([*RUN, *changes]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert said.err.count("\n") == 1


def test_a_step_runs_on_a_topology(capsys):
    step = ["simulate", "train", "--model", "openai/gpt3-13b", "--gpu", "a100", "--gpus", "64", "--global-batch", "64"]
    assert main([*step, "--tp", "8", "--pp", "2", "--topology", EXAMPLE, "--protocols", "nccl-ampere", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["breakdown_s"]["data"] > 0
    assert main([*step[:-3], "256", "--global-batch", "64", "--tp", "8", "--topology", EXAMPLE]) == 2
    assert "the plan needs 256 devices" in capsys.readouterr().err
