"""Read request traces: `arrival_s, prompt_tokens, output_tokens`, optionally `hash_ids`, as `.csv` or `.csv.gz`.

The column names of the Azure LLM inference traces (TIMESTAMP, ContextTokens, GeneratedTokens; Patel et al. 2024,
arXiv:2311.18677) and of BurstGPT (Timestamp, Request tokens, Response tokens; arXiv:2401.17644) are read as well.
`hash_ids` holds space-separated prefix-block identities; a number at the end of the
column's name is the tokens per block, 512 where there is none (the format of Mooncake, arXiv:2407.00079).

Reading is strict: one bad cell fails the file, and the error names the row (the first row after the header is row 1).
"""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from llmlab.reference.errors import InputError
from llmlab.simulator.workload.text import read_text
from llmlab.simulator.workload.workload import NANOSECONDS, Workload

AZURE_COLUMNS = {"TIMESTAMP": "arrival_s", "ContextTokens": "prompt_tokens", "GeneratedTokens": "output_tokens"}
BURSTGPT_COLUMNS = {"Timestamp": "arrival_s", "Request tokens": "prompt_tokens", "Response tokens": "output_tokens"}
LONGEST = 2**31 - 1
LONGEST_S = 100 * 365 * 86400


def read_table(path: str | Path) -> Any:
    """Read a CSV file, gzipped or not, with every cell as text.

    Raises:
        InputError: no such file, truncated or damaged gzip, not UTF-8 text, ragged rows, duplicate columns, no rows.
    """
    import pandas as pd

    path = Path(path)
    text = read_text(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # else cells beyond the header are dropped
            table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, index_col=False)
    except pd.errors.EmptyDataError:
        raise InputError(path, "file", path.name, "is empty") from None
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise InputError(path, "file", path.name, f"is not CSV ({error})") from None
    table.columns = [str(name).strip() for name in table.columns]
    if not len(table):
        raise InputError(path, "file", path.name, "has a header and no rows")
    return table


def numbers(table: Any, column: str, path: str | Path) -> np.ndarray:
    """Return one column as float64.

    Raises:
        InputError: the column is missing, or a cell is not a finite number.
    """
    import pandas as pd

    if column not in table.columns:
        raise InputError(path, "columns", ",".join(map(str, table.columns)), f"has no column {column}")
    values = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=np.float64)
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.argmax(bad))
        cell = table[column].iloc[row]
        raise InputError(path, column, cell if isinstance(cell, str) else "", f"must be a finite number (row {row + 1})")
    return values


def token_counts(table: Any, column: str, path: str | Path) -> np.ndarray:
    """Return one column of lengths as int64.

    Raises:
        InputError: a length that is not a whole number, or below 1.
    """
    values = numbers(table, column, path)
    for bad, why in (
        (values < 1, "must be at least 1"),
        (values != np.rint(values), "must be a whole number"),
        (values > LONGEST, f"must be at most {LONGEST}"),
    ):
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(path, column, _plain(values[row]), f"{why} (row {row + 1})")
    return values.astype(np.int64)


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) else float(value)


def _timestamps_ns(table: Any, column: str, path: str | Path) -> np.ndarray:
    """Turn calendar times into nanoseconds since the first."""
    import pandas as pd

    moments = pd.to_datetime(table[column], errors="coerce", format="ISO8601", utc=True)
    if moments.isna().any():
        row = int(np.argmax(moments.isna().to_numpy()))
        raise InputError(path, column, table[column].iloc[row], f"must be a date and time (row {row + 1})")
    nanoseconds = moments.to_numpy(dtype="datetime64[ns]").astype(np.int64)
    return nanoseconds - nanoseconds[0]


def _hash_lists(table: Any, column: str, path: str | Path) -> tuple[np.ndarray, ...]:
    lists = []
    for row, cell in enumerate(table[column], start=1):
        try:
            lists.append(np.array((cell if isinstance(cell, str) else "").split(), dtype=np.int64))
        except (ValueError, OverflowError):
            shown = cell if len(cell) <= 40 else f"{cell[:40]}..."
            raise InputError(path, column, shown, f"must be whole numbers separated by spaces (row {row})") from None
    return tuple(lists)


def read_trace(path: str | Path) -> Workload:
    """Read a trace file as an open-loop workload.

    Raises:
        InputError: the file cannot be read, a column is missing, or a cell is not what it must be; names column, value, row.
    """
    path = Path(path)
    table = read_table(path)
    calendar = "TIMESTAMP" if "TIMESTAMP" in table.columns and "arrival_s" not in table.columns else ""
    burst = set(BURSTGPT_COLUMNS) <= set(table.columns)
    names = BURSTGPT_COLUMNS if burst else AZURE_COLUMNS
    table = table.rename(columns={old: new for old, new in names.items() if new not in table.columns})
    failed = 0
    if burst:  # a failed request is there with no answer
        answered = numbers(table, "output_tokens", path) != 0
        failed = int((~answered).sum())
        table = table[answered].reset_index(drop=True)
        if not len(table):
            raise InputError(path, "Response tokens", 0, "is 0 in every row: no request was answered")
    if len(set(table.columns)) != len(table.columns):
        raise InputError(path, "columns", ",".join(table.columns), "names a column twice")
    for column in ("arrival_s", "prompt_tokens", "output_tokens"):
        if column not in table.columns:
            raise InputError(path, "columns", ",".join(table.columns), f"has no column {column}")
    if calendar:
        arrival_ns = _timestamps_ns(table, "arrival_s", path)
    else:
        seconds = numbers(table, "arrival_s", path)
        outside = (seconds < 0) | (seconds > LONGEST_S)
        if outside.any():
            row = int(np.argmax(outside))
            raise InputError(path, "arrival_s", float(seconds[row]), f"must lie in 0..{LONGEST_S} (row {row + 1})")
        arrival_ns = np.rint(seconds * NANOSECONDS).astype(np.int64)
    backwards = np.diff(arrival_ns) < 0
    if backwards.any():
        row = int(np.argmax(backwards)) + 1
        raise InputError(
            path, calendar or "arrival_s", table["arrival_s"].iloc[row], f"is before the row above it (row {row + 1})"
        )
    hash_column = next((name for name in table.columns if re.fullmatch(r"hash_ids\d*", name)), None)
    return Workload(
        arrival_ns=arrival_ns,
        prompt_tokens=token_counts(table, "prompt_tokens", path),
        output_tokens=token_counts(table, "output_tokens", path),
        block_hashes=_hash_lists(table, hash_column, path) if hash_column else (),
        hash_block_tokens=int(hash_column.removeprefix("hash_ids") or 512) if hash_column else 16,
        name=path.name + (f" ({failed} failed requests left out)" if failed else ""),
    )
