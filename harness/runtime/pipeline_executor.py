"""Runs a pipeline schedule for real: the actions of one rank, in its order, on its stages, with messages to the other ranks.

The schedule is the object that the simulator replays. F runs a stage forward; I goes back to the stage's input and notes what
the weights need, W computes that, B is I and W in one piece. A rank sends without waiting and receives when its next action
needs it. An action starts when what it needs has arrived, as in the simulator's replay; processes of one machine share a clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmlab.harness.runtime.trainer_model import Layers, Tape
from llmlab.harness.runtime.trainer_shards import Bucket
from llmlab.kernels.parallel._ranks_torch import exchange
from llmlab.kernels.parallel.pipeline_torch import Mail
from llmlab.reference.parallel._schedule import Action, Schedule


@dataclass(frozen=True)
class Done:
    """One action as it ran; nanoseconds of the machine's monotonic clock."""

    kind: str
    stage: int
    microbatch: int
    start_ns: int
    end_ns: int


@dataclass
class Part:
    """One stage on this rank: its layers and their buckets."""

    layers: Layers
    buckets: dict[str, Bucket]

    @classmethod
    def of(cls, layers: Layers, zero_stage: int, optimizer: str) -> Part:
        """Deal a stage's weights into buckets: experts apart, since other ranks hold the same ones."""
        groups, buckets = layers.groups, {}
        for unit, weights in layers.units.items():
            for name, own, peers in (
                (unit, [one for one in weights if not one.cut.expert], groups.data),
                (f"{unit} experts", [one for one in weights if one.cut.expert], groups.expert_data),
            ):
                if own:
                    buckets[name] = Bucket(own, peers, groups.tp, zero_stage, optimizer)
        part = cls(layers, buckets)
        layers.fetch, layers.release = part.fetch, part.release
        return part

    def _of_unit(self, unit: str) -> Iterator[Bucket]:
        return (self.buckets[name] for name in (unit, f"{unit} experts") if name in self.buckets)

    def fetch(self, unit: str) -> None:
        """Make a unit's weights whole."""
        for bucket in self._of_unit(unit):
            bucket.fetch()

    def release(self, unit: str) -> None:
        """Give back what is not this rank's."""
        for bucket in self._of_unit(unit):
            bucket.release()

    def play(self, tape: Tape) -> None:
        """Compute the gradients of weights that a tape holds."""
        for bucket in self.buckets.values():
            bucket.open()
        tape.play()
        for bucket in self.buckets.values():
            bucket.microbatch_done()


@dataclass
class Held:
    """Bytes of activations a rank holds: tensors that autograd or a tape keeps, each storage once, weights left out."""

    of: dict[tuple[int, int], int] = field(default_factory=dict)
    peak_bytes: int = 0

    @contextmanager
    def watching(self, key: tuple[int, int], weights: Mapping[str, Any]) -> Iterator[None]:
        """Count what a forward saves."""
        known = {one.value.untyped_storage().data_ptr() for one in weights.values() if one.value is not None}
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
        self.now(key, sum(kept.values()))

    def noted(self, key: tuple[int, int], tape: Tape) -> None:
        """After the way back to the input only the tape keeps something."""
        tensors = [one for _, arguments in tape.notes for one in arguments if isinstance(one, Tensor)]
        self.now(key, sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values()))

    def now(self, key: tuple[int, int], size: int) -> None:
        """A stage's microbatch holds so much from now on."""
        self.of[key] = size
        self.peak_bytes = max(self.peak_bytes, sum(self.of.values()))


@dataclass
class Flight:
    """A microbatch between a stage's forward and its last backward; `flats` are the weights its forward used."""

    input: Any
    output: Any
    tape: Tape
    flats: list[Any]


