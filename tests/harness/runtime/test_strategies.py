"""Every way of decoding gives over the real model and its cache the text that the reference loop gives over NumPy."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")

from llmlab.harness.runtime import strategies  # noqa: E402
from llmlab.kernels.models.llama_torch import LlamaTorch  # noqa: E402
from llmlab.reference.decoding import _tree  # noqa: E402
from llmlab.reference.decoding.constrained import Constraint, Vocabulary  # noqa: E402
from llmlab.reference.decoding.eagle import eagle_head, random_head  # noqa: E402
from llmlab.reference.decoding.greedy import LlamaStep, greedy  # noqa: E402
from llmlab.reference.decoding.medusa import MedusaHeads, typical  # noqa: E402
from llmlab.reference.models._weights import random_weights  # noqa: E402
from llmlab.reference.models.llama import tiny_config  # noqa: E402

PROMPT = [3, 1, 4, 1, 5]


def models(kind: str = "llama-3") -> tuple[LlamaStep, LlamaTorch, LlamaTorch]:
    """A target as a step and over torch, and a draft that thinks like it."""
    config, rng = tiny_config(kind), np.random.default_rng(0)
    weights = {name: w.astype(np.float64) for name, w in random_weights(config, rng, std=0.3).items()}
    noisy = {name: w + 0.03 * rng.standard_normal(w.shape) for name, w in weights.items()}
    return LlamaStep(config, weights), *(LlamaTorch(config, w, dtype=torch.float64) for w in (weights, noisy))  # type: ignore[return-value]


STEP, TARGET, DRAFT = models()
D = STEP.config.hidden_size
RNG = np.random.default_rng(1)
HEADS = MedusaHeads(0.1 * RNG.standard_normal((3, D, D)), np.repeat(STEP.head_VD[None], 3, axis=0))
EAGLE = eagle_head(STEP, random_head(STEP, RNG))
INNER, OUTER = 0.2 * RNG.standard_normal((3, 5, D)), 0.2 * RNG.standard_normal((3, D, 5))
RULE = Constraint.regex("[A-J]{2,9}[X-Z]", Vocabulary((*(bytes([65 + v]) for v in range(36)), b""), 36))

MAKE = {
    "greedy": strategies.greedily,
    "sampling": lambda: strategies.sampling_with(np.random.default_rng(2), {"temperature": 0.8, "top_p": 0.9}),
    "sampling after penalties": lambda: strategies.sampling_with(np.random.default_rng(2), {}, {"repetition": 1.4}),
    "penalties": lambda: strategies.penalizing(repetition=1.3, frequency=0.5, presence=0.2, no_repeat_ngram=2),
    "beam": lambda: strategies.beams(4, length_penalty=0.8),
    "diverse beam": lambda: strategies.beams(4, groups=2, diversity=0.9),
    "contrastive": lambda: strategies.contrasting(4),
    "speculative": lambda: strategies.speculating(DRAFT, 3),
    "speculative, sampled": lambda: strategies.speculating(DRAFT, 3, np.random.default_rng(5)),
    "tree": lambda: strategies.speculating_trees(DRAFT, (3, 2)),
    "tree, sampled": lambda: strategies.speculating_trees(DRAFT, (2, 2), np.random.default_rng(5)),
    "medusa": lambda: strategies.medusa_heads(HEADS, (3, 2, 1)),
    "medusa, typical": lambda: strategies.medusa_heads(HEADS, (3, 2), typical(epsilon=0.02, delta=0.3)),
    "eagle": lambda: strategies.eagle_head(EAGLE, (2, 2)),
    "lookahead": lambda: strategies.looking_ahead(4, 3, 3),
    "blockwise": lambda: strategies.in_blocks(INNER, OUTER, STEP.head_VD),
    "constrained": lambda: strategies.under(RULE),
}
SAME_AS_GREEDY = ("speculative", "tree", "medusa", "eagle", "lookahead", "blockwise")


@pytest.mark.parametrize("name", MAKE)
def test_the_real_model_tells_what_the_reference_tells(name: str) -> None:
    told = strategies.tell(TARGET, PROMPT, MAKE[name](), max_tokens=16, stop_ids=[11])
    plain = MAKE[name]()(_tree.StepTree(STEP), PROMPT, 16, [11])
    assert (told.ids, told.reason) == (tuple(plain.ids), plain.reason)
    assert told.calls >= 1
    assert told.seconds > 0
    if name in SAME_AS_GREEDY:
        assert told.ids == greedy(STEP, PROMPT, max_tokens=16, stop_ids=[11]).ids


def test_verified_guesses_save_passes() -> None:
    """A target that drafts for itself needs a pass per five tokens; plain decoding needs one per token."""
    told = strategies.tell(TARGET, PROMPT, strategies.speculating(TARGET, 4), max_tokens=21)
    assert told.calls == 1 + 4
    assert strategies.tell(TARGET, PROMPT, strategies.greedily(), max_tokens=21).calls == 21
    assert told.tokens_per_call == 21 / 5


def test_a_sliding_window_holds_in_the_tree_too() -> None:
    from llmlab.kernels.decoding._tree_torch import TorchTree

    TARGET_W = LlamaTorch(STEP.config, STEP.weights, dtype=torch.float64)
    for layer in TARGET_W.layers:
        layer.window = 4
    text = [*PROMPT, 7, 8, 9]
    whole_TV = TARGET_W.logits(torch.tensor([text]))[0].numpy()
    tree = TorchTree(TARGET_W)
    np.testing.assert_allclose(tree.begin(text[:5]).logits[-1], whole_TV[4], rtol=1e-9)
    first = tree.score([7, 30], [0, 0])
    np.testing.assert_allclose(first.logits[0], whole_TV[5], rtol=1e-9)
    tree.keep([1])
    np.testing.assert_allclose(tree.score([8, 9], [1, 3]).logits, whole_TV[6:], rtol=1e-9)
