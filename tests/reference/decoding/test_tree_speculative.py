"""Trees of guesses keep the target's distribution, and score in one pass what paths score one by one."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from llmlab.reference.decoding._loop import Stop, without_cache
from llmlab.reference.decoding._tree import ROOT, Draft, StepTree, matching, verified
from llmlab.reference.decoding.greedy import GREEDY, LlamaStep, greedy
from llmlab.reference.decoding.speculative import residual, speculative
from llmlab.reference.decoding.tree_speculative import (
    TREE_SPECULATIVE,
    TreeOfDrafts,
    tree_decoding,
    tree_mask,
    tree_rejection,
    tree_speculative,
)
from llmlab.reference.layers.softmax import softmax
from llmlab.reference.models._weights import random_weights
from llmlab.reference.models.llama import tiny_config

SEEDS = st.integers(0, 2**32 - 1)


def next_token_law(p_NV: np.ndarray, q_CV: np.ndarray, guesses: tuple[int, ...]) -> np.ndarray:
    """Law of the token after node 0 given its children's tokens, the uniforms integrated out by hand."""
    law_V, left_V, reached = np.zeros(p_NV.shape[-1]), p_NV, 1.0
    for x, q_V in zip(guesses, q_CV):
        holds = min(1.0, left_V[x] / q_V[x])
        law_V[x] += reached * holds
        reached *= 1 - holds
        rest_V = residual(left_V, q_V)
        left_V = rest_V / rest_V.sum()
    return law_V + reached * left_V


@given(SEEDS, st.integers(0, 3))
def test_over_all_draws_of_the_children_the_next_token_follows_the_target(seed: int, children: int) -> None:
    """Exact enumeration: independent draws from different distributions."""
    rng = np.random.default_rng(seed)
    p_V, q_CV = softmax(rng.standard_normal(3)), softmax(rng.standard_normal((children, 3)))
    law_V = np.zeros(3)
    for guesses in product(range(3), repeat=children):
        drawn = np.prod([q_V[x] for x, q_V in zip(guesses, q_CV)])
        law_V += drawn * next_token_law(p_V, q_CV, guesses)
    np.testing.assert_allclose(law_V, p_V, rtol=1e-12)


