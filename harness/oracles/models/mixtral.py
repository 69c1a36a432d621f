"""transformers' MixtralForCausalLM with the same configuration and weights."""

from __future__ import annotations

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.models._causal_lm import logits
from llmlab.reference.models.mixtral import MIXTRAL

oracle(MIXTRAL, library="transformers.MixtralForCausalLM", needs=("torch", "transformers"))(logits)
