"""What the paper claims of Medusa: greedy stays greedy, and typical acceptance lets through what the target finds likely."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.reference.decoding._tree import ROOT
from llmlab.reference.decoding.greedy import GREEDY, LlamaStep, greedy
from llmlab.reference.decoding.medusa import MEDUSA, MedusaHeads, candidate_tree, medusa, medusa_decoding, typical
from llmlab.reference.decoding.sampling import entropy_B1
from llmlab.reference.decoding.tree_speculative import tree_rejection
from llmlab.reference.layers.softmax import softmax

SEEDS = st.integers(0, 2**32 - 1)


def heads_for(step: LlamaStep, seed: int, count: int = 3) -> MedusaHeads:
    """Untrained heads: a small residual block under the model's own output matrix, as Medusa begins."""
    D = step.config.hidden_size
    inner_KDD = 0.1 * np.random.default_rng(seed).standard_normal((count, D, D))
    return MedusaHeads(inner_KDD, np.repeat(step.head_VD[None], count, axis=0))


@pytest.mark.parametrize("seed", range(5))
def test_greedy_acceptance_is_greedy_decoding(seed: int) -> None:
    example = dict(GREEDY.examples(np.random.default_rng(seed)))
    step, prompt = example["step"], example["prompt"]
    heads = heads_for(step, seed)
    plain = greedy(step, prompt, max_tokens=14)
    spoken = medusa_decoding(step, heads, prompt, widths=(3, 2, 1), max_tokens=14)
    assert spoken.ids == plain.ids


@pytest.mark.parametrize("seed", range(3))
def test_typical_acceptance_at_temperature_zero_is_greedy_decoding(seed: int) -> None:
    """One-hot distributions have no entropy: the bar is min(epsilon, delta) < 1, and only the likeliest token has 1."""
    example = dict(GREEDY.examples(np.random.default_rng(seed)))
    step, prompt = example["step"], example["prompt"]

    def cold(logits_NV: np.ndarray) -> np.ndarray:
        return np.eye(logits_NV.shape[-1])[logits_NV.argmax(-1)]

    spoken = medusa_decoding(step, heads_for(step, seed), prompt, widths=(2, 2), max_tokens=10, verify=typical(cold))
    assert spoken.ids == greedy(step, prompt, max_tokens=10).ids


def test_typical_acceptance_does_not_keep_the_distribution() -> None:
    """The paper gives up exactness for speed: a guess of 40 % is let through every time it is made."""
    p_NV = np.array([[0.6, 0.4]] * 2)
    path_1N, _ = medusa(np.array([[ROOT, 0]]), np.array([[0, 1]]), p_NV[None])
    assert path_1N[0].tolist() == [0, 1]  # always, where the target says 1 only four times in ten
    held = [
        len(tree_rejection(np.random.default_rng(s))(candidate_tree(0, np.eye(2)[1:], [1]), np.log(p_NV))[0]) - 1
        for s in range(400)
    ]
    assert 0.3 < np.mean(held) < 0.5


@given(SEEDS)
def test_what_is_accepted_is_above_the_bar_and_nothing_longer_is(seed: int) -> None:
    inputs = MEDUSA.make_inputs({"B": 1, "N": 8, "V": 4}, np.random.default_rng(seed))
    parent_N, token_N, p_NV = (inputs[name][0] for name in ("parent_BN", "token_BN", "p_BNV"))
    bar_N = np.minimum(0.09, 0.3 * np.exp(-entropy_B1(p_NV)[:, 0]))
    path = [n for n in medusa(**inputs)[0][0].tolist() if n >= 0]
    for above, below in zip(path, path[1:]):  # noqa: RUF007
        assert parent_N[below] == above
        assert p_NV[above, token_N[below]] > bar_N[above]
    children = [n for n in range(1, 8) if parent_N[n] == path[-1]]
    assert all(p_NV[path[-1], token_N[n]] <= bar_N[path[-1]] for n in children)


@given(SEEDS, st.floats(0, 0.3), st.floats(0.3, 1))
def test_a_higher_bar_never_accepts_more(seed: int, low: float, high: float) -> None:
    inputs = MEDUSA.make_inputs({"B": 3, "N": 9, "V": 5}, np.random.default_rng(seed))
    easy, hard = (np.sum(medusa(**inputs, epsilon=epsilon, delta=1.0)[0] >= 0, axis=1) for epsilon in (low, high))
    assert np.all(hard <= easy)


def test_heads_begin_as_the_model_itself() -> None:
    """With W1 = 0 a head says what the output matrix says (section 2.2: the heads are aligned with the model at first)."""
    example = dict(GREEDY.examples(np.random.default_rng(0)))
    step = example["step"]
    heads = MedusaHeads(np.zeros((2, 24, 24)), np.repeat(step.head_VD[None], 2, axis=0))
    hidden_TD, _ = step.hidden(example["prompt"], None)
    for logits_V in heads.logits(hidden_TD[-1]):
        np.testing.assert_allclose(logits_V, step(example["prompt"], None)[0], rtol=1e-12)


def test_the_tree_is_the_product_of_the_heads_guesses() -> None:
    draft = candidate_tree(0, np.random.default_rng(0).standard_normal((3, 9)), (3, 2, 2))
    assert len(draft.tokens) == 1 + 3 + 6 + 12
    assert len({tuple(draft.tokens[n] for n in draft.path_to(end)) for end in range(10, 22)}) == 12


@pytest.mark.parametrize("options", [{"epsilon": 1.5}, {"delta": -0.1}])
def test_options_that_make_no_sense_are_named(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        medusa(np.array([[ROOT]]), np.array([[0]]), softmax(np.zeros((1, 1, 2))), **options)


def test_a_model_without_hidden_states_is_named() -> None:
    heads = MedusaHeads(np.zeros((1, 2, 2)), np.zeros((1, 3, 2)))
    with pytest.raises(ValueError, match="hidden states"):
        medusa_decoding(lambda new, state: (np.zeros(3), None), heads, [1], widths=(1,), max_tokens=3)
