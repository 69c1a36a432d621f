"""transformers' GPTNeoXForCausalLM with the same configuration and weights."""

from __future__ import annotations

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.models._causal_lm import logits
from llmlab.reference.models.gpt_neox import GPT_NEOX

oracle(GPT_NEOX, library="transformers.GPTNeoXForCausalLM", needs=("torch", "transformers"))(logits)
