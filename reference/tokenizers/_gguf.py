"""The metadata of a GGUF file (llama.cpp's format, versions 2 and 3): keys and values, tensors left alone."""

from __future__ import annotations

import struct
from typing import Any

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9


def metadata(data: bytes) -> dict[str, Any]:
    """Return the key-value pairs at the head of a GGUF file.

    Raises:
        ValueError: the file is cut short, or no GGUF file of a version known here.
    """
    if data[:4] != b"GGUF":
        raise ValueError("no GGUF file")
    at = 4

    def take(form: str) -> Any:
        nonlocal at
        size = struct.calcsize(form)
        if at + size > len(data):
            raise ValueError(f"byte {at}: {size} bytes expected, {len(data) - at} are left")
        value = struct.unpack_from(form, data, at)[0]
        at += size
        return value

    def text() -> str:
        nonlocal at
        size = take("<Q")
        if size > len(data) - at:
            raise ValueError(f"byte {at}: a text of {size} bytes, {len(data) - at} are left")
        at += size
        return data[at - size : at].decode("utf-8", "replace")

    def value_of(kind: int, depth: int = 0) -> Any:
        if kind in SCALARS:
            return take(SCALARS[kind])
        if kind == STRING:
            return text()
        if kind == ARRAY and depth < 4:
            inner, count = take("<I"), take("<Q")
            if count > len(data) - at:
                raise ValueError(f"byte {at}: {count} values, {len(data) - at} bytes are left")
            return [value_of(inner, depth + 1) for _ in range(count)]
        raise ValueError(f"byte {at}: type {kind} is not known")

    version = take("<I")
    if version not in (2, 3):
        raise ValueError(f"version {version} is not 2 or 3")
    _, pairs = take("<Q"), take("<Q")
    found: dict[str, Any] = {}
    for _ in range(pairs):
        key = text()
        found[key] = value_of(take("<I"))
    return found
