"""The command line: help that reads, JSON that parses, and one line with exit code 2 for bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmlab.cli import main

COMMANDS = [
    [],
    ["list"],
    ["check"],
    ["bench"],
    ["calibrate"],
    ["simulate", "serve"],
    ["plan", "serve"],
    ["validate", "here"],
    ["validate", "serving"],
    ["report"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command) or "llmlab")
def test_help_reads_well(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Usage" in shown
    assert "None" not in shown.replace("None of", "")


def test_list_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"id", "family", "paper", "kind", "twins", "oracle", "cost", "gradient", "notebook"} == set(rows[0])


def test_check_prints_a_verdict_per_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "layers.softmax", "--backend", "numba", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"parity", "oracle", "gradient", "cost"} <= {row["check"] for row in rows}
    assert all(row["passed"] for row in rows)


def test_check_refuses_somebodys_wrong_kernel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kernel = tmp_path / "mine.py"
    kernel.write_text("def softmax(x, **options):\n    return x * 0.5\n")
    arguments = ["check", "--kernel", f"{kernel}:softmax", "--op", "layers.softmax", "--backend", "numba", "--json"]
    assert main(arguments) == 1
    assert not any(row["passed"] for row in json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["check", "layers.nonsense"], "layers.nonsense"),
        (["check", "--backend", "cobol"], "cobol"),
        (["check", "--kernel", "absent.py:f", "--op", "layers.softmax", "--backend", "numba"], "absent.py"),
        (["check", "--kernel", "absent.py:f"], "--op"),
        (["list", "--nonsense"], "--nonsense"),
        (["nonsense"], "nonsense"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.strip().count("\n") == 0
    assert named in shown.err
    assert shown.out == ""


def test_the_module_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "llmlab.cli", "check", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_checks_are_the_same_for_any_number_of_processes() -> None:
    from llmlab.harness.check import run_checks

    chosen, seen = ["layers.softmax", "positions.alibi"], []
    shared = run_checks(chosen, ["numba"], seeds=2, jobs=2, progress=lambda name, done, total: seen.append((name, done, total)))
    assert shared == run_checks(chosen, ["numba"], seeds=2)
    assert sorted(name for name, _, _ in seen) == chosen
    assert [done for _, done, _ in seen] == [1, 2]
