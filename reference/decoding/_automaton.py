"""Regular expressions as finite automata over bytes: parse, Thompson's construction, subset construction, minimal form.

Thompson 1968 (doi:10.1145/363347.363387), Rabin and Scott 1959 (doi:10.1147/rd.32.0114, subsets and products), Moore's
minimization (1956). Bytes because tokens are bytes: one may end in the middle of a character. A set of characters becomes
sequences of byte ranges.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import numpy as np

Ranges = tuple[tuple[int, int], ...]
"""Code points from..to, both included, in order."""

LAST = 0x10FFFF
MOST_STATES = 50_000
"""More than so many states, in either construction, are refused: a pattern of nested counts explodes."""


@dataclass(frozen=True)
class Chars:
    """One character of a set; the empty set matches nothing."""

    ranges: Ranges


@dataclass(frozen=True)
class Cat:
    """One after the other; of nothing, the empty text."""

    parts: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Alt:
    """Any of these; of none, nothing at all."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """From `least` to `most` times; None is without end."""

    part: Node
    least: int
    most: int | None


@dataclass(frozen=True)
class All:
    """What each of these describes; at least one."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Automaton:
    """A deterministic automaton over bytes; state 0 is where texts begin, -1 where none can be finished any more.

    Attributes:
        table: next state, [states, 256].
        accepting: states in which a text may end.
    """

    table: np.ndarray
    accepting: np.ndarray

    def after(self, state: int, data: bytes) -> int:
        """The state after these bytes, -1 where no text goes on that way."""
        for byte in data:
            if state < 0:
                break
            state = int(self.table[state, byte])
        return state

    def accepts(self, text: str | bytes) -> bool:
        """Whether the whole text matches."""
        state = self.after(0, text.encode() if isinstance(text, str) else text)
        return state >= 0 and bool(self.accepting[state])


Node = Chars | Cat | Alt | Repeat | All | Automaton
EMPTY = Cat()
NOTHING = Chars(())

_DIGIT: Ranges = ((48, 57),)
_WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE: Ranges = ((9, 13), (32, 32))
_NEWLINE: Ranges = ((10, 10),)
_CONTROL = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}


def literal(text: str) -> Node:
    """Exactly this text."""
    return Cat(tuple(Chars(((ord(c), ord(c)),)) for c in text))


