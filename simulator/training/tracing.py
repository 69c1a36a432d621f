"""Chrome trace events into a file that Perfetto and chrome://tracing open."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llmlab.reference.errors import InputError
from llmlab.reference.files import write_atomic

ENDINGS = (".json", ".json.gz")


def check_trace(path: str | Path) -> Path:
    """Refuse a file name before anything is computed for it.

    Raises:
        InputError: another ending.
    """
    path = Path(path)
    if not path.name.endswith(ENDINGS):
        raise InputError(path, "file name", path.name, f"must end in {' or '.join(ENDINGS)}")
    return path


def write_trace(path: str | Path, events: Iterable[Mapping[str, Any]]) -> Path:
    """Write events, an event a line; gzipped where the name ends in .gz.

    Raises:
        InputError: another ending.
    """
    path = check_trace(path)
    lines = ",\n".join(json.dumps(event, separators=(",", ":")) for event in events)
    text = '{"displayTimeUnit":"ms","traceEvents":[\n' + lines + "\n]}\n"
    return write_atomic(path, gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text)
