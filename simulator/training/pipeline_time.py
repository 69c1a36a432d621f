"""Seconds of a pipeline of stages in closed form; stages may differ.

The slowest stage works through every microbatch; filling and draining add the other stages once. Splitting the backward pass
lets work on weight gradients fill that wait (zero bubble, arXiv:2401.10241, section 2.3).
Units: seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmlab.reference.errors import InputError


@dataclass(frozen=True)
class StageTime:
    """Seconds of one microbatch on one pipeline rank; `backward_weight_s` is the part of the backward that can wait."""

    forward_s: float
    backward_input_s: float
    backward_weight_s: float

    @property
    def total_s(self) -> float:
        """All three."""
        return self.forward_s + self.backward_input_s + self.backward_weight_s


def pipeline_seconds(
    schedule: str, stages: Sequence[StageTime], microbatches: int, *, virtual_stages: int = 1, transfer_s: float = 0.0
) -> float:
    """Seconds from the first forward to the last backward.

    Args:
        schedule: one of `plan.SCHEDULES`.
        stages: time of each pipeline rank (all of its chunks together).
        microbatches: of one step.
        virtual_stages: chunks per rank.
        transfer_s: one hand-over between neighbouring ranks, paid on the way in and on the way out.

    Raises:
        InputError: no such schedule.

    >>> one = StageTime(1.0, 1.0, 1.0)
    >>> pipeline_seconds("1f1b", [one] * 4, 8), pipeline_seconds("zb-h1", [one] * 4, 8), pipeline_seconds("zb-h2", [one] * 4, 8)
    (33.0, 27.0, 24.0)
    >>> pipeline_seconds("interleaved", [one] * 4, 8, virtual_stages=3)
    27.0
    >>> pipeline_seconds("naive", [one] * 4, 8)
    96.0
    """
    ranks = len(stages)
    slowest = max(range(ranks), key=lambda i: stages[i].total_s)
    steady = microbatches * stages[slowest].total_s
    others = [stage for i, stage in enumerate(stages) if i != slowest]
    crossings = 2.0 * (ranks - 1) * transfer_s
    if schedule == "naive":
        return microbatches * (sum(stage.total_s for stage in stages) + crossings)
    if schedule == "gpipe":
        return steady + sum(stage.total_s for stage in others) + crossings
    if schedule == "1f1b":
        # a rank holds as many microbatches as ranks follow it: the round trip of all of them bounds the pace
        return steady + sum(stage.total_s for stage in others) + crossings * (1.0 + microbatches / ranks)
    if schedule == "interleaved":
        return steady + sum(stage.total_s for stage in others) / virtual_stages + crossings * virtual_stages
    if schedule in ("zb-h1", "zb-1p"):
        waits = [max(0.0, stage.forward_s + stage.backward_input_s - stage.backward_weight_s) for stage in others]
        return steady + sum(waits) + 2.0 * crossings
    if schedule == "zb-h2":
        waits = [max(0.0, stage.forward_s + stage.backward_input_s - 2.0 * stage.backward_weight_s) for stage in others]
        return steady + sum(waits) + crossings
    if schedule == "zb-2p":
        return steady + crossings
    raise InputError("pipeline", "schedule", schedule, "no closed form")


REPLAYED = {"gpipe": "gpipe", "1f1b": "1f1b", "interleaved": "interleaved", "zb-h1": "zb_h1", "zb-h2": "zb_h2"}
"""Schedules whose order of actions is known, under the names the replay has for them."""


def replayed_seconds(
    schedule: str, stages: Sequence[StageTime], microbatches: int, *, virtual_stages: int = 1, transfer_s: float = 0.0
) -> float:
    """The same as `pipeline_seconds` by replaying every action of the schedule: exact for stages that differ.

    It is the longest span of a rank: the next step may begin on a rank that is through (arXiv:2401.10241, section 4).

    Raises:
        InputError: the schedule has no table of actions, or does not take these sizes.

    >>> one = StageTime(1.0, 1.0, 1.0)
    >>> round(replayed_seconds("1f1b", [one] * 4, 8), 6), round(replayed_seconds("zb-h1", [one] * 4, 8), 6)
    (33.0, 27.0)
    """
    import numpy as np

    from llmlab.reference.parallel._orders import make_schedule
    from llmlab.simulator.training.replay import Durations, replay

    if schedule not in REPLAYED:
        raise InputError("pipeline", "schedule", schedule, f"cannot be replayed; one of {', '.join(REPLAYED)} can")
    try:
        table = make_schedule(REPLAYED[schedule], len(stages), microbatches, virtual_stages)
    except ValueError as error:
        raise InputError("pipeline", "schedule", schedule, str(error)) from None
    chunks = table.num_stages // len(stages)
    per_stage = [stages[stage % len(stages)] for stage in range(table.num_stages)]
    own = np.array(
        [
            [stage.forward_s, stage.backward_input_s + stage.backward_weight_s, stage.backward_input_s, stage.backward_weight_s]
            for stage in per_stage
        ]
    )
    action_ns = np.rint(own.T * 1e9 / chunks).astype(np.int64)
    across = np.full((2, table.num_stages), round(transfer_s * 1e9), dtype=np.int64)
    return max(replay(table, Durations(action_ns, across)).span_ns) / 1e9


def in_flight(schedule: str, ranks: int, rank: int, microbatches: int, virtual_stages: int = 1) -> float:
    """Microbatches whose activations a rank holds at its fullest (chunks of them counted in parts).

    >>> in_flight("1f1b", 4, 0, 16), in_flight("1f1b", 4, 3, 16), in_flight("gpipe", 4, 3, 16), in_flight("zb-h2", 4, 0, 16)
    (4.0, 1.0, 16.0, 7.0)
    """
    if schedule == "naive":
        return 1.0
    if schedule == "gpipe":
        return float(microbatches)
    if schedule == "interleaved" and virtual_stages > 1:
        held = (ranks - rank - 1) * 2 + (virtual_stages - 1) * ranks + 1
        return min(float(microbatches), held / virtual_stages)
    if schedule == "zb-h2":
        return float(min(microbatches, 2 * ranks - 1))
    if schedule == "zb-2p":
        return float(min(microbatches, 2 * ranks))
    if schedule in ("zb-h1", "zb-1p"):
        return float(min(microbatches, ranks))
    return float(min(microbatches, ranks - rank))
