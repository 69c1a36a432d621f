"""Blockwise decoding over the torch model: a block is verified and the next one proposed in one pass over the cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmlab.kernels.decoding._tree_torch import TorchTree
from llmlab.kernels.twin import twin
from llmlab.reference.decoding._tree import Verified
from llmlab.reference.decoding.blockwise import BLOCKWISE, blocks_over
from llmlab.reference.decoding.greedy import LlamaStep


@twin(BLOCKWISE, backend="torch")
def blockwise(
    step: LlamaStep,
    prompt: Sequence[int],
    *,
    inner_KFD: np.ndarray,
    outer_KDF: np.ndarray,
    max_tokens: int,
    stop_ids: Sequence[int] = (),
    top: int = 1,
    least: int = 1,
) -> Verified:
    return blocks_over(TorchTree.of(step), step.head_VD, prompt, inner_KFD, outer_KDF, max_tokens, stop_ids, top, least)
