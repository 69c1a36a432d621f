"""transformers' DeepseekV3ForCausalLM with the same configuration and weights."""

from __future__ import annotations

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.models._causal_lm import logits
from llmlab.reference.models.deepseek import DEEPSEEK

oracle(DEEPSEEK, library="transformers.DeepseekV3ForCausalLM", needs=("torch", "transformers"))(logits)
