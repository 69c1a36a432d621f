"""The command line: help that reads, JSON that parses, and one line with exit code 2 for bad input."""

import json
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from llmlab.cli import main
from llmlab.kernels import twin

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


@pytest.fixture(autouse=True)
def forget_brought_kernels() -> Generator[None, None, None]:
    yield
    for key in [key for key in twin._registered if key[-1] == "mine.py"]:
        del twin._registered[key]


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
        (["check", "--kernel", "absent.py:f", "--op", "layers", "--backend", "numba"], "family"),
        (["check", "--op", "layers.softmax"], "--kernel"),
        (["check", "softmax"], "did you mean layers.softmax"),
        (["list", "atention.gqa"], "attention.gqa"),
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


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return x.softmax(axis).double()", "returns float64, takes float32"),
        ("return x.softmax(axis).numpy()", "returns ndarray, takes Tensor"),
        ("return x.view(-1, x.shape[-1]).view(x.shape).softmax(axis)", "view size is not compatible"),
        ("return x.copy_(x.softmax(axis))", "wrote into its argument"),
    ],
)
def test_a_refused_kernel_is_told_why_and_where(
    body: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = tmp_path / "mine.py"
    kernel.write_text(f"def softmax(x, *, axis=-1):\n    {body}\n")
    assert main(["check", "--kernel", f"{kernel}:softmax", "--op", "layers.softmax", "--backend", "torch"]) == 1
    shown = capsys.readouterr().out
    assert told in " ".join(shown.replace("│", " ").split())
    assert "seed=" in shown
    assert "softmax(x_BTS, *, axis=-1)" in shown


@pytest.mark.parametrize("source", ["def f(:\n", "import no_such_module\n"])
def test_a_kernel_file_that_does_not_import_is_one_line(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = tmp_path / "mine.py"
    kernel.write_text(source)
    assert main(["check", "--kernel", f"{kernel}:f", "--op", "layers.softmax", "--backend", "torch"]) == 2
    shown = capsys.readouterr().err
    assert shown.strip().count("\n") == 0
    assert "does not import" in shown


def test_list_narrows_to_what_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "layers.softmax", "attention", "--json"]) == 0
    named = {row["id"] for row in json.loads(capsys.readouterr().out)}
    assert {"layers.softmax", "attention.gqa"} <= named
    assert all(name == "layers.softmax" or name.startswith("attention.") for name in named)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_tables_stay_readable_on_narrow_screens(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["list", "attention.gqa"]) == 0
    shown = capsys.readouterr().out
    assert "attention.gqa" in shown
    assert "2305.13245" in shown if columns < 120 else "notebook" in shown
    assert max(map(len, shown.splitlines())) <= columns
