"""The command line: parse, one call, print. Every command has `--json`; bad input ends with one line and exit code 2."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from llmlab.reference.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The LLM stack: checked components, measured kernels, and a simulator scored against real runs.",
)
simulate_app = typer.Typer(no_args_is_help=True, help="Simulate one run: metrics, per-request table, timeline.")
plan_app = typer.Typer(no_args_is_help=True, help="Search deployments: the cheapest that keeps the promise, and why.")
validate_app = typer.Typer(no_args_is_help=True, help="Predicted against measured, row by row.")
app.add_typer(simulate_app, name="simulate")
app.add_typer(plan_app, name="plan")
app.add_typer(validate_app, name="validate")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Ids = Annotated[list[str] | None, typer.Argument(help="Component ids or families; all when none are given.")]


def console() -> Console:
    """Where tables go; progress and errors go to standard error."""
    return Console(width=int(os.environ["COLUMNS"]) if "COLUMNS" in os.environ else None)


def emit(result: Any) -> None:
    """Print one JSON document to standard output."""
    json.dump(result, sys.stdout, indent=1, allow_nan=False, default=str)
    sys.stdout.write("\n")


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print dictionaries with the same keys as one table."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in rows[0] if rows else ():
        table.add_column(column, overflow="fold", no_wrap=column in ("component", "id", "dtype", "passed"))
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    console().print(table)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error; yields `advance(name, done, total)`."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda name, done, total: bar.update(task, description=f"{what} {name}", completed=done, total=total)


@app.command("list")
def list_command(json_output: Json = False) -> None:
    """List every component: id, paper, twins, oracle, cost, gradient, notebook."""
    from llmlab.harness.listing import listing

    rows = listing()
    if json_output:
        emit(rows)
    else:
        show(
            f"{len(rows)} components", [{k: ", ".join(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
        )


@app.command("check")
def check_command(
    ids: Ids = None,
    backend: Annotated[list[str] | None, typer.Option(help="Only these backends: numba, torch, triton.")] = None,
    kernel: Annotated[str | None, typer.Option(help="Your own kernel, FILE.py:FUNCTION; needs --op and one --backend.")] = None,
    op: Annotated[str | None, typer.Option(help="Component that --kernel implements.")] = None,
    json_output: Json = False,
) -> None:
    """Check components: oracles, parity in every dtype, gradients, layouts, cost laws. Exit code 1 if any check fails."""
    import importlib.util

    if importlib.util.find_spec("torch") is not None:
        import torch

        if not torch.cuda.is_available():
            os.environ.setdefault("TRITON_INTERPRET", "1")
    from llmlab.harness.check import bring, run_checks

    only = bring(kernel, op, backend[0] if backend and len(backend) == 1 else None) if kernel else None
    with progress_bar("checking") as advance:
        verdicts = run_checks(ids, backend, only=only, progress=advance)
    rows = [verdict.as_row() for verdict in verdicts]
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if json_output:
        emit([{**row, "error": None if row["error"] == float("inf") else row["error"]} for row in rows])
    else:
        columns = ("component", "check", "against", "dtype", "error", "allowed", "passed", "note")
        show(f"{len(rows)} checks, {len(failed)} failed", [{key: row[key] for key in columns} for row in rows])
    if failed:
        raise typer.Exit(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    try:
        app(args=list(arguments) if arguments is not None else None, standalone_mode=False)
    except InputError as error:
        print(f"llmlab: {error}", file=sys.stderr)
        return 2
    except typer.Exit as exit_:
        return exit_.exit_code
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # the parser's own usage errors
            print(f"llmlab: {error.format_message()}", file=sys.stderr)
            return int(error.exit_code)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