def union(*sets: Ranges) -> Ranges:
    """All characters of any of these.

    >>> union(((48, 57),), ((50, 60), (70, 70)))
    ((48, 60), (70, 70))
    """
    merged: list[tuple[int, int]] = []
    for low, high in sorted(pair for ranges in sets for pair in ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def without(ranges: Ranges) -> Ranges:
    """All characters but these."""
    rest, start = [], 0
    for low, high in union(ranges):
        if start < low:
            rest.append((start, low - 1))
        start = high + 1
    return (*rest, (start, LAST)) if start <= LAST else tuple(rest)


def parse(pattern: str) -> Node:
    r"""Read a regular expression that a whole text must match.

    Literals, `.`, classes, groups, `|`, `* + ?` and counts; \d \w \s are ASCII, as in ECMA 262; `.` is any character but a
    newline. `^` first and `$` last change nothing.

    Raises:
        ValueError: a syntax error, or what no finite automaton can do or this parser does not: look-around, back-references,
            word boundaries, anchors elsewhere, possessive and named groups, flags.

    >>> parse("a|[0-9]+")
    Alt(parts=(Chars(ranges=((97, 97),)), Repeat(part=Chars(ranges=((48, 57),)), least=1, most=None)))
    """
    reader = _Reader(pattern, unanchored(pattern)[0])
    node = reader.alternatives()
    if reader.more():
        raise reader.error(f"unmatched {reader.peek()!r}")
    return node


def unanchored(pattern: str) -> tuple[str, bool, bool]:
    r"""Return a pattern without `^` first and `$` last, and whether each was there.

    >>> unanchored("^a$"), unanchored("a\\$")
    (('a', True, True), ('a\\$', False, False))
    """
    front = pattern.startswith("^")
    body = pattern[1:] if front else pattern
    back = body.endswith("$") and (len(body) - len(body[:-1].rstrip("\\"))) % 2 == 1
    return body[:-1] if back else body, front, back


class _Reader:
    """A recursive-descent parser; one method per rule of the grammar."""

    def __init__(self, pattern: str, body: str) -> None:
        self.pattern, self.body, self.at = pattern, body, 0

    def more(self) -> bool:
        return self.at < len(self.body)

    def peek(self) -> str:
        return self.body[self.at] if self.more() else ""

    def take(self) -> str:
        if not self.more():
            raise self.error("ends too early")
        self.at += 1
        return self.body[self.at - 1]

    def error(self, why: str) -> ValueError:
        return ValueError(f"pattern {self.pattern!r}, character {self.at}: {why}")

    def alternatives(self) -> Node:
        parts = [self.sequence()]
        while self.peek() == "|":
            self.at += 1
            parts.append(self.sequence())
        return parts[0] if len(parts) == 1 else Alt(tuple(parts))

    def sequence(self) -> Node:
        parts: list[Node] = []
        while self.more() and self.peek() not in "|)":
            parts.append(self.repeated())
        return parts[0] if len(parts) == 1 else Cat(tuple(parts))

    def repeated(self) -> Node:
        node = self.atom()
        while self.peek() and self.peek() in "*+?{":
            counts = self.counts()
            if counts is None:
                break
            node = Repeat(node, *counts)
            if self.peek() == "?":  # a lazy quantifier matches the same texts
                self.at += 1
            elif self.peek() == "+":
                raise self.error("possessive quantifiers are not supported")
        return node

    def counts(self) -> tuple[int, int | None] | None:
        sign = self.take()
        if sign != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        end = self.body.find("}", self.at)
        least, comma, most = self.body[self.at : end].partition(",")
        if end < 0 or not (least.isdigit() or (comma and not least)) or not (most.isdigit() or not most):
            raise self.error("'{' begins no count; write '\\{' for the character")
        self.at = end + 1
        low = int(least or 0)
        high = low if not comma else int(most) if most else None
        if high is not None and high < low:
            raise self.error(f"count {{{low},{high}}} is empty")
        return low, high

    def atom(self) -> Node:
        sign = self.take()
        if sign == "(":
            if self.peek() == "?":
                if self.body[self.at : self.at + 2] != "?:":
                    raise self.error(f"'({self.body[self.at : self.at + 3]}' is not supported: groups are ( ) or (?: )")
                self.at += 2
            node = self.alternatives()
            if not self.more() or self.take() != ")":
                raise self.error("'(' is never closed")
            return node
        if sign == "[":
            return Chars(self.char_class())
        if sign == ".":
            return Chars(without(_NEWLINE))
        if sign == "\\":
            return Chars(self.escape())
        if sign in "^$":
            raise self.error(f"{sign!r} is supported at the ends of the pattern only")
        if sign in "*+?{":
            raise self.error(f"{sign!r} repeats nothing")
        return Chars(((ord(sign), ord(sign)),))

    def char_class(self) -> Ranges:
        negated = self.peek() == "^"
        self.at += negated
        found: list[Ranges] = []
        while True:
            if not self.more():
                raise self.error("'[' is never closed")
            if self.peek() == "]" and found:
                self.at += 1
                ranges = union(*found)
                return without(ranges) if negated else ranges
            sign = self.take()
            ranges = self.escape() if sign == "\\" else ((ord(sign), ord(sign)),)
            if self.peek() == "-" and self.body[self.at + 1 : self.at + 2] not in ("]", "") and len(ranges) == 1:
                self.at += 1
                sign = self.take()
                to = self.escape() if sign == "\\" else ((ord(sign), ord(sign)),)
                if len(to) != 1 or to[0][1] < ranges[0][0]:
                    raise self.error("is no range of characters")
                ranges = ((ranges[0][0], to[0][1]),)
            found.append(ranges)

    def escape(self) -> Ranges:
        sign = self.take()
        if sign in "dDwWsS":
            ranges = {"d": _DIGIT, "w": _WORD, "s": _SPACE}[sign.lower()]
            return ranges if sign.islower() else without(ranges)
        if sign in _CONTROL:
            return ((_CONTROL[sign], _CONTROL[sign]),)
        if sign in "xu":
            digits = self.body[self.at : self.at + (2 if sign == "x" else 4)]
            try:
                code = int(digits, 16)
            except ValueError:
                raise self.error(f"\\{sign}{digits} is no character") from None
            self.at += len(digits)
            return ((code, code),)
        if sign.isalnum():
            raise self.error(f"\\{sign} is not supported")
        return ((ord(sign), ord(sign)),)


def byte_ranges(low: int, high: int) -> Iterator[list[tuple[int, int]]]:
    """UTF-8 of the characters low..high as sequences of byte ranges; surrogates, which have none, are left out.

    >>> list(byte_ranges(0x41, 0x7FF))
    [[(65, 127)], [(194, 223), (128, 191)]]
    """
    if low <= 0xDFFF and high >= 0xD800:
        if low < 0xD800:
            yield from byte_ranges(low, 0xD7FF)
        if high > 0xDFFF:
            yield from byte_ranges(0xE000, high)
        return
    for bound in (0x7F, 0x7FF, 0xFFFF):
        if low <= bound < high:
            yield from byte_ranges(low, bound)
            yield from byte_ranges(bound + 1, high)
            return
    if high > 0x7F:
        for digit in range(1, 4):  # cut where a continuation byte would not run its whole range
            mask = (1 << 6 * digit) - 1
            if low & ~mask != high & ~mask:
                if low & mask:
                    yield from byte_ranges(low, low | mask)
                    yield from byte_ranges((low | mask) + 1, high)
                    return
                if high & mask != mask:
                    yield from byte_ranges(low, (high & ~mask) - 1)
                    yield from byte_ranges(high & ~mask, high)
                    return
    yield list(zip(chr(low).encode(), chr(high).encode()))


class _Nfa:
    """Thompson's automaton: every node of the expression becomes a piece with one way in and one way out."""

    def __init__(self) -> None:
        self.silent: list[list[int]] = []
        self.steps: list[list[tuple[int, int, int]]] = []
        self.end = -1
        self._closures: dict[int, frozenset[int]] = {}

    def state(self) -> int:
        _bounded(len(self.silent))
        self.silent.append([])
        self.steps.append([])
        return len(self.silent) - 1

    def piece(self, node: Node, start: int) -> int:
        """Append a node's piece after `start`; return where it ends."""
        if isinstance(node, Chars):
            end = self.state()
            for low, high in node.ranges:
                for sequence in byte_ranges(low, high):
                    at = start
                    for byte_low, byte_high in sequence[:-1]:
                        after = self.state()
                        self.steps[at].append((byte_low, byte_high, after))
                        at = after
                    self.steps[at].append((*sequence[-1], end))
            return end
        if isinstance(node, Cat):
            for part in node.parts:
                start = self.piece(part, start)
            return start
        if isinstance(node, Alt):
            end = self.state()
            for part in node.parts:
                begin = self.state()
                self.silent[start].append(begin)
                self.silent[self.piece(part, begin)].append(end)
            return end
        if isinstance(node, All):
            return self.piece(reduce(_product, map(_possible, node.parts)), start)
        if isinstance(node, Automaton):
            return self.machine(node, start)
        return self.repeat(node, start)

    def machine(self, node: Automaton, start: int) -> int:
        """A state for each of the automaton's, and one behind all in which it accepts."""
        end, states = self.state(), [self.state() for _ in node.table]
        self.silent[start].append(states[0])
        for state, row, accepts in zip(states, node.table, node.accepting):
            cuts = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), 256]
            self.steps[state] = [(low, high - 1, states[row[low]]) for low, high in pairwise(cuts) if row[low] >= 0]
            if accepts:
                self.silent[state].append(end)
        return end

    def repeat(self, node: Repeat, start: int) -> int:
        for _ in range(node.least):
            start = self.piece(node.part, start)
        if node.most is None:
            loop, end = self.state(), self.state()
            self.silent[start].append(loop)
            self.silent[self.piece(node.part, loop)].append(loop)
            self.silent[loop].append(end)
            return end
        end = self.state()
        for _ in range(node.most - node.least):
            self.silent[start].append(end)
            begin = self.state()
            self.silent[start].append(begin)
            start = self.piece(node.part, begin)
        self.silent[start].append(end)
        return end

    def closure(self, state: int) -> frozenset[int]:
        """This state and those reached from it without reading; only those that read, or end it all, count."""
        if state not in self._closures:
            seen, left = {state}, [state]
            while left:
                for after in self.silent[left.pop()]:
                    if after not in seen:
                        seen.add(after)
                        left.append(after)
            self._closures[state] = frozenset(s for s in seen if self.steps[s] or s == self.end)
        return self._closures[state]


