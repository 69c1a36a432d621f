"""Expert parallelism over torch.distributed: sorted rows through all-to-alls that autograd runs the other way."""

from __future__ import annotations

import numpy as np
import torch

from llmlab.kernels.parallel._peers_torch import Copied, Exchanged, Peers, grads, leaf, on_mesh
from llmlab.kernels.twin import twin
from llmlab.reference.parallel._exchange import split
from llmlab.reference.parallel.expert import EXPERT, places


@twin(EXPERT, backend="torch", dtypes=("float64",))
def expert(
    *,
    x_ND: np.ndarray,
    gate_DE: np.ndarray,
    up_EDF: np.ndarray,
    down_EFD: np.ndarray,
    dout_ND: np.ndarray,
    num_ranks: int,
    top_k: int = 2,
    capacity_factor: float | None = None,
    traffic: object = None,
) -> dict[str, np.ndarray]:
    E = gate_DE.shape[1]
    own = E // num_ranks
    cut = {"x": split(x_ND, num_ranks, 0, "tokens"), "dout": split(dout_ND, num_ranks, 0, "tokens")}
    cut |= {"up": split(up_EDF, num_ranks, 0, "experts"), "down": split(down_EFD, num_ranks, 0, "experts")}

    def program(peers: Peers) -> dict[str, np.ndarray]:
        x, up, down = (leaf(cut[name][peers.rank]) for name in ("x", "up", "down"))
        gate = leaf(gate_DE)
        N, D = x.shape
        chosen = torch.topk(torch.softmax(x @ Copied.apply(gate, peers), -1), top_k, dim=-1)
        gates = (chosen.values / chosen.values.sum(-1, keepdim=True)).T.flatten()
        wanted = chosen.indices.T.flatten()  # every first choice, then every second one
        token = torch.arange(N).repeat(top_k)

        place = torch.nn.functional.one_hot(wanted, E).cumsum(0).gather(1, wanted[:, None])[:, 0] - 1
        if capacity_factor is None:
            kept = torch.ones_like(wanted, dtype=torch.bool)
            counts = torch.bincount(wanted, minlength=E)
            slot = counts.cumsum(0)[wanted] - counts[wanted] + place
            ones = [1] * num_ranks
            came = peers.all_to_all(counts.view(num_ranks, own), ones, ones)
        else:
            room = places(N, E, top_k, capacity_factor)
            kept, slot = place < room, wanted * room + place
            counts = torch.full((E,), room)
            came = counts.view(num_ranks, own)
        give, take = counts.view(num_ranks, own).sum(1).tolist(), came.sum(1).tolist()

        rows = x.new_zeros((int(counts.sum()), D)).index_copy(0, slot[kept], x[token[kept]])
        arrived = Exchanged.apply(rows, peers, give, take)
        of_expert = torch.arange(own).repeat(num_ranks).repeat_interleave(came.flatten())
        done = arrived.new_zeros(arrived.shape)
        for e in range(own):
            mine = (of_expert == e).nonzero()[:, 0]
            done = done.index_add(0, mine, torch.relu(arrived[mine] @ up[e]) @ down[e])
        back = Exchanged.apply(done, peers, take, give)
        out = torch.zeros_like(x).index_add(0, token[kept], gates[kept, None] * back[slot[kept]])
        out.backward(torch.tensor(cut["dout"][peers.rank]))
        found = grads({"x": x, "gate": gate, "up": up, "down": down})
        return {"out": out.detach().numpy(), **found, "kept": kept.view(top_k, N).T.numpy()}

    ranks = on_mesh((num_ranks,), program)
    whole = {name: np.concatenate([rank[name] for rank in ranks]) for name in ranks[0] if name != "dgate"}
    return {**whole, "dgate": ranks[0]["dgate"]}
