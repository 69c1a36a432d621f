import numpy as np
import pytest

from llmlab.reference.attention.gqa import gqa
from llmlab.reference.attention.paged import paged


def drawn(tokens: int, pages: int = 9, page: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    pool = rng.standard_normal((2, pages, page, 2, 4))
    return rng.standard_normal((tokens, 2, 3, 4)), pool[0], pool[1]


TABLE = np.array([[4, 1, 7], [0, 8, 2]])
CONTEXT = np.array([7, 4])


def test_the_order_of_pages_in_the_pool_does_not_matter() -> None:
    q, k, v = drawn(2)
    moved = np.random.default_rng(1).permutation(9)
    new_place = np.argsort(moved)
    starts = np.array([0, 1, 2])
    np.testing.assert_array_equal(
        paged(q, k[moved], v[moved], new_place[TABLE], starts, CONTEXT), paged(q, k, v, TABLE, starts, CONTEXT)
    )


@pytest.mark.parametrize("new", [1, 3, 7])
def test_paging_equals_a_contiguous_cache(new: int) -> None:
    q, k, v = drawn(new)
    flat_k, flat_v = (pool[TABLE[0]].reshape(1, 9, 2, 4)[:, :7] for pool in (k, v))
    out = paged(q, k, v, TABLE[:1], np.array([0, new]), CONTEXT[:1])
    np.testing.assert_allclose(out, gqa(q[None], flat_k, flat_v)[0], rtol=1e-12)


def test_a_page_size_of_one_token_changes_nothing() -> None:
    q, k, v = drawn(2)
    tokens = (TABLE[:, :, None] * 3 + np.arange(3)).reshape(2, 9)
    starts = np.array([0, 1, 2])
    single = paged(q, k.reshape(27, 1, 2, 4), v.reshape(27, 1, 2, 4), tokens, starts, CONTEXT)
    np.testing.assert_allclose(single, paged(q, k, v, TABLE, starts, CONTEXT), rtol=1e-12)


def test_mixing_prefill_and_decode_in_one_batch_equals_running_them_apart() -> None:
    q, k, v = drawn(5)
    mixed = paged(q, k, v, TABLE, np.array([0, 4, 5]), CONTEXT)
    chunk = paged(q[:4], k, v, TABLE[:1], np.array([0, 4]), CONTEXT[:1])
    decode = paged(q[4:], k, v, TABLE[1:], np.array([0, 1]), CONTEXT[1:])
    np.testing.assert_allclose(mixed, np.concatenate([chunk, decode]), rtol=1e-12)


def test_what_lies_past_the_context_does_not_matter() -> None:
    q, k, v = drawn(2)
    starts = np.array([0, 1, 2])
    other_k, other_v, other_table = k.copy(), v.copy(), TABLE.copy()
    other_k[7, 1:], other_v[7, 1:] = np.nan, np.nan  # request 0 fills one token of its third page
    other_table[1, 2] = -1  # request 1 does not reach its third page
    np.testing.assert_array_equal(
        paged(q, other_k, other_v, other_table, starts, CONTEXT), paged(q, k, v, TABLE, starts, CONTEXT)
    )


def test_requests_may_share_pages() -> None:
    q, k, v = drawn(2)
    table = np.array([[4, 1, 7], [4, 1, 7]])
    out = paged(np.stack([q[0], q[0]]), k, v, table, np.array([0, 1, 2]), np.array([7, 7]))
    np.testing.assert_array_equal(out[0], out[1])


def test_padding_tokens_and_empty_contexts_give_zeros() -> None:
    q, k, v = drawn(4)
    out = paged(q, k, v, TABLE, np.array([0, 1, 2]), np.array([0, 4]))
    np.testing.assert_array_equal(out[[0, 2, 3]], 0.0)
    assert np.abs(out[1]).max() > 0


@pytest.mark.parametrize(
    ("table", "context", "why"),
    [(TABLE, [10, 4], "between 0 and 3 pages"), (TABLE, [-1, 4], "between 0"), (TABLE + 5, [7, 4], "pool of 9")],
)
def test_tables_that_do_not_fit_are_refused(table: np.ndarray, context: list[int], why: str) -> None:
    q, k, v = drawn(2)
    with pytest.raises(ValueError, match=why):
        paged(q, k, v, table, np.array([0, 1, 2]), np.array(context))
