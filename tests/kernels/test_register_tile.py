"""Register tiles against NumPy's own products."""

import numpy as np
import pytest

pytest.importorskip("numba")

from numba import njit

from llmlab.kernels.register_tile import TILE_ROWS, TILE_VECTORS, add_rows, add_tiles, dots, fill_tile, lanes, take


@njit
def _run_fill(a, b, c, depth, width):  # type: ignore[no-untyped-def]
    fill_tile(a, 0, depth, 1, b, 0, width, c, 0, width, depth)


@njit
def _run_add(a, b, c, depth, width, scale):  # type: ignore[no-untyped-def]
    add_tiles(a, 0, 1, TILE_ROWS, b, 0, width, c, 0, width, depth, width, scale, 0)


@njit
def _run_rows(rows, a, b, c, depth, width, scale):  # type: ignore[no-untyped-def]
    add_rows(rows, a, 0, depth, 1, b, 0, width, c, 0, width, depth, width, scale, 0)


@njit
def _run_dots(a, b, c, width):  # type: ignore[no-untyped-def]
    dots(a, 0, b, 0, width, width, c, 0)


@njit
def _count(counter):  # type: ignore[no-untyped-def]
    return take(counter)


def whole(rng: np.random.Generator, *shape: int, dtype: type) -> np.ndarray:
    """Small whole numbers, whose sums of products are exact."""
    return rng.integers(-8, 9, size=shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("depth", [0, 1, 7, 64])
def test_a_tile_is_a_matrix_product(dtype: type, depth: int) -> None:
    rng = np.random.default_rng(depth)
    width = lanes(dtype) * TILE_VECTORS
    a, b = whole(rng, TILE_ROWS, depth, dtype=dtype), whole(rng, depth, width, dtype=dtype)
    c = np.full((TILE_ROWS, width), 99, dtype=dtype)
    _run_fill(a.ravel(), b.ravel(), c.ravel(), depth, width)
    np.testing.assert_array_equal(c, a @ b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("vectors", [1, TILE_VECTORS, TILE_VECTORS + 1])
def test_added_tiles_scale_what_was_there_and_take_transposed_operands(dtype: type, vectors: int) -> None:
    rng = np.random.default_rng(vectors)
    depth, width = 5, lanes(dtype) * vectors
    a_transposed, b = whole(rng, depth, TILE_ROWS, dtype=dtype), whole(rng, depth, width, dtype=dtype)
    before, scale = whole(rng, TILE_ROWS, width, dtype=dtype), whole(rng, TILE_ROWS, dtype=dtype)
    c = before.copy()
    _run_add(a_transposed.ravel(), b.ravel(), c.ravel(), depth, width, scale)
    np.testing.assert_array_equal(c, scale[:, None] * before + a_transposed.T @ b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [1, 3, 4, 9])
def test_any_number_of_rows(dtype: type, rows: int) -> None:
    rng = np.random.default_rng(rows)
    depth, width = 6, lanes(dtype) * (TILE_VECTORS + 2)
    a, b = whole(rng, rows, depth, dtype=dtype), whole(rng, depth, width, dtype=dtype)
    before, scale = whole(rng, rows, width, dtype=dtype), whole(rng, rows, dtype=dtype)
    c = before.copy()
    _run_rows(rows, a.ravel(), b.ravel(), c.ravel(), depth, width, scale)
    np.testing.assert_array_equal(c, scale[:, None] * before + a @ b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dots_of_one_vector_with_as_many_rows_as_lanes(dtype: type) -> None:
    rng = np.random.default_rng(0)
    width = 3 * lanes(dtype)
    a, b = whole(rng, width, dtype=dtype), whole(rng, lanes(dtype), width, dtype=dtype)
    c = np.empty(lanes(dtype), dtype=dtype)
    _run_dots(a, b.ravel(), c, width)
    np.testing.assert_array_equal(c, b @ a)


def test_take_hands_out_each_number_once() -> None:
    counter = np.zeros(1, dtype=np.int64)
    assert [_count(counter) for _ in range(3)] == [0, 1, 2]
    assert counter[0] == 3
