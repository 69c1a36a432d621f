"""Seconds of a pipeline of stages in closed form; stages may differ.

The slowest rank works through every microbatch; beside that it waits for the others, once each, for a sum of forward (F), input
(I) and weight (W) times that the schedule decides. Each schedule has a few such sums, one per way the last action can depend on
the first (the longest path), and the longest counts. Those of the V schedules, DualPipe and Chimera are the coefficients of the
longest paths in replays of their orders (`reference/parallel/_orders.py`); for V-Half and V-Min they are exact where 4 divides
the ranks, else within a few percent. Tests hold all of them against the replay.
Units: seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from llmlab.reference.errors import InputError
from llmlab.reference.parallel._orders import make_schedule, peak_of, zb_auto
from llmlab.reference.parallel._schedule import Schedule
from llmlab.simulator.cost.curves import FLOATS

FOLDED = ("zb-v", "v-half", "v-min", "dualpipe-v")
"""Schedules whose ranks hold two chunks of the model, one on the way down and one on the way back up."""
BOTH_WAYS = ("dualpipe", "chimera")
"""Schedules whose ranks hold a stage of each of two copies of the model."""
PAIRED = ("dualpipe", "dualpipe-v")
"""Schedules that run a forward beside a backward, so that each hides the other's exchange between experts."""

Form = tuple[float, float, float]
MOST_FORMS = 7


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

    def slowed(self, factor: float) -> StageTime:
        """The same on a rank that takes so many times as long."""
        return StageTime(factor * self.forward_s, factor * self.backward_input_s, factor * self.backward_weight_s)


@cache
def wait_forms(schedule: str, ranks: int, microbatches: int, virtual_stages: int = 1) -> tuple[Form, ...]:
    """Multiples of (F, I, W) of each other rank that the slowest rank may wait for; the longest of them counts.

    naive waits for everyone, microbatch after microbatch; gpipe and 1f1b once; interleaved for a chunk (arXiv:2104.04473);
    zero bubble fills the wait with W (arXiv:2401.10241, section 2.3); DualPipe is that of DeepSeek-V3 where a pair takes as
    long as both (arXiv:2412.19437, table 2); pipedream never flushes.

    Raises:
        InputError: no such schedule.

    >>> wait_forms("zb-h1", 4, 8), wait_forms("dualpipe", 4, 8)[0]
    (((1.0, 1.0, -1.0),), (0.3333333333333333, 0.6666666666666666, -0.3333333333333333))
    """
    p, m = float(ranks), float(microbatches)
    simple: dict[str, Form] = {
        "naive": (m, m, m),
        "gpipe": (1.0, 1.0, 1.0),
        "1f1b": (1.0, 1.0, 1.0),
        "interleaved": (1.0 / virtual_stages,) * 3,
        "zb-h1": (1.0, 1.0, -1.0),
        "zb-1p": (1.0, 1.0, -1.0),
        "zb-h2": (1.0, 1.0, -2.0),
        "zb-2p": (0.0, 0.0, 0.0),  # the order is made for the times: the paper measures next to none left
        "pipedream": (0.0, 0.0, 0.0),
    }
    if schedule in simple:
        return (simple[schedule],)
    if schedule not in FOLDED + BOTH_WAYS:
        raise InputError("pipeline", "schedule", schedule, "no closed form")
    n, h = p - 1.0, p / 2.0 - 1.0
    if schedule in PAIRED:
        h = h if schedule == "dualpipe" else n / 2.0
        found = [(h, 2 * h, -h), (2 * h, h, -h), (2 * h, 0.0, 0.0), (h, h, 0.0)]
    elif schedule == "chimera":
        units = m / p
        long, short = 2 * units * h, (2 * units - 2) * h
        found = [(-short, long, long), (long, -short, -short)]
    elif schedule == "zb-v":
        found = [(0.0, n, -n), (n, -n / 2, -n / 2), (-n / 2, n / 2, 0.0), (n - 0.5, 0.5, -n)]
        found += [(h, -h, 0.0), (-h, 0.0, h), (-n / 2, 0.5, (n - 1.0) / 2)]
    elif (
        schedule == "v-half"
    ):  # the first two: a rank's round takes F / 2 + 2 I or 2 F + I / 2 where that is longer than its work
        found = [(1.0 + 0.75 * p - 0.5 * m, p - 3.0 + m, 1.5 - m), (p - 2.0 + m, 0.75 * p - 0.5 * m, 1.5 - m)]
        found += [(p / 2 + 1, 1.5 * p - 3, 1.5 - p / 2), (1.25 * p - 0.5, 0.625 * p - 1, 0.5 - p / 4)]
        found += [(0.875 * p - 0.5, p - 1, 0.5 - p / 4)]
    else:  # v-min: a round of 3 I or 3 F
        found = [(p - m, p - 3.0 + 2 * m, 0.5 - m), (p - 3.0 + 2 * m, p - m, 0.5 - m)]
        found += [(1.25 * p - 0.5, 0.75 * p - 1.0, 0.5 - p / 4), (0.75 * p - 1.0, 1.25 * p - 0.5, 0.5 - p / 4)]
    others = max(1.0, n)
    return tuple((f / others, i / others, w / others) for f, i, w in found)


