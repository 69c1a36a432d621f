import warnings
from collections.abc import Callable

import numpy as np
import pytest

from llmlab.reference.attention.gqa import gqa
from llmlab.reference.attention.performer import features, orthogonal_projection, performer


def drawn(T: int = 6, H: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((3, 1, T, 2, H)))  # type: ignore[return-value]


def test_features_estimate_the_softmax_kernel_without_bias() -> None:
    """Lemma 1: E phi(x) . phi(y) = exp(x . y / sqrt(H)); the error falls with the root of the number of features."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 1, 1, 1, 4)) / 2
    exact = np.exp(np.sum(x * y) / 2)
    projection = rng.standard_normal((200_000, 4))

    def unscaled(z: np.ndarray) -> np.ndarray:
        scaled = z.ravel() * 4**-0.25
        return np.exp(projection @ scaled - scaled @ scaled / 2)

    estimates = unscaled(x) * unscaled(y)
    assert abs(estimates.mean() - exact) < 4 * estimates.std() / len(estimates) ** 0.5
    phi = features(x, projection) * np.exp(np.max(projection @ (x.ravel() * 4**-0.25)))
    np.testing.assert_allclose(phi.ravel() * len(projection) ** 0.5, unscaled(x), rtol=1e-9)


def mean_error(draw: Callable[[int, int], np.ndarray], M: int) -> float:
    q, k, v = (x / 2 for x in drawn())
    exact = gqa(q[..., None, :], k, v, causal=False)[..., 0, :]
    return float(np.mean([np.abs(performer(q, k, v, draw(M, seed)) - exact).mean() for seed in range(4)]))


def ours(M: int, seed: int) -> np.ndarray:
    return orthogonal_projection(M, 8, np.random.default_rng(seed))


def test_the_error_falls_with_the_root_of_the_number_of_features() -> None:
    few, many = mean_error(ours, 16), mean_error(ours, 4096)
    assert few / 32 < many < few / 8


def test_performer_pytorch_draws_directions_that_are_not_uniform() -> None:
    """It takes the orthogonal factor as the QR routine returns it, whose signs follow a convention instead of chance.

    exp(w . x) tells w from -w, so its estimate keeps an error that more features do not take away; the paper's rows are
    uniform on the sphere, for which the factor's columns take the signs of the triangle's diagonal.
    """
    torch = pytest.importorskip("torch", reason="needs torch")
    pytest.importorskip("performer_pytorch", reason="needs performer_pytorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from performer_pytorch.performer_pytorch import gaussian_orthogonal_random_matrix

    def theirs(M: int, seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        return gaussian_orthogonal_random_matrix(M, 8).double().numpy()

    assert mean_error(theirs, 4096) > 2 * mean_error(ours, 4096)
    assert mean_error(theirs, 4096) > 0.5 * mean_error(theirs, 256)


def test_orthogonal_features_estimate_better_than_independent_ones() -> None:
    """Theorem 2, for the mean squared error of one entry of the attention matrix."""
    rng = np.random.default_rng(0)
    H = 8
    x, y = rng.standard_normal((2, H)) * 0.5
    exact = np.exp(x @ y)

    def squared_error(projection: np.ndarray) -> float:
        both = np.exp(projection @ (x + y) - (x @ x + y @ y) / 2)
        return float((both.mean() - exact) ** 2)

    independent = np.mean([squared_error(rng.standard_normal((H, H))) for _ in range(1000)])
    orthogonal = np.mean([squared_error(orthogonal_projection(H, H, rng)) for _ in range(1000)])
    assert orthogonal < independent


def test_rows_of_a_block_are_orthogonal() -> None:
    projection = orthogonal_projection(10, 6, np.random.default_rng(0))
    products = projection @ projection.T
    for block in (np.s_[:6], np.s_[6:]):
        inside = products[block, block]
        np.testing.assert_allclose(inside - np.diag(np.diag(inside)), 0, atol=1e-12)


def test_the_last_query_of_the_causal_form_sees_what_the_full_form_sees() -> None:
    q, k, v = drawn()
    projection = orthogonal_projection(16, 8, np.random.default_rng(1))
    causal, full = performer(q, k, v, projection, causal=True), performer(q, k, v, projection)
    np.testing.assert_allclose(causal[:, -1], full[:, -1], rtol=1e-12)
    np.testing.assert_allclose(performer(q[:, -2:], k, v, projection, causal=True), causal[:, -2:], rtol=1e-12)


def test_performer_pytorch_adds_a_floor_to_every_feature() -> None:
    """Its 1e-4 is not in the paper's estimator: where features are small, every key shares in the weights."""
    pytest.importorskip("performer_pytorch", reason="needs performer_pytorch")
    from llmlab.harness.oracles.attention.performer import with_epsilon

    q, k, v = (3 * x for x in drawn())
    projection = orthogonal_projection(16, 8, np.random.default_rng(1))
    exact = performer(q, k, v, projection)
    np.testing.assert_allclose(with_epsilon(q, k, v, projection, causal=False, epsilon=0.0), exact, rtol=1e-9)
    assert np.abs(with_epsilon(q, k, v, projection, causal=False, epsilon=1e-4) - exact).max() > 0.1


def test_more_causal_queries_than_keys_is_refused() -> None:
    q, k, v = drawn()
    with pytest.raises(ValueError, match="T=6 > S=5"):
        performer(q, k[:, :5], v[:, :5], np.eye(8), causal=True)
