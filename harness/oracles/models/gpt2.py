"""transformers' GPT2LMHeadModel with the same configuration and weights."""

from __future__ import annotations

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.models._causal_lm import logits
from llmlab.reference.models.gpt2 import GPT2

oracle(GPT2, library="transformers.GPT2LMHeadModel", needs=("torch", "transformers"))(logits)
