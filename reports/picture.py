"""A picture in a file: written in one place, whole or not at all, and equal figures give equal bytes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmlab.reference.files import check_ending, write_atomic

INK, MUTED, IDLE = "#1f2328", "#6b7280", "#eef0f3"
DOTS_PER_INCH = 150
UNDATED: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}
"""Endings of a picture, and what each kind would otherwise say about when and with what it was made."""


def check_picture(path: str | Path) -> None:
    """Refuse a file name before anything is computed for it.

    Raises:
        InputError: the name has none of the endings of a picture.
    """
    check_ending(path, tuple(UNDATED))


def write_picture(draw: Callable[[], Any], path: str | Path) -> Path:
    """Write the figure that `draw` makes; the name is looked at before anything is drawn.

    Raises:
        InputError: a file name that no picture has, or a place that cannot be written.
    """
    import matplotlib

    path = Path(path)
    check_picture(path)
    whole = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "llmlab", "svg.fonttype": "none"}):
        draw().savefig(whole, format=path.suffix[1:], dpi=DOTS_PER_INCH, metadata=UNDATED[path.suffix])
    return write_atomic(path, whole.getvalue())
