"""Perplexity by torchmetrics, which does not shift: its labels are the next tokens."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.evaluation.perplexity import PERPLEXITY


@oracle(PERPLEXITY, library="torchmetrics.text.Perplexity", dtype="float32", needs=("torch", "torchmetrics"))
def perplexity(logits_BTV: np.ndarray, ids_BT: np.ndarray, scored_BT: np.ndarray) -> np.ndarray:
    import torch
    from torchmetrics.functional.text import perplexity as score

    labels_BT = np.where(scored_BT[:, 1:], ids_BT[:, 1:], -100)
    found = score(torch.from_numpy(logits_BTV[:, :-1].copy()), torch.from_numpy(labels_BT), ignore_index=-100)
    return np.array([float(found), np.log2(float(found))])
