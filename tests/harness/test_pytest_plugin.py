"""The plugin in small projects of its own, each run by a pytest process of its own."""

import os
import subprocess
import sys

import pytest

from llmlab.harness.timing import results

PROJECT = """
import pytest
from llmlab.harness.timing import bench
from llmlab.harness.timing.measure import summarize
from llmlab.reference.catalog import load

SOFTMAX = load("layers.softmax")

@pytest.mark.speed
@pytest.mark.parametrize("factor", [1.0, 1.5], ids=["layers.softmax right", "layers.softmax wrong"])
def test_speed(factor, benchmark, speed_run):
    right = bench.Implementation("mine", "numpy", "cpu", ("float32",), lambda x: SOFTMAX.reference(x) * x.dtype.type(factor))
    checker = bench.Checker(SOFTMAX, {"B": 1, "T": 3, "S": 8}, "float32", 1.0)
    correct, error, checked = checker.judge(right)
    record = bench._record(SOFTMAX, "tiny", {"B": 1, "T": 3, "S": 8}, "float32", right, correct, error, checked)
    if correct:
        timer = bench.timer_of(benchmark, bench.Effort(budget_s=0.01))
        record = bench._with_timing(record, timer(lambda: right.function(checker.inputs["x_BTS"]), right))
    speed_run.records.append(record)
    assert correct

def test_theirs(benchmark):
    benchmark(sum, [1, 2])

def test_ordinary():
    assert True
"""


def pytest_run(folder, *arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
    environment |= {"LLMLAB_RESULTS": str(folder / "results.jsonl")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    pytest.importorskip("pytest_benchmark", reason="needs pytest-benchmark")
    folder = tmp_path_factory.mktemp("project")
    (folder / "test_it.py").write_text(PROJECT)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
    return folder


def test_without_the_flag_only_speed_tests_are_skipped(project):
    run = pytest_run(project, "--benchmark-disable")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 passed, 2 skipped" in run.stdout
    assert "needs --benchmark" in run.stdout
    assert not (project / "results.jsonl").exists()


def test_with_the_flag_only_speed_tests_run_and_a_wrong_kernel_fails(project):
    run = pytest_run(project, "--benchmark", "-W", "ignore:Benchmark fixture was not used")
    assert run.returncode == 1, run.stdout + run.stderr
    assert "1 failed, 1 passed, 2 deselected" in run.stdout
    right, wrong = results.read(project / "results.jsonl")
    assert right.correct
    assert right.median_s > 0
    assert not wrong.correct
    assert wrong.median_s is None
    lines = [line.split() for line in run.stdout.splitlines()]
    assert ["implementation", "%", "of", "limit", "peer/this", "best", "median", "ratio", "bound", "remarks"] in lines
    assert any(line[:2] == ["mine", "WRONG"] for line in lines)
    assert any(line[:1] == ["mine"] and "1.00" in line for line in lines)


def test_a_component_id_selects_its_speed_tests(project):
    run = pytest_run(project, "--benchmark", "--collect-only", "-q", "-k", "layers.softmax and right")
    assert "1/4 tests collected" in run.stdout


def test_only_the_folder_of_benchmarks_is_collected_when_no_file_is_named(tmp_path):
    (tmp_path / "tests" / "benchmarks").mkdir(parents=True)
    (tmp_path / "tests" / "test_broken.py").write_text("raise RuntimeError('imported')\n")
    speed = "import pytest\n@pytest.mark.speed\ndef test_one():\n    pass\n"
    (tmp_path / "tests" / "benchmarks" / "test_speed.py").write_text(speed)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = tests\n")
    run = pytest_run(tmp_path, "--benchmark")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 passed" in run.stdout
    assert pytest_run(tmp_path).returncode == 2  # without the flag everything is


def test_it_does_not_run_beside_itself(project):
    run = pytest_run(project, "--benchmark", "-n", "2")
    assert run.returncode == 4
    assert "leave -n out" in run.stderr or "unrecognized" in run.stderr


def test_without_pytest_benchmark_the_flag_says_what_is_missing_and_the_rest_runs(project):
    missing = pytest_run(project, "-p", "no:benchmark", "--benchmark")
    assert missing.returncode == 4
    assert "needs pytest-benchmark" in missing.stderr
    plain = pytest_run(project, "-p", "no:benchmark", "-k", "ordinary or speed")
    assert plain.returncode == 0, plain.stdout + plain.stderr
    assert "1 passed, 2 skipped" in plain.stdout


def test_another_plugin_may_own_the_flag(project, tmp_path):
    (tmp_path / "test_it.py").write_text("def test_ordinary():\n    pass\n")
    (tmp_path / "other.py").write_text("def pytest_addoption(parser):\n    parser.addoption('--benchmark', type=int)\n")
    run = pytest_run(tmp_path, "-p", "other", "--benchmark=3")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 passed" in run.stdout


def test_the_plugin_imports_nothing_heavy():
    heavy = "{'torch', 'numba', 'numpy', 'triton', 'pandas'}"
    code = f"import sys, llmlab.harness.pytest_plugin; print(sorted({heavy} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "[]"
