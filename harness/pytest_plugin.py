"""The pytest plugin that llmlab installs: `pytest --benchmark` runs the speed tests, and only them.

Without the flag, tests marked `speed` are skipped; other people's benchmarks are left alone. With it, every
implementation of every component is checked, timed through pytest-benchmark, stored, and shown side by side at the end.
Imported by every pytest run of an environment that holds llmlab, so nothing heavy is imported at module level.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from llmlab.harness.timing.bench import Skipped
    from llmlab.harness.timing.results import Record

MARK = "speed"
FLAG = "--benchmark"


class SpeedRun:
    """What one `pytest --benchmark` has gathered."""

    def __init__(self, path: Path | None, quick: bool) -> None:
        self.path, self.quick = path, quick
        self.records: list[Record] = []
        self.skipped: list[Skipped] = []


RUN = pytest.StashKey[SpeedRun]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the flag, unless a plugin loaded before already has one of that name."""
    groups = [*getattr(parser, "_groups", ()), getattr(parser, "_anonymous", None)]
    if any(FLAG in option.names() for group in groups if group is not None for option in group.options):
        return
    group = parser.getgroup("llmlab")
    group.addoption(FLAG, action="store_true", dest="llmlab_benchmark", help="Run the speed tests, and only them.")
    group.addoption("--llmlab-quick", action="store_true", help="With --benchmark: one shape per component, fewer rounds.")
    group.addoption("--llmlab-results", type=Path, help="With --benchmark: file that accumulates (build/results.jsonl).")


def is_asked_for(config: pytest.Config) -> bool:
    """True when the speed tests should run."""
    return bool(config.getoption("llmlab_benchmark", default=False))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Register the mark; with the flag, refuse what would spoil timings and leave the table to us."""
    config.addinivalue_line("markers", f"{MARK}: times a component; runs with {FLAG} only")
    if not is_asked_for(config):
        return
    if importlib.util.find_spec("pytest_benchmark") is None or not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError(f"{FLAG} needs pytest-benchmark")
    if config.getoption("numprocesses", default=None):
        raise pytest.UsageError(f"{FLAG}: timings taken by processes that share a machine are worthless; leave -n out")
    config.option.benchmark_quiet = True
    if config.args_source == pytest.Config.ArgsSource.TESTPATHS:  # nobody named a file: spare the import of all other tests
        config.args = [str(path) for path in map(_speed_folder, config.args) if path.is_dir()] or config.args
    config.stash[RUN] = SpeedRun(config.getoption("llmlab_results"), bool(config.getoption("llmlab_quick")))


def _speed_folder(testpath: str) -> Path:
    return Path(testpath) / "benchmarks"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without the flag skip the speed tests; with it deselect everything else."""
    speed = [item for item in items if item.get_closest_marker(MARK)]
    if not is_asked_for(config):
        for item in speed:
            item.add_marker(pytest.mark.skip(reason=f"needs {FLAG}"))
        return
    rest = [item for item in items if not item.get_closest_marker(MARK)]
    if rest:
        config.hook.pytest_deselected(items=rest)
        items[:] = speed


@pytest.fixture(scope="session")
def speed_run(request: pytest.FixtureRequest) -> SpeedRun:
    """Where the speed tests leave their records; they are stored and shown at the end."""
    return request.config.stash[RUN]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Store the records and print, per component and shape, every implementation side by side."""
    run = config.stash.get(RUN, None)
    if run is None or not (run.records or run.skipped):
        return
    from llmlab.harness.timing import bench, results

    path = run.path or results.default_path()
    if run.records:
        results.append(path, run.records)
    terminalreporter.section("speed: % of the machine's limit, best peer over this, best and median")
    for title, rows in bench.tables(bench.table(run.records, run.skipped)):
        terminalreporter.write_line("")
        terminalreporter.write_line(title, bold=True)
        for line in aligned(rows):
            terminalreporter.write_line("  " + line)
    terminalreporter.write_line("")
    terminalreporter.write_line(f"{len(run.records)} records added to {path}")


def aligned(rows: Sequence[dict[str, str]]) -> list[str]:
    """Rows with the same keys as lines of text: a header, then columns padded to equal width.

    >>> aligned([{"name": "numpy", "time": "1.2 s"}, {"name": "numba", "time": "20 ms"}])
    ['name   time', 'numpy  1.2 s', 'numba  20 ms']
    """
    columns = list(rows[0])
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in columns]
    table = [columns, *([row[name] for name in columns] for row in rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in table]
