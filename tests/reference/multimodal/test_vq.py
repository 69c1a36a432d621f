"""What only vector quantization has."""

from itertools import pairwise, product

import numpy as np
import pytest

from llmlab.reference.multimodal.vq import dequantized, losses, moved_codes, vq

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 5, 3))


def test_a_code_stands_for_itself() -> None:
    codes = RNG.standard_normal((1, 6, 3))
    ids, near = vq(codes[:, 1:4], codes)
    assert ids[..., 0].tolist() == [[1, 2, 3]]
    np.testing.assert_array_equal(near, codes[:, 1:4])


def test_no_other_code_is_nearer() -> None:
    codes = RNG.standard_normal((1, 7, 3))
    _, near = vq(X, codes)
    for code in codes[0]:
        assert (np.linalg.norm(X - near, axis=-1) <= np.linalg.norm(X - code, axis=-1) + 1e-12).all()


def test_more_codebooks_with_a_zero_code_never_take_you_further_away() -> None:
    codes = RNG.standard_normal((4, 7, 3)) * (0.6 ** np.arange(4))[:, None, None]
    codes[:, 0] = 0  # "leave it" is always a choice
    ids, _ = vq(X, codes)
    away = [np.linalg.norm(X - dequantized(ids[..., :q], codes[:q]), axis=-1) for q in range(1, 5)]
    for before, after in pairwise(away):
        assert (after <= before + 1e-12).all()


def test_greedy_choice_is_not_the_best_pair_of_codes_but_its_first_is_the_best_single() -> None:
    codes = RNG.standard_normal((2, 5, 3))
    _, near = vq(X, codes)
    best = np.stack([codes[0][a] + codes[1][b] for a, b in product(range(5), range(5))])
    greedy = np.linalg.norm(X - near, axis=-1)
    optimum = np.linalg.norm(X[..., None, :] - best, axis=-1).min(-1)
    assert (greedy >= optimum - 1e-12).all()
    assert (greedy > optimum + 1e-6).any()


def test_equally_near_codes_give_the_lower_id() -> None:
    assert vq(np.zeros((1, 1, 1)), np.array([[[1.0], [-1.0]]]))[0].item() == 0


def test_losses_and_their_gradients_are_what_autograd_gives() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    x, e = (torch.from_numpy(a.copy()).requires_grad_() for a in (X, RNG.standard_normal(X.shape)))
    loss = ((x.detach() - e) ** 2).mean() + 0.25 * ((x - e.detach()) ** 2).mean()
    loss.backward()
    ours = losses(X, e.detach().numpy())
    assert ours[0] == pytest.approx(loss.item())
    np.testing.assert_allclose(ours[1], x.grad.numpy(), rtol=1e-12)
    np.testing.assert_allclose(ours[2], e.grad.numpy(), rtol=1e-12)


def test_codes_move_to_the_mean_of_what_chose_them() -> None:
    codes = RNG.standard_normal((1, 4, 3))
    ids = vq(X, codes)[0][..., 0]
    moved, count, _ = moved_codes(codes[0], np.zeros(4), np.zeros((4, 3)), X, ids, decay=0.0)
    for c in range(4):
        expected = X[ids == c].mean(0) if (ids == c).any() else codes[0, c]
        np.testing.assert_allclose(moved[c], expected, rtol=1e-12)
    assert count.sum() == ids.size


def test_lloyds_steps_never_raise_the_error() -> None:
    codes, errors = RNG.standard_normal((5, 3)), []
    for _ in range(6):
        ids, near = vq(X, codes[None])
        errors.append(np.sum((X - near) ** 2))
        codes, _, _ = moved_codes(codes, np.zeros(5), np.zeros((5, 3)), X, ids[..., 0], decay=0.0)
    assert errors == sorted(errors, reverse=True)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="width 3, codes of width 2"):
        vq(X, np.zeros((1, 4, 2)))
    with pytest.raises(ValueError, match="0 codebooks"):
        vq(X, np.zeros((0, 4, 3)))
