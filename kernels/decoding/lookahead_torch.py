"""Lookahead over the torch model: both branches in one pass under a tree mask, the cache rolled back to what was accepted."""

from __future__ import annotations

from collections.abc import Sequence

from llmlab.kernels.decoding._tree_torch import TorchTree
from llmlab.kernels.twin import twin
from llmlab.reference.decoding import lookahead as plain
from llmlab.reference.decoding._tree import Verified
from llmlab.reference.decoding.greedy import LlamaStep


@twin(plain.LOOKAHEAD, backend="torch")
def lookahead(step: LlamaStep, prompt: Sequence[int], **options: int | Sequence[int]) -> Verified:
    return plain.lookahead(TorchTree.of(step), prompt, **options)  # type: ignore[arg-type]
