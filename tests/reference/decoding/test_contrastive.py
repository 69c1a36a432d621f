"""What only contrastive search has."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.reference.decoding.contrastive import CONTRASTIVE, contrastive, contrastive_search
from llmlab.reference.decoding.greedy import GREEDY, greedy
from llmlab.reference.layers.softmax import softmax

SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS)
def test_without_the_penalty_it_is_the_likeliest_candidate(seed: int) -> None:
    inputs = CONTRASTIVE.make_inputs({"B": 2, "K": 4, "S": 3, "D": 5}, np.random.default_rng(seed))
    _, choice_B = contrastive(**inputs, alpha=0.0)
    np.testing.assert_array_equal(choice_B, inputs["probability_BK"].argmax(-1))


@given(SEEDS, st.floats(0.1, 10))
def test_only_directions_count(seed: int, scale: float) -> None:
    inputs = CONTRASTIVE.make_inputs({"B": 2, "K": 4, "S": 3, "D": 5}, np.random.default_rng(seed))
    score_BK, _ = contrastive(**inputs)
    stretched = inputs | {"context_BSD": scale * inputs["context_BSD"], "candidate_BKD": inputs["candidate_BKD"] / scale}
    np.testing.assert_allclose(contrastive(**stretched)[0], score_BK, rtol=1e-9, atol=1e-12)


def test_a_repeated_state_pays_the_whole_penalty() -> None:
    rng = np.random.default_rng(0)
    context_BSD = rng.standard_normal((1, 6, 8))
    score_BK, _ = contrastive(np.array([[0.9]]), 3 * context_BSD[:, 2:3], context_BSD, alpha=0.4)
    np.testing.assert_allclose(score_BK, 0.6 * 0.9 - 0.4)


def test_a_zero_vector_is_like_nothing() -> None:
    score_BK, _ = contrastive(np.array([[0.5]]), np.zeros((1, 1, 3)), np.ones((1, 2, 3)), alpha=0.5)
    assert score_BK[0, 0] == 0.25


@pytest.mark.parametrize("seed", range(4))
def test_the_search_equals_its_definition(seed: int) -> None:
    """Each candidate appended and the whole text read again, against one call for all candidates over a cache."""
    example = dict(GREEDY.examples(np.random.default_rng(seed)))
    step, text = example["step"], list(example["prompt"])
    found = contrastive_search(step, text, candidates=4, alpha=0.6, max_tokens=6)
    for token in found.ids:
        hidden_SD, _ = step.hidden(text, None)
        p_V = softmax(step.head(hidden_SD)[-1])
        scores = {}
        for v in np.argsort(-p_V)[:4].tolist():
            h_D = step.hidden([*text, v], None)[0][-1]
            likeness = max(h_D @ h / np.linalg.norm(h_D) / np.linalg.norm(h) for h in hidden_SD)
            scores[v] = 0.4 * p_V[v] - 0.6 * likeness
        assert token == max(scores, key=scores.__getitem__)
        text.append(token)


def test_one_candidate_is_greedy_decoding() -> None:
    example = dict(GREEDY.examples(np.random.default_rng(5)))
    found = contrastive_search(example["step"], example["prompt"], candidates=1, max_tokens=8)
    assert found == greedy(example["step"], example["prompt"], max_tokens=8)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"alpha=1\.5"):
        contrastive(np.ones((1, 1)), np.ones((1, 1, 1)), np.ones((1, 1, 1)), alpha=1.5)
    with pytest.raises(ValueError, match="candidates=0"):
        contrastive_search(lambda new, state: (np.zeros(2), None), [1], candidates=0, max_tokens=1)
    with pytest.raises(ValueError, match="hidden states"):
        contrastive_search(lambda new, state: (np.zeros(2), None), [1], candidates=1, max_tokens=1)
