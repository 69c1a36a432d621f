"""Projection and cross-entropy by PyTorch, some positions at a time; backward forms their logits again."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llmlab.kernels.layers.cross_entropy_torch import cross_entropy
from llmlab.kernels.twin import twin
from llmlab.reference.layers.fused_linear_cross_entropy import FUSED_LINEAR_CROSS_ENTROPY

LOGITS_ALIVE = 2**23


@twin(FUSED_LINEAR_CROSS_ENTROPY, backend="torch")
def fused_linear_cross_entropy(
    hidden_BTD: Tensor,
    weight_VD: Tensor,
    targets_BT: Tensor,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    chosen = {"label_smoothing": label_smoothing, "z_loss": z_loss, "ignore_index": ignore_index}
    hidden_MD, targets_M = hidden_BTD.flatten(0, 1), targets_BT.flatten()
    step = max(1, LOGITS_ALIVE // weight_VD.shape[0])
    parts = [
        checkpoint(
            _some, hidden_MD[start : start + step], weight_VD, targets_M[start : start + step], chosen, use_reentrant=False
        )
        for start in range(0, targets_M.numel(), step)
    ]
    loss_M = torch.cat(parts) if parts else hidden_MD.new_empty(0)
    return loss_M.view(targets_BT.shape)


def _some(hidden_CD: Tensor, weight_VD: Tensor, targets_C: Tensor, chosen: dict[str, Any]) -> Tensor:
    half = hidden_CD.dtype in (torch.float16, torch.bfloat16)
    wide_CD, wide_VD = (hidden_CD.float(), weight_VD.float()) if half else (hidden_CD, weight_VD)
    loss_C1 = cross_entropy((wide_CD @ wide_VD.T)[:, None], targets_C[:, None], **chosen)
    return loss_C1[:, 0].to(hidden_CD.dtype)
