import numpy as np
import pytest

from llmlab.reference.attention.block_sparse import block_sparse, fixed_layout, strided_layout, table
from llmlab.reference.attention.gqa import gqa


def drawn(T: int = 12, K: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((1, T, K, 2, 5)), rng.standard_normal((1, T, K, 5)), rng.standard_normal((1, T, K, 5))


def test_listing_every_block_is_full_attention() -> None:
    q, k, v = drawn()
    everything = np.broadcast_to(np.arange(4), (2, 4, 4))
    for causal in (True, False):
        np.testing.assert_allclose(block_sparse(q, k, v, everything, causal=causal), gqa(q, k, v, causal=causal), rtol=1e-12)


def test_the_order_of_a_list_does_not_matter() -> None:
    q, k, v = drawn()
    listed = np.broadcast_to(table(strided_layout(4, 2)), (2, 4, 3))
    np.testing.assert_allclose(block_sparse(q, k, v, listed[..., ::-1]), block_sparse(q, k, v, listed), rtol=1e-12)


def test_two_strided_steps_reach_every_earlier_block() -> None:
    """Section 4.2: with two heads, any position is at most two steps away."""
    for layout in (strided_layout(16, 4), fixed_layout(16, 4)):
        step = np.zeros((16, 16), int)
        for i, blocks in enumerate(layout):
            step[i, blocks] = 1
        assert (np.tril(np.ones((16, 16), int)) <= step @ step).all()
        assert step.sum(axis=1).max() <= 4 + 3


def test_a_row_of_about_two_roots_is_enough() -> None:
    """O(n sqrt n) in all: the longest list grows as the root of the number of blocks."""
    for blocks in (16, 64, 256):
        root = int(blocks**0.5)
        assert max(map(len, strided_layout(blocks, root))) <= 2 * root
        assert max(map(len, fixed_layout(blocks, root))) <= 2 * root


def test_decode_of_the_last_block_is_the_end_of_the_whole() -> None:
    q, k, v = drawn()
    listed = np.broadcast_to(table(fixed_layout(4, 2)), (2, 4, 3))
    np.testing.assert_allclose(block_sparse(q[:, 9:], k, v, listed[:, 3:]), block_sparse(q, k, v, listed)[:, 9:], rtol=1e-12)


def test_a_query_without_a_list_gives_zeros() -> None:
    q, k, v = drawn()
    assert not block_sparse(q, k, v, np.full((2, 4, 1), -1)).any()


def test_impossible_layouts_are_refused() -> None:
    q, k, v = drawn()
    with pytest.raises(ValueError, match=r"\[0, 0\]: not different ones of 0..3"):
        block_sparse(q, k, v, np.zeros((2, 4, 2), int))
    with pytest.raises(ValueError, match=r"\[4\]: not different ones"):
        block_sparse(q, k, v, np.full((2, 4, 1), 4))
    with pytest.raises(ValueError, match="T=12 and S=12 are not Q=5"):
        block_sparse(q, k, v, np.zeros((2, 5, 1), int))
    with pytest.raises(ValueError, match="stride=0"):
        strided_layout(4, 0)