class Pipeline:
    """The stages of this rank, and how it runs them.

    Attributes:
        parts: stage -> its layers.
        ranks: of this pipeline, by place in it.
        names_of: per part of the model, the names of its buckets.
        held: counts bytes of activations where it is not None.
    """

    def __init__(
        self,
        schedule: Schedule,
        parts: Mapping[int, Part],
        *,
        ranks: Sequence[int],
        rank: int,
        shape: tuple[int, int],
        names_of: Sequence[Sequence[str]],
    ) -> None:
        self.schedule, self.parts, self.ranks = schedule, dict(parts), list(ranks)
        self.place, self.shape, self.names_of = self.ranks.index(rank), shape, names_of
        dtype = next(iter(next(iter(parts.values())).buckets.values())).dtype
        self.mail = Mail(schedule, dtype, ranks)
        self.flying: dict[tuple[int, int], Flight] = {}
        self.done: list[Done] = []
        self.held: Held | None = None
        self.copy_messages = self.copy_bytes = 0

    def run(self, ids_MBT: Tensor, target_MBT: Tensor, scale: float, rate: float) -> dict[int, float]:
        """Do every action of one step; return the sum of losses of each microbatch that ends here.

        `rate` is that of the updates which follow each backward of a schedule without a flush; those read the weights that
        their forward used (weight stashing, arXiv:1806.03377, section 3.3).
        """
        losses: dict[int, float] = {}
        for action in self.schedule.actions[self.place]:
            if action.kind == "F":
                self._forward(action, ids_MBT, target_MBT, scale, losses)
            elif action.kind == "W":
                started = time.perf_counter_ns()
                self._weights((action.stage, action.microbatch))
                self._note(action, started)
            else:
                self._backward(action, rate)
        self.mail.finish()
        return losses

    def _forward(self, action: Action, ids_MBT: Tensor, target_MBT: Tensor, scale: float, losses: dict[int, float]) -> None:
        """F: from the stage's input to its output, or to the loss; send it on."""
        _, stage, microbatch = action
        key, part, at = (stage, microbatch), self.parts[stage], self.schedule.part_of(stage)
        last = at == self.schedule.depth - 1
        if at:
            came = self._receive("F", stage, microbatch, stage - 1).requires_grad_()
        else:
            came = ids_MBT[microbatch]
        tape = Tape()
        started = time.perf_counter_ns()
        with self.held.watching(key, part.layers.weights) if self.held else nullcontext():
            out = part.layers.forward(came, tape)
            if last:
                out = part.layers.loss(out, target_MBT[microbatch], tape)
                losses[microbatch] = out.item()
                out = out * scale
        self.flying[key] = Flight(came, out, tape, [bucket.flat for bucket in part.buckets.values()])
        self._note(action, started)
        if not last:
            self.mail.send(out.detach(), "F", stage + 1, microbatch)

    def _backward(self, action: Action, rate: float) -> None:
        """I, or B: from what came for the output back to the input; send it on."""
        kind, stage, microbatch = action
        key, part, at = (stage, microbatch), self.parts[stage], self.schedule.part_of(stage)
        last = at == self.schedule.depth - 1
        dy = None if last else self._receive("B", stage, microbatch, stage + 1)
        flight, newest = self.flying[key], [bucket.flat for bucket in part.buckets.values()]
        if not self.schedule.flush:
            self._use(part, flight.flats)
        started = time.perf_counter_ns()
        torch.autograd.backward(flight.output, dy)
        dx = flight.input.grad
        flight.output = flight.input = None
        if kind == "B":
            self._weights(key)
        elif self.held:
            self.held.noted(key, flight.tape)
        if not self.schedule.flush:
            self._use(part, newest)
            self._update_alone(part, rate)
        self._note(action, started)
        if at:
            self.mail.send(dx, "B", stage - 1, microbatch)

    def _receive(self, kind: str, stage: int, microbatch: int, sender: int) -> Tensor:
        """What another stage made; on the CPU, where this trainer computes even beside GPUs."""
        return self.mail.receive(kind, stage, microbatch, sender, self.shape).cpu()

    def _weights(self, key: tuple[int, int]) -> None:
        """W: the gradients of weights that are still on the tape."""
        self.parts[key[0]].play(self.flying.pop(key).tape)
        if self.held:
            self.held.now(key, 0)

    def _note(self, action: Action, started: int) -> None:
        self.done.append(Done(*action, started, time.perf_counter_ns()))

    @staticmethod
    def _use(part: Part, flats: Sequence[Tensor]) -> None:
        for bucket, flat in zip(part.buckets.values(), flats):
            bucket.use(flat)

    @staticmethod
    def _update_alone(part: Part, rate: float) -> None:
        """Update a stage at once; older weights stay where they are stashed."""
        for bucket in part.buckets.values():
            bucket.use(bucket.flat.clone())
            bucket.reduce()
            bucket.update(rate)
            bucket.forget()

    def sum_copies(self) -> None:
        """Add up gradients of weights that several stages hold: two chains in opposite directions, or a tied output matrix."""
        for name, stages in sorted(self.holders().items()):
            own = [stage for stage in stages if stage in self.parts]
            if len(stages) < 2 or not own:
                continue
            found = {stage: self.parts[stage].buckets[name].gathered() for stage in own}
            peers = [(stage, self.ranks[self.schedule.rank_of[stage]]) for stage in stages if stage not in own]
            came = {stage: torch.empty_like(found[own[0]]) for stage, _ in peers}
            going = [(found[stage], peer) for stage in own for peer in sorted({peer for _, peer in peers})]
            exchange(going, [(came[stage], peer) for stage, peer in peers])
            self.copy_messages += len(going)
            self.copy_bytes += sum(one.nbytes for one, _ in going)
            every = found | came
            total = every[stages[0]].clone()
            for stage in stages[1:]:
                total.add_(every[stage])
            for stage in own:
                self.parts[stage].buckets[name].gathered().copy_(total)

    def holders(self) -> dict[str, list[int]]:
        """Which stages hold a bucket of each name, over all ranks of the pipeline."""
        found: dict[str, list[int]] = {}
        for stage in range(self.schedule.num_stages):
            for name in self.names_of[self.schedule.part_of(stage)]:
                found.setdefault(name, []).append(stage)
        return found
