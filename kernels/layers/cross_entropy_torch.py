"""Cross-entropy by PyTorch; half-precision logits are widened, their loss rounded at the end."""

import torch
from torch import Tensor

from llmlab.kernels.twin import twin
from llmlab.reference.layers.cross_entropy import CROSS_ENTROPY


@twin(CROSS_ENTROPY, backend="torch")
def cross_entropy(
    logits_BTV: Tensor,
    targets_BT: Tensor,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    wide_BTV = logits_BTV.float() if logits_BTV.dtype in (torch.float16, torch.bfloat16) else logits_BTV
    loss_M = torch.nn.functional.cross_entropy(
        wide_BTV.flatten(0, 1),
        targets_BT.flatten(),
        reduction="none",
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
    )
    loss_BT = loss_M.view(targets_BT.shape)
    if z_loss:
        lse_BT = torch.logsumexp(wide_BTV, -1)
        loss_BT = loss_BT + torch.where(targets_BT != ignore_index, z_loss * lse_BT * lse_BT, 0.0)
    return loss_BT.to(logits_BTV.dtype)
