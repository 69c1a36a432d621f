"""Any file of serving measurements, recognised by its columns: operating points, stages, single requests or engine steps.

| columns | what a line is | read by |
|---|---|---|
| `row_id`, `load_mode` | one operating point | `rows` |
| `experiment`, `stage`, `metric`, `value` | one metric of one stage | `stages` |
| `prompt_tokens`, `output_tokens`, `ttft_ms` | one request | `perrequest` |
| `cycle_us` | one sampled step | `engine_steps` |
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmlab.harness.validation import engine_steps, perrequest, stages
from llmlab.harness.validation.rows import MeasuredRow, decoded, read_rows
from llmlab.harness.validation.serving import KEYS, Outcome, Progress, _intervals, _silent, outcomes, predictions, summary
from llmlab.reference.errors import InputError

KINDS = {
    "rows": {"row_id", "load_mode"},
    "stages": set(stages.REQUIRED),
    "requests": set(perrequest.REQUIRED),
    "steps": {"cycle_us"},
}


def kind_of(path: str | Path) -> str:
    """What a file's lines are, by its header; a file that is none of them is read as rows, which says what is missing.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        header = {name.strip() for name in next(csv.reader(io.StringIO(decoded(Path(path)))), [])}
    except csv.Error as error:
        raise InputError(path, "", Path(path).name, f"not a CSV file: {error}") from None
    return next((kind for kind, columns in KINDS.items() if columns <= header), "rows")


def _spread(count: int, limit: int | None) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(count, limit or count)).round().astype(int)).tolist() if count else []


def replay_all(
    paths: Sequence[str | Path], *, limit: int | None = None, progress: Progress = _silent
) -> list[perrequest.Replay]:
    """Replay the runs of per-request files, at most `limit` of them, spread over the files.

    Raises:
        InputError: a file is malformed.
    """
    runs = [run for path in paths for run in perrequest.read_runs(path)]
    runs = [runs[i] for i in _spread(len(runs), limit)]
    found = []
    for number, run in enumerate(runs, start=1):
        found += perrequest.replays(run)
        progress(run.source, number, len(runs))
    return found


def validate_files(
    paths: Sequence[str | Path],
    *,
    core: bool = False,
    limit: int | None = None,
    workers: int | None = None,
    progress: Progress = _silent,
) -> dict[str, Any]:
    """Predict what is in these files and compare it with what was measured; see `serving.validate_serving`.

    Per-request files add `replays`: per run and phase the rank correlation and median error of single requests, and the
    distributions and pairs that a picture needs.

    Raises:
        InputError: a file is malformed, nothing is left to predict, or a row id appears twice.
    """
    if limit is not None and limit < 1:
        raise InputError("validate serving", "limit", limit, "must be at least 1")
    rows: list[MeasuredRow] = []
    stage_ids: set[str] = set()
    by_request: list[str | Path] = []
    done: list[Outcome] = []
    seen: dict[str, str] = {}
    for path in paths:
        kind = kind_of(path)
        if kind == "requests":
            by_request.append(path)
            continue
        if kind == "steps":
            fresh: list[MeasuredRow] = []
            for row, figures, reason in engine_steps.step_rows(path):
                fresh.append(row)
                done.append(Outcome(row, figures, reason))
        else:
            fresh = stages.read_stages(path) if kind == "stages" else read_rows(path)
            for row in fresh:
                if "stage" in row.unread:  # says itself why it cannot be compared
                    done.append(Outcome(row, {}, row.unread["stage"]))
                    stage_ids.add(row.row_id)
                elif not core or row.flags.get("core", False):
                    rows.append(row)
        for row in fresh:
            if row.row_id in seen:
                raise InputError(path, "row_id", row.row_id, f"is also in {seen[row.row_id]}")
            seen[row.row_id] = str(path)
    if not rows and not by_request and not done:
        raise InputError(", ".join(map(str, paths)), "core", True, "no row is marked as core")
    rows = [rows[i] for i in _spread(len(rows), limit)]
    found = outcomes(rows, workers=workers, progress=progress) if rows else []
    replayed = replay_all(by_request, limit=limit, progress=progress)
    found = [*found, *done, *(Outcome(one.row, one.figures, one.reason) for one in replayed)]
    records = predictions(found, _intervals())
    result: dict[str, Any] = {
        "rows": [{key: record[key] for key in KEYS} for record in records],
        "excluded": [{"row_id": outcome.row.row_id, "reason": outcome.reason} for outcome in found if outcome.reason],
        "summary": summary([outcome.row for outcome in found], found, records),
    }
    if replayed:
        result["replays"] = [
            one.matches() | {"scored": one.row.scored, "curves": one.curves()} for one in replayed if not one.reason
        ]
    return result


def replay_tables(result: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """A table of how single requests were matched, for people; none where nothing was replayed."""
    lines = [
        {
            "run": line["row_id"],
            "requests": line["requests"],
            **{
                f"{metric} {short}": "-" if line[f"{metric}_{name}"] is None else f"{line[f'{metric}_{name}']:.3f}"
                for metric in ("ttft", "tpot", "e2e")
                for name, short in (("rank_correlation", "rank"), ("median_abs_error", "error"))
            },
            "scored": line["scored"],
        }
        for line in result.get("replays", [])
    ]
    return [("single requests: rank correlation and median absolute relative error", lines)] if lines else []
