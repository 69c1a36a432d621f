"""Chrome trace events into a file that Perfetto and chrome://tracing open."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llmlab.reference.files import check_ending, write_atomic

ENDINGS = (".json", ".json.gz")


def check_trace(path: str | Path) -> None:
    """Refuse a file name before anything is computed for it.

    Raises:
        InputError: another ending.
    """
    check_ending(path, ENDINGS)


def write_trace(path: str | Path, events: Iterable[Mapping[str, Any]]) -> Path:
    """Write events, an event a line; gzipped where the name ends in .gz.

    Raises:
        InputError: another ending.
    """
    check_trace(path)
    path = Path(path)
    lines = ",\n".join(json.dumps(event, separators=(",", ":")) for event in events)
    text = '{"displayTimeUnit":"ms","traceEvents":[\n' + lines + "\n]}\n"
    return write_atomic(path, gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text)
