"""What encoder-decoders do alike, once an architecture says how tokens become vectors and vectors become logits.

Axes: B batch, M source position, T target position, S position of what is attended to, D width, N head, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmlab.reference.models._fairseq import DECODER_LAYER, ENCODER_LAYER
from llmlab.reference.models._stack import Seen, Stack, drawn, padded, run, single
from llmlab.reference.models._weights import Weights
from llmlab.reference.op import Cost, Dims


@dataclass(frozen=True)
class EncoderDecoder(ABC):
    """Both stacks and how many tokens there are; an architecture's configuration adds the rest."""

    encoder: Stack
    decoder: Stack
    vocab_size: int

    @abstractmethod
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all weights by the name they have in the architecture's files."""

    @abstractmethod
    def embedded(self, weights: Weights, side: str, ids_BT: np.ndarray, positions_BT: np.ndarray) -> np.ndarray:
        """The vectors x_BTD that go into the stack of a side, "encoder" or "decoder"."""

    @abstractmethod
    def logits(self, weights: Weights, x_BTD: np.ndarray) -> np.ndarray:
        """Scores of every next token, logits_BTV, from what the decoder gives."""

    def finished(self, weights: Weights, side: str, x_BTD: np.ndarray) -> np.ndarray:
        """What is done behind a stack: nothing, or a last norm."""
        return x_BTD

    def bias(self, weights: Weights, side: str, T: int, S: int) -> np.ndarray | None:
        """What is added to a side's scores, bias_NTS, if anything."""
        return None


def encode(config: EncoderDecoder, weights: Weights, source_BM: np.ndarray, keep_BM: np.ndarray) -> np.ndarray:
    """Return memory_BMD, what the decoder looks at."""
    M = source_BM.shape[1]
    x_BMD = config.embedded(weights, "encoder", source_BM, _positions(source_BM, 0))
    x_BMD, _ = run(config.encoder, weights, x_BMD, keep_BS=keep_BM, bias_NTS=config.bias(weights, "encoder", M, M))
    return config.finished(weights, "encoder", x_BMD)


def decode_step(
    config: EncoderDecoder,
    weights: Weights,
    target_BT: np.ndarray,
    memory_BMD: np.ndarray | None,
    keep_BM: np.ndarray | None = None,
    past: Sequence[Seen] | None = None,
) -> tuple[np.ndarray, list[Seen]]:
    """Continue targets by T tokens; return (logits_BTV, present). Only the first call needs the encoder's output."""
    start, T = past[0][0].shape[1] if past else 0, target_BT.shape[1]
    x_BTD, present = run(
        config.decoder,
        weights,
        config.embedded(weights, "decoder", target_BT, _positions(target_BT, start)),
        bias_NTS=config.bias(weights, "decoder", T, start + T),
        causal=True,
        memory_BMD=memory_BMD,
        keep_BM=keep_BM,
        past=past,
    )
    return config.logits(weights, config.finished(weights, "decoder", x_BTD)), present


def _positions(ids_BT: np.ndarray, start: int) -> np.ndarray:
    return np.broadcast_to(start + np.arange(ids_BT.shape[1]), ids_BT.shape)


def encoder_decoder_cost(d: Dims) -> Cost:
    """Both stacks of L layers on B pairs of M source and T target tokens, and the logits."""
    D, N, F = d["D"], d["N"], d["F"]
    sizes = (d["L"], D, N, D // N, F, False, 0.0, "gelu")
    encoder, decoder = Stack("", ENCODER_LAYER, *sizes), Stack("", DECODER_LAYER, *sizes)
    logits = Cost(2 * d["B"] * d["T"] * D * d["V"], D * d["V"], d["B"] * d["T"] * d["V"])
    return encoder.cost(d["B"], d["M"], d["M"]) + decoder.cost(d["B"], d["T"], d["T"], M=d["M"], causal=True) + logits


def example(config: EncoderDecoder, rng: np.random.Generator) -> dict[str, Any]:
    """Sources with padding, and targets of another length."""
    B, M, T = int(rng.integers(1, 4)), int(rng.integers(1, 10)), int(rng.integers(1, 8))
    weights = drawn(config.weight_shapes(), rng)
    source_BM, target_BT = rng.integers(0, config.vocab_size, (B, M)), rng.integers(0, config.vocab_size, (B, T))
    keep_BM = padded(rng, B, M)
    return {"config": config, "weights": weights, "source_BM": source_BM, "keep_BM": keep_BM, "target_BT": target_BT}


def timed(config: EncoderDecoder, rng: np.random.Generator, *, M: int, T: int) -> dict[str, Any]:
    """One source of M tokens and one target of T, float32 weights."""
    source_1M, target_1T = rng.integers(0, config.vocab_size, (1, M)), rng.integers(0, config.vocab_size, (1, T))
    weights = single(drawn(config.weight_shapes(), rng, std=0.02))
    return {"config": config, "weights": weights, "source_BM": source_1M, "keep_BM": source_1M >= 0, "target_BT": target_1T}
