import numpy as np
import pytest

from llmlab.reference.attention.gqa import gqa, gqa_backward, gqa_cost


def drawn(T: int = 4, S: int = 6, K: int = 2, G: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, T, K, G, 5)), rng.standard_normal((2, S, K, 5)), rng.standard_normal((2, S, K, 5))


def test_sharing_keys_equals_repeating_them() -> None:
    q, k, v = drawn()
    heads = q.reshape(2, 4, 6, 1, 5)
    repeated = gqa(heads, np.repeat(k, 3, axis=2), np.repeat(v, 3, axis=2))
    np.testing.assert_allclose(gqa(q, k, v), repeated.reshape(q.shape), rtol=1e-12)


def test_gradient_of_a_shared_key_is_the_sum_over_its_copies() -> None:
    q, k, v = drawn()
    dout = np.random.default_rng(1).standard_normal(q.shape)
    _, dk, dv = gqa_backward(dout, q, k, v)
    _, dk_copies, dv_copies = gqa_backward(
        dout.reshape(2, 4, 6, 1, 5), q.reshape(2, 4, 6, 1, 5), np.repeat(k, 3, axis=2), np.repeat(v, 3, axis=2)
    )
    np.testing.assert_allclose(dk, dk_copies.reshape(2, 6, 2, 3, 5).sum(axis=3), rtol=1e-10)
    np.testing.assert_allclose(dv, dv_copies.reshape(2, 6, 2, 3, 5).sum(axis=3), rtol=1e-10)


def test_decode_steps_give_the_rows_of_prefill() -> None:
    q, k, v = drawn(T=6)
    steps = [gqa(q[:, t : t + 1], k[:, : t + 1], v[:, : t + 1]) for t in range(6)]
    np.testing.assert_allclose(np.concatenate(steps, axis=1), gqa(q, k, v), rtol=1e-12)


def test_the_future_does_not_matter() -> None:
    q, k, v = drawn(T=6)
    changed_k, changed_v = k.copy(), v.copy()
    changed_k[:, 4:], changed_v[:, 4:] = 9.0, -9.0
    np.testing.assert_array_equal(gqa(q, changed_k, changed_v)[:, :4], gqa(q, k, v)[:, :4])


def test_more_queries_than_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="T=7 > S=6"):
        gqa(*drawn(T=7))


def test_cost_counts_exactly_the_seen_pairs() -> None:
    d = {"B": 2, "T": 3, "S": 5, "K": 2, "G": 2, "H": 7}
    pairs = sum(5 - 3 + t + 1 for t in range(3))
    assert gqa_cost(d).flops == 2 * 2 * 2 * 2 * 2 * pairs * 7
    assert gqa_cost(d, causal=False).flops == 2 * 2 * 2 * 2 * 2 * 15 * 7
