"""The same schedules between real processes: each rank does its own list, autograd in its stages, messages by tag.

A rank sends as soon as it has something and never waits for that; it receives when its next action needs it, which need not
be in the order of sending: tags tell messages apart. NCCL knows no tags, so under it messages go through a gloo group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from llmlab.kernels.parallel import _world
from llmlab.kernels.parallel._ranks_torch import device, tensor
from llmlab.kernels.twin import twin
from llmlab.reference.parallel._orders import make_schedule
from llmlab.reference.parallel._schedule import Schedule
from llmlab.reference.parallel.pipeline import PIPELINE

Layers = list[torch.Tensor]
"""A of each layer of one part of the model, then C of each."""


@twin(PIPELINE, backend="torch", dtypes=("float64",))
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
    plan = make_schedule(schedule, num_ranks, len(x_MTD), virtual)
    if len(a_LDH) % plan.depth:
        raise ValueError(f"{len(a_LDH)} layers do not divide into {plan.depth} stages of {schedule} on {num_ranks} ranks")
    each = len(a_LDH) // plan.depth
    own: list[dict[str, Any]] = []
    for rank in range(num_ranks):
        stages = [stage for stage, at in enumerate(plan.rank_of) if at == rank]
        parts = {stage: slice(plan.part_of(stage) * each, (plan.part_of(stage) + 1) * each) for stage in stages}
        arrays = {stage: [*a_LDH[part], *c_LHD[part]] for stage, part in parts.items()}
        first = any(plan.part_of(stage) == 0 for stage in stages)
        last = any(plan.part_of(stage) == plan.depth - 1 for stage in stages)
        own.append(
            {
                "plan": plan,
                "arrays": arrays,
                "x_MTD": x_MTD if first else None,
                "target_MTD": target_MTD if last else None,
                "shape": x_MTD.shape[1:],
                "rate": rate,
            }
        )
    answers = _world.run(one_rank, own)
    losses = {microbatch: loss for answer in answers for microbatch, loss in answer[0].items()}
    gradients = {stage: arrays for answer in answers for stage, arrays in answer[1].items()}
    return {
        "losses": [losses[microbatch] for microbatch in range(len(x_MTD))],
        "da_LDH": np.stack([one for part in range(plan.depth) for one in gradients[part][:each]]),
        "dc_LHD": np.stack([one for part in range(plan.depth) for one in gradients[part][each:]]),
    }


def run_stage(x_TD: torch.Tensor, layers: Layers) -> torch.Tensor:
    """Return what one part of the model makes of its input."""
    half = len(layers) // 2
    for a_DH, c_HD in zip(layers[:half], layers[half:]):
        x_TD = torch.addmm(x_TD, (x_TD @ a_DH).tanh(), c_HD)
    return x_TD


def one_rank(
    plan: Schedule,
    arrays: dict[int, list[np.ndarray]],
    x_MTD: np.ndarray | None,
    target_MTD: np.ndarray | None,
    shape: tuple[int, int],
    rate: float,
) -> tuple[dict[int, float], dict[int, list[np.ndarray]]]:
    """Do the actions of this rank; return its losses, and the gradients of its stages of the first chain."""
    rank, scale = dist.get_rank(), 1 / plan.num_microbatches if plan.flush else 1.0
    weights = {stage: [tensor(one).requires_grad_() for one in layers] for stage, layers in arrays.items()}
    gradients = {stage: [torch.zeros_like(one) for one in layers] for stage, layers in weights.items()}
    mail = Mail(plan, next(iter(weights.values()))[0].dtype)
    inputs: dict[tuple[int, int], torch.Tensor] = {}
    outputs: dict[tuple[int, int], torch.Tensor] = {}
    used: dict[tuple[int, int], Layers] = {}  # the weights of the forward: without a flush they are replaced meanwhile
    arrived: dict[tuple[int, int], torch.Tensor] = {}
    losses: dict[int, float] = {}
    for kind, stage, microbatch in plan.actions[rank]:
        key, part = (stage, microbatch), plan.part_of(stage)
        last = part == plan.depth - 1
        if kind == "F":
            x_TD = mail.receive("F", stage, microbatch, stage - 1, shape) if part else tensor(x_MTD[microbatch])
            inputs[key], used[key] = x_TD.requires_grad_(), weights[stage]
            y_TD = outputs[key] = run_stage(inputs[key], used[key])
            if last:
                loss = 0.5 * torch.nn.functional.mse_loss(y_TD, tensor(target_MTD[microbatch]))
                losses[microbatch], outputs[key] = loss.item(), loss * scale
            else:
                mail.send(y_TD.detach(), "F", stage + 1, microbatch)
            continue
        if kind in "BI":
            arrived[key] = torch.ones_like(outputs[key]) if last else mail.receive("B", stage, microbatch, stage + 1, shape)
        # I and W each go through the stage by themselves: what costs once more here is the chain of gradients between layers.
        asked = [*([inputs[key]] if kind in "BI" else []), *(used[key] if kind in "BW" else [])]
        found = list(torch.autograd.grad(outputs[key], asked, arrived[key], retain_graph=kind == "I"))
        if kind in "BI":
            dx_TD = found.pop(0)
            if part:
                mail.send(dx_TD, "B", stage - 1, microbatch)
        if kind in "BW":
            for total, one in zip(gradients[stage], found):
                total += one
            if not plan.flush:
                weights[stage] = [(one.detach() - rate * change).requires_grad_() for one, change in zip(weights[stage], found)]
            del inputs[key], outputs[key], used[key], arrived[key]
    for stage in (stage for stage in gradients if stage >= plan.depth):  # the second copy of the model
        for place, one in enumerate(gradients[stage]):
            mail.send(one, "F", plan.part_of(stage), plan.num_microbatches + place)
    for stage in (stage for stage in gradients if plan.num_stages > plan.depth > stage):
        for place, one in enumerate(gradients[stage]):
            one += mail.receive("F", stage, plan.num_microbatches + place, stage + plan.depth, one.shape)
    mail.finish()
    return losses, {stage: [one.cpu().numpy() for one in layers] for stage, layers in gradients.items() if stage < plan.depth}


class Mail:
    """Messages to and from other ranks, told apart by kind, stage of the receiver and microbatch.

    `ranks` are those of the pipeline, where it is one of several; `messages` and `sent_bytes` count what left this rank.
    """

    def __init__(self, plan: Schedule, dtype: torch.dtype, ranks: Sequence[int] | None = None) -> None:
        self.plan, self.dtype = plan, dtype
        self.ranks = list(range(plan.num_ranks)) if ranks is None else list(ranks)
        self.rank = self.ranks.index(dist.get_rank())
        self.group = dist.new_group(backend="gloo") if dist.get_backend() == "nccl" else None
        self.messages = self.sent_bytes = 0
        self.sent: list[tuple[Any, torch.Tensor]] = []  # a tensor must live until it is gone
        self.here: dict[tuple[str, int, int], torch.Tensor] = {}

    def tag(self, kind: str, stage: int, number: int) -> int:
        """Number a message; no two of a step are alike."""
        return (2 * number + (kind == "B")) * self.plan.num_stages + stage

    def send(self, one: torch.Tensor, kind: str, stage: int, number: int) -> None:
        """Start sending to the rank of a stage."""
        peer = self.plan.rank_of[stage]
        if peer == self.rank:
            self.here[kind, stage, number] = one
            return
        one = one.cpu().contiguous()
        self.messages, self.sent_bytes = self.messages + 1, self.sent_bytes + one.nbytes
        self.sent.append((dist.isend(one, self.ranks[peer], group=self.group, tag=self.tag(kind, stage, number)), one))

    def receive(self, kind: str, stage: int, number: int, sender: int, shape: Any) -> torch.Tensor:
        """Wait for what the rank of `sender` sends to `stage`."""
        peer = self.plan.rank_of[sender]
        if peer == self.rank:
            return self.here.pop((kind, stage, number))
        one = torch.empty(tuple(shape), dtype=self.dtype)
        dist.recv(one, self.ranks[peer], group=self.group, tag=self.tag(kind, stage, number))
        return one.to(device())

    def finish(self) -> None:
        """Wait until everything was sent."""
        for work, _ in self.sent:
            work.wait()
        self.sent.clear()
