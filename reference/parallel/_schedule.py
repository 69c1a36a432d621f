"""What a pipeline schedule is: per rank an ordered list of actions, and where the stages live.

Kinds of action: F forward, B full backward, I gradient of the input, W gradient of the weights (B = I and W in one piece).
A model is cut into `depth` virtual stages. A schedule has one chain of stages, or two that run in opposite directions
(Chimera, DualPipe): stage c * depth + d is part d of the model in chain c, and a microbatch stays in its chain. A schedule has
no clock: who replays it brings the durations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

KINDS = "FBIW"


class Action(NamedTuple):
    """One piece of work of a rank.

    >>> str(Action("F", 0, 3))
    '0F3'
    """

    kind: str
    stage: int
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.microbatch}"


@dataclass(frozen=True)
class Schedule:
    """Actions of every rank, in the order the rank does them.

    Attributes:
        name: of the schedule.
        num_microbatches: in all chains together.
        depth: virtual stages of one chain; the model is cut into so many parts.
        rank_of: stage -> rank.
        actions: per rank.
        flush: whether weights stay as they are until every microbatch is through. Without a flush each backward is followed by
            an update, and a backward uses the weights its forward used (PipeDream).
    """

    name: str
    num_microbatches: int
    depth: int
    rank_of: tuple[int, ...]
    actions: tuple[tuple[Action, ...], ...]
    flush: bool = True

    @property
    def num_ranks(self) -> int:
        """Ranks of the pipeline."""
        return len(self.actions)

    @property
    def num_stages(self) -> int:
        """Virtual stages of all chains."""
        return len(self.rank_of)

    @property
    def chunks_per_rank(self) -> int:
        """How many virtual stages together make 1 / num_ranks of the model."""
        return self.depth // self.num_ranks

    def part_of(self, stage: int) -> int:
        """Which part of the model a stage computes."""
        return stage % self.depth

    @cached_property
    def _backward(self) -> dict[tuple[int, int], str]:
        return {(a.stage, a.microbatch): a.kind for actions in self.actions for a in actions if a.kind in "BI"}

    def needs(self, action: Action) -> list[Action]:
        """Actions that must be done before: of the neighbour stage, then of the same stage."""
        kind, stage, microbatch = action
        part = self.part_of(stage)
        if kind == "F":
            return [Action("F", stage - 1, microbatch)] if part else []
        if kind == "W":
            return [Action("I", stage, microbatch)]
        own = [Action("F", stage, microbatch)]
        if part == self.depth - 1:
            return own
        return [Action(self._backward[stage + 1, microbatch], stage + 1, microbatch), *own]

    def in_order(self) -> Iterator[tuple[int, Action]]:
        """Yield (rank, action) so that everything comes after what it needs.

        Raises:
            ValueError: ranks wait for each other in a circle.
        """
        done: set[Action] = set()
        place = [0] * self.num_ranks
        moved = True
        while moved:
            moved = False
            for rank, actions in enumerate(self.actions):
                while place[rank] < len(actions) and done.issuperset(self.needs(actions[place[rank]])):
                    action = actions[place[rank]]
                    done.add(action)
                    place[rank] += 1
                    moved = True
                    yield rank, action
        for rank, actions in enumerate(self.actions):
            if place[rank] < len(actions):
                action = actions[place[rank]]
                missing = next(need for need in self.needs(action) if need not in done)
                raise ValueError(f"{self.name}: rank {rank} waits for {missing} before {action} for ever")

    def activations(self, rank: int, *, freed_by_input: float = 0.0) -> list[float]:
        """Activations held after each action of a rank, in units of what 1 / num_ranks of the model keeps of a microbatch.

        They are kept from F to B, or to W; `freed_by_input` is the part that I gives back already.
        """
        gives = {"F": 1.0, "B": -1.0, "I": -freed_by_input, "W": freed_by_input - 1.0}
        held, over = 0.0, []
        for action in self.actions[rank]:
            held += gives[action.kind]
            over.append(held / self.chunks_per_rank)
        return over

    def peak_activations(self, *, freed_by_input: float = 0.0) -> list[float]:
        """Most activations held at once, per rank."""
        return [max(self.activations(rank, freed_by_input=freed_by_input), default=0.0) for rank in range(self.num_ranks)]

    def validate(self) -> None:
        """Refuse a schedule that is not one.

        Raises:
            ValueError: an action on the wrong rank, one missing or done twice, or a circle of waiting; the action is named.
        """
        counts = Counter(action for actions in self.actions for action in actions)
        for action, count in counts.items():
            if count > 1:
                raise ValueError(f"{self.name}: {action} is done {count} times")
        chain_of: dict[int, int] = {}
        for rank, actions in enumerate(self.actions):
            for action in actions:
                if action.kind not in KINDS or not 0 <= action.stage < self.num_stages:
                    raise ValueError(f"{self.name}: {action} is no action of {self.num_stages} stages")
                if self.rank_of[action.stage] != rank:
                    raise ValueError(f"{self.name}: {action} on rank {rank}, its stage is on rank {self.rank_of[action.stage]}")
                if chain_of.setdefault(action.microbatch, action.stage // self.depth) != action.stage // self.depth:
                    raise ValueError(f"{self.name}: microbatch {action.microbatch} runs in two chains")
        if sorted(chain_of) != list(range(self.num_microbatches)):
            raise ValueError(f"{self.name}: has microbatches {sorted(chain_of)}, not 0 to {self.num_microbatches - 1}")
        for microbatch, chain in chain_of.items():
            for stage in range(chain * self.depth, (chain + 1) * self.depth):
                found = "".join(kind for kind in KINDS if Action(kind, stage, microbatch) in counts)
                if found not in ("FB", "FIW"):
                    raise ValueError(
                        f"{self.name}: stage {stage}, microbatch {microbatch} has {found or 'nothing'}, not FB or FIW"
                    )
        for _ in self.in_order():
            pass

    def units(self, rank: int, *, paired: bool) -> list[tuple[Action, ...]]:
        """Actions of a rank one by one; or, `paired`, a forward and the backward of another stage after it as one piece.

        DualPipe runs such pairs beside each other, so that each hides what the other waits for.
        """
        actions, units, place = self.actions[rank], [], 0
        while place < len(actions):
            first, *rest = actions[place : place + 2]
            pair = paired and rest and first.kind == "F" and rest[0].kind == "B" and first.stage != rest[0].stage
            units.append(actions[place : place + 1 + bool(pair)])
            place += len(units[-1])
        return units

    def text(self) -> str:
        """One line per rank, such as `0F0 0F1 0B0 0B1`."""
        return "\n".join(" ".join(map(str, actions)) for actions in self.actions)


def straight(num_ranks: int, virtual: int = 1) -> tuple[int, ...]:
    """Stage s on rank s mod p: the loop of interleaved schedules."""
    return tuple(stage % num_ranks for stage in range(num_ranks * virtual))


def folded(num_ranks: int) -> tuple[int, ...]:
    """Stages 0 to p-1 go down the ranks, p to 2p-1 come back up: the V."""
    return (*range(num_ranks), *reversed(range(num_ranks)))


def both_ways(num_ranks: int) -> tuple[int, ...]:
    """Two chains of p stages, the second from the last rank to the first."""
    return folded(num_ranks)


def spell(kinds: Sequence[tuple[str, int]], counts: dict[tuple[str, int], int] | None = None) -> list[Action]:
    """Number (kind, stage) pairs: the n-th occurrence of a pair is microbatch n.

    >>> [str(action) for action in spell([("F", 0), ("F", 0), ("B", 0)])]
    ['0F0', '0F1', '0B0']
    """
    counts = {} if counts is None else counts
    actions = []
    for kind, stage in kinds:
        number = counts.get((kind, stage), 0)
        counts[kind, stage] = number + 1
        actions.append(Action(kind, stage, number))
    return actions
