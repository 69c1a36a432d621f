"""Step times without Python: the tables of a `StepCost` as arrays, and `assemble` compiled with Numba.

`step_ns(tables, ...)` equals `StepCost.step_ns(BatchShape)` bit for bit. What a `StepCost` may be made of:

- tables (`assemble.Tables`): whatever depends on the number of new tokens or of emitted rows alone is in the first two,
  decode attention is a table per number of requests, the rest are constants. A feature that changes only their content
  (another model, collective or engine) needs no change here.
- `StepCost.prefill_s(prompts, tokens, pairs, xp)`: a formula, recorded by `formula.record`; it may call what `xp` has.
- `assemble`: functions both paths share. A new term goes there, with its constant in `Tables`.

`compile_cost` compares the two on a few shapes and refuses where they differ, so that a run falls back to the readable path
instead of answering something else.
"""

from __future__ import annotations

import math
import sys
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numba import njit
from numba.extending import register_jitable

from llmlab.simulator.cost import assemble
from llmlab.simulator.cost.assemble import Tables
from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.cost.curves import FLOATS
from llmlab.simulator.cost.formula import (
    ADD,
    AND,
    CEIL,
    DIV,
    EQUAL,
    FLOOR,
    LESS,
    LESS_EQUAL,
    LOG2,
    MAX,
    MIN,
    MUL,
    POW,
    SUB,
    WHERE,
    record,
    traced_namespace,
)
from llmlab.simulator.cost.step import StepCost

ALONE: dict[str, Any] = {"error_model": "numpy", "_nrt": False}
"""Options of functions that allocate nothing: without reference counts of their arrays they run five times as fast."""

TRACED = traced_namespace(FLOATS)
"""`xp` of a formula being recorded."""

for _function in (assemble.linear_s, assemble.decode_s, assemble.attention_s, assemble.device_s, assemble.launch_s):
    register_jitable(_function)
register_jitable(assemble.host_s)
register_jitable(assemble.micro_batch)
register_jitable(assemble.seconds)


class CompiledCost(NamedTuple):
    """A `StepCost` as arrays.

    Attributes:
        parts: the tables; `decode_s` has a row per number of requests, valid up to the `most_requests` it was made for.
        code: operations of the prefill formula of (prompts, tokens, pairs).
        registers: its inputs, constants and results; written to.
        stretch: every step takes this many times as long.
    """

    parts: Tables
    code: np.ndarray
    registers: np.ndarray
    stretch: float


@register_jitable
def evaluate(code: Any, registers: Any, first_result: int) -> float:
    """Replay recorded operations; return the last result."""
    place = first_result
    for i in range(len(code)):
        operation = code[i, 0]
        a = registers[code[i, 1]]
        b = registers[code[i, 2]]
        if operation == ADD:
            value = a + b
        elif operation == SUB:
            value = a - b
        elif operation == MUL:
            value = a * b
        elif operation == DIV:
            value = a / b
        elif operation == MAX:
            value = b if b > a else a
        elif operation == MIN:
            value = b if b < a else a
        elif operation == POW:
            value = a**b
        elif operation == LOG2:
            value = math.log2(a)
        elif operation == CEIL:
            value = float(math.ceil(a))
        elif operation == FLOOR:
            value = float(math.floor(a))
        elif operation == LESS:
            value = 1.0 if a < b else 0.0
        elif operation == LESS_EQUAL:
            value = 1.0 if a <= b else 0.0
        elif operation == EQUAL:
            value = 1.0 if a == b else 0.0
        elif operation == AND:
            value = 1.0 if a != 0.0 and b != 0.0 else 0.0
        elif operation == WHERE:
            value = b if a != 0.0 else registers[code[i, 3]]
        else:  # NEG
            value = -a
        registers[place] = value
        place += 1
    return registers[place - 1]


@register_jitable
def seconds_of(
    t: CompiledCost,
    new_tokens: int,
    emitted: int,
    prompts: int,
    prompt_tokens: int,
    prompt_pairs: float,
    decode_requests: int,
    decode_context_tokens: int,
) -> float:
    """Seconds of a step."""
    prefill_s = 0.0
    if prompts > 0:
        t.registers[0] = prompts
        t.registers[1] = prompt_tokens
        t.registers[2] = prompt_pairs
        prefill_s = evaluate(t.code, t.registers, len(t.registers) - len(t.code))
    return assemble.seconds(t.parts, new_tokens, emitted, prompts, decode_requests, decode_context_tokens, prefill_s)


