"""The vector functions against the standard library's, over their whole range."""

import math

import numpy as np
import pytest

pytest.importorskip("numba", reason="needs numba")
from numba import njit

from llmlab.kernels import numba_math


def mapped(function):
    @njit(error_model="numpy", fastmath=numba_math.EXACT)
    def run(x, out):
        for i in range(x.size):
            out[i] = function(x[i])

    def call(x):
        out = np.empty_like(x)
        run(x, out)
        return out

    return call


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["exp", "exp_down"])
def test_exponentials_are_right_to_one_ulp(name, dtype):
    far = 80.0 if dtype is np.float32 else 700.0
    x = np.linspace(-far, far, 20001).astype(dtype)
    exact = np.exp(x.astype(np.longdouble))
    error = np.abs(mapped(getattr(numba_math, name))(x) / exact - 1)
    assert error.max() < np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exponentials_of_special_values(dtype):
    x = np.array([np.nan, -np.inf, 0.0, -1e4, np.inf, 1e4], dtype)
    np.testing.assert_array_equal(mapped(numba_math.exp)(x), [np.nan, 0, 1, 0, np.inf, np.inf])
    np.testing.assert_array_equal(mapped(numba_math.exp_down)(x[:4]), [np.nan, 0, 1, 0])


@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 2e-7), (np.float64, 1e-15)])
def test_normal_cdf_is_half_erfc(dtype, error):
    x = np.concatenate([np.linspace(-12, 12, 4001), [0.0, -np.inf, np.inf]]).astype(dtype)
    exact = np.array([0.5 * math.erfc(-float(value) / math.sqrt(2)) for value in x])
    assert np.abs(mapped(numba_math.normal_cdf)(x) - exact).max() < error
    assert np.isnan(mapped(numba_math.normal_cdf)(np.array([np.nan], dtype))).all()


def test_sincos_is_right_to_two_ulp_far_from_zero():
    @njit(error_model="numpy", fastmath=numba_math.EXACT)
    def run(angles, sines, cosines):
        for i in range(angles.size):
            sines[i], cosines[i] = numba_math.sincos(angles[i])

    angles = np.concatenate([np.random.default_rng(0).uniform(-1.6e6, 1.6e6, 20001), np.arange(-40, 41) * np.pi / 4])
    sines, cosines = np.empty_like(angles), np.empty_like(angles)
    run(angles, sines, cosines)
    assert max(np.abs(sines - np.sin(angles)).max(), np.abs(cosines - np.cos(angles)).max()) < 2.5e-16


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0, 1, 7, 64, 1001])
def test_row_reductions(size, dtype):
    rng = np.random.default_rng(size)
    row, other = rng.standard_normal(size).astype(dtype), rng.standard_normal(size).astype(dtype)
    assert numba_math.row_max(row) == row.max(initial=-np.inf)
    slack = 4 * np.finfo(dtype).eps
    assert abs(numba_math.row_sum(row) - math.fsum(row)) <= slack * np.abs(row).sum()
    assert abs(numba_math.row_dot(row, other) - math.fsum(row.astype(float) * other)) <= slack * np.abs(row * other).sum()
    if size:
        row[size // 2] = np.nan
        assert np.isnan(numba_math.row_max(row))
        assert np.isnan(numba_math.row_sum(row))
