"""bfloat16 inside compiled loops against ml_dtypes."""

import numpy as np
import pytest

pytest.importorskip("numba")
pytest.importorskip("ml_dtypes")

import ml_dtypes
from numba import njit

from llmlab.kernels.bfloat16 import bits, put, widened, working_dtype


@njit
def _copy(source, target):  # type: ignore[no-untyped-def]
    for i in range(source.size):
        put(target, i, widened(source[i]))


def every_bfloat16() -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16)


def test_widening_is_exact_for_every_bfloat16() -> None:
    result = np.empty(1 << 16, np.float32)
    _copy(bits(every_bfloat16()), result)
    np.testing.assert_array_equal(result.view(np.uint32) >> 16, np.arange(1 << 16))
    assert not (result.view(np.uint32) & 0xFFFF).any()


def test_rounding_is_that_of_ml_dtypes_ties_and_all() -> None:
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    halfway = [upper + low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]
    values = np.concatenate(halfway).view(np.float32)
    result = np.empty(values.size, ml_dtypes.bfloat16)
    _copy(values, bits(result))
    with np.errstate(all="ignore"):
        expected = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(result.astype(np.float32), expected)
    assert np.isnan(result.astype(np.float32)).any()


def test_other_floats_pass_as_they_are() -> None:
    for dtype in (np.float32, np.float64):
        array = np.array([1.0, np.pi], dtype)
        assert bits(array) is array
        assert working_dtype(array) == dtype
        result = np.empty_like(array)
        _copy(array, result)
        np.testing.assert_array_equal(result, array)


def test_widening_outside_compiled_code_is_the_same() -> None:
    one = every_bfloat16()[0x3F80]
    assert widened(bits(np.array([one]))[0]) == 1.0 == float(one)
    assert widened(np.float32(0.5)) == np.float32(0.5)