@given(SEEDS)
def test_draws_without_replacement_keep_the_target_too(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p_V, q_V = softmax(rng.standard_normal(4)), softmax(rng.standard_normal(4))
    law_V = np.zeros(4)
    for first, second in product(range(4), repeat=2):
        if first == second:
            continue
        rest_V = np.where(np.arange(4) == first, 0, q_V)
        rest_V = rest_V / rest_V.sum()
        law_V += q_V[first] * rest_V[second] * next_token_law(p_V, np.stack([q_V, rest_V]), (first, second))
    np.testing.assert_allclose(law_V, p_V, rtol=1e-12)


@given(SEEDS)
def test_guesses_nobody_drew_keep_the_target_too(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p_V = softmax(rng.standard_normal(5))
    guesses = tuple(rng.permutation(5)[:3].tolist())
    np.testing.assert_allclose(next_token_law(p_V, np.eye(5)[list(guesses)], guesses), p_V, rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_evenly_spread_uniforms_give_that_law(seed: int) -> None:
    """What the function does with its uniforms is the law above, up to the grid's step."""
    rng, N = np.random.default_rng(seed), 16
    p_V, q_CV = softmax(rng.standard_normal(3)), softmax(rng.standard_normal((2, 3)))
    guesses = tuple(rng.integers(0, 3, 2).tolist())
    grid = (np.arange(N) + 0.5) / N
    uniform_BN = np.stack([axis.ravel() for axis in np.meshgrid(grid, grid, grid)], axis=1)
    B = len(uniform_BN)
    path_BN, last_B = tree_speculative(
        np.broadcast_to([ROOT, 0, 0], (B, 3)),
        np.broadcast_to([0, *guesses], (B, 3)),
        np.broadcast_to(np.concatenate([p_V[None], q_CV]), (B, 3, 3)),
        np.broadcast_to(p_V, (B, 3, 3)),
        uniform_BN,
    )
    first_B = np.where(path_BN[:, 1] > 0, np.array([0, *guesses])[path_BN[:, 1]], last_B)
    law_V = np.bincount(first_B, minlength=3) / B
    np.testing.assert_allclose(law_V, next_token_law(p_V, q_CV, guesses), atol=3 / N)


@given(SEEDS)
def test_a_tree_without_branches_is_speculative_decoding(seed: int) -> None:
    rng = np.random.default_rng(seed)
    K, V = int(rng.integers(0, 5)), 6
    p_1JV, q_1KV = softmax(rng.standard_normal((1, K + 1, V))), softmax(rng.standard_normal((1, K, V)))
    draft_1K, uniform_1J = rng.integers(0, V, (1, K)), rng.random((1, K + 1))
    token_1J, accepted_1 = speculative(draft_1K, q_1KV, p_1JV, uniform_1J)
    path_1N, last_1 = tree_speculative(
        np.arange(-1, K)[None],
        np.pad(draft_1K, ((0, 0), (1, 0))),
        np.pad(q_1KV, ((0, 0), (1, 0), (0, 0))),
        p_1JV,
        np.roll(uniform_1J, 1, axis=1),
    )
    assert (path_1N >= 0).sum() - 1 == accepted_1[0]
    assert last_1[0] == token_1J[0, accepted_1[0]]


@given(SEEDS)
def test_a_path_is_a_path(seed: int) -> None:
    rng = np.random.default_rng(seed)
    inputs = TREE_SPECULATIVE.make_inputs({"B": 2, "N": 9, "V": 5}, rng)
    path_BN, _ = tree_speculative(**inputs)
    for path_N, parent_N in zip(path_BN, inputs["parent_BN"]):
        nodes = path_N[path_N >= 0]
        assert nodes[0] == 0
        np.testing.assert_array_equal(parent_N[nodes[1:]], nodes[:-1])
        assert np.all(path_N[len(nodes) :] == -1)


def test_the_mask_shows_each_node_its_ancestors() -> None:
    parent_N = np.array([-1, 0, 1, 1, 0, 4])
    draft = Draft((0,) * 6, tuple(parent_N.tolist()))
    for n, seen_A in enumerate(tree_mask(parent_N)):
        assert np.flatnonzero(seen_A).tolist() == draft.path_to(n)


def small_models(seed: int) -> tuple[LlamaStep, LlamaStep]:
    config = tiny_config("llama-3")
    rng = np.random.default_rng(seed)
    weights = {name: w.astype(np.float64) for name, w in random_weights(config, rng, std=0.3).items()}
    noisy = {name: w + 0.05 * rng.standard_normal(w.shape) for name, w in weights.items()}
    return LlamaStep(config, weights), LlamaStep(config, noisy)


@pytest.mark.parametrize("seed", range(6))
def test_greedy_trees_give_the_greedy_text_in_fewer_calls_than_chains(seed: int) -> None:
    target, draft = small_models(seed)
    example = dict(GREEDY.examples(np.random.default_rng(seed)))
    wide = verified(target, example["prompt"], TreeOfDrafts(draft, (3, 2)), matching, Stop(20))
    slim = verified(target, example["prompt"], TreeOfDrafts(draft, (1, 1)), matching, Stop(20))
    assert wide.ids == slim.ids == greedy(target, example["prompt"], max_tokens=20).ids
    assert len(wide.emitted) <= len(slim.emitted)


def test_a_sampled_text_follows_the_target() -> None:
    def language(seed: int):  # type: ignore[no-untyped-def]
        table = np.random.default_rng(seed).standard_normal((3, 3, 3))
        return without_cache(lambda ids: np.array([[table[ids[0, -2] if ids.shape[1] > 1 else 0, ids[0, -1]]]]))

    target, draft = language(0), language(1)
    expected = np.zeros((3, 3))
    for a, b in product(range(3), repeat=2):
        first, state = target([1], None)
        expected[a, b] = softmax(first)[a] * softmax(target([a], state)[0])[b]
    rng = np.random.default_rng(5)
    N, counts = 700, np.zeros((3, 3))
    for _ in range(N):
        counts[tree_decoding(target, draft, [1], widths=(2, 2), rng=rng, max_tokens=2).ids] += 1
    assert chisquare(counts.ravel(), N * expected.ravel()).pvalue > 1e-3


def test_a_draft_without_distributions_counts_as_certain() -> None:
    draft = Draft((0, 1, 2), (ROOT, 0, 0))
    rng = np.random.default_rng(0)
    logits_NV = np.log(np.array([[0.1, 0.3, 0.6]] * 3))
    firsts = []
    for _ in range(2000):
        path, token = tree_rejection(rng)(draft, logits_NV)
        firsts.append(draft.tokens[path[1]] if len(path) > 1 else token)
    assert chisquare(np.bincount(firsts, minlength=3), 2000 * np.array([0.1, 0.3, 0.6])).pvalue > 1e-3


def test_the_torch_model_scores_a_tree_as_the_reference_scores_its_paths() -> None:
    """Tree attention over one cache, nodes kept and forgotten, against one pass per node."""
    pytest.importorskip("torch", reason="needs torch")
    from llmlab.kernels.decoding._tree_torch import TorchTree

    for seed in range(3):
        rng = np.random.default_rng(seed)
        step, _ = small_models(seed)
        plain, packed = StepTree(step), TorchTree.of(step)
        prompt = rng.integers(0, 37, int(rng.integers(1, 6))).tolist()
        one, other = plain.begin(prompt), packed.begin(prompt)
        open_nodes = [0]
        for _ in range(4):
            for left, right in ((one.logits, other.logits), (one.hidden, other.hidden)):
                np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-9)
            N, first = int(rng.integers(1, 7)), plain.size
            parents = [int(rng.choice([*open_nodes, *range(first, first + n)])) for n in range(N)]
            tokens = rng.integers(0, 37, N).tolist()
            one, other = plain.score(tokens, parents), packed.score(tokens, parents)
            kept = sorted({int(node) for node in rng.choice([*open_nodes, *range(first, first + N)], 2)})
            plain.keep(kept)
            packed.keep(kept)
            open_nodes = kept
        with pytest.raises(ValueError, match="not a live node"):
            packed.score([1], [10_000])


def test_what_is_no_tree_is_named() -> None:
    row = np.full((1, 2, 3), 1 / 3)
    with pytest.raises(ValueError, match="parent 1 of node 1"):
        tree_speculative(np.array([[-1, 1]]), np.zeros((1, 2), int), row, row, np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"tokens 0\.\.3 outside 0\.\.2"):
        tree_speculative(np.array([[-1, 0]]), np.array([[0, 3]]), row, row, np.zeros((1, 2)))
