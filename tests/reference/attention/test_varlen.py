import numpy as np
import pytest

from llmlab.reference.attention.gqa import gqa
from llmlab.reference.attention.varlen import varlen, varlen_backward

STARTS = np.array([0, 3, 3, 4, 9])


def drawn(queries: int = 9, keys: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((queries, 2, 3, 4)), rng.standard_normal((keys, 2, 4)), rng.standard_normal((keys, 2, 4))


@pytest.mark.parametrize("causal", [True, False])
def test_packing_equals_one_sequence_at_a_time(causal: bool) -> None:
    q, k, v = drawn()
    alone = [gqa(q[None, a:b], k[None, a:b], v[None, a:b], causal=causal)[0] for a, b in ((0, 3), (3, 4), (4, 9))]
    np.testing.assert_allclose(varlen(q, k, v, STARTS, STARTS, causal=causal), np.concatenate(alone), rtol=1e-12)


def test_sequences_do_not_see_each_other() -> None:
    q, k, v = drawn()
    other_k, other_v = k.copy(), v.copy()
    other_k[4:], other_v[4:] = 7.0, 7.0
    np.testing.assert_array_equal(varlen(q, other_k, other_v, STARTS, STARTS)[:4], varlen(q, k, v, STARTS, STARTS)[:4])


def test_empty_sequences_change_nothing() -> None:
    q, k, v = drawn()
    without = np.array([0, 3, 4, 9])
    np.testing.assert_array_equal(varlen(q, k, v, STARTS, STARTS), varlen(q, k, v, without, without))


def test_one_sequence_is_grouped_attention_with_its_context() -> None:
    q, k, v = drawn(queries=2)
    np.testing.assert_allclose(varlen(q, k, v, np.array([0, 2]), np.array([0, 9])), gqa(q[None], k[None], v[None])[0])


def test_queries_without_keys_give_zeros_and_no_gradient() -> None:
    q, k, v = drawn(queries=5)
    queries, keys = np.array([0, 2, 4]), np.array([0, 0, 1])  # no keys at all; one query before position 0; one padding token
    out = varlen(q, k, v, queries, keys)
    np.testing.assert_array_equal(out[[0, 1, 2, 4]], 0.0)
    np.testing.assert_allclose(out[3], np.repeat(v[0, :, None], 3, axis=1))
    dq, dk, dv, *_ = varlen_backward(np.ones_like(q), q, k, v, queries, keys)
    assert np.isfinite(dq).all()
    np.testing.assert_array_equal(dk[1:], 0.0)
    np.testing.assert_array_equal(dv[1:], 0.0)


@pytest.mark.parametrize("starts", [[1, 9], [0, 5, 3], [0, 10], []])
def test_boundaries_that_are_none_are_refused(starts: list[int]) -> None:
    with pytest.raises(ValueError, match="must rise from 0 to at most 9"):
        varlen(*drawn(), np.array(starts, dtype=int), STARTS)


def test_unequal_numbers_of_sequences_are_refused() -> None:
    with pytest.raises(ValueError, match="4 sequences of queries, 1 of keys"):
        varlen(*drawn(), STARTS, np.array([0, 9]))
