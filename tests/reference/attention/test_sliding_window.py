import numpy as np
import pytest

from llmlab.reference.attention._masked import causal_TS, window_pairs
from llmlab.reference.attention.gqa import gqa
from llmlab.reference.attention.sliding_window import sliding_window, sliding_window_cost


def drawn(T: int = 6, S: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, T, 2, 2, 3)), rng.standard_normal((2, S, 2, 3)), rng.standard_normal((2, S, 2, 3))


@pytest.mark.parametrize("window", [6, 7, 1000])
def test_a_window_that_holds_everything_is_full_attention(window: int) -> None:
    q, k, v = drawn()
    np.testing.assert_allclose(sliding_window(q, k, v, window=window), gqa(q, k, v), rtol=1e-12)


def test_a_window_of_one_copies_the_own_value() -> None:
    q, k, v = drawn()
    np.testing.assert_allclose(sliding_window(q, k, v, window=1), np.repeat(v[:, :, :, None], 2, axis=3), rtol=1e-12)


def test_keys_that_left_the_window_do_not_matter() -> None:
    q, k, v = drawn()
    changed_k, changed_v = k.copy(), v.copy()
    changed_k[:, :3], changed_v[:, :3] = 50.0, 50.0
    np.testing.assert_array_equal(
        sliding_window(q, changed_k, changed_v, window=3)[:, 5:], sliding_window(q, k, v, window=3)[:, 5:]
    )


def test_a_rolling_cache_of_the_window_is_enough_to_decode() -> None:
    q, k, v = drawn()
    whole = sliding_window(q, k, v, window=4)
    step = sliding_window(q[:, 5:], k[:, 2:], v[:, 2:], window=4)
    np.testing.assert_allclose(step, whole[:, 5:], rtol=1e-12)


@pytest.mark.parametrize(("T", "S", "window"), [(1, 1, 1), (4, 9, 3), (9, 9, 4), (5, 9, 100), (3, 9, 7)])
def test_pairs_are_counted_as_the_mask_has_them(T: int, S: int, window: int) -> None:
    assert window_pairs(T, S, window) == causal_TS(T, S, window=window).sum()


def test_cost_stops_growing_with_the_context_once_the_window_is_full() -> None:
    d = {"B": 1, "T": 1, "S": 2048, "K": 1, "G": 1, "H": 8}
    assert sliding_window_cost(d) == sliding_window_cost({**d, "S": 65536})


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValueError, match="window=0"):
        sliding_window(*drawn(), window=0)
