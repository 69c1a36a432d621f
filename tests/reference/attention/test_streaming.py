import numpy as np
import pytest

from llmlab.reference.attention.gqa import gqa
from llmlab.reference.attention.streaming import STREAMING, cache_positions, slots_of, streaming, streaming_cost
from llmlab.reference.positions.rope import rope


def written(text: np.ndarray, seen: int, C: int, sinks: int) -> np.ndarray:
    """The cache after writing the first `seen` tokens one after the other."""
    cache = np.zeros((1, C, *text.shape[2:]))
    for p in range(seen):
        cache[:, slots_of(np.array(p), C, sinks)] = text[:, p]
    return cache


def drawn(T: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((1, 2, 3, 4)), rng.standard_normal((1, T, 2, 4)), rng.standard_normal((1, T, 2, 4))


@pytest.mark.parametrize("seen", [1, 3, 8])
def test_until_the_cache_is_full_it_is_plain_causal_attention(seen: int) -> None:
    q, k, v = drawn()
    out = streaming(q, written(k, seen, 8, 2), written(v, seen, 8, 2), np.array([seen]), sinks=2)
    where = np.arange(seen)[None]
    rotated = rope(q.reshape(1, 1, 6, 4), where[:, -1:]).reshape(1, 1, 2, 3, 4)
    np.testing.assert_allclose(out, gqa(rotated, rope(k[:, :seen], where), v[:, :seen])[:, 0], rtol=1e-12)


@pytest.mark.parametrize("seen", [9, 13, 14, 20])
def test_a_full_cache_is_attention_to_the_sinks_and_the_last_tokens_at_positions_without_a_gap(seen: int) -> None:
    q, k, v = drawn()
    kept = [0, 1, *range(seen - 6, seen)]
    out = streaming(q, written(k, seen, 8, 2), written(v, seen, 8, 2), np.array([seen]), sinks=2)
    where = np.arange(8)[None]
    rotated = rope(q.reshape(1, 1, 6, 4), where[:, -1:]).reshape(1, 1, 2, 3, 4)
    np.testing.assert_allclose(out, gqa(rotated, rope(k[:, kept], where), v[:, kept])[:, 0], rtol=1e-12)


def test_positions_within_the_cache_are_a_permutation_that_keeps_the_sinks_first() -> None:
    for seen in range(8, 40):
        place_BC, filled_BC = cache_positions(np.array([seen]), 8, 3)
        assert filled_BC.all()
        assert sorted(place_BC[0]) == list(range(8))
        assert list(place_BC[0, :3]) == [0, 1, 2]
        assert place_BC[0, slots_of(np.array(seen - 1), 8, 3)] == 7


def test_once_around_the_cache_with_the_same_contents_changes_nothing() -> None:
    q, k, v = drawn(8)
    np.testing.assert_array_equal(
        streaming(q, k, v, np.array([10]), sinks=2), streaming(q, k, v, np.array([10 + 6 * 100000]), sinks=2)
    )


def test_a_step_costs_the_same_however_long_the_text() -> None:
    d = STREAMING.complete({"B": 1, "C": 8, "K": 2, "G": 3, "R": 2})
    assert streaming_cost(d).flops == 4 * (4 * 6 * 8 + 3 * (6 + 16))


def test_a_cache_that_cannot_roll_is_refused() -> None:
    q, k, v = drawn(4)
    with pytest.raises(ValueError, match="sinks=4"):
        streaming(q, k, v, np.array([2]))
    with pytest.raises(ValueError, match="seen=0"):
        streaming(q, k, v, np.array([0]), sinks=1)
