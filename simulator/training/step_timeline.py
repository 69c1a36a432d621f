"""When everything in a step happens on every rank: actions of the pipeline, collectives, hand-overs, the optimizer.

Actions are those of the replayed schedule. What the collectives inside an action's layers (tensor, context, expert) take that
nothing hides is drawn as one piece at its end, though it lies between its layers; hand-overs have a track of their own. When
the last replica is through, data-parallel collectives follow as far as nothing hides them, then the optimizer and what a step
takes once. Units: integer nanoseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from llmlab.reference.errors import InputError
from llmlab.simulator.training.pipeline_time import durations_of, order_of
from llmlab.simulator.training.replay import Timeline, replay
from llmlab.simulator.training.step import StepPrediction

MOST_EVENTS = 400_000
NAMES = {
    "F": "forward",
    "B": "backward",
    "I": "backward input",
    "W": "backward weight",
    "C": "collective in layers",
    "P": "hand-over",
    "D": "data-parallel collective",
    "O": "optimizer",
    "S": "once per step",
}
TRACKS = ("compute", "collectives", "hand-over")
TRACK_OF = {"C": 1, "D": 1, "P": 2}


class Event(NamedTuple):
    """Something on a stage of a replica; `kind` is a key of `NAMES`."""

    replica: int
    stage: int
    kind: str
    microbatch: int
    start_ns: int
    end_ns: int


@dataclass(frozen=True)
class StepTimeline:
    """A step, event by event; all tensor- and context-parallel ranks of a stage do the same.

    Attributes:
        step: that was predicted.
        pipelines: per replica.
    """

    step: StepPrediction
    pipelines: tuple[Timeline, ...]
    in_layers: float

    @cached_property
    def pipeline_ns(self) -> int:
        """When the last replica is through."""
        return max(pipeline.makespan_ns for pipeline in self.pipelines)

    @cached_property
    def makespan_ns(self) -> int:
        """The whole step."""
        b = self.step.breakdown
        return self.pipeline_ns + sum(round(1e9 * part) for part in (b.data_s, b.optimizer_s, b.constant_s))

    @cached_property
    def replicas_differ(self) -> bool:
        """Whether some replica does something at another time than the first (equal ones share their pipeline)."""
        return any(pipeline is not self.pipelines[0] for pipeline in self.pipelines)

    def ranks(self, replica: int, stage: int) -> list[int]:
        """Numbers of the ranks of a stage of a replica, as Megatron-LM gives them."""
        plan = self.step.plan
        wide = plan.tp * plan.cp
        first = (stage * plan.dp + replica) * wide
        return list(range(first, first + wide))

    def events(self) -> Iterator[Event]:
        """Everything, replica by replica."""
        plan, b = self.step.plan, self.step.breakdown
        for replica, pipeline in enumerate(self.pipelines):
            for stage, action, start, end in pipeline.actions():
                talk = round((end - start) * self.in_layers)
                yield Event(replica, stage, action.kind, action.microbatch, start, end - talk)
                if talk:
                    yield Event(replica, stage, "C", action.microbatch, end - talk, end)
                schedule = pipeline.schedule
                onward = action.stage + (1 if action.kind == "F" else -1)
                across = round(1e9 * self.step.handover_s)
                leaves = action.kind != "W" and 0 <= onward < schedule.num_stages
                if leaves and across and schedule.rank_of[onward] != stage:
                    yield Event(replica, stage, "P", action.microbatch, end, end + across)
            now = self.pipeline_ns
            for kind, seconds in (("D", b.data_s), ("O", b.optimizer_s), ("S", b.constant_s)):
                length = round(1e9 * seconds)
                if length:
                    for stage in range(plan.pp):
                        yield Event(replica, stage, kind, 0, now, now + length)
                now += length

    def trace_events(self) -> Iterator[dict[str, Any]]:
        """Chrome trace events: a process per rank with a track for computing, for collectives and for hand-overs.

        Raises:
            InputError: there would be too many.
        """
        listed = list(self.events())
        wide = self.step.plan.tp * self.step.plan.cp
        if len(listed) * wide > MOST_EVENTS:
            why = f"{len(listed) * wide} events are more than {MOST_EVENTS}; take fewer microbatches or replicas"
            raise InputError("timeline", "gpus", self.step.plan.gpus, why)
        for replica in range(len(self.pipelines)):
            for stage in range(self.step.plan.pp):
                for place, rank in enumerate(self.ranks(replica, stage)):
                    name = f"rank {rank}: replica {replica}, stage {stage}, tensor rank {place % self.step.plan.tp}"
                    yield {"ph": "M", "name": "process_name", "pid": rank, "tid": 0, "args": {"name": name}}
                    for number, track in enumerate(TRACKS):
                        yield {"ph": "M", "name": "thread_name", "pid": rank, "tid": number, "args": {"name": track}}
        for event in listed:
            for rank in self.ranks(event.replica, event.stage):
                yield {
                    "ph": "X",
                    "name": f"{event.kind}{event.microbatch}" if event.kind in "FBIW" else NAMES[event.kind],
                    "cat": NAMES[event.kind],
                    "pid": rank,
                    "tid": TRACK_OF.get(event.kind, 0),
                    "ts": event.start_ns / 1e3,
                    "dur": (event.end_ns - event.start_ns) / 1e3,
                    "args": {"microbatch": event.microbatch},
                }


def step_timeline(step: StepPrediction, stage_factors: np.ndarray | None = None) -> StepTimeline:
    """Replay a predicted step; `stage_factors` (stage by replica) multiply the time of a stage's microbatches.

    Raises:
        InputError: the schedule has no table of actions.
    """
    plan = step.plan
    across, chunks = step.handover_s, plan.virtual_stages
    table = order_of(plan.schedule, step.stages, plan.microbatches, virtual_stages=chunks, transfer_s=across)
    known: dict[bytes, Timeline] = {}
    pipelines = []
    for replica in range(plan.dp):
        by = np.ones(plan.pp) if stage_factors is None else np.ascontiguousarray(stage_factors[:, replica])
        if by.tobytes() not in known:
            slowed = [stage.slowed(float(factor)) for stage, factor in zip(step.stages, by)]
            known[by.tobytes()] = replay(table, durations_of(plan.schedule, table, slowed, across))
        pipelines.append(known[by.tobytes()])
    b = step.breakdown
    working = plan.microbatches * max(stage.total_s for stage in step.stages)  # handing over is in it
    talking = (b.tensor_s + b.context_s + b.expert_s) / working if working else 0.0
    return StepTimeline(step, tuple(pipelines), talking)
