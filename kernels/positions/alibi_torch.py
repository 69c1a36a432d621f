"""Linear biases in PyTorch: one bias per head and distance, broadcast over the batch."""

import torch
from torch import Tensor

from llmlab.kernels.twin import twin
from llmlab.reference.positions.alibi import ALIBI, alibi_slopes


@twin(ALIBI, backend="torch")
def alibi(scores_BNTS: Tensor) -> Tensor:
    N, T, S = scores_BNTS.shape[1:]
    kind = torch.float64 if scores_BNTS.dtype == torch.float64 else torch.float32
    device = scores_BNTS.device
    distance_TS = torch.arange(S, device=device)[None, :] - (S - T + torch.arange(T, device=device))[:, None]
    slopes_N11 = torch.from_numpy(alibi_slopes(N)).to(device, kind)[:, None, None]
    return (scores_BNTS + slopes_N11 * distance_TS).to(scores_BNTS.dtype)