@cache
def crossings(schedule: str, ranks: int, microbatches: int, virtual_stages: int = 1) -> float:
    """Hand-overs between neighbouring ranks on the longest path; 2 (ranks - 1) are one way down and back.

    >>> crossings("gpipe", 4, 8), crossings("zb-h1", 4, 8), crossings("dualpipe", 4, 16)
    (6.0, 12.0, 16.0)
    """
    p, m = float(ranks), float(microbatches)
    turn = 1.0 / max(1.0, p - 1.0)
    times = {
        "naive": m,
        "gpipe": 1.0,
        # a rank holds as many microbatches as ranks follow it: the round trip of all of them bounds the pace
        "1f1b": 1.0 + m / p,
        "pipedream": m / p,
        "interleaved": float(virtual_stages),
        "zb-h1": 2.0,
        "zb-1p": 2.0,
        "zb-v": 3.0 - turn,
        "v-half": 3.0 - turn,
        "v-min": 3.0 * m / p + 2.0 - 4.0 * turn,
        "dualpipe": m / (2.0 * p) + 1.0 - turn,
        "dualpipe-v": m / p + 2.0 - turn,
        "chimera": m / p * (1.0 - turn) + 0.5,
    }.get(schedule, 1.0)
    return 2.0 * (p - 1.0) * times


@dataclass(frozen=True)
class Stages:
    """A pipeline's ranks in groups of equals; every field is one number per group, or one array over plans per group.

    Attributes:
        counts: ranks of each group; the slowest rank is one of the first group whose total is longest.
        forward_s, backward_input_s, backward_weight_s: of one microbatch on a rank.
        sharded_s: part of `backward_input_s` that gathers weights and scatters gradients (ZeRO-3).
    """

    counts: Sequence[Any]
    forward_s: Sequence[Any]
    backward_input_s: Sequence[Any]
    backward_weight_s: Sequence[Any]
    sharded_s: Sequence[Any] = ()

    def totals_s(self) -> list[Any]:
        """Seconds of one microbatch on a rank of each group."""
        return [f + i + w for f, i, w in zip(self.forward_s, self.backward_input_s, self.backward_weight_s)]

    def of_slowest(self, values: Sequence[Any], xp: Any) -> Any:
        """The value that the slowest group has."""
        longest, found = 0.0, values[0]
        for count, total, value in zip(self.counts, self.totals_s(), values):
            slower = (total > longest) & (count > 0)
            found, longest = xp.where(slower, value, found), xp.where(slower, total, longest)
        return found

    def waited_s(self, forms: Sequence[tuple[Any, Any, Any]], xp: Any) -> Any:
        """What the slowest rank waits for the others: the longest of the sums over them."""
        longest: Any = 0.0
        for f, i, w in forms:
            own = [
                xp.maximum(0.0, f * forward + i * towards_input + w * weight)
                for forward, towards_input, weight in zip(self.forward_s, self.backward_input_s, self.backward_weight_s)
            ]
            total: Any = 0.0
            for count, value in zip(self.counts, own):
                total = total + count * value
            longest = xp.maximum(longest, total - self.of_slowest(own, xp))
        return longest


