"""flash-linear-attention's plain PyTorch files, loaded by their path: importing the package itself needs a GPU's Triton."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType

PARTS = ("fla", "fla.ops", "fla.ops.utils", "fla.ops.utils.pooling")
"""What such a file may import of the package; it stands empty while the file is loaded, for functions that are not called."""


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
    absent = [part for part in PARTS if part not in sys.modules]
    for part in absent:
        sys.modules[part] = ModuleType(part)
        sys.modules[part].__dict__.update(__path__=[], prepare_chunk_offsets=None, mean_pooling=None)
    sys.modules[spec.name] = module
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it misses FlashAttention
            spec.loader.exec_module(module)
    finally:
        for part in absent:
            del sys.modules[part]
    return module