def sources(*modules: ModuleType) -> int:
    """A number that changes with the text of these modules.

    Numba caches machine code beside a function and compiles anew where that file changes, but not where a function
    it calls does. A compiled function that refers to this number in its closure is cached under it.
    """
    whole = blake2b(digest_size=7)
    for module in modules:
        whole.update(Path(str(module.__file__)).read_bytes())
    return 1 + int.from_bytes(whole.digest(), "little")


def _compiled_with(fingerprint: int) -> Any:
    @njit(cache=True, **ALONE)
    def step_ns(
        t: CompiledCost,
        new_tokens: int,
        emitted: int,
        prompts: int,
        prompt_tokens: int,
        prompt_pairs: float,
        decode_requests: int,
        decode_context_tokens: int,
    ) -> int:
        """Whole nanoseconds of a step.

        Args:
            t: the cost.
            new_tokens: tokens through the linear layers, prompts and decodes together.
            emitted: requests that emit a token.
            prompts: requests with more than one new token.
            prompt_tokens: their new tokens.
            prompt_pairs: sum of new * (cached + new / 2) over them.
            decode_requests: requests with one new token, at most what the cost was compiled for.
            decode_context_tokens: tokens those attend to.
        """
        if fingerprint == 0:
            return 0
        seconds = seconds_of(
            t, new_tokens, emitted, prompts, prompt_tokens, prompt_pairs, decode_requests, decode_context_tokens
        )
        plain = math.ceil(seconds * 1e9)
        return math.ceil(t.stretch * plain) if t.stretch != 1.0 else plain

    return step_ns


step_ns = _compiled_with(sources(assemble, sys.modules[__name__]))
"""Whole nanoseconds of a step."""


class UncompilableError(ValueError):
    """A cost that has no compiled form, and why."""


_KNOWN: WeakKeyDictionary[StepCost, tuple[int, CompiledCost]] = WeakKeyDictionary()


def compile_cost(cost: StepCost, most_requests: int, *, stretch: float = 1.0) -> CompiledCost:
    """Arrays of a cost, for steps of up to `most_requests` requests of one token.

    Raises:
        UncompilableError: it holds something the compiled path does not know.
    """
    known = _KNOWN.get(cost)
    if known is None or known[0] < most_requests:
        made = _compile(cost, most_requests)
        _check(cost, made, most_requests)
        known = _KNOWN[cost] = (most_requests, made)
    return known[1]._replace(stretch=stretch, registers=known[1].registers.copy())


def _compile(cost: StepCost, most_requests: int) -> CompiledCost:
    if type(cost) is not StepCost:
        raise UncompilableError(f"{type(cost).__name__} is not StepCost")
    try:
        code, registers = record(lambda prompts, total, pairs: cost.prefill_s(prompts, total, pairs, TRACED), 3)
    except (TypeError, AttributeError) as error:
        raise UncompilableError(f"prefill attention: {error}") from error
    tables = cost.tables
    decode = np.empty((most_requests + 1, len(tables.contexts)))
    decode[0] = 0.0
    for requests in range(1, most_requests + 1):
        decode[requests] = cost.decode_table(requests)
    fields: dict[str, Any] = {}
    for name, value in tables._asdict().items():
        if name == "decode_s":
            fields[name] = decode
        elif isinstance(value, list):
            fields[name] = np.array(value, dtype=np.int64 if isinstance(value[0], int) else np.float64)
        elif isinstance(value, float | int):
            fields[name] = int(value) if name in ("graph_tokens", "stages") else float(value)
        else:
            raise UncompilableError(f"table {name} is a {type(value).__name__}")
    return CompiledCost(Tables(**fields), code, registers, 1.0)


def sums_of(shape: BatchShape) -> tuple[int, int, int, int, float, int, int]:
    """The numbers `step_ns` takes, of a shape."""
    tokens = sum(new for new, _ in shape.prefill)
    pairs = sum(new * (cached + 0.5 * new) for new, cached in shape.prefill)
    return (
        shape.new_tokens,
        shape.emitted,
        len(shape.prefill),
        tokens,
        float(pairs),
        shape.decode_requests,
        shape.decode_context_tokens,
    )


def _check(cost: StepCost, made: CompiledCost, most_requests: int) -> None:
    """Compare both paths on a few shapes.

    Raises:
        UncompilableError: they differ.
    """
    for prompts in ((), ((2, 0),), ((700, 1300), (33, 0)), ((8000, 0),)):
        for requests in (0, 1, min(7, most_requests), most_requests):
            shape = BatchShape(prompts, requests, 771 * requests, requests + len(prompts))
            if shape.new_tokens and int(step_ns(made, *sums_of(shape))) != cost.step_ns(shape):
                raise UncompilableError(f"the compiled step time of {shape} differs")