def grouped(stages: Sequence[StageTime]) -> Stages:
    """Ranks in groups of equals, in order of their first."""
    kinds = list(dict.fromkeys(stages))
    columns = zip(*((one.forward_s, one.backward_input_s, one.backward_weight_s) for one in kinds))
    return Stages([float(stages.count(kind)) for kind in kinds], *map(list, columns))


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
    >>> [pipeline_seconds(name, [one] * 4, 8) for name in ("naive", "zb-v", "dualpipe")]
    [96.0, 24.0, 26.0]
    """
    sizes = schedule, len(stages), microbatches, virtual_stages
    groups, forms = grouped(stages), wait_forms(*sizes)
    steady = microbatches * groups.of_slowest(groups.totals_s(), FLOATS)
    return float(steady + groups.waited_s(forms, FLOATS) + crossings(*sizes) * transfer_s)


REPLAYED = {
    "naive": "naive",
    "gpipe": "gpipe",
    "1f1b": "1f1b",
    "interleaved": "interleaved",
    "pipedream": "pipedream",
    "zb-h1": "zb_h1",
    "zb-h2": "zb_h2",
    "zb-1p": "zb_1p",
    "zb-2p": "zb_2p",
    "zb-v": "zb_v",
    "v-half": "v_half",
    "v-min": "v_min",
    "dualpipe": "dualpipe",
    "dualpipe-v": "dualpipe_v",
    "chimera": "chimera",
}
"""Plans' schedules under the names their orders of actions have."""

IN_LINE = ("naive", "gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2")
"""Schedules that flush, with stage s on rank s mod p, and an order that hangs on the sizes alone."""


def order_of(
    schedule: str, stages: Sequence[StageTime], microbatches: int, *, virtual_stages: int = 1, transfer_s: float = 0.0
) -> Schedule:
    """The order of actions of a schedule; zb-1p and zb-2p are made for the times of the slowest stage.

    Raises:
        InputError: no such schedule, or sizes that it does not take.
    """
    if schedule not in REPLAYED:
        raise InputError("pipeline", "schedule", schedule, f"cannot be replayed; one of {', '.join(REPLAYED)} can")
    ranks = len(stages)
    try:
        if schedule in ("zb-1p", "zb-2p"):
            slowest = max(stages, key=lambda stage: stage.total_s)
            times = {
                "forward": round(1e9 * slowest.forward_s),
                "backward_input": round(1e9 * slowest.backward_input_s),
                "backward_weight": round(1e9 * slowest.backward_weight_s),
                "hand_over": round(1e9 * transfer_s),
            }
            return zb_auto(ranks, microbatches, max_activations=ranks * (1 if schedule == "zb-1p" else 2), **times)
        return make_schedule(REPLAYED[schedule], ranks, microbatches, virtual_stages)
    except ValueError as error:
        raise InputError("pipeline", "schedule", schedule, str(error)) from None


def replayed(
    schedule: str, stages: Sequence[StageTime], microbatches: int, *, virtual_stages: int = 1, transfer_s: float = 0.0
) -> Any:
    """Every action of the schedule with its times, as a `replay.Timeline`; a rank's chunks share its time evenly.

    Raises:
        InputError: the schedule does not take these sizes.
    """
    from llmlab.simulator.training.replay import replay

    table = order_of(schedule, stages, microbatches, virtual_stages=virtual_stages, transfer_s=transfer_s)
    return replay(table, durations_of(schedule, table, stages, transfer_s))


