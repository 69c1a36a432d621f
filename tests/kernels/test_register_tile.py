"""Register tiles against NumPy's own products."""

import numpy as np
import pytest

pytest.importorskip("numba")
pytest.importorskip("ml_dtypes")

import ml_dtypes
from numba import njit

from llmlab.kernels.bfloat16 import bits, working_dtype
from llmlab.kernels.register_tile import TILE_ROWS, TILE_VECTORS, add_tiles, fill_tile, lanes, make_dots, make_streams, take

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@njit
def _run_fill(a, b, c, depth, width):  # type: ignore[no-untyped-def]
    fill_tile(a, 0, depth, 1, b, 0, width, c, 0, width, depth)


@njit
def _run_add(a, b, c, depth, width, scale):  # type: ignore[no-untyped-def]
    add_tiles(a, 0, 1, TILE_ROWS, b, 0, width, c, 0, width, depth, width, scale, 0)


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


@pytest.mark.parametrize("dtype", [np.float32, np.float64, BFLOAT16])
@pytest.mark.parametrize("sharing", [1, 2, 8])
def test_dots_of_as_many_rows_as_lanes_with_the_rows_they_share(dtype: np.dtype, sharing: int) -> None:
    dots, rng = make_dots(sharing), np.random.default_rng(sharing)

    @njit
    def run(a, b, b_rows, c, width):  # type: ignore[no-untyped-def]
        dots(a, 0, width, b, 0, b_rows, 1, width, 4096, c, 0)  # what lies ahead may be past the end

    computed = working_dtype(np.empty(0, dtype))
    lane = lanes(computed)
    shared = min(sharing, lane)
    width, order = 3 * lane, rng.permutation(5)
    a, b = whole(rng, lane, width, dtype=computed), whole(rng, 5, width, dtype=dtype)
    b_rows = np.concatenate([[99], np.resize(order, lane // shared) * width])
    c = np.full(lane, 99, dtype=computed)
    run(a.ravel(), bits(b).ravel(), b_rows, c, width)
    expected = [a[j] @ b[np.resize(order, lane // shared)[j // shared]].astype(computed) for j in range(lane)]
    np.testing.assert_array_equal(c, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, BFLOAT16])
@pytest.mark.parametrize(("sharing", "streams"), [(1, 1), (1, 4), (4, 1), (8, 4)])
def test_streams_add_rows_of_memory_to_rows_that_share_them(dtype: np.dtype, sharing: int, streams: int) -> None:
    add, rng = make_streams(sharing, streams), np.random.default_rng(sharing)

    @njit
    def run(a, b, c, width):  # type: ignore[no-untyped-def]
        add(a, 0, sharing, b, 0, width, width, 4096, c, 0, width)

    computed = working_dtype(np.empty(0, dtype))
    width = 3 * lanes(computed)
    a, b = whole(rng, streams, sharing, dtype=computed), whole(rng, streams, width, dtype=dtype)
    before = whole(rng, sharing, width, dtype=computed)
    c = before.copy()
    run(a.ravel(), bits(b).ravel(), c.ravel(), width)
    np.testing.assert_array_equal(c, before + a.T @ b.astype(computed))


def test_take_hands_out_each_number_once() -> None:
    counter = np.zeros(1, dtype=np.int64)
    assert [_count(counter) for _ in range(3)] == [0, 1, 2]
    assert counter[0] == 3
