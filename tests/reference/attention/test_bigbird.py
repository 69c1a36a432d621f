import numpy as np
import pytest

from llmlab.reference.attention.bigbird import bigbird, random_blocks, seen_blocks
from llmlab.reference.attention.gqa import gqa


def drawn(M: int = 8, C: int = 3, N: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, M * C, N, 4)) for _ in range(3)]


def listed(M: int = 8, R: int = 2, N: int = 2) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.stack([random_blocks(M, R, rng) for _ in range(N)])


def test_few_blocks_all_see_each_other() -> None:
    q, k, v = drawn(M=3)
    full = gqa(q[..., None, :], k, v, causal=False)[..., 0, :]
    np.testing.assert_allclose(bigbird(q, k, v, np.zeros((2, 3, 1), int)), full, rtol=1e-12)


def test_any_two_blocks_are_two_steps_apart() -> None:
    """Section 3: the global blocks make a star graph of the text."""
    step = np.zeros((9, 9), int)
    for i, blocks in enumerate(seen_blocks(np.zeros((9, 0), int))):
        step[i, blocks] = 1
    assert (step @ step > 0).all()


def test_a_block_listed_twice_counts_once() -> None:
    q, k, v = drawn()
    once = listed(R=1)
    np.testing.assert_array_equal(bigbird(q, k, v, np.repeat(once, 2, axis=2)), bigbird(q, k, v, once))
    overlapping = np.zeros_like(once)  # block 0 is global already
    np.testing.assert_array_equal(bigbird(q, k, v, overlapping), bigbird(q, k, v, once[..., :0]))


def test_transformers_counts_a_block_as_often_as_it_gathers_it() -> None:
    """In evaluation it lists block 0 for every random block, so its keys weigh 1 + R times in every inner block's softmax.

    The paper's softmax runs over a set of neighbours (eq. 1): the reference counts them once.
    """
    pytest.importorskip("transformers", reason="needs transformers")
    from llmlab.harness.oracles.attention.bigbird import transformers_bigbird

    M, C, R = 8, 3, 2
    q, k, v = drawn(M, C)
    theirs = transformers_bigbird(q, k, v, listed(M, R), training=False)
    ours = bigbird(q, k, v, np.zeros((2, M, R), int))
    assert np.abs(theirs - ours).max() > 0.01
    weight = np.zeros((M, M))
    for i, blocks in enumerate(seen_blocks(np.zeros((M, 0), int))):
        weight[i, blocks] = 1
    weight[1:-1, 0] += R
    with np.errstate(divide="ignore"):
        bias = np.log(np.kron(weight, np.ones((C, C))))
    scores = np.einsum("btnh,bsnh->bnts", q, k) / 2 + bias
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(theirs, np.einsum("bnts,bsnh->btnh", weights, v), rtol=1e-6)


def test_random_blocks_are_new_and_different() -> None:
    for i, blocks in enumerate(random_blocks(12, 4, np.random.default_rng(0))):
        assert len({0, 11, i - 1, i, i + 1, *blocks}) == len({0, 11, i - 1, i, i + 1}) + 4


def test_impossible_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="T=24 tokens are not M=7"):
        bigbird(*drawn(), np.zeros((2, 7, 1), int))
    with pytest.raises(ValueError, match=r"8..8: not all in 0..7"):
        bigbird(*drawn(), np.full((2, 8, 1), 8))
    with pytest.raises(ValueError, match="R=4: of M=8 blocks only 3"):
        random_blocks(8, 4, np.random.default_rng(0))
