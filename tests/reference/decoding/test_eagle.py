"""What only EAGLE has: a head over features, and that its guesses change nothing but the number of calls."""

from itertools import product

import numpy as np
import pytest

from llmlab.reference.decoding._tree import Scored, chain
from llmlab.reference.decoding.eagle import EAGLE, EagleDrafter, eagle, eagle_head, eagle_over, random_head
from llmlab.reference.decoding.greedy import greedy
from llmlab.reference.decoding.tree_speculative import tree_rejection
from llmlab.reference.layers.softmax import softmax


@pytest.mark.parametrize("seed", range(6))
def test_the_text_is_greedy_decodings(seed: int) -> None:
    example = dict(EAGLE.examples(np.random.default_rng(seed)))
    spoken = eagle(**example)
    plain = greedy(example["step"], example["prompt"], max_tokens=example["max_tokens"], stop_ids=example["stop_ids"])
    assert (spoken.ids, spoken.reason) == (plain.ids, plain.reason)


def test_the_head_reads_features_and_the_tokens_after_them() -> None:
    """With a layer that adds nothing, fc decides: the embedding of the next token, or the feature, goes through."""
    example = dict(EAGLE.examples(np.random.default_rng(1)))
    step = example["step"]
    D = step.config.hidden_size
    silent = {name: np.zeros_like(w) for name, w in example["head_weights"].items()}
    features_TD = np.random.default_rng(0).standard_normal((3, D))
    for fc, expected in (
        (np.concatenate([np.eye(D), np.zeros((D, D))], axis=1), step.weights["model.embed_tokens.weight"][[4, 5, 6]]),
        (np.concatenate([np.zeros((D, D)), np.eye(D)], axis=1), features_TD),
    ):
        head = eagle_head(step, silent | {"fc.weight": fc})
        np.testing.assert_allclose(head.features([4, 5, 6], features_TD), expected)


def test_guessed_features_are_replaced_by_the_targets() -> None:
    example = dict(EAGLE.examples(np.random.default_rng(2)))
    step = example["step"]
    drafter = EagleDrafter(eagle_head(step, example["head_weights"]), (1, 1))
    text = [1, 2, 3]
    hidden_TD, _ = step.hidden(text, None)
    drafter.learn(chain([3]), Scored(step.head(hidden_TD[-1:]), hidden_TD), [0])
    draft = drafter.draft([*text, 4])
    longer_TD, _ = step.hidden([*text, *draft.tokens], None)
    drafter.learn(draft, Scored(step.head(longer_TD[3:]), longer_TD[3:]), [0, 1])
    np.testing.assert_allclose(np.array(drafter._features), longer_TD[:5])


def test_sampled_trees_keep_the_targets_law() -> None:
    """The second token of many sampled texts, against the target's own two-step law; head and target disagree."""
    example = dict(EAGLE.examples(np.random.default_rng(3)))
    step = example["step"]
    head = eagle_head(step, random_head(step, np.random.default_rng(0), noise=0.2))

    def few(logits_NV: np.ndarray) -> np.ndarray:  # three tokens, so that a hundred draws tell
        return softmax(np.where(np.arange(logits_NV.shape[-1]) < 3, logits_NV / 4, -np.inf))

    rng = np.random.default_rng(7)
    expected = np.zeros((3, 3))
    first_V = few(step([1], None)[0][None])[0]
    for a, b in product(range(3), repeat=2):
        expected[a, b] = first_V[a] * few(step([1, a], None)[0][None])[0, b]
    counts, N = np.zeros((3, 3)), 120
    for _ in range(N):
        drafter_ids = eagle_over(step, head, [1], widths=(2,), max_tokens=2, rng=rng, verify=tree_rejection(rng, few)).ids
        counts[drafter_ids] += 1
    from scipy.stats import chisquare

    assert chisquare(counts.ravel(), N * expected.ravel()).pvalue > 1e-3


def test_a_head_of_another_width_is_named() -> None:
    example = dict(EAGLE.examples(np.random.default_rng(0)))
    with pytest.raises(ValueError, match=r"fc\.weight \(3, 6\)"):
        eagle(**example | {"head_weights": example["head_weights"] | {"fc.weight": np.zeros((3, 6))}})
