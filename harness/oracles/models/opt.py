"""transformers' OPTForCausalLM with the same configuration and weights."""

from __future__ import annotations

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.models._causal_lm import logits
from llmlab.reference.models.opt import OPT

oracle(OPT, library="transformers.OPTForCausalLM", needs=("torch", "transformers"))(logits)
