"""Bytes of a file as text: gzip or not, bounded, UTF-8, with one clear error for everything else."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any, NoReturn

from llmlab.reference.errors import InputError

LARGEST_BYTES = 256 * 2**20
"""Of text after decompression. Twelve million requests; a gzip bomb ends here as well."""


def read_text(path: str | Path) -> str:
    """Return the text of a file, `.gz` decompressed.

    Raises:
        InputError: no such file, damaged gzip, more than `LARGEST_BYTES`, not UTF-8, or holding a zero byte.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise InputError(path, "file", path.name, error.strerror or "cannot be read") from None
    if data[:2] == b"\x1f\x8b":
        try:
            with gzip.open(path, "rb") as packed:
                data = packed.read(LARGEST_BYTES + 1)
        except (EOFError, OSError, zlib.error) as error:
            raise InputError(path, "file", path.name, f"damaged gzip ({error})") from None
    elif path.suffix == ".gz":
        raise InputError(path, "file", path.name, "is not gzip although its name ends in .gz")
    if len(data) > LARGEST_BYTES:
        raise InputError(path, "file", path.name, f"holds more than {LARGEST_BYTES // 2**20} MiB of text; split it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(path, "file", path.name, f"is not text (byte {error.start} is {data[error.start]:#04x})") from None
    if "\0" in text:
        raise InputError(path, "file", path.name, f"is not text (byte {text.index(chr(0))} is 0x00)")
    return text


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def parse_json(text: str, path: str | Path, place: str = "") -> Any:
    """Parse strict JSON (no NaN, no Infinity).

    Args:
        text: the document.
        path: file to name in an error.
        place: where in it, for the message, as in " (line 3)".

    Raises:
        InputError: not JSON, or nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        where = place or f" (line {error.lineno})"
        raise InputError(path, "file", Path(path).name, f"is not JSON: {error.msg}{where}") from None
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(path, "file", Path(path).name, f"is not JSON: {why}{place}") from None


def parse_json_lines(text: str, path: str | Path) -> list[Any]:
    """Parse one JSON value per line; empty lines are passed over.

    Raises:
        InputError: a line is not JSON, or there is none.
    """
    found = [
        parse_json(line, path, f" (line {number})") for number, line in enumerate(text.splitlines(), start=1) if line.strip()
    ]
    if not found:
        raise InputError(path, "file", Path(path).name, "is empty")
    return found
