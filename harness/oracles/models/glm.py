"""transformers' GlmForCausalLM, Glm4ForCausalLM with the same configuration and weights."""

from __future__ import annotations

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.models._causal_lm import logits
from llmlab.reference.models.glm import GLM

oracle(GLM, library="transformers.GlmForCausalLM", needs=("torch", "transformers"))(logits)
