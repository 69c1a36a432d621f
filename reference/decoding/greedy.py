"""Greedy decoding: the most likely token, again and again, over cached keys and values (Sutskever et al. 2014,
arXiv:1409.3215, section 3.2, with a beam of one)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmlab.reference.decoding._loop import Generated, Step, Stop, generate
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models._weights import Weights, random_weights
from llmlab.reference.models.llama import llama_step, tiny_config
from llmlab.reference.op import Procedure


def greedy(
    step: Step,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    stop_ids: Sequence[int] = (),
    stop_sequences: Sequence[Sequence[int]] = (),
    stop_texts: Sequence[str] = (),
    decode: Callable[[Sequence[int]], str] | None = None,
) -> Generated:
    """Return the generated tokens and why they end: "id", "sequence", "text" or "length".

    `step` takes the tokens its state does not hold yet and the state, and gives the last one's logits and the new state;
    the prompt is one call, each further token another. Of equal logits the lowest id is taken. The token, sequence or text
    that ended it is included.

    Raises:
        ValueError: an empty prompt, negative max_tokens, an empty stop, stop texts without `decode`, or NaN logits.

    >>> count = lambda new, state: (np.eye(9)[new[-1] + 1], None)
    >>> greedy(count, [2, 3], max_tokens=9, stop_ids=[6])
    Generated(ids=(4, 5, 6), reason='id')
    """
    stop = Stop(max_tokens, frozenset(stop_ids), tuple(map(tuple, stop_sequences)), tuple(stop_texts), decode)
    return generate(step, prompt, largest, stop)


def largest(logits_V: np.ndarray) -> int:
    """The id of the largest logit, the lowest of equals.

    Raises:
        ValueError: a logit is NaN.
    """
    if np.isnan(logits_V).any():
        raise ValueError("logits hold NaN: there is no largest")
    return int(np.argmax(logits_V))


@dataclass(frozen=True)
class LlamaStep:
    """A step over the Llama reference; the state is its cache of keys and values."""

    config: ModelConfig
    weights: Weights

    def __call__(self, new: Sequence[int], state: Any) -> tuple[np.ndarray, Any]:
        """Logits of the last new token, and the cache with all of them in it."""
        logits_BTV, state = llama_step(self.config, self.weights, np.array([new]), state)
        return logits_BTV[0, -1], state

    def hidden(self, new: Sequence[int], state: Any) -> tuple[np.ndarray, Any]:
        """Hidden states of all new tokens, which the output matrix turns into logits, and the cache."""
        unread = replace(self.config, tie_word_embeddings=False)
        identity_DD = np.eye(self.config.hidden_size, dtype=self.head_VD.dtype)  # an output matrix that changes nothing
        hidden_BTD, state = llama_step(unread, {**self.weights, "lm_head.weight": identity_DD}, np.array([new]), state)
        return hidden_BTD[0], state

    def head(self, hidden_TD: np.ndarray) -> np.ndarray:
        """Logits_TV of hidden states."""
        return hidden_TD @ self.head_VD.T

    @property
    def head_VD(self) -> np.ndarray:
        """The output matrix."""
        return self.weights["model.embed_tokens.weight" if self.config.tie_word_embeddings else "lm_head.weight"]


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    config = tiny_config(str(rng.choice(["llama-2", "llama-3", "tied"])))
    weights = {name: w.astype(np.float64) for name, w in random_weights(config, rng, std=0.3).items()}
    tokens = rng.permutation(config.vocab_size).tolist()
    return {
        "step": LlamaStep(config, weights),
        "prompt": rng.integers(0, config.vocab_size, int(rng.integers(1, 6))).tolist(),
        "max_tokens": int(rng.choice([0, 1, 20])),
        "stop_ids": tokens[: int(rng.integers(0, 4))],
    }


def _timed(rng: np.random.Generator) -> dict[str, Any]:
    config = tiny_config("llama-3")
    return {"step": LlamaStep(config, random_weights(config, rng)), "prompt": [1], "max_tokens": 64}


GREEDY = Procedure(
    reference=greedy,
    examples=_examples,
    paper="arXiv:1409.3215",
    shapes={"two tiny layers, 64 tokens": _timed},
)
