"""Files are written whole or not at all, under names that say what is in them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from llmlab.reference.errors import InputError


def write_atomic(path: str | Path, content: str | bytes) -> Path:
    """Write to a temporary name in the same folder, then rename over `path`; return the path.

    Raises:
        InputError: the folder cannot be created or written; `path` is then as it was.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes private files; a result is an ordinary one
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(path, "file name", path.name, f"cannot be written: {error.strerror or error}") from None
    return path


def check_ending(path: str | Path, endings: Sequence[str]) -> None:
    """Refuse a file name before anything is computed for it.

    Raises:
        InputError: the name has none of these endings.
    """
    name = Path(path).name
    if not name.endswith(tuple(endings)):
        raise InputError(path, "file name", name, f"must end in {' or '.join(endings)}")
