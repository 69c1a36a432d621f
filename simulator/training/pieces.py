"""Parts of a step that hang on a few fields of a plan only: computed for one plan, or once per distinct setting of many.

A piece is a plain function of one plan. What is made of pieces (`step.py`, `memory.py`) adds, multiplies and compares them, in
functions that take floats or NumPy arrays: double precision rounds the same in both, so one plan and a screen of a million give
the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmlab.simulator.hardware.device import Device
from llmlab.simulator.model.description import ModelDescription
from llmlab.simulator.training.network import Network
from llmlab.simulator.training.plan import Framework, ParallelPlan


@dataclass(frozen=True)
class Setting:
    """What does not change from plan to plan."""

    model: ModelDescription
    device: Device
    habits: Framework
    network: Network


@dataclass(frozen=True, eq=False)
class Piece:
    """Numbers that hang on these fields of a plan, and on nothing else of it."""

    fields: tuple[str, ...]
    function: Callable[[Setting, ParallelPlan], tuple[float, ...]]


Get = Callable[[Piece], tuple[Any, ...]]
"""Gives the numbers of a piece: floats for one plan, arrays for many."""


def piece(*fields: str) -> Callable[[Callable[[Setting, ParallelPlan], tuple[float, ...]]], Piece]:
    """Make the decorated function a piece that reads these fields."""
    return lambda function: Piece(fields, function)


def of_plan(setting: Setting, plan: ParallelPlan) -> Get:
    """The pieces of one plan, each computed once."""
    known: dict[Piece, tuple[float, ...]] = {}

    def get(wanted: Piece) -> tuple[float, ...]:
        if wanted not in known:
            known[wanted] = wanted.function(setting, plan)
        return known[wanted]

    return get
