"""Projection and cross-entropy by PyTorch with all logits in memory."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.layers.cross_entropy import cross_entropy
from llmlab.reference.layers.fused_linear_cross_entropy import FUSED_LINEAR_CROSS_ENTROPY


@oracle(
    FUSED_LINEAR_CROSS_ENTROPY, library="torch.nn.functional.linear and torch.nn.functional.cross_entropy", needs=("torch",)
)
def fused_linear_cross_entropy(
    hidden_BTD: np.ndarray,
    weight_VD: np.ndarray,
    targets_BT: np.ndarray,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> np.ndarray:
    import torch

    logits = torch.nn.functional.linear(torch.from_numpy(hidden_BTD), torch.from_numpy(weight_VD)).numpy()
    return cross_entropy(logits, targets_BT, label_smoothing=label_smoothing, z_loss=z_loss, ignore_index=ignore_index)
