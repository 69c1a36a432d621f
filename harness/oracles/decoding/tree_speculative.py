"""transformers' verification, one child at a time: a child is a draft of one guess against what its siblings left over."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.decoding.tree_speculative import TREE_SPECULATIVE


@oracle(TREE_SPECULATIVE, library="transformers _speculative_sampling per child", needs=("torch", "transformers"))
def tree_speculative(
    parent_BN: np.ndarray, token_BN: np.ndarray, q_BNV: np.ndarray, p_BNV: np.ndarray, uniform_BN: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    import torch
    from transformers.generation.utils import _speculative_sampling

    B, N = parent_BN.shape
    path_BN, last_B = np.full((B, N), -1, dtype=np.int64), np.zeros(B, dtype=np.int64)
    for b in range(B):
        node, path, left = 0, [0], torch.tensor(p_BNV[b, 0])
        while True:
            for child in np.flatnonzero(parent_BN[b] == node):
                if child == 0:
                    continue
                told = []

                def kept(probabilities, num_samples, told=told):  # type: ignore[no-untyped-def]
                    told.append(probabilities[0])
                    return torch.zeros(1, 1, dtype=torch.long)

                pair = torch.stack([left, torch.tensor(p_BNV[b, child])]).log()[None]
                with (
                    patch.object(torch, "rand_like", lambda like, u=uniform_BN[b, child]: torch.full_like(like, u)),
                    patch.object(torch, "multinomial", kept),
                ):
                    _, holds = _speculative_sampling(
                        torch.tensor(token_BN[b, child]).view(1, 1), torch.tensor(q_BNV[b, child]).log()[None, None], 1, pair
                    )
                if holds:
                    node, left = int(child), torch.tensor(p_BNV[b, child])
                    path.append(node)
                    break
                if not told[0].isnan().any():
                    left = told[0]
            else:
                break
        path_BN[b, : len(path)] = path
        reached = left.cumsum(-1)
        last_B[b] = min(int(torch.searchsorted(reached, uniform_BN[b, 0] * reached[-1:], right=True)), p_BNV.shape[-1] - 1)
    return path_BN, last_B
