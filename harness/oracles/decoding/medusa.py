"""Exact enumeration: every root-to-node path on its own, accepted as a whole, entropy by SciPy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.decoding.medusa import MEDUSA


@oracle(MEDUSA, library="exact enumeration", needs=("scipy",))
def medusa(
    parent_BN: np.ndarray, token_BN: np.ndarray, p_BNV: np.ndarray, *, epsilon: float = 0.09, delta: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    from scipy.stats import entropy

    B, N = parent_BN.shape
    path_BN, token_B = np.full((B, N), -1), np.zeros(B, dtype=np.int64)
    for b in range(B):
        accepted = []
        for end in range(N):
            path = [end]
            while parent_BN[b, path[0]] >= 0:
                path.insert(0, int(parent_BN[b, path[0]]))
            odds = [p_BNV[b, above, token_BN[b, below]] for above, below in pairwise(path)]
            bars = [min(epsilon, delta * np.exp(-entropy(p_BNV[b, above]))) for above in path[:-1]]
            if path[0] == 0 and all(p > bar for p, bar in zip(odds, bars)):
                accepted.append((-len(path), -sum(np.log(odds)), end, path))
        path = min(accepted)[-1]
        path_BN[b, : len(path)], token_B[b] = path, p_BNV[b, path[-1]].argmax()
    return path_BN, token_B
