"""transformers' FalconForCausalLM with the same configuration and weights."""

from __future__ import annotations

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.models._causal_lm import logits
from llmlab.reference.models.falcon import FALCON

oracle(FALCON, library="transformers.FalconForCausalLM", needs=("torch", "transformers"))(logits)
