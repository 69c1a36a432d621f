import numpy as np
import pytest

from llmlab.reference.attention.flash_decoding import flash_decoding
from llmlab.reference.attention.gqa import gqa


def drawn(S: int = 11) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, 2, 3, 4)), rng.standard_normal((2, S, 2, 4)), rng.standard_normal((2, S, 2, 4))


@pytest.mark.parametrize("splits", [1, 2, 5, 11, 40])
def test_splitting_does_not_change_the_result(splits: int) -> None:
    q, k, v = drawn()
    np.testing.assert_allclose(flash_decoding(q, k, v, splits=splits), flash_decoding(q, k, v, splits=1), rtol=1e-12)


def test_is_a_decode_step_of_grouped_attention() -> None:
    q, k, v = drawn()
    np.testing.assert_allclose(flash_decoding(q, k, v), gqa(q[:, None], k, v)[:, 0], rtol=1e-12)


def test_a_part_that_dominates_takes_the_whole_weight() -> None:
    q, k, v = drawn()
    k[:, 7] = 1e4 * q.mean(axis=2)
    q = np.repeat(q.mean(axis=2, keepdims=True), 3, axis=2)
    np.testing.assert_allclose(flash_decoding(q, k, v, splits=4), np.repeat(v[:, 7, :, None], 3, axis=2), rtol=1e-12)


def test_no_keys_give_zeros() -> None:
    np.testing.assert_array_equal(flash_decoding(*drawn(S=0)), 0.0)


def test_no_splits_are_refused() -> None:
    with pytest.raises(ValueError, match="splits=0"):
        flash_decoding(*drawn(), splits=0)
