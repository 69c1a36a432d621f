"""flash-linear-attention's plain PyTorch files, loaded by their path: importing the package itself needs a GPU's Triton."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType


@cache
def naive(operator: str) -> ModuleType:
    """The module `fla/ops/<operator>/naive.py`."""
    package = importlib.util.find_spec("fla")
    assert package is not None  # the oracle says that it needs it
    assert package.origin is not None
    path = Path(package.origin).parent / "ops" / operator / "naive.py"
    spec = importlib.util.spec_from_file_location(f"llmlab_fla_naive_{operator}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
