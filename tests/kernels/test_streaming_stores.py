"""Stores past the caches: the same bytes as ordinary ones, in every kernel that has both ways."""

import platform
import re

import numpy as np
import pytest

pytest.importorskip("numba")

from numba import njit

from llmlab.kernels import streaming_stores
from llmlab.kernels.layers import cross_entropy_numba
from llmlab.kernels.layers.layer_norm_numba import layer_norm
from llmlab.kernels.layers.rms_norm_numba import rms_norm
from llmlab.kernels.streaming_stores import LINE_BYTES, STRIP, output_like, settle, stream

on_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="needs an x86 processor")


@njit
def _copy(source, target):  # type: ignore[no-untyped-def]
    stream(source, target, source)
    settle()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0, 1, 5, 15])
@pytest.mark.parametrize("size", [0, 1, 3, 16, 17, 63, 200])
def test_a_streamed_row_is_copied_whole_and_its_neighbours_stay(dtype: type, offset: int, size: int) -> None:
    source = np.arange(1, size + 1, dtype=dtype)
    whole = np.zeros(size + offset + 16, dtype)
    _copy(source, whole[offset : offset + size])
    np.testing.assert_array_equal(whole, np.concatenate([np.zeros(offset), source, np.zeros(16)]))


@on_x86
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lines_are_written_by_non_temporal_stores_and_fenced(dtype: type) -> None:
    _copy(np.ones(64, dtype), np.empty(64, dtype))
    assembly = "\n".join(_copy.inspect_asm().values())
    assert re.search(r"movnt(p[sd]|dq)\s", assembly)
    assert "sfence" in assembly


def test_an_output_is_streamed_from_the_size_of_the_last_cache_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming_stores, "STREAMED_FROM", 4096)
    assert [output_like(np.empty(size, np.float32))[1] for size in (1023, 1024)] == [False, True]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_output_that_is_streamed_starts_at_a_line(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming_stores, "STREAMED_FROM", 0)
    outputs = [output_like(np.empty((size, 5), dtype))[0] for size in range(1, 9)]
    assert [(out.shape, out.dtype, out.ctypes.data % LINE_BYTES) for out in outputs] == [
        ((size, 5), dtype, 0) for size in range(1, 9)
    ]


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


LONG = 2 * STRIP + 37  # whole strips, and rows that start inside a line
CALLS = {
    "rms_norm": lambda x_BTD: rms_norm(x_BTD, x_BTD[0, 0] + 1),
    "layer_norm": lambda x_BTD: layer_norm(x_BTD, x_BTD[0, 0] + 1, x_BTD[0, 1]),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CALLS)
def test_streaming_changes_no_bit_of_a_kernel(name: str, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    x = _normal(2, 5, LONG).astype(dtype)
    monkeypatch.setattr(streaming_stores, "STREAMED_FROM", x.nbytes * 1000)
    stored = CALLS[name](x)
    monkeypatch.setattr(streaming_stores, "STREAMED_FROM", 0)
    streamed = CALLS[name](x)
    np.testing.assert_array_equal(streamed, stored)


def test_streaming_nothing_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming_stores, "STREAMED_FROM", 0)
    empty, one = np.empty((2, 0, 7), np.float32), np.ones(7, np.float32)
    for out in (rms_norm(empty, one), layer_norm(empty, one, one)):
        assert out.size == 0


@on_x86
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_exponentials_of_cross_entropy_are_vector_code(dtype: type) -> None:
    cross_entropy_numba._sum_exp(np.zeros(8, dtype), dtype(0))
    assembly = "\n".join(cross_entropy_numba._sum_exp.inspect_asm().values())
    assert re.search(rf"mul\w*p{'s' if dtype is np.float32 else 'd'}\s", assembly)
    assert not re.search(r"call\w*\s+.*exp", assembly)
