"""transformers' Qwen2ForCausalLM, Qwen3ForCausalLM and their mixtures of experts with the same configuration and weights."""

from __future__ import annotations

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.models._causal_lm import logits
from llmlab.reference.models.qwen import QWEN

oracle(QWEN, library="transformers.Qwen2ForCausalLM", needs=("torch", "transformers"))(logits)
