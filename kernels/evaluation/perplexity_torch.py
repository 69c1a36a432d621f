"""Perplexity by PyTorch's cross-entropy; half-precision logits are widened, sums are taken in float32 or wider."""

import math

import torch
from torch import Tensor

from llmlab.kernels.twin import twin
from llmlab.reference.evaluation.perplexity import PERPLEXITY


@twin(PERPLEXITY, backend="torch")
def perplexity(logits_BTV: Tensor, ids_BT: Tensor, scored_BT: Tensor) -> Tensor:
    if scored_BT[:, :1].any():
        raise ValueError("position 0 is scored: nothing predicts the first token of a window")
    if not scored_BT.any():
        raise ValueError("no token is scored")
    wide_BTV = logits_BTV.float() if logits_BTV.dtype in (torch.float16, torch.bfloat16) else logits_BTV
    targets_BT = ids_BT[:, 1:].masked_fill(~scored_BT[:, 1:], -100)
    nats = torch.nn.functional.cross_entropy(wide_BTV[:, :-1].flatten(0, 1), targets_BT.flatten())
    return torch.stack([nats.exp(), nats / math.log(2)]).to(logits_BTV.dtype)
