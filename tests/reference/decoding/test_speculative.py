"""Speculation keeps the target's distribution, whatever the draft says; and its greedy form is greedy decoding."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from llmlab.reference.decoding._loop import Stop, without_cache
from llmlab.reference.decoding._tree import Verified, chain, matching, verified
from llmlab.reference.decoding.greedy import GREEDY, LlamaStep, greedy
from llmlab.reference.decoding.speculative import (
    DraftModel,
    accepted_law,
    rejection,
    residual,
    speculative,
    speculative_decoding,
)
from llmlab.reference.layers.softmax import softmax
from llmlab.reference.models._weights import random_weights
from llmlab.reference.models.llama import tiny_config
from llmlab.reference.serving.speculative import expected_tokens

SEEDS = st.integers(0, 2**32 - 1)


def tables(seed: int, V: int, K: int) -> tuple[np.ndarray, np.ndarray]:
    """Target and draft of a language without memory beyond the place: p_JV, q_KV."""
    rng = np.random.default_rng(seed)
    return softmax(1.5 * rng.standard_normal((K + 1, V))), softmax(1.5 * rng.standard_normal((K, V)))


def exact_law(p_JV: np.ndarray, q_KV: np.ndarray, draft: tuple[int, ...]) -> dict[tuple[int, ...], float]:
    """Probability of each outcome of one verification, the uniforms integrated out by hand."""
    law: dict[tuple[int, ...], float] = {}
    reached = 1.0
    for k, x in enumerate(draft):
        holds = min(1.0, p_JV[k, x] / q_KV[k, x])
        left_V = residual(p_JV[k], q_KV[k])
        for y, share in enumerate(left_V / left_V.sum()):
            law[(*draft[:k], y)] = law.get((*draft[:k], y), 0.0) + reached * (1 - holds) * share
        reached *= holds
    for y, share in enumerate(p_JV[len(draft)]):
        law[(*draft, y)] = law.get((*draft, y), 0.0) + reached * share
    return law


@given(SEEDS)
def test_summed_over_all_drafts_the_tokens_follow_the_target(seed: int) -> None:
    """Exact enumeration: every draft of K guesses, every outcome; the first tokens' joint law is the target's."""
    V, K = 3, 2
    p_JV, q_KV = tables(seed, V, K)
    joint = np.zeros((V, V))
    for draft in product(range(V), repeat=K):
        drawn = np.prod([q_KV[k, x] for k, x in enumerate(draft)])
        for outcome, share in exact_law(p_JV, q_KV, draft).items():
            if len(outcome) == 1:  # the second token then comes from the target, one step later
                joint[outcome[0]] += drawn * share * p_JV[1]
            else:
                joint[outcome[0], outcome[1]] += drawn * share
    np.testing.assert_allclose(joint, np.outer(p_JV[0], p_JV[1]), rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_evenly_spread_uniforms_give_the_exact_law(seed: int) -> None:
    """What the function does with its uniforms is the law above, up to the grid's step."""
    V, N = 3, 40
    p_JV, q_KV = tables(seed, V, 1)
    grid = (np.arange(N) + 0.5) / N
    first_B, last_B = (axis.ravel() for axis in np.meshgrid(grid, grid))
    for x in range(V):
        token_BJ, accepted_B = speculative(
            np.full((N * N, 1), x),
            np.broadcast_to(q_KV, (N * N, 1, V)),
            np.broadcast_to(p_JV, (N * N, 2, V)),
            np.stack([first_B, last_B], axis=1),
        )
        for outcome, share in exact_law(p_JV, q_KV, (x,)).items():
            seen = (accepted_B == len(outcome) - 1) & (token_BJ[np.arange(N * N), accepted_B] == outcome[-1])
            assert abs(seen.mean() - share) < 3 / N


@given(SEEDS)
def test_a_draft_that_is_the_target_is_always_accepted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p_1JV = softmax(rng.standard_normal((1, 4, 6)))
    draft_1K = np.array([[rng.choice(6, p=p_V) for p_V in p_1JV[0, :3]]])
    token_1J, accepted_1 = speculative(draft_1K, p_1JV[:, :3], p_1JV, rng.random((1, 4)))
    assert accepted_1[0] == 3
    np.testing.assert_array_equal(token_1J[0, :3], draft_1K[0])


