"""transformers' own verification of a draft, with the random numbers it would draw replaced by the given ones."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.decoding.speculative import SPECULATIVE


@oracle(SPECULATIVE, library="transformers.generation.utils._speculative_sampling", needs=("torch", "transformers"))
def speculative(
    draft_BK: np.ndarray, q_BKV: np.ndarray, p_BJV: np.ndarray, uniform_BJ: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    import torch
    from transformers.generation.utils import _speculative_sampling

    K = draft_BK.shape[1]
    tokens_BJ, accepted_B = np.full(uniform_BJ.shape, -1, dtype=np.int64), np.zeros(len(draft_BK), dtype=np.int64)
    for b in range(len(draft_BK)):
        uniform_J = torch.tensor(uniform_BJ[b])

        def drawn(probabilities, num_samples, uniform=uniform_J[K]):  # type: ignore[no-untyped-def]
            reached = probabilities.cumsum(-1)
            return torch.searchsorted(reached, (uniform * reached[:, -1:]), right=True)

        with (
            np.errstate(divide="ignore"),
            patch.object(torch, "rand_like", lambda like, u=uniform_J[:K]: u),
            patch.object(torch, "multinomial", drawn),
        ):
            valid, accepted = _speculative_sampling(
                torch.tensor(draft_BK[b])[None],
                torch.tensor(np.log(q_BKV[b]))[None],
                K,
                torch.tensor(np.log(p_BJV[b]))[None],
            )
        valid_J = valid[0].tolist()
        tokens_BJ[b, : len(valid_J)], accepted_B[b] = valid_J, int(accepted)
    return tokens_BJ, accepted_B
