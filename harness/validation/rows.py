"""Reads published measurements: one row per measured operating point, strictly.

A file is a CSV (or `.csv.gz`) with a header. Times are milliseconds, rates per second, lengths tokens (means where the load
has a distribution). An empty cell means "not stated". A cell that should be a number and is none, a negative length, a
repeated row id or a missing required column is an error that names the file, the column and the line: a row that is merely
out of reach of the simulator is not an error, it is excluded later with its reason.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmlab.reference.errors import InputError

REQUIRED = ("row_id", "model", "gpu", "load_mode")
TEXT = (
    "source",
    "engine",
    "engine_version",
    "measured_date",
    "weight_dtype",
    "kv_dtype",
    "dataset",
    "len_dist",
    "prefix_sharing",
    "n_instances",
    "ep",
    "quality",
    "other_config",
    "notes",
)
LENGTHS = ("isl", "osl")
COUNTS = ("n_gpus", "tp", "pp", "dp", "batch_size", "concurrency", "num_requests", "max_num_seqs", "max_num_batched_tokens")
OPTIONAL_COUNTS = ("kv_blocks", "kv_block_size")
RATES = ("request_rate_rps", "duration_s")
FLAGS = ("moe", "chunked_prefill", "prefix_caching", "core")

STATISTICS = ("mean", "p50", "p90", "p95", "p99")
LATENCIES = tuple(f"{what}_{statistic}_ms" for what in ("ttft", "tpot", "itl", "e2e") for statistic in STATISTICS)
THROUGHPUTS = ("req_per_s", "out_tok_per_s", "out_tok_per_s_per_gpu", "total_tok_per_s")
METRICS = LATENCIES + THROUGHPUTS
"""The measured columns this project predicts, under the names the files give them."""

LEAST_BUSY = 0.5
"""Clients of a closed loop are busy but for its end; with two requests each, four fifths of the time."""


@dataclass(frozen=True)
class MeasuredRow:
    """One operating point: what ran, how it was loaded, and what was measured.

    Attributes:
        where: file and line, for messages.
        stated: numbers and flags the file states, by column; what it leaves empty is absent.
        unread: configuration cells that are words where a number was expected (`tp` = "dp-attention 8").
        measured: measured values, by column.
    """

    where: str
    row_id: str
    model: str
    gpu: str
    load_mode: str
    texts: Mapping[str, str] = field(default_factory=dict)
    stated: Mapping[str, float] = field(default_factory=dict)
    flags: Mapping[str, bool] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)

    def text(self, column: str) -> str:
        """A text column, the empty string where the file states nothing."""
        return self.texts.get(column, "")

    def count(self, column: str) -> int | None:
        """A whole number, or None where the file states nothing."""
        value = self.stated.get(column)
        return None if value is None else round(value)

    @property
    def source(self) -> str:
        """Whose measurement it is: the `source` column, or the row id without its number."""
        return self.text("source") or re.sub(r"[-_]?\d+$", "", self.row_id) or self.row_id

    @property
    def busy_clients(self) -> float | None:
        """Part of a closed loop's clients that its own latencies and rate keep busy (Little's law); None where one is missing.

        Tools that count tokens otherwise than their table says, or fewer clients than it says, show here.
        """
        answer = self.measured.get("e2e_mean_ms")
        first, token = self.measured.get("ttft_mean_ms"), self.measured.get("tpot_mean_ms")
        length, rate, clients = self.stated.get("osl"), self.measured.get("req_per_s"), self.stated.get("concurrency")
        if answer is None and first is not None and token is not None and length is not None:
            answer = first + token * (length - 1.0)
        if not self.load_mode.startswith("closed_loop") or answer is None or rate is None or not clients:
            return None
        return rate * answer / 1e3 / clients

    @property
    def scored(self) -> bool:
        """Whether the row counts in a summary; it is predicted in any case.

        Quality C rows are ambiguous in their source. A closed loop whose own figures leave most of its clients idle contradicts
        itself: one of concurrency, latencies and rate is not what it says, and nothing tells which.
        """
        if (busy := self.busy_clients) is not None and busy < LEAST_BUSY:
            return False
        return self.text("quality").strip().upper() != "C"


def decoded(path: Path) -> str:
    """Text of a file, unpacked where its name ends in .gz.

    Raises:
        InputError: it cannot be read, unpacked or decoded.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        return data.decode("utf-8")
    except FileNotFoundError:
        raise InputError(path, "", str(path), "no such file") from None
    except IsADirectoryError:
        raise InputError(path, "", str(path), "is a folder, not a file of measured rows") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(path, "", str(path), f"not a whole gzip file ({error})") from None
    except UnicodeDecodeError as error:
        raise InputError(path, "", str(path), f"not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise InputError(path, "", str(path), error.strerror or "cannot be read") from None


def _number(path: Path, line: int, column: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise InputError(path, column, cell, f"is not a number (line {line})") from None
    if math.isnan(value):
        raise InputError(path, column, cell, f"is not a number; leave the cell empty if nothing is known (line {line})")
    return value


def _flag(path: Path, line: int, column: str, cell: str) -> bool:
    known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    if cell.lower() not in known:
        raise InputError(path, column, cell, f"is neither True nor False (line {line})")
    return known[cell.lower()]


def _row(path: Path, line: int, cells: Mapping[str, str]) -> MeasuredRow:
    """Check one line's cells and sort them into texts, numbers, flags and measured values."""
    for column in REQUIRED:
        if not cells.get(column):
            raise InputError(path, column, "", f"is empty (line {line})")
    texts = {column: cells[column] for column in TEXT if cells.get(column)}
    stated: dict[str, float] = {}
    unread: dict[str, str] = {}
    for column in (*COUNTS, *OPTIONAL_COUNTS):
        cell = cells.get(column)
        if not cell:
            continue
        try:
            value = float(cell)
        except ValueError:  # a deployment said in words: out of reach, yet no fault of the file
            unread[column] = cell
            continue
        if not math.isfinite(value) or value < 0 or value != int(value):
            raise InputError(path, column, cell, f"must be a whole number, 0 or more (line {line})")
        stated[column] = value
    for column in LENGTHS:
        if cells.get(column):
            stated[column] = _number(path, line, column, cells[column])
            if not 0 < stated[column] < math.inf:
                raise InputError(path, column, cells[column], f"must be a positive number of tokens (line {line})")
    for column in RATES:
        if cells.get(column):
            stated[column] = _number(path, line, column, cells[column])
            if stated[column] <= 0:
                raise InputError(path, column, cells[column], f"must be positive (line {line})")
    measured = {}
    for column in METRICS:
        if cells.get(column):
            measured[column] = _number(path, line, column, cells[column])
            if not 0 <= measured[column] < math.inf:
                raise InputError(path, column, cells[column], f"must be finite and not negative (line {line})")
    return MeasuredRow(
        where=f"{path}:{line}",
        row_id=cells["row_id"],
        model=cells["model"],
        gpu=cells["gpu"],
        load_mode=cells["load_mode"],
        texts=texts,
        stated=stated,
        flags={column: _flag(path, line, column, cells[column]) for column in FLAGS if cells.get(column)},
        unread=unread,
        measured=measured,
    )


def numbered_lines(path: Path, required: Sequence[str] = REQUIRED) -> Iterator[tuple[int, dict[str, str]]]:
    """Each line of a CSV file that holds anything, by its number, as column -> cell without spaces around it.

    Raises:
        InputError: unreadable, no CSV, without a header, a required column missing, a column twice, or a ragged line.
    """
    reader = csv.reader(io.StringIO(decoded(path)), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if not any(header):
            raise InputError(path, "", str(path), "is empty: a header line and rows were expected")
        for column in required:
            if column not in header:
                raise InputError(path, column, "", f"column is missing; the header has {', '.join(header[:6])}, ...")
        repeated = next((name for name in header if header.count(name) > 1), None)
        if repeated is not None:
            raise InputError(path, repeated, "", "column appears twice")
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise InputError(
                    path, "", f"{len(cells)} cells", f"the header has {len(header)} columns (line {reader.line_num})"
                )
            yield reader.line_num, dict(zip(header, (cell.strip() for cell in cells)))
    except csv.Error as error:
        raise InputError(path, "", str(path), f"not a CSV file: {error} (line {reader.line_num})") from None


def read_rows(path: str | Path) -> list[MeasuredRow]:
    """Read one file of measured rows.

    Raises:
        InputError: the file is missing, truncated, no CSV, lacks a required column, repeats a row id, or holds a cell that
            is not what its column is for.
    """
    path = Path(path)
    rows: list[MeasuredRow] = []
    seen: dict[str, int] = {}
    for line, cells in numbered_lines(path):
        row = _row(path, line, cells)
        if row.row_id in seen:
            raise InputError(path, "row_id", row.row_id, f"appears on lines {seen[row.row_id]} and {line}")
        seen[row.row_id] = line
        rows.append(row)
    if not rows:
        raise InputError(path, "", str(path), "has a header and no rows")
    return rows
