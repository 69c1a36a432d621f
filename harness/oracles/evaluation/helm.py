"""HELM's table by SciPy: ranks for win rates, its bootstrap (fed the same generator) for intervals."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.evaluation.helm import HELM


@oracle(HELM, library="scipy.stats.{rankdata,bootstrap}", needs=("scipy",))
def helm(score_MSPI: np.ndarray, *, seed: int, resamples: int = 1000) -> dict[str, np.ndarray]:
    from scipy.stats import bootstrap, rankdata

    M, S = score_MSPI.shape[:2]
    accuracy_MS, robust_MS = score_MSPI[:, :, 0].mean(-1), score_MSPI.min(2).mean(-1)
    rng = np.random.default_rng(seed)
    low_MS, high_MS = np.empty((M, S)), np.empty((M, S))
    for m in range(M):
        for s in range(S):
            found = bootstrap(
                (score_MSPI[m, s, 0],), np.mean, n_resamples=resamples, method="percentile", rng=rng, vectorized=True
            ).confidence_interval
            low_MS[m, s], high_MS[m, s] = found.low, found.high

    def win_rate(score_MS: np.ndarray) -> np.ndarray:
        return ((rankdata(score_MS, axis=0) - 1) / (M - 1)).mean(1)

    return {
        "accuracy_MS": accuracy_MS,
        "robust_MS": robust_MS,
        "low_MS": low_MS,
        "high_MS": high_MS,
        "win_rate_M": win_rate(accuracy_MS),
        "robust_win_rate_M": win_rate(robust_MS),
    }
