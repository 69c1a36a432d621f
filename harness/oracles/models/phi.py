"""transformers' PhiForCausalLM, Phi3ForCausalLM with the same configuration and weights."""

from __future__ import annotations

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.models._causal_lm import logits
from llmlab.reference.models.phi import PHI

oracle(PHI, library="transformers.PhiForCausalLM", needs=("torch", "transformers"))(logits)
