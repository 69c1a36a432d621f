import numpy as np
import pytest

from llmlab.reference.attention.gqa import gqa
from llmlab.reference.attention.mha import mha, mha_backward


def drawn(seed: int = 0, T: int = 5, S: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, T, 3, 4)), rng.standard_normal((2, S, 3, 4)), rng.standard_normal((2, S, 3, 4))


def test_is_grouped_attention_with_one_query_head_per_key_head() -> None:
    q, k, v = drawn()
    np.testing.assert_allclose(mha(q, k, v, causal=True), gqa(q[:, :, :, None], k, v)[:, :, :, 0], rtol=1e-12)


def test_a_hidden_key_is_as_good_as_absent() -> None:
    q, k, v = drawn(T=3)
    keep = np.ones((2, 5), dtype=bool)
    keep[:, [1, 4]] = False
    np.testing.assert_allclose(mha(q, k, v, keep), mha(q, k[:, [0, 2, 3]], v[:, [0, 2, 3]]), rtol=1e-12)


def test_padding_mask_equals_additive_minus_infinity() -> None:
    q, k, v = drawn()
    keep = np.array([True, False, True, True, False])
    bias = np.broadcast_to(np.where(keep, 0.0, -np.inf), (3, 5, 5))
    np.testing.assert_allclose(mha(q, k, v, np.stack([keep, keep])), mha(q, k, v, None, bias), rtol=1e-12)


def test_causal_equals_a_triangular_additive_mask() -> None:
    q, k, v = drawn()
    triangle = np.where(np.tril(np.ones((5, 5), dtype=bool)), 0.0, -np.inf)
    np.testing.assert_allclose(mha(q, k, v, causal=True), mha(q, k, v, None, np.stack([triangle] * 3)), rtol=1e-12)


def test_a_constant_added_to_a_row_of_scores_changes_nothing() -> None:
    q, k, v = drawn()
    bias = np.random.default_rng(1).standard_normal((3, 5, 5))
    np.testing.assert_allclose(mha(q, k, v, None, bias + 7.0), mha(q, k, v, None, bias), rtol=1e-12)


def test_a_query_that_sees_nothing_gives_zeros_and_no_gradient() -> None:
    q, k, v = drawn()
    keep = np.zeros((2, 5), dtype=bool)
    keep[1] = True
    np.testing.assert_array_equal(mha(q, k, v, keep)[0], 0.0)
    dq, dk, dv, none, dbias = mha_backward(np.ones_like(q), q, k, v, keep, np.zeros((3, 5, 5)))
    assert none is None
    assert dbias is not None
    for gradient in (dq, dk, dv):
        np.testing.assert_array_equal(gradient[0], 0.0)


def test_self_attention_does_not_depend_on_the_order_of_the_keys() -> None:
    q, k, v = drawn(T=2, S=7)
    order = np.random.default_rng(3).permutation(7)
    np.testing.assert_allclose(mha(q, k[:, order], v[:, order]), mha(q, k, v), rtol=1e-12)


def test_more_queries_than_keys_is_refused_when_causal_and_fine_across() -> None:
    q, k, v = drawn(T=6, S=5)
    with pytest.raises(ValueError, match="T=6 > S=5"):
        mha(q, k, v, causal=True)
    assert mha(q, k, v).shape == q.shape
