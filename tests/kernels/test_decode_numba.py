"""Decoding in place equals the reference, whatever the pages' order, and a window hides what lies before it."""

import numpy as np
import pytest

from llmlab.kernels.models._decode_numba import decode_attention
from llmlab.reference.attention.paged import paged


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_request_attends_to_its_own_pages(dtype: type, seed: int) -> None:
    rng = np.random.default_rng(seed)
    R, K, G, H, C, M = (int(rng.integers(1, high)) for high in (5, 4, 4, 20, 6, 5))
    q_RKGH = rng.standard_normal((R, K, G, H)).astype(dtype)
    k_PCKH, v_PCKH = rng.standard_normal((2, R * M + 1, C, K, H)).astype(dtype)
    table_RM = rng.permutation(R * M + 1)[: R * M].reshape(R, M)
    context_R = rng.integers(1, M * C + 1, R)
    out_RKGH = np.empty_like(q_RKGH)
    decode_attention(q_RKGH, k_PCKH, v_PCKH, table_RM, context_R, 0, out_RKGH)
    wide = [x.astype(np.float64) for x in (q_RKGH, k_PCKH, v_PCKH)]
    exact_RKGH = paged(*wide, table_RM, np.arange(R + 1), context_R)
    assert np.abs(out_RKGH - exact_RKGH).max() <= 64 * np.finfo(dtype).eps * np.abs(exact_RKGH).max()


def test_a_window_hides_what_lies_before_it() -> None:
    rng = np.random.default_rng(0)
    q_RKGH = rng.standard_normal((2, 1, 2, 8))
    k_PCKH, v_PCKH = rng.standard_normal((2, 8, 3, 1, 8))
    table_RM, context_R = np.arange(8).reshape(2, 4), np.array([11, 2])
    narrow_RKGH, moved_RKGH = np.empty_like(q_RKGH), np.empty_like(q_RKGH)
    decode_attention(q_RKGH, k_PCKH, v_PCKH, table_RM, context_R, 5, narrow_RKGH)
    k_PCKH[:2] += 100.0  # positions 0 to 5 of the first request; its window begins at 6
    decode_attention(q_RKGH, k_PCKH, v_PCKH, table_RM, context_R, 5, moved_RKGH)
    assert narrow_RKGH.tobytes() == moved_RKGH.tobytes()
    decode_attention(q_RKGH, k_PCKH, v_PCKH, table_RM, context_R, 0, moved_RKGH)
    assert narrow_RKGH[1].tobytes() == moved_RKGH[1].tobytes()
    assert narrow_RKGH[0].tobytes() != moved_RKGH[0].tobytes()
