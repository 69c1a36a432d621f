import numpy as np
import pytest

from llmlab.reference.attention.gqa import gqa
from llmlab.reference.attention.linformer import linformer, linformer_cost


def drawn(S: int = 8, R: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, 4, 2, 5)), *rng.standard_normal((2, 1, S, 2, 5)), *rng.standard_normal((2, R, S))]


def test_a_projection_that_keeps_every_key_is_full_attention() -> None:
    q, k, v, *_ = drawn()
    full = gqa(q[..., None, :], k, v, causal=False)[..., 0, :]
    np.testing.assert_allclose(linformer(q, k, v, np.eye(8), np.eye(8)), full, rtol=1e-12)


def test_a_projection_that_selects_keys_attends_to_those() -> None:
    q, k, v, *_ = drawn()
    chosen = np.eye(8)[[1, 4]]
    few = gqa(q[..., None, :], k[:, [1, 4]], v[:, [1, 4]], causal=False)[..., 0, :]
    np.testing.assert_allclose(linformer(q, k, v, chosen, chosen), few, rtol=1e-12)


def test_a_low_rank_projection_of_keys_keeps_the_scores_of_smooth_ones() -> None:
    """Section 3: the attention matrix is nearly of low rank. Keys that vary slowly along the text lose little to means."""
    rng = np.random.default_rng(0)
    slow = np.repeat(rng.standard_normal((1, 4, 1, 5)), 8, axis=1)
    means = np.kron(np.eye(4), np.full((1, 8), 1 / 8))
    q = rng.standard_normal((1, 3, 1, 5))
    full = gqa(q[..., None, :], slow, slow, causal=False)[..., 0, :]
    np.testing.assert_allclose(linformer(q, slow, slow, means, means), full, rtol=1e-12)


def test_cost_is_linear_in_the_text() -> None:
    d = {"B": 1, "N": 12, "H": 64, "R": 256}
    assert linformer_cost({**d, "T": 8192, "S": 8192}).flops == 2 * linformer_cost({**d, "T": 4096, "S": 4096}).flops


def test_a_projection_for_another_length_is_refused() -> None:
    q, k, v, e, f = drawn()
    with pytest.raises(ValueError, match="a projection of 7 keys does not fit S=8"):
        linformer(q, k, v, e, f[:, :7])
