"""Bytes a rank holds over a step, action by action of its pipeline schedule, and by layer.

Weights, gradients, optimizer and buffers stand; activations come with a forward and go at the end of its backward (of its
weight part where that is apart); space for logits and for what is computed again is taken once and kept, as caching allocators
do. The highest point is the closed form that a step reports (`memory.rank_memory`).

Units: bytes, nanoseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from llmlab.reference.errors import InputError
from llmlab.simulator.model.description import ModelDescription
from llmlab.simulator.training.memory import (
    activation_piece,
    fullest_rank,
    held_counts,
    layer_weights,
    memory_parts,
    rank_memory,
    stage_weights,
    state_bytes,
    state_piece,
)
from llmlab.simulator.training.pieces import Setting
from llmlab.simulator.training.pipeline_time import BOTH_WAYS, FOLDED, in_flight
from llmlab.simulator.training.plan import Framework, ParallelPlan, framework
from llmlab.simulator.training.replay import Timeline

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "margin")


@dataclass(frozen=True)
class RankSeries:
    """What one rank holds from each moment on.

    Attributes:
        when_ns: moments, ascending; at equal moments the last counts.
        parts: name of a part -> bytes from that moment on.
    """

    rank: int
    when_ns: np.ndarray
    parts: dict[str, np.ndarray]

    @cached_property
    def total_bytes(self) -> np.ndarray:
        """All parts together."""
        return np.sum(list(self.parts.values()), axis=0)

    @property
    def peak(self) -> dict[str, float]:
        """The parts at the highest point."""
        highest = int(np.argmax(self.total_bytes))
        return {name: float(values[highest]) for name, values in self.parts.items()}

    def trace_events(self, pid: int) -> Iterator[dict[str, Any]]:
        """Chrome trace counter events of a process, a stack of parts per moment."""
        for place, when in enumerate(self.when_ns):
            held = {name: float(values[place]) for name, values in self.parts.items()}
            yield {"ph": "C", "name": "memory bytes", "pid": pid, "ts": int(when) / 1e3, "args": held}


def memory_over_time(
    model: ModelDescription,
    plan: ParallelPlan,
    timeline: Timeline,
    *,
    ranks: Sequence[int] | None = None,
    habits: Framework | None = None,
) -> tuple[RankSeries, ...]:
    """Follow the memory of these pipeline ranks (all where None) through a replayed schedule of the plan.

    Raises:
        InputError: the plan cannot run, or the timeline is of other sizes.
    """
    plan.check(model)
    schedule = timeline.schedule
    if (schedule.num_ranks, schedule.num_microbatches) != (plan.pp, plan.microbatches):
        sizes = f"{schedule.num_ranks} ranks and {schedule.num_microbatches} microbatches"
        raise InputError("memory", "timeline", sizes, f"the plan has {plan.pp} and {plan.microbatches}")
    setting = Setting(model, None, habits or framework(plan.framework), None)  # type: ignore[arg-type]
    chosen = range(plan.pp) if ranks is None else ranks
    return tuple(_series(setting, plan, timeline, rank) for rank in chosen)


def fullest_of(series: Sequence[RankSeries]) -> RankSeries:
    """The rank whose highest point is highest."""
    return max(series, key=lambda one: float(one.total_bytes.max()))


def _series(setting: Setting, plan: ParallelPlan, timeline: Timeline, rank: int) -> RankSeries:
    state = state_bytes(state_piece.function(setting, plan), stage_weights(setting.model, plan, rank))
    activation = activation_piece.function(setting, plan)
    layers, at_embedding, with_logits, versions = held_counts(setting, plan, rank)
    changes = [(0, 0.0, 0), *_changes(timeline, rank)]
    when = np.array([at for at, _, _ in changes], dtype=np.int64)
    held = np.cumsum([change for _, change, _ in changes])
    # counts are of the fullest moment; here they are the share of its microbatches that are really held
    share = held / in_flight(plan.schedule, plan.pp, rank, plan.microbatches, plan.virtual_stages)
    logits = np.cumsum([change for _, _, change in changes])
    kept = np.maximum.accumulate(np.minimum(logits, 1)) if with_logits <= 1 else np.maximum(logits, 0)
    stashed = np.maximum(1.0, versions * share) if versions > 1 else np.ones(len(share))
    counts = (layers * share, at_embedding * share, with_logits and kept, stashed)
    parts = memory_parts(state, counts, activation, float(plan.pp > 1), setting.habits)
    full = {name: np.broadcast_to(np.asarray(part, dtype=float), len(when)) for name, part in zip(PARTS, parts)}
    return RankSeries(rank, when, full)


def _changes(timeline: Timeline, rank: int) -> list[tuple[int, float, int]]:
    """(moment, activations taken or given back, microbatches with logits more or fewer), giving before taking."""
    schedule = timeline.schedule
    last = schedule.depth - 1
    found = []
    for unit, start, end in zip(timeline.units[rank], timeline.start_ns[rank], timeline.end_ns[rank]):
        for action in unit:
            at_end = int(schedule.part_of(action.stage) == last)
            if action.kind == "F":
                found.append((int(start), 1.0 / schedule.chunks_per_rank, at_end))
            elif action.kind == "I":
                found.append((int(end), 0.0, -at_end))
            else:
                found.append((int(end), -1.0 / schedule.chunks_per_rank, -at_end if action.kind == "B" else 0))
    return sorted(found, key=lambda change: (change[0], change[1]))


def by_layer(model: ModelDescription, plan: ParallelPlan, habits: Framework | None = None) -> tuple[int, list[dict[str, Any]]]:
    """The fullest rank, and what of its memory is each layer's, the embedding's and the output matrix's.

    Rows are kinds of layers with their number; numbers times bytes are what the rank holds.
    """
    habits = habits or framework(plan.framework)
    rank, _ = fullest_rank(model, plan, habits)
    whole = rank_memory(model, plan, rank, habits)
    setting = Setting(model, None, habits, None)  # type: ignore[arg-type]
    kept, momentary, mask, _, _ = activation_piece.function(setting, plan)
    layers, at_embedding, _, _ = held_counts(setting, plan, rank)
    count = _layers_on(model, plan, rank)
    per_layer = sum(layer_weights(model)) * count
    table = float(model.config.vocab_size * model.config.hidden_size)
    first, last = _ends_on(plan, rank)
    tied = model.config.tie_word_embeddings and first and last
    weights = {"layer": per_layer, "embedding": table if first else 0.0, "output matrix": table if last and not tied else 0.0}
    all_of = sum(weights.values())
    numbers = {"layer": count, "embedding": 1, "output matrix": 1}
    activations = {"layer": kept * layers, "embedding": mask * at_embedding, "output matrix": 0.0}
    rows = []
    for name, size in weights.items():
        part, number = size / all_of, numbers[name]
        if not size and not activations[name]:
            continue
        rows.append(
            {
                "part": name,
                "number": number,
                "weights_bytes": whole.weights_bytes * part / number,
                "gradients_bytes": whole.gradients_bytes * part / number,
                "optimizer_bytes": whole.optimizer_bytes * part / number,
                "activations_bytes": activations[name] / number,
            }
        )
    if momentary:
        nothing = {f"{name}_bytes": 0.0 for name in ("weights", "gradients", "optimizer")}
        rows.append({"part": "layer computed again", "number": 1, **nothing, "activations_bytes": momentary})
    return rank, rows


def _layers_on(model: ModelDescription, plan: ParallelPlan, rank: int) -> int:
    layers = plan.layers_of_stages(model.layers)
    return layers[rank] + (layers[plan.pp - 1 - rank] if plan.schedule in BOTH_WAYS and plan.pp > 1 else 0)


def _ends_on(plan: ParallelPlan, rank: int) -> tuple[bool, bool]:
    """Whether a rank holds the embedding, and the output matrix."""
    if plan.schedule in BOTH_WAYS and plan.pp > 1:
        return rank in (0, plan.pp - 1), rank in (0, plan.pp - 1)
    return rank == 0, rank == (0 if plan.schedule in FOLDED else plan.pp - 1)
