"""Ring attention over torch.distributed: queries stay, keys travel by send and receive; results merge by log-sum-exp.

Forwards every tile is computed by plain products in the tensors' dtype; backwards the gradients travel with their keys.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llmlab.kernels.parallel._peers_torch import Peers, on_mesh
from llmlab.kernels.twin import twin
from llmlab.reference.attention.ring import RING, positions_of_ranks


def seen_scores(q: Tensor, k: Tensor, asking: Tensor, held: Tensor, causal: bool) -> Tensor:
    scores = torch.einsum("btkgh,bskh->btkgs", q, k) * q.shape[-1] ** -0.5
    if causal:
        scores = scores.masked_fill((asking[:, None] < held)[:, None, None, :], -torch.inf)
    return scores


def ring_rank(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, held: list[Tensor], asking: Tensor, causal: bool, peers: Peers
) -> tuple[Tensor, ...]:
    """One rank's forward and backward; `held` are the key positions of every rank, `asking` this rank's queries'."""
    out, lse = torch.zeros_like(q), q.new_full(q.shape[:-1], -torch.inf)
    moving = [k, v]
    for step in range(peers.size):
        scores = seen_scores(q, moving[0], asking, held[(peers.rank - step) % peers.size], causal)
        new_lse = torch.logaddexp(lse, torch.logsumexp(scores, -1))
        shift = new_lse.masked_fill(new_lse.isneginf(), 0)
        out = out * (lse - shift).exp()[..., None] + torch.einsum(
            "btkgs,bskh->btkgh", (scores - shift[..., None]).exp(), moving[1]
        )
        lse = new_lse
        if step < peers.size - 1:
            moving = peers.shift(moving)

    along = (dout * out).sum(-1, keepdim=True)
    shift = lse.masked_fill(lse.isneginf(), 0)[..., None]
    dq, moving, travelling = torch.zeros_like(q), [k, v], [torch.zeros_like(k), torch.zeros_like(v)]
    scale = q.shape[-1] ** -0.5
    for step in range(peers.size):
        weights = (seen_scores(q, moving[0], asking, held[(peers.rank - step) % peers.size], causal) - shift).exp()
        dscores = weights * (torch.einsum("btkgh,bskh->btkgs", dout, moving[1]) - along) * scale
        dq += torch.einsum("btkgs,bskh->btkgh", dscores, moving[0])
        travelling[0] += torch.einsum("btkgs,btkgh->bskh", dscores, q)
        travelling[1] += torch.einsum("btkgs,btkgh->bskh", weights, dout)
        if step < peers.size - 1:
            moving = peers.shift(moving)
        travelling = peers.shift(travelling)
    return out, lse, dq, *travelling


@twin(RING, backend="torch", dtypes=("float64",))
def ring(
    *,
    q_BTKGH: np.ndarray,
    k_BSKH: np.ndarray,
    v_BSKH: np.ndarray,
    dout_BTKGH: np.ndarray,
    num_ranks: int,
    causal: bool = True,
    layout: str = "contiguous",
    traffic: object = None,
) -> dict[str, np.ndarray]:
    asking = positions_of_ranks(q_BTKGH.shape[1], num_ranks, layout)
    held = positions_of_ranks(k_BSKH.shape[1], num_ranks, layout)

    def program(peers: Peers) -> tuple[Tensor, ...]:
        mine, own = asking[peers.rank], held[peers.rank]
        q, k, v, dout = (
            torch.tensor(whole[:, rows]) for whole, rows in ((q_BTKGH, mine), (k_BSKH, own), (v_BSKH, own), (dout_BTKGH, mine))
        )
        return ring_rank(q, k, v, dout, [torch.from_numpy(rows) for rows in held], torch.from_numpy(mine), causal, peers)

    ranks = on_mesh((num_ranks,), program)
    back, back_held = np.argsort(np.concatenate(asking)), np.argsort(np.concatenate(held))
    named = zip(("out", "lse", "dq", "dk", "dv"), zip(*ranks), (back, back, back, back_held, back_held))
    return {name: torch.cat(parts, 1).numpy()[:, order] for name, parts, order in named}
