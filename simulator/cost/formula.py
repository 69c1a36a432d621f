"""A formula recorded once and replayed by compiled code: what lets new curves need no compiled twin.

A form is plain Python over numbers. Called with `Traced` numbers and the namespace `TRACED` it leaves a list of operations,
constants folded by Python itself; a loop over that list gives what Python gives, bit for bit, because every operation
is the same one on the same 64-bit floats (integers below 2**53 are exact in both).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

ADD, SUB, MUL, DIV, POW, MAX, MIN, LOG2, CEIL, FLOOR, LESS, LESS_EQUAL, EQUAL, AND, WHERE, NEG = range(16)

Place = tuple[str, int]
"""Where an operand is: among the inputs, the constants or the results, and which of them."""


class UnrecordableError(TypeError):
    """A formula does something a list of operations cannot hold, such as branching on its input."""


class Recorder:
    """The list of operations of one formula; an operation on the same operands is kept once."""

    def __init__(self) -> None:
        self.constants: list[float] = []
        self.code: list[tuple[int, list[Place]]] = []
        self.known: dict[Any, Traced] = {}

    def place(self, value: Any) -> Traced:
        """A number as an operand."""
        if isinstance(value, Traced):
            return value
        number = float(value)
        if isinstance(value, int) and int(number) != value:
            raise UnrecordableError(f"{value} is no 64-bit float")
        key = ("constant", number, np.signbit(number))
        if key not in self.known:
            self.known[key] = Traced(self, ("constant", len(self.constants)))
            self.constants.append(number)
        return self.known[key]

    def put(self, operation: int, *operands: Any) -> Traced:
        """Record one operation."""
        places = tuple(self.place(value).place for value in operands)
        key = (operation, places)
        if key not in self.known:
            self.known[key] = Traced(self, ("result", len(self.code)))
            self.code.append((operation, [*places, *[places[0]] * (3 - len(places))]))
        return self.known[key]


class Traced:
    """A number that is not known yet."""

    __slots__ = ("place", "recorder")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, recorder: Recorder, place: Place) -> None:
        self.recorder, self.place = recorder, place

    def __bool__(self) -> bool:
        raise UnrecordableError("a branch depends on the input: use xp.where")

    def __float__(self) -> float:
        raise UnrecordableError("a function outside xp was called on the input")

    def __neg__(self) -> Traced:
        return self.recorder.put(NEG, self)


def _binary(operation: int, swapped: bool = False) -> Callable[[Traced, Any], Traced]:
    def method(self: Traced, other: Any) -> Traced:
        return self.recorder.put(operation, other, self) if swapped else self.recorder.put(operation, self, other)

    return method


for _name, _operation in (("add", ADD), ("sub", SUB), ("mul", MUL), ("truediv", DIV), ("pow", POW), ("and", AND)):
    setattr(Traced, f"__{_name}__", _binary(_operation))
    setattr(Traced, f"__r{_name}__", _binary(_operation, swapped=True))
for _name, _operation, _swapped in (
    ("lt", LESS, False),
    ("le", LESS_EQUAL, False),
    ("gt", LESS, True),
    ("ge", LESS_EQUAL, True),
    ("eq", EQUAL, False),
):
    setattr(Traced, f"__{_name}__", _binary(_operation, swapped=_swapped))


def _function(operation: int, plain: Callable[..., Any]) -> Callable[..., Any]:
    def function(*values: Any) -> Any:
        for value in values:
            if isinstance(value, Traced):
                return value.recorder.put(operation, *values)
        return plain(*values)

    return function


def traced_namespace(plain: Any) -> SimpleNamespace:
    """The functions of `xp`, recorded where an argument is traced and those of `plain` elsewhere."""
    operations: Mapping[str, int] = {
        "maximum": MAX,
        "minimum": MIN,
        "log2": LOG2,
        "ceil": CEIL,
        "floor": FLOOR,
        "where": WHERE,
    }
    return SimpleNamespace(**{name: _function(code, getattr(plain, name)) for name, code in operations.items()})


def record(formula: Callable[..., Any], num_inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Record `formula(*inputs)`; return (operations, registers).

    A row of operations is (operation, operand, operand, operand); the registers hold the inputs, the constants, then the result
    of each operation, the last of which is the formula's.

    Raises:
        UnrecordableError: the formula branches on an input, or calls something that is not in `xp`.
    """
    recorder = Recorder()
    inputs = [Traced(recorder, ("input", i)) for i in range(num_inputs)]
    result = recorder.put(ADD, formula(*inputs), 0.0)
    begin = {"input": 0, "constant": num_inputs, "result": num_inputs + len(recorder.constants)}
    code = [[operation, *(begin[kind] + i for kind, i in places)] for operation, places in recorder.code]
    if result.place != ("result", len(code) - 1):  # the same operation was recorded earlier, inside the formula
        last = begin["result"] + result.place[1]
        code.append([MAX, last, last, last])
    registers = np.zeros(begin["result"] + len(code))
    registers[begin["constant"] : begin["result"]] = recorder.constants
    return np.array(code, dtype=np.int64), registers
