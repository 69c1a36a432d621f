"""One record per timing, in a file that accumulates: JSON lines, one record each, appended under a lock.

Achieved rates are never stored as such: a record holds seconds, FLOPs and bytes, and everything else is derived. What the
machine reached right beside the timing stands in the record as it was measured, so every fraction of the limit can be
computed again. Measured peaks are records too (family `machine`).

Records written before `unlocked` was a field are read by a rule: a library's record is unlocked if a record of the same
machine description says "vendor check overridden" in its code path, for such a description was of an unlocked run.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmlab.reference.errors import InputError

SAME_AT_LEAST = 0.05
"""Changes below this are called the same however small the spreads are: placement of pages alone moves times that much."""

UNLOCKED = " (unlocked)"
"""Ends the name of a library that ran without its vendor check."""

OVERRIDDEN = "vendor check overridden"
"""What the code path of torch says in a process whose MKL was told to run its fast code."""

Key = tuple[str, str, str, str, str, bool]


@dataclass(frozen=True)
class Record:
    """One implementation of one component at one shape, timed once.

    Attributes:
        component: component id, or `machine.<what>` for a measured peak.
        shape: the shape's name.
        dims: its axis sizes.
        dtype: float dtype of the inputs, empty where there is none.
        implementation: "numpy" for the reference, a twin's label, or the library call of a peer.
        device: "cpu" or "cuda".
        device_name: what people call the device.
        machine: digest of the machine description.
        versions: versions of the packages that took part.
        code_path: which compiled code did the arithmetic.
        threads: hardware threads it could use.
        correct: whether it agreed with the reference; a wrong kernel has no times.
        error: largest error over the allowed one (at most 1 when correct); None when it could not be compared.
        checked: the axis sizes it was checked at, "timed shape" for the same ones, or why it was not run.
        flops: FLOPs of one call from the component's cost, None without one.
        moved_bytes: bytes one call must move, None without a cost.
        median_s, best_s, lower_s, upper_s: seconds per call: middle and fastest round, quartiles; None when not timed.
        rounds: rounds measured.
        calls: calls per round.
        page_faults: minor page faults per call.
        noisy: the machine was not quiet or the rounds spread too much.
        limit_s: least time the machine allows: max(moved_bytes / bandwidth, flops / arithmetic); None when unknown.
        bound: which resource sets the limit: "memory", "compute" or empty.
        bandwidth: bytes per second that memory reached beside this timing, on a working set of the same size.
        arithmetic: FLOPs per second that arithmetic reached beside it, or the machine's peak where that was not measured there.
        drift: by which fraction the rate that sets the limit was lower before or after; None when it was measured once.
        unlocked: a library's code path without its processor vendor check, false for the library as shipped.
        date: when, UTC, ISO 8601.
    """

    component: str
    shape: str
    dims: Mapping[str, int]
    dtype: str
    implementation: str
    device: str
    device_name: str
    machine: str
    versions: Mapping[str, str]
    code_path: str
    threads: int
    correct: bool
    error: float | None
    checked: str
    flops: float | None
    moved_bytes: float | None
    median_s: float | None = None
    best_s: float | None = None
    lower_s: float | None = None
    upper_s: float | None = None
    rounds: int = 0
    calls: int = 0
    page_faults: float = 0.0
    noisy: bool = False
    limit_s: float | None = None
    bound: str = ""
    bandwidth: float | None = None
    arithmetic: float | None = None
    drift: float | None = None
    unlocked: bool = False
    date: str = ""

    def __post_init__(self) -> None:
        times = (self.median_s, self.best_s, self.lower_s, self.upper_s)
        if not self.correct and any(time is not None for time in times):
            raise ValueError(f"{self.component} {self.implementation}: a wrong kernel has no time")
        if len({time is None for time in times}) != 1:
            raise ValueError(f"{self.component} {self.implementation}: times are given together or not at all, got {times}")
        if any(time is not None and not (math.isfinite(time) and time > 0) for time in times):
            raise ValueError(f"{self.component} {self.implementation}: times must be positive, got {times}")

    @property
    def key(self) -> Key:
        """What makes two records comparable: component, shape, dtype, implementation, device, and the libraries' code path."""
        return self.component, self.shape, self.dtype, self.implementation, self.device, self.unlocked

    @property
    def label(self) -> str:
        """The implementation as tables show it."""
        return self.implementation + UNLOCKED * self.unlocked

    @property
    def fraction(self) -> float | None:
        """Fraction of the machine's limit that the median reaches."""
        return self.limit_s / self.median_s if self.limit_s is not None and self.median_s else None

    @property
    def spread(self) -> float | None:
        """Distance of the quartiles over the median."""
        if self.median_s is None or self.lower_s is None or self.upper_s is None:
            return None
        return (self.upper_s - self.lower_s) / self.median_s

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON values."""
        return asdict(self)


def now() -> str:
    """The current time as records hold it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def default_path() -> Path:
    """Where results accumulate: `$LLMLAB_RESULTS`, else `build/results.jsonl` below the working directory."""
    return Path(os.environ.get("LLMLAB_RESULTS") or Path("build") / "results.jsonl")


