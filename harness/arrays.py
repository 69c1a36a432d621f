"""Arrays between the reference's NumPy and a twin's backend, and rounding to any float dtype; outside the timed region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SIGNIFICAND_BITS = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}


def is_float(array: np.ndarray) -> bool:
    """True for arrays that take part in rounding and gradients."""
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def numpy_dtype(name: str) -> np.dtype:
    """NumPy's dtype of a float, bfloat16 from ml_dtypes.

    Raises:
        ImportError: bfloat16 without ml_dtypes.
    """
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """Round to the nearest value of `dtype` (ties to even) and return it in float64; other arrays pass unchanged.

    >>> float(rounded(np.array(1 / 3), "bfloat16"))
    0.333984375
    """
    if not is_float(array):
        return array
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):
            return array.astype(dtype).astype(np.float64)
    bits = array.astype(np.float32).view(np.uint32).astype(np.uint64)
    kept = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return np.where(np.isfinite(array), kept.astype(np.uint32).view(np.float32), array).astype(np.float64)


def ulp(largest: float, dtype: str) -> float:
    """Distance between neighbouring values of `dtype` at magnitude `largest` (at the smallest normal for 0)."""
    smallest_exponent = {"float64": -1022, "float32": -126, "float16": -14, "bfloat16": -126}[dtype]
    exponent = max(np.frexp(abs(largest))[1] - 1 if largest else smallest_exponent, smallest_exponent)
    return float(np.ldexp(1.0, int(exponent) - SIGNIFICAND_BITS[dtype]))


def outputs(result: Any) -> list[np.ndarray]:
    """The arrays of a result, one or several, as NumPy; floats in float64."""
    parts = result if isinstance(result, tuple | list) else (result,)
    arrays = [to_numpy(part) for part in parts if part is not None]
    return [array.astype(np.float64) if is_float(array) else array for array in arrays]


def to_numpy(value: Any) -> np.ndarray:
    """A NumPy array from a NumPy array, a scalar or a tensor; bfloat16 widened."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        return (value.double() if value.is_floating_point() else value).numpy()
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def device_of(backend: str) -> str:
    """Where a backend's arrays live on this machine: `cuda` for torch and triton when there is one, else `cpu`."""
    if backend == "numba":
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def to_backend(array: np.ndarray, backend: str, dtype: str, device: str = "cpu") -> Any:
    """The backend's own array holding `array`, floats in `dtype`; memory layout (strides) is kept where possible."""
    if backend == "numba":
        return array.astype(numpy_dtype(dtype), order="K", copy=True) if is_float(array) else array.copy()
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array)) if 0 in array.shape else torch.from_numpy(array.copy(order="K"))
    return tensor.to(device=device, dtype=getattr(torch, dtype)) if is_float(array) else tensor.to(device)


def strided(value: Any) -> Any:
    """The same values behind a non-contiguous view: every second element of an array that holds its first two axes swapped."""
    if value.ndim == 0 or 0 in value.shape:
        return value
    swapped = value.swapaxes(0, 1) if value.ndim > 2 else value
    if hasattr(value, "detach"):
        view = swapped.repeat_interleave(2, dim=-1)[..., ::2]
    else:
        view = np.repeat(swapped, 2, axis=-1)[..., ::2]
    return view.swapaxes(0, 1) if value.ndim > 2 else view


def convert(inputs: Mapping[str, np.ndarray], backend: str, dtype: str, *, views: bool = False) -> list[Any]:
    """All inputs of an op for one backend, in call order; `views` makes every one non-contiguous."""
    device = device_of(backend)
    arrays = [to_backend(array, backend, dtype, device) for array in inputs.values()]
    return [strided(array) for array in arrays] if views else arrays


def total_size(arrays: Sequence[np.ndarray]) -> int:
    """Elements in all arrays together."""
    return sum(array.size for array in arrays)
