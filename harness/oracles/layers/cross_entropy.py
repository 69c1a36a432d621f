"""Cross-entropy by PyTorch; the z-loss on top by its log-sum-exp."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.layers.cross_entropy import CROSS_ENTROPY


@oracle(CROSS_ENTROPY, library="torch.nn.functional.cross_entropy", needs=("torch",))
def cross_entropy(
    logits_BTV: np.ndarray,
    targets_BT: np.ndarray,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> np.ndarray:
    import torch

    logits, targets = torch.from_numpy(logits_BTV), torch.from_numpy(targets_BT)
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1),
        targets.flatten(),
        reduction="none",
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
    )
    z = z_loss * torch.logsumexp(logits, -1) ** 2 * (targets != ignore_index)
    return (loss.view(targets.shape) + z).numpy()