def append(path: str | Path, records: Iterable[Record]) -> Path:
    """Add records to the file, whole lines or nothing, under a lock; return the path.

    Raises:
        InputError: the folder or file cannot be written.
    """
    path = Path(path)
    lines = "".join(json.dumps(record.as_dict(), allow_nan=False) + "\n" for record in records).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file, _locked(file):
            end = file.seek(0, os.SEEK_END)
            try:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                os.ftruncate(file.fileno(), end)
                raise
    except OSError as error:
        raise InputError(path, "results file", str(path), f"cannot be written: {error.strerror}") from None
    return path


@contextmanager
def _locked(file: Any) -> Any:
    try:
        import fcntl
    except ImportError:  # no file locks on this system: one writer at a time is then the caller's business
        yield
        return
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def parse(row: Any, where: str) -> Record:
    """Make a record of one decoded JSON object.

    Raises:
        InputError: not an object, a field missing, unknown or of the wrong type.
    """
    if not isinstance(row, dict):
        raise InputError(where, "record", row, "must be a JSON object")
    known = {one.name: one for one in fields(Record)}
    for name in row:
        if name not in known:
            raise InputError(where, "field", name, "is not a field of a record")
    for name, one in known.items():
        if name not in row and one.default is MISSING:
            raise InputError(where, "field", name, "is missing")
    for name, value in row.items():
        if not _fits(value, str(known[name].type)):
            raise InputError(where, name, value, f"must be {known[name].type}")
    try:
        return Record(**row)
    except ValueError as error:
        raise InputError(where, "record", row.get("component"), str(error)) from None


def _fits(value: Any, annotation: str) -> bool:
    if annotation.startswith("Mapping"):
        return isinstance(value, dict)
    for one in annotation.split(" | "):
        if one == "None" and value is None:
            return True
        if one == "bool" and isinstance(value, bool):
            return True
        if one == "str" and isinstance(value, str):
            return True
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if (one == "float" and number) or (one == "int" and number and isinstance(value, int)):
            return True
    return False


