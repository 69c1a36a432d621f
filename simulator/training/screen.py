"""Memory and seconds of very many plans at once, the same bits that `predict_step` gives one by one.

Plans are kept as codes into the few distinct values of each field. A piece (`pieces.py`) is computed once per distinct setting
of the fields it hangs on and dealt out; the rest is the arithmetic of `memory.fullest` and `step.step_parts` over arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from llmlab.simulator.training.memory import fullest, sum_of
from llmlab.simulator.training.pieces import Get, Piece, Setting
from llmlab.simulator.training.plan import ParallelPlan
from llmlab.simulator.training.step import step_parts

AT_ONCE = 1 << 17
"""Plans whose arrays are held at the same time."""

FIELDS = tuple(item.name for item in fields(ParallelPlan))
Codes = np.ndarray


@dataclass(frozen=True)
class Plans:
    """Many plans: per field its distinct values and, where there are several, each plan's code into them."""

    count: int
    values: Mapping[str, tuple[Any, ...]]
    codes: Mapping[str, Codes]

    @classmethod
    def of(cls, plans: Iterable[ParallelPlan]) -> Plans:
        """Plans given one by one.

        >>> two = Plans.of([ParallelPlan(dp=2), ParallelPlan(dp=4)])
        >>> two.count, two.values["dp"], two.codes["dp"].tolist(), two.plan(1) == ParallelPlan(dp=4)
        (2, (2, 4), [0, 1], True)
        """
        listed = list(plans)
        values: dict[str, tuple[Any, ...]] = {}
        codes: dict[str, Codes] = {}
        for name in FIELDS:
            column = [getattr(plan, name) for plan in listed]
            values[name] = tuple(dict.fromkeys(column))
            if len(values[name]) > 1:
                place = {value: code for code, value in enumerate(values[name])}
                codes[name] = np.array([place[value] for value in column], dtype=np.int64)
        return cls(len(listed), values, codes)

    def plan(self, number: int) -> ParallelPlan:
        """One of them."""
        return ParallelPlan(**{name: self.value(name, number) for name in FIELDS})

    def value(self, name: str, number: int) -> Any:
        """One field of one of them."""
        return self.values[name][self.codes[name][number] if name in self.codes else 0]

    def listed(self, name: str, numbers: np.ndarray) -> list[Any]:
        """One field of those with these numbers."""
        values = self.values[name]
        if name not in self.codes:
            return [values[0]] * len(numbers)
        return [values[code] for code in self.codes[name][numbers].tolist()]

    def take(self, numbers: np.ndarray | slice) -> Plans:
        """Those with these numbers."""
        codes = {name: column[numbers] for name, column in self.codes.items()}
        count = len(range(*numbers.indices(self.count))) if isinstance(numbers, slice) else len(numbers)
        return Plans(count, self.values, codes)

    def column(self, name: str) -> Any:
        """A field of numbers over all plans; one number where it is the same for all."""
        if name not in self.codes:
            return float(self.values[name][0])
        return np.array(self.values[name], dtype=np.float64)[self.codes[name]]

    @cached_property
    def with_microbatches(self) -> Plans:
        """The same with the number of microbatches as a field."""
        dp, size, batch = (self.column(name) for name in ("dp", "microbatch", "global_batch"))
        values, codes = np.unique(np.broadcast_to(batch // (dp * size), self.count), return_inverse=True)
        found = {**self.values, "microbatches": tuple(int(value) for value in values)}
        return Plans(self.count, found, {**self.codes, "microbatches": codes} if len(values) > 1 else self.codes)


def distinct(codes: Codes, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One place of every distinct code (all below `size`), and for each code which of those it equals.

    >>> first, which = distinct(np.array([5, 2, 5]), 6)
    >>> np.array([5, 2, 5])[first].tolist(), which.tolist()
    ([2, 5], [1, 0, 1])
    """
    if size > 4 * len(codes) + 65536:
        _, first, which = np.unique(codes, return_index=True, return_inverse=True)
        return first, which
    place = np.full(size, -1, dtype=np.int64)
    place[codes] = np.arange(len(codes))
    present = np.flatnonzero(place >= 0)
    number = np.empty(size, dtype=np.int64)
    number[present] = np.arange(len(present))
    return place[present], number[codes]


Known = dict[tuple[Any, ...], tuple[float, ...]]


def of_plans(setting: Setting, plans: Plans, known: Known) -> Get:
    """The pieces of many plans as arrays; `known` keeps what was computed for the next ones."""
    plans = plans.with_microbatches
    gathered: dict[Piece, tuple[Any, ...]] = {}

    def get(piece: Piece) -> tuple[Any, ...]:
        if piece not in gathered:
            gathered[piece] = _gather(setting, plans, piece, known)
        return gathered[piece]

    return get


def _gather(setting: Setting, plans: Plans, piece: Piece, known: Known) -> tuple[Any, ...]:
    codes, size = np.zeros(1, dtype=np.int64), 1
    for name in piece.fields:
        if name in plans.codes:
            codes = codes * len(plans.values[name]) + plans.codes[name]
            size *= len(plans.values[name])
    first, which = distinct(codes, size)
    columns = [plans.listed(name, first) for name in piece.fields]
    rows = []
    for values in zip(*columns):
        key = (piece, *values)
        if key not in known:
            known[key] = piece.function(setting, _with(piece.fields, values))
        rows.append(known[key])
    if len(rows) == 1:
        return rows[0]
    return tuple(np.array(column)[which] for column in zip(*rows))


def _with(names: tuple[str, ...], values: tuple[Any, ...]) -> ParallelPlan:
    """A plan with these fields; the others do not matter to the piece that asks."""
    given = dict(zip(names, values))
    if "microbatches" in given:
        given["global_batch"] = given.pop("microbatches")
    return ParallelPlan(**given)


@dataclass(frozen=True)
class Screened:
    """What every plan needs and takes.

    Attributes:
        total_bytes: of the fullest rank.
        seconds: of a step; infinite where the plan was not timed because it does not fit.
    """

    total_bytes: np.ndarray
    seconds: np.ndarray


def screen(
    setting: Setting,
    plans: Plans,
    *,
    fit_bytes: float = float("inf"),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Screened:
    """Memory of every plan, and seconds of those that need at most `fit_bytes`."""
    total = np.empty(plans.count)
    seconds = np.full(plans.count, np.inf)
    known: Known = {}
    for start in range(0, plans.count, AT_ONCE):
        part = slice(start, min(plans.count, start + AT_ONCE))
        some = plans.take(part)
        _, parts = fullest(of_plans(setting, some, known), setting.habits, np)
        total[part] = sum_of(parts)
        fitting = np.flatnonzero(total[part] <= fit_bytes)
        if len(fitting):
            some = some.take(fitting)
            seconds[start + fitting] = sum_of(timed(setting, some, known))
        progress(part.stop, plans.count)
    return Screened(total, seconds)


def timed(setting: Setting, plans: Plans, known: Known | None = None) -> tuple[Any, ...]:
    """The parts of `StepBreakdown` of every plan, as arrays (or one number where all have the same)."""
    get = of_plans(setting, plans, {} if known is None else known)
    microbatches = plans.with_microbatches.column("microbatches")
    return step_parts(get, microbatches, plans.column("pp"), setting.habits, np)
