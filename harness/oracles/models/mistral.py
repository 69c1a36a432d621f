"""transformers' MistralForCausalLM with the same configuration and weights."""

from __future__ import annotations

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.models._causal_lm import logits
from llmlab.reference.models.mistral import MISTRAL

oracle(MISTRAL, library="transformers.MistralForCausalLM", needs=("torch", "transformers"))(logits)