def read(path: str | Path) -> list[Record]:
    """Read every record of a results file, oldest first: JSON lines, or the object `llmlab bench --json` prints.

    Raises:
        InputError: no such file, or a line that is not a record; it names the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise InputError(path, "results file", path.name, f"cannot be read: {why}") from None
    if not text.strip():
        raise InputError(path, "results file", path.name, "holds no record")
    document = _decode(text)
    if isinstance(document, dict) and "records" in document:
        rows = document["records"]
        if not isinstance(rows, list):
            raise InputError(path, "records", type(rows).__name__, "must be a list")
        return _told_apart(rows, [parse(row, f"{path.name} record {number}") for number, row in enumerate(rows, 1)])
    rows, records = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line and number > text.count("\n"):
            break  # after the last line's end
        where = f"{path} line {number}"
        row = _decode(line)
        if row is None:
            raise InputError(where, "line", line[:40], "is not a JSON record")
        rows.append(row)
        records.append(parse(row, where))
    return _told_apart(rows, records)


def _told_apart(rows: Sequence[Mapping[str, Any]], records: Sequence[Record]) -> list[Record]:
    """Mark the unlocked ones among records that were written before there was a field for it."""
    machines = {one.machine for row, one in zip(rows, records) if "unlocked" not in row and OVERRIDDEN in one.code_path}
    return [
        replace(one, unlocked=True)
        if "unlocked" not in row and one.machine in machines and one.implementation.startswith(("torch", "numpy"))
        else one
        for row, one in zip(rows, records)
    ]


def _decode(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def latest(records: Iterable[Record]) -> dict[Key, Record]:
    """The last record of every key, timed or wrong."""
    return {record.key: record for record in records}


@dataclass(frozen=True)
class Change:
    """One record against an older one of the same key.

    Attributes:
        component, shape, dtype, implementation, device, unlocked: the key.
        old_s: median before, None when it was wrong or not timed.
        new_s: median now, None likewise.
        ratio: new over old, below 1 is faster.
        band: changes up to this fraction are noise.
        verdict: faster, slower, same, now wrong, now right, wrong, new, gone.
        note: what to keep in mind: another machine, other versions, a noisy side.
    """

    component: str
    shape: str
    dtype: str
    implementation: str
    device: str
    unlocked: bool
    old_s: float | None
    new_s: float | None
    ratio: float | None
    band: float | None
    verdict: str
    note: str

    @property
    def label(self) -> str:
        """The implementation as tables show it."""
        return self.implementation + UNLOCKED * self.unlocked

    def as_dict(self) -> dict[str, Any]:
        """The change as JSON values."""
        return asdict(self)


def compare(old: Sequence[Record], new: Sequence[Record]) -> list[Change]:
    """Say for every key what became faster or slower, beyond what the spreads of both sides explain."""
    before, after = latest(old), latest(new)
    return [_change(key, before.get(key), after.get(key)) for key in sorted(before.keys() | after.keys())]


def _change(key: Key, old: Record | None, new: Record | None) -> Change:
    old_s, new_s = old.median_s if old else None, new.median_s if new else None
    ratio = new_s / old_s if old_s and new_s else None
    band = noise_band(old, new) if old and new and ratio else None
    if old is None or new is None:
        verdict = "new" if old is None else "gone"
    elif not new.correct:
        verdict = "now wrong" if old.correct else "wrong"
    elif not old.correct:
        verdict = "now right"
    elif ratio is None or band is None:
        verdict = "not timed"
    else:
        verdict = "faster" if ratio < 1 / (1 + band) else "slower" if ratio > 1 + band else "same"
    return Change(*key, old_s, new_s, ratio, band, verdict, _note(old, new))


def noise_band(old: Record, new: Record) -> float:
    """Fraction by which two medians may differ for no reason: both quartile distances together, doubled for a noisy side.

    The quartile distance of the rounds, not the standard error of their median: what disturbs one run (page placement,
    clock, neighbours) stays the same within it and differs in the next.
    """
    spreads = [(record.spread or 0.0) * (2.0 if record.noisy else 1.0) for record in (old, new)]
    return max(SAME_AT_LEAST, math.hypot(*spreads))


def _note(old: Record | None, new: Record | None) -> str:
    if old is None or new is None:
        return ""
    notes = []
    if old.device_name != new.device_name or old.threads != new.threads:
        notes.append(f"other machine ({old.device_name}, {old.threads} threads)")
    elif old.code_path != new.code_path:
        notes.append(f"code path was {old.code_path}")
    changed = [
        f"{name} {old.versions[name]} -> {new.versions[name]}"
        for name in sorted(old.versions.keys() & new.versions.keys())
        if old.versions[name] != new.versions[name]
    ]
    notes += changed
    if dict(old.dims) != dict(new.dims):
        notes.append("other axis sizes")
    notes += ["was noisy"] if old.noisy else []
    notes += ["noisy"] if new.noisy else []
    return "; ".join(notes)