def automaton(node: Node) -> Automaton:
    """The minimal automaton of an expression; its states are numbered in the order a breadth-first walk meets them.

    So two expressions describe the same texts exactly if their tables are equal.

    Raises:
        ValueError: no text matches, or more than 50,000 states are needed.

    >>> machine = automaton(parse("(ab)*"))
    >>> machine.accepts("abab"), machine.accepts("aba"), len(machine.table)
    (True, False, 2)
    """
    machine = minimal(node)
    if not machine.accepting.any():
        raise ValueError("no text matches the expression")
    return machine


def minimal(node: Node) -> Automaton:
    """The same, also where no text matches: as an expression's part, it is read once however often it stands there."""
    machine = _possible(node)
    return _numbered(*_merged(machine.table, machine.accepting))


def _possible(node: Node) -> Automaton:
    """An automaton of the expression, whose states all lead to an end; or one state, if no text matches."""
    return _alive(*_determined(node))


def _product(one: Automaton, other: Automaton) -> Automaton:
    """Both automata side by side: a state per pair of states that the same bytes lead to."""
    numbers, queue, rows = {(0, 0): 0}, [(0, 0)], []
    for first, second in queue:
        row = np.full(256, -1, dtype=np.int32)
        here, there = one.table[first], other.table[second]
        both = (here >= 0) & (there >= 0)
        for pair in set(zip(here[both].tolist(), there[both].tolist())):
            if pair not in numbers:
                _bounded(len(numbers))
                numbers[pair] = len(numbers)
                queue.append(pair)
            row[(here == pair[0]) & (there == pair[1])] = numbers[pair]
        rows.append(row)
    return _alive(np.array(rows), np.array([one.accepting[first] and other.accepting[second] for first, second in queue]))