def durations_of(schedule: str, table: Schedule, stages: Sequence[StageTime], transfer_s: float) -> Any:
    """How long the actions of a schedule take on these ranks, as `replay.Durations`; a rank's chunks share its time evenly."""
    import numpy as np

    from llmlab.simulator.training.replay import Durations

    per_stage = [stages[table.rank_of[stage]] for stage in range(table.num_stages)]
    own = np.array(
        [
            [stage.forward_s, stage.backward_input_s + stage.backward_weight_s, stage.backward_input_s, stage.backward_weight_s]
            for stage in per_stage
        ]
    )
    action_ns = np.rint(own.T * 1e9 / table.chunks_per_rank).astype(np.int64)
    across = np.full((2, table.num_stages), round(transfer_s * 1e9), dtype=np.int64)
    return Durations(action_ns, across, 1000 if schedule in PAIRED else None)


def replayed_seconds(
    schedule: str, stages: Sequence[StageTime], microbatches: int, *, virtual_stages: int = 1, transfer_s: float = 0.0
) -> float:
    """The same as `pipeline_seconds` by replaying every action of the schedule: exact for stages that differ.

    It is the longest span of a rank: the next step may begin on a rank that is through (arXiv:2401.10241, section 4).
    PipeDream never flushes; its span without filling and draining is what its busiest rank works.

    Raises:
        InputError: the schedule does not take these sizes.

    >>> one = StageTime(1.0, 1.0, 1.0)
    >>> round(replayed_seconds("1f1b", [one] * 4, 8), 6), round(replayed_seconds("zb-h1", [one] * 4, 8), 6)
    (33.0, 27.0)
    """
    times = replayed(schedule, stages, microbatches, virtual_stages=virtual_stages, transfer_s=transfer_s)
    return float(max(times.busy_ns if schedule == "pipedream" else times.span_ns) / 1e9)


@cache
def _peaks(schedule: str, ranks: int, microbatches: int) -> tuple[float, ...]:
    """Most activations per rank, read off the order of actions; from 2 p microbatches on nothing changes."""
    return tuple(make_schedule(REPLAYED[schedule], ranks, min(microbatches, 2 * ranks)).peak_activations())


def in_flight(schedule: str, ranks: int, rank: int, microbatches: int, virtual_stages: int = 1) -> float:
    """Microbatches whose activations a rank holds at its fullest (chunks of them counted in parts).

    >>> in_flight("1f1b", 4, 0, 16), in_flight("1f1b", 4, 3, 16), in_flight("gpipe", 4, 3, 16), in_flight("zb-h2", 4, 0, 16)
    (4.0, 1.0, 16.0, 7.0)
    >>> [in_flight(name, 4, 0, 16) for name in ("zb-v", "v-half", "v-min", "dualpipe")]
    [4.0, 3.0, 2.0, 5.0]
    """
    m = float(microbatches)
    if schedule == "zb-2p":
        return min(m, 2.0 * ranks)
    if schedule == "zb-1p":
        return min(m, float(ranks))
    if schedule == "dualpipe":
        return ranks + 1.0
    if schedule == "dualpipe-v":
        return ranks + 0.5
    if schedule == "chimera":
        return min(m, 1.0 + ranks / 2 + min(rank, ranks - 1 - rank))
    if schedule == "zb-v" and microbatches >= 2 * ranks:
        return float(ranks)
    if schedule in FOLDED:
        return _peaks(schedule, ranks, microbatches)[rank]
    if schedule == "interleaved" and virtual_stages > 1:
        held = (ranks - rank - 1) * 2 + (virtual_stages - 1) * ranks + 1
        return min(m, held / virtual_stages)
    peak = peak_of(REPLAYED.get(schedule, "1f1b"), ranks, microbatches, 1, rank)
    assert peak is not None
    return float(peak)
