"""Models to be evaluated, read from what people have: a folder of Hugging Face's, a GGUF file, or a file of llama2.c's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from llmlab.harness.evaluation.multiple_choice import LanguageModel, Letters
from llmlab.reference.errors import InputError
from llmlab.reference.models._blocks import decoder
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models._weights import Weights, load_checkpoint, load_llama2c, random_weights
from llmlab.reference.tokenizers.formats import load_tokenizer

TRAINING_TEXT = Path(__file__).resolve().parent.parent / "runtime" / "training_text.txt"


def load_model(path: str | Path) -> LanguageModel:
    """Read a folder with config.json, safetensors and a tokenizer, a GGUF file, or a llama2.c `.bin` with one `*.model` beside.

    Raises:
        InputError: files are absent or broken, or the tokenizer knows ids that the model does not.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".gguf":
        config, weights = load_checkpoint(path)
        tokenizer = load_tokenizer(path)
    else:
        config, weights = load_llama2c(path)
        beside = sorted(path.parent.glob("*.model"))
        if len(beside) != 1:
            raise InputError(path.parent, "*.model", len(beside), "expected one SentencePiece model beside the weights")
        tokenizer = load_tokenizer(beside[0])
    start = [] if config.bos_token_id is None else [config.bos_token_id]

    def encode(text: str) -> list[int]:
        ids = [*start, *tokenizer.encode(text)]
        if max(ids, default=0) >= config.vocab_size:
            raise InputError(path, "vocab_size", config.vocab_size, f"the tokenizer gives id {max(ids)}")
        return ids

    return LanguageModel(path.name, _Forward(config, weights), encode, config.max_position_embeddings)


class _Forward:
    """ids_BT -> logits_BTV."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config, self.weights = config, weights

    def __call__(self, ids_BT: np.ndarray) -> np.ndarray:
        return decoder(self.config, self.weights, ids_BT)[0]


def untrained(model: LanguageModel, seed: int) -> LanguageModel:
    """The same architecture and tokenizer with weights drawn anew: what training is worth."""
    assert isinstance(model.logits, _Forward)
    drawn = random_weights(model.logits.config, np.random.default_rng(seed))
    return replace(model, name=f"{model.name}, untrained", logits=_Forward(model.logits.config, drawn))


def letter_frequencies() -> Letters:
    """The baseline that knows how often letters occur in this project's own text."""
    return Letters.of(TRAINING_TEXT.read_text(encoding="utf-8"))