def _bounded(states: int) -> None:
    if states >= MOST_STATES:
        raise ValueError(f"the expression needs more than {MOST_STATES} states")


def _determined(node: Node) -> tuple[np.ndarray, np.ndarray]:
    """Subset construction: a state per set of states that the same bytes lead to."""
    nfa = _Nfa()
    start = nfa.state()
    nfa.end = nfa.piece(node, start)
    first = nfa.closure(start)
    numbers, queue, rows = {first: 0}, [first], []
    for subset in queue:
        row = np.full(256, -1, dtype=np.int32)
        for low, high, targets in _stretches([step for state in subset for step in nfa.steps[state]]):
            reached = frozenset().union(*map(nfa.closure, targets))
            if reached not in numbers:
                _bounded(len(numbers))
                numbers[reached] = len(numbers)
                queue.append(reached)
            row[low:high] = numbers[reached]
        rows.append(row)
    return np.array(rows), np.array([nfa.end in subset for subset in queue])


def _stretches(steps: list[tuple[int, int, int]]) -> Iterator[tuple[int, int, set[int]]]:
    """Cut overlapping steps (low, high, target) into stretches of bytes [from, to) with the same targets."""
    opening, closing = defaultdict(list), defaultdict(list)
    for low, high, target in steps:
        opening[low].append(target)
        closing[high + 1].append(target)
    open_now: Counter[int] = Counter()
    for low, high in pairwise(sorted({*opening, *closing})):
        open_now.update(opening[low])
        open_now.subtract(closing[low])
        targets = {target for target, times in open_now.items() if times}
        if targets:
            yield low, high, targets


def _alive(table: np.ndarray, accepting: np.ndarray) -> Automaton:
    """Ways into states from which nothing can be finished become -1; those states go, but for the first."""
    alive = accepting.copy()
    while True:
        more = alive | (np.append(alive, False)[table]).any(axis=1)
        if (more == alive).all():
            break
        alive = more
    alive[0] = True
    place = np.append(np.where(alive, np.cumsum(alive) - 1, -1), -1)
    return Automaton(place[table][alive].astype(np.int32), accepting[alive])


def _merged(table: np.ndarray, accepting: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moore's refinement: states stay together while the same bytes lead to the same groups."""
    group = accepting.astype(np.int32)
    count = len(set(group.tolist()))
    kinds = np.unique(table, axis=1)  # bytes that lead to the same everywhere tell no states apart
    while True:
        signatures = np.column_stack([group, np.append(group, np.int32(-1))[kinds]])
        known: dict[bytes, int] = {}
        group = np.array([known.setdefault(row.tobytes(), len(known)) for row in signatures], dtype=np.int32)
        if len(known) == count:
            break
        count = len(known)
    first = np.array([int(np.argmax(group == g)) for g in range(count)])  # state 0 is in group 0: it came first
    return np.append(group, np.int32(-1))[table[first]], accepting[first]


def _numbered(table: np.ndarray, accepting: np.ndarray) -> Automaton:
    """Number the states as a breadth-first walk meets them."""
    order, known = [0], {0}
    for state in order:
        for after in dict.fromkeys(table[state].tolist()):
            if after >= 0 and after not in known:
                known.add(after)
                order.append(after)
    place = np.full(len(table) + 1, -1)
    place[order] = np.arange(len(order))
    return Automaton(place[table][order].astype(np.int32), accepting[order])