@given(SEEDS)
def test_a_guess_the_target_cannot_say_is_never_accepted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p_1JV = np.array([[[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]])
    q_1KV = np.array([[[1.0, 0.0, 0.0]]])
    token_1J, accepted_1 = speculative(np.array([[0]]), q_1KV, p_1JV, np.array([[0.0, rng.random()]]))
    assert accepted_1[0] == 0
    assert token_1J[0, 0] in (1, 2)


@given(st.floats(0, 0.99), st.integers(0, 8))
def test_the_accepted_law_is_what_the_scheduler_prices(alpha: float, guesses: int) -> None:
    law = accepted_law(alpha, guesses)
    assert law.sum() == pytest.approx(1)
    mean = float(np.sum(law * np.arange(1, guesses + 2)))
    assert mean == pytest.approx(expected_tokens(alpha, guesses))
    assert mean == pytest.approx((1 - alpha ** (guesses + 1)) / (1 - alpha))


def test_acceptance_is_the_overlap_of_the_two_distributions() -> None:
    """Corollary 3.6: alpha = sum min(p, q), so the accepted counts follow prod of overlaps."""
    p_JV, q_KV = tables(3, 5, 3)
    rng = np.random.default_rng(0)
    N = 3000
    draft_NK = np.stack([rng.choice(5, N, p=q_V) for q_V in q_KV], axis=1)
    _, accepted_N = speculative(
        draft_NK, np.broadcast_to(q_KV, (N, 3, 5)), np.broadcast_to(p_JV, (N, 4, 5)), rng.random((N, 4))
    )
    overlap = np.append(np.minimum(p_JV[:3], q_KV).sum(-1), 0.0)
    law = np.cumprod(np.append(1.0, overlap[:3])) * (1 - overlap)
    assert chisquare(np.bincount(accepted_N, minlength=4), N * law).pvalue > 1e-3


def small_models(seed: int) -> tuple[LlamaStep, LlamaStep]:
    """A target, and a draft that thinks like it: its weights with noise."""
    config = tiny_config("llama-3")
    rng = np.random.default_rng(seed)
    weights = {name: w.astype(np.float64) for name, w in random_weights(config, rng, std=0.3).items()}
    noisy = {name: w + 0.03 * rng.standard_normal(w.shape) for name, w in weights.items()}
    return LlamaStep(config, weights), LlamaStep(config, noisy)


@given(SEEDS)
def test_greedy_speculation_is_greedy_decoding(seed: int) -> None:
    target, draft = small_models(seed % 1000)
    example = dict(GREEDY.examples(np.random.default_rng(seed)))
    asked = {"prompt": example["prompt"], "max_tokens": example["max_tokens"]}
    stop = Stop(example["max_tokens"], frozenset(example["stop_ids"]))
    spoken = verified(target, example["prompt"], DraftModel(draft, 3), matching, stop)
    plain = greedy(target, stop_ids=example["stop_ids"], **asked)
    assert (spoken.ids, spoken.reason) == (plain.ids, plain.reason)
    assert sum(spoken.emitted) == len(spoken.ids)
    cold = verified(target, example["prompt"], DraftModel(draft, 3), rejection(np.random.default_rng(0), one_hot), stop)
    assert (cold.ids, cold.emitted) == (spoken.ids, spoken.emitted)


def one_hot(logits_NV: np.ndarray) -> np.ndarray:
    """Sampling at temperature zero."""
    return np.eye(logits_NV.shape[-1])[logits_NV.argmax(-1)]


def test_good_guesses_save_calls() -> None:
    target, draft = small_models(1)
    spoken = verified(target, [1, 2], DraftModel(draft, 4), matching, Stop(40))
    assert len(spoken.emitted) < 40
    perfect = verified(target, [1, 2], DraftModel(target, 4), matching, Stop(41))
    assert perfect.emitted == (1,) + (5,) * 8


def test_a_sampled_text_follows_the_target() -> None:
    """Two tokens of a three-token language over models with memory: every text's frequency, by chi-square."""

    def language(seed: int):  # type: ignore[no-untyped-def]
        table = np.random.default_rng(seed).standard_normal((3, 3, 3))
        return without_cache(lambda ids: np.array([[table[ids[0, -2] if ids.shape[1] > 1 else 0, ids[0, -1]]]]))

    target, draft = language(0), language(1)
    expected = np.zeros((3, 3))
    for a, b in product(range(3), repeat=2):
        first, state = target([1], None)
        expected[a, b] = softmax(first)[a] * softmax(target([a], state)[0])[b]
    rng = np.random.default_rng(5)
    N, counts = 900, np.zeros((3, 3))
    for _ in range(N):
        counts[speculative_decoding(target, draft, [1], guesses=2, rng=rng, max_tokens=2).ids] += 1
    assert chisquare(counts.ravel(), N * expected.ravel()).pvalue > 1e-3


def test_without_guesses_it_is_plain_sampling() -> None:
    target, draft = small_models(2)
    spoken = speculative_decoding(target, draft, [3], guesses=0, rng=np.random.default_rng(0), max_tokens=7)
    assert spoken.emitted == (1,) * 7


def test_it_equals_assisted_generation() -> None:
    """transformers' own loop with a draft model gives the same greedy text."""
    torch = pytest.importorskip("torch", reason="needs torch")
    pytest.importorskip("transformers", reason="needs transformers")
    from llmlab.harness.oracles.models.llama import causal_lm

    target, draft = small_models(4)
    big, small = (causal_lm(s.config, s.weights, dtype=torch.float64) for s in (target, draft))
    with torch.no_grad():
        theirs = big.generate(
            torch.tensor([[1, 2, 3]]), assistant_model=small, max_new_tokens=8, do_sample=False, pad_token_id=0
        )
    ours = verified(target, [1, 2, 3], DraftModel(draft, 4), matching, Stop(8))
    assert theirs[0, 3:].tolist() == list(ours.ids)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="J=2 positions of the target for K=2"):
        speculative(np.zeros((1, 2), int), np.ones((1, 2, 3)), np.ones((1, 2, 3)), np.zeros((1, 3)))
    with pytest.raises(ValueError, match=r"guesses 3\.\.3 outside 0\.\.2"):
        speculative(np.array([[3]]), np.ones((1, 1, 3)), np.ones((1, 2, 3)), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="prompt"):
        verified(lambda new, state: (np.zeros(3), None), [], DraftModel(lambda n, s: (np.zeros(3), None), 1), matching, Stop(1))


def test_the_comparison_refuses_another_text() -> None:
    from llmlab.reference.decoding._tree import same_text

    assert same_text(Verified((1,), "length", (1,)), Verified((1,), "length"))
    assert not same_text(Verified((1,), "length"), Verified((2,), "length"))
    assert not same_text(Verified((1, 2), "length", (2,)), Verified((1, 2), "length", (1, 1)))
    assert chain([4, 5]).path_to(1) == [0, 1]
