"""Softmax and cross-entropy over rows of many chunks, whose largest score comes late, early, never or is not a number."""

import numpy as np
import pytest

pytest.importorskip("numba")

from llmlab.kernels.layers.cross_entropy_numba import cross_entropy
from llmlab.kernels.layers.softmax_numba import CHUNK, softmax
from llmlab.reference.layers import cross_entropy as cross_entropy_reference
from llmlab.reference.layers import softmax as softmax_reference

LONG = 3 * CHUNK + 5


def rows() -> np.ndarray:
    x_1MV = np.random.default_rng(0).standard_normal((1, 7, LONG))
    rising = np.linspace(0, 1, LONG)
    x_1MV[0, 1] += 300 * rising
    x_1MV[0, 2] -= 300 * rising
    x_1MV[0, 3, : 2 * CHUNK] = -np.inf
    x_1MV[0, 4, 2 * CHUNK :] += 12  # more than the first chunk, less than a surprise
    x_1MV[0, 5, -1] = 200
    x_1MV[0, 6, CHUNK] = -np.inf
    return x_1MV


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_of_long_rows(dtype: type) -> None:
    x_1MV = rows().astype(dtype)
    exact = softmax_reference.softmax(x_1MV.astype(np.float64))
    assert (np.abs(softmax(x_1MV) - exact) < 8 * np.finfo(dtype).eps * exact.max(-1, keepdims=True)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_of_long_rows(dtype: type) -> None:
    x_1MV = rows().astype(dtype)
    targets_1M = np.full((1, 7), LONG - 2)
    exact = cross_entropy_reference.cross_entropy(x_1MV.astype(np.float64), targets_1M)
    assert (np.abs(cross_entropy(x_1MV, targets_1M) - exact) < 8 * np.finfo(dtype).eps * 300).all()


@pytest.mark.parametrize("place", [0, CHUNK, LONG - 1])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_number_in_a_long_row_stays_unnoticed(place: int, value: float) -> None:
    x_1MV = rows()[:, :1].astype(np.float32)
    x_1MV[0, 0, place] = value
    assert np.isnan(softmax(x_1MV)).any()
    assert not np.isfinite(cross_entropy(x_1MV, np.array([[1]]))).any()


def test_a_long_row_that_may_see_nothing_gives_zeros() -> None:
    assert not softmax(np.full((1, 1, LONG), -np.inf)).any()
