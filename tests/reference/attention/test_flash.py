import numpy as np
import pytest

from llmlab.reference.attention.flash import flash, flash_backward
from llmlab.reference.attention.gqa import gqa, gqa_backward


def drawn(T: int = 5, S: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, T, 2, 3, 4)), rng.standard_normal((2, S, 2, 4)), rng.standard_normal((2, S, 2, 4))


@pytest.mark.parametrize("block", [1, 2, 4, 9, 64])
@pytest.mark.parametrize("causal", [True, False])
def test_tiles_give_what_the_whole_score_matrix_gives(block: int, causal: bool) -> None:
    q, k, v = drawn()
    out, _ = flash(q, k, v, causal=causal, block=block)
    np.testing.assert_allclose(out, gqa(q, k, v, causal=causal), rtol=1e-12)


def test_lse_turns_scores_into_weights_that_sum_to_one() -> None:
    q, k, v = drawn()
    _, lse = flash(q, k, v, causal=False, block=2)
    scores = np.einsum("btkgh,bskh->btkgs", q, k) / 2
    np.testing.assert_allclose(np.exp(scores - lse[..., None]).sum(-1), 1.0, rtol=1e-12)


@pytest.mark.parametrize("block", [1, 4, 64])
def test_backward_without_a_gradient_of_lse_is_that_of_plain_attention(block: int) -> None:
    q, k, v = drawn()
    dout = np.random.default_rng(1).standard_normal(q.shape)
    tiled = flash_backward(dout, np.zeros(q.shape[:-1]), q, k, v, block=block)
    for ours, plain in zip(tiled, gqa_backward(dout, q, k, v), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-9, atol=1e-12)


def test_halves_merge_by_their_lse() -> None:
    q, k, v = drawn()
    whole, lse = flash(q, k, v, causal=False)
    halves = [flash(q, k[:, part], v[:, part], causal=False) for part in (slice(0, 4), slice(4, 9))]
    merged = sum(out * np.exp(part_lse - lse)[..., None] for out, part_lse in halves)
    np.testing.assert_allclose(merged, whole, rtol=1e-12)
    np.testing.assert_allclose(np.logaddexp(halves[0][1], halves[1][1]), lse, rtol=1e-12)


def test_large_scores_do_not_overflow() -> None:
    q, k, v = drawn()
    out, lse = flash(q * 1e4, k, v, block=2)
    assert np.isfinite(out).all()
    assert np.isfinite(lse).all()


def test_scores_of_minus_infinity_everywhere_give_zeros() -> None:
    q, k, v = np.full((1, 1, 1, 1, 1), np.inf), -np.ones((1, 3, 1, 1)), np.ones((1, 3, 1, 1))
    out, lse = flash(q, k, v, block=2)
    assert out.item() == 0.0
    assert lse.item() == -np.inf


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="T=6 > S=5"):
        flash(*drawn(T=6, S=5))
    with pytest.raises(ValueError, match="block=0"):
        flash(*drawn(), block=0)
