"""transformers' decoder of a tiny architecture, holding the weights given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmlab.harness.oracles.models._transformers import loaded
from llmlab.reference.models._architecture import architecture_of
from llmlab.reference.models._config import ModelConfig


def causal_lm(config: ModelConfig, weights: Mapping[str, np.ndarray]) -> Any:
    """The library's model of `config`, which is one of its family's tiny ones, in float64."""
    from transformers import AutoConfig, AutoModelForCausalLM

    facts = dict(architecture_of(config.model_type).tiny[config.name])
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**facts), experts_implementation="eager")
    return loaded(model, weights, made=("lm_head.weight",) if config.tie_word_embeddings else ())


def logits(config: ModelConfig, weights: Mapping[str, np.ndarray], ids_BT: np.ndarray) -> np.ndarray:
    """What the library's model answers."""
    import torch

    with torch.no_grad():
        return causal_lm(config, weights)(torch.from_numpy(ids_BT)).logits.numpy()
