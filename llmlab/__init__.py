"""llmlab: readable references, checked kernels and a scored simulator of the LLM stack."""

from pathlib import Path as _Path

__version__ = "0.1.0"

# A checkout without symbolic links (Windows, some archives) still imports: the floors are found at the repository root.
_root = _Path(__file__).resolve().parent.parent
if not (_Path(__file__).resolve().parent / "reference").is_dir() and (_root / "reference").is_dir():
    __path__.append(str(_root))
