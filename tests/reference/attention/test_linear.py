import numpy as np
import pytest

from llmlab.reference.attention.linear import LINEAR, feature, linear, linear_cost, linear_in_chunks, linear_in_chunks_cost


def drawn(T: int = 13) -> list[np.ndarray]:
    return list(LINEAR.make_inputs({"B": 2, "T": T, "N": 3, "M": 5, "H": 4}, np.random.default_rng(0)).values())


@pytest.mark.parametrize("chunk", [1, 2, 5, 13, 64])
def test_chunks_give_what_the_recurrence_gives(chunk: int) -> None:
    for ours, theirs in zip(linear_in_chunks(*drawn(), chunk=chunk), linear(*drawn()), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)


def test_equals_attention_whose_weights_are_products_of_features() -> None:
    q, k, v, state, total = drawn()
    scores = np.tril(np.einsum("btnm,bsnm->bnts", feature(q), feature(k)))
    expected = np.einsum("bnts,bsnh->btnh", scores / scores.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(linear(q, k, v, state * 0, total * 0)[0], expected, rtol=1e-10)


def test_two_halves_joined_by_their_state_are_the_whole() -> None:
    q, k, v, state, total = drawn()
    whole = linear(q, k, v, state, total)
    first = linear(q[:, :6], k[:, :6], v[:, :6], state, total)
    second = linear(q[:, 6:], k[:, 6:], v[:, 6:], *first[1:])
    np.testing.assert_allclose(np.concatenate([first[0], second[0]], axis=1), whole[0], rtol=1e-12)
    np.testing.assert_allclose(second[1], whole[1], rtol=1e-12)


def test_equal_values_come_out_unchanged_because_weights_sum_to_one() -> None:
    q, k, v, state, total = drawn()
    out, _, _ = linear(q, k, np.full_like(v, 3.0), state * 0, total * 0)
    np.testing.assert_allclose(out, 3.0, rtol=1e-12)


def test_feature_map_is_positive_and_smooth_at_zero() -> None:
    x = np.array([-30.0, -1e-9, 0.0, 1e-9, 30.0])
    assert (feature(x) > 0).all()
    np.testing.assert_allclose(feature(x)[1:4], 1.0, atol=2e-9)


def test_a_step_costs_the_same_however_long_the_past_and_chunks_cost_more() -> None:
    d = {"B": 2, "T": 100, "N": 3, "M": 8, "H": 16}
    assert linear_cost(d).flops == 100 * linear_cost({**d, "T": 1}).flops
    assert linear_in_chunks_cost(d, chunk=32).flops > linear_cost(d).flops
    assert linear_in_chunks_cost(d, chunk=32).elements_read == linear_cost(d).elements_read


def test_lengths_that_differ_are_refused() -> None:
    q, k, v, state, total = drawn()
    with pytest.raises(ValueError, match="k T=12"):
        linear(q, k[:, 1:], v, state, total)
    with pytest.raises(ValueError, match="chunk=0"):
        linear_in_chunks(q, k, v, state, total, chunk=0)
