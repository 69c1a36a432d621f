"""The whole batch through torch autograd on one device; PipeDream from its formula; torch's own lists of actions."""

from __future__ import annotations

import types
from typing import Any

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.parallel.pipeline import PIPELINE

TORCH_NAMES = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved": "Interleaved1F1B",
    "looped_bfs": "LoopedBFS",
    "zb_v": "ZBVZeroBubble",
    "dualpipe_v": "DualPipeV",
}
LETTERS = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}


@oracle(PIPELINE, library="torch")
def pipeline(
    *,
    schedule: str,
    num_ranks: int,
    virtual: int,
    x_MTD: np.ndarray,
    target_MTD: np.ndarray,
    a_LDH: np.ndarray,
    c_LHD: np.ndarray,
    rate: float = 0.1,
) -> dict[str, Any]:
    import torch

    x, target, a, c = (torch.from_numpy(array) for array in (x_MTD, target_MTD, a_LDH, c_LHD))

    def loss(m: int, a: Any, c: Any) -> Any:
        y = x[m]
        for layer in range(len(a)):
            y = y + torch.tanh(y @ a[layer]) @ c[layer]
        return 0.5 * torch.nn.functional.mse_loss(y, target[m])

    losses = []
    if schedule != "pipedream":
        a, c = a.clone().requires_grad_(), c.clone().requires_grad_()
        losses = [loss(m, a, c) for m in range(len(x))]
        torch.stack(losses).mean().backward()
        return {"losses": [one.item() for one in losses], "da_LDH": a.grad.numpy(), "dc_LHD": c.grad.numpy()}

    history = [(a, c)]  # all layers after t updates; layer l is in stage l * p / L, which is p - 1 - stage updates behind
    late = [num_ranks - 1 - layer * num_ranks // len(a) for layer in range(len(a))]
    for m in range(len(x)):
        stale = [
            torch.stack([history[max(0, m - late[layer])][which][layer] for layer in range(len(a))]).requires_grad_()
            for which in (0, 1)
        ]
        losses.append(loss(m, *stale))
        losses[-1].backward()
        history.append(tuple(new - rate * old.grad for new, old in zip(history[-1], stale)))
    change = [((first - last) / rate).numpy() for first, last in zip(history[0], history[-1])]
    return {"losses": [one.item() for one in losses], "da_LDH": change[0], "dc_LHD": change[1]}


def torch_actions(name: str, num_ranks: int, num_microbatches: int, virtual: int) -> list[list[str]]:
    """The lists of torch.distributed.pipelining, a stub in the place of each stage: only its numbers are read."""
    import torch.nn as nn
    from torch.distributed.pipelining import schedules

    def stub(stage: int, num_stages: int) -> Any:
        return types.SimpleNamespace(
            stage_index=stage,
            num_stages=num_stages,
            group_size=num_ranks,
            group_rank=0,
            submod=nn.Identity(),
            is_first=stage == 0,
            is_last=stage == num_stages - 1,
            stage_index_to_group_rank=None,
            has_backward=True,
        )

    kind = schedules.get_schedule_class(TORCH_NAMES[name])
    if issubclass(kind, schedules.PipelineScheduleSingle):
        made = kind(stub(0, num_ranks), n_microbatches=num_microbatches)
    else:
        own = [0, 2 * num_ranks - 1] if name in ("zb_v", "dualpipe_v") else [chunk * num_ranks for chunk in range(virtual)]
        made = kind([stub(stage, num_ranks * len(own)) for stage in own], n_microbatches=num_microbatches)
    lists = []
    for rank in range(num_ranks):
        single = [one for action in made.pipeline_order[rank] if action for one in (action.sub_actions or [action])]
        lists.append(
            [
                f"{one.stage_index}{LETTERS[one.computation_type.name]}{one.microbatch_index}"
                for one in single
                if one.computation_type.name in LETTERS
            ]
        )
    return lists
