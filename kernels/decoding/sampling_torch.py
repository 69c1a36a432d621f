"""Sampling over torch: rows together; a truncation looks at the first thousands of candidates and sorts all only if it must."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.kernels.twin import twin
from llmlab.reference.decoding.sampling import SAMPLING, require_options

FIRST = (1024, 16384)
"""Candidates looked at before the whole vocabulary is sorted: their mass nearly always reaches p."""


@twin(SAMPLING, backend="torch")
def sampling(
    logits_BV: Tensor,
    uniform_B: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
    epsilon: float = 0.0,
    eta: float = 0.0,
) -> tuple[Tensor, Tensor]:
    require_options(temperature, top_k, top_p, min_p, typical_p, epsilon, eta)
    dtype = logits_BV.dtype
    x_BV = logits_BV.double() if dtype == torch.float64 else logits_BV.float()
    if temperature != 1:
        x_BV = x_BV / temperature
    if 0 < top_k < x_BV.shape[1]:
        kth_B1 = x_BV.topk(top_k, dim=-1).values[:, -1:]
        x_BV = x_BV.masked_fill(x_BV < kth_B1, -torch.inf)
    if top_p < 1:
        x_BV = x_BV.masked_fill(_past_mass(-x_BV, _softmax(x_BV), top_p), -torch.inf)
    if min_p > 0:
        p_BV = _softmax(x_BV)
        x_BV = x_BV.masked_fill(p_BV < min_p * p_BV.amax(dim=-1, keepdim=True), -torch.inf)
    if typical_p < 1:
        p_BV = _softmax(x_BV)
        distance_BV = (-p_BV.log() - _entropy(p_BV)).abs()
        x_BV = x_BV.masked_fill(_past_mass(distance_BV, p_BV, typical_p), -torch.inf)
    if epsilon > 0:
        x_BV = _at_least(x_BV, _softmax(x_BV), epsilon)
    if eta > 0:
        p_BV = _softmax(x_BV)
        x_BV = _at_least(x_BV, p_BV, (eta**0.5 * (-_entropy(p_BV)).exp()).clamp(max=eta))
    p_BV = _softmax(x_BV)
    return p_BV.to(dtype), draw(p_BV, uniform_B.to(p_BV.dtype))


def _softmax(x_BV: Tensor) -> Tensor:
    p_BV = torch.softmax(x_BV, dim=-1)
    p_BV = p_BV / p_BV.sum(dim=-1, keepdim=True)  # its denominator loses 5 bits over 128,000 terms; this sum is pairwise
    return p_BV.masked_fill((x_BV == -torch.inf).all(dim=-1, keepdim=True), 0)


def _past_mass(key_BV: Tensor, p_BV: Tensor, mass: float) -> Tensor:
    """Keys above the smallest one up to which the probabilities reach `mass`."""
    V = key_BV.shape[1]
    for candidates in (*(first for first in FIRST if first < V), V):
        key_BC, order_BC = key_BV.topk(candidates, dim=-1, largest=False)
        reached_BC = p_BV.gather(-1, order_BC).cumsum(dim=-1)
        if candidates == V or bool((reached_BC[:, -1] >= mass).all()):
            break
    last_B1 = (reached_BC < mass).sum(dim=-1, keepdim=True).clamp(max=candidates - 1)
    return key_BV > key_BC.gather(-1, last_B1)


def _entropy(p_BV: Tensor) -> Tensor:
    return torch.special.entr(p_BV).sum(dim=-1, keepdim=True)


def _at_least(x_BV: Tensor, p_BV: Tensor, floor: Tensor | float) -> Tensor:
    return x_BV.masked_fill((p_BV < floor) & (x_BV < x_BV.amax(dim=-1, keepdim=True)), -torch.inf)


def draw(p_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds uniform; -1 for a row without a distribution."""
    reached_BV = p_BV.cumsum(dim=-1)
    total_B1 = reached_BV[:, -1:]
    passed_B = torch.searchsorted(reached_BV, uniform_B[:, None] * total_B1, right=True)[:, 0]
    last_B = p_BV.shape[1] - 1 - (p_BV > 0).flip(-1).to(torch.uint8).argmax(dim=-1)
    return torch.where(total_B1[:, 0] > 0, torch.minimum(passed_B, last_B), -1)
