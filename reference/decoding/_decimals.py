"""Decimal numbers within bounds, and multiples, as expressions over their digits.

Numbers of one length compare by their first digit that differs, others by their length; what stands behind the point compares
digit by digit. A remainder follows from the one of all digits before (`10 r + d`), so multiples need a state per remainder.
"""

from __future__ import annotations

from decimal import Decimal

import numpy as np

from llmlab.reference.decoding._automaton import (
    EMPTY,
    MOST_STATES,
    NOTHING,
    Alt,
    Automaton,
    Cat,
    Chars,
    Node,
    Repeat,
    literal,
    parse,
)

INTEGER = parse("-?(0|[1-9][0-9]*)")
DECIMAL = parse(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")
_DIGITS = parse("[0-9]*")
_FRACTION = parse(r"(\.[0-9]*)?")
_MINUS = literal("-")


def beyond(bound: Decimal, *, above: bool, strict: bool = False) -> Node:
    """Numbers at or above a bound (or at or below it; `strict`: not at it), as far as they are spelled as `DECIMAL` says.

    >>> from llmlab.reference.decoding._automaton import All, automaton
    >>> machine = automaton(All((INTEGER, beyond(Decimal(-12), above=True), beyond(Decimal("3.5"), above=False))))
    >>> [n for n in range(-100, 100) if machine.accepts(str(n))] == list(range(-12, 4))
    True
    """
    towards, away = (EMPTY, _MINUS) if above else (_MINUS, EMPTY)
    size = bound if above else bound.copy_negate()  # how far the numbers signed `towards` are from 0 at least
    return Alt(
        (
            Cat((towards, _unsigned(size, above=True, strict=strict))),
            Cat((away, _unsigned(size.copy_negate(), above=False, strict=strict))),
        )
    )


def _unsigned(bound: Decimal, *, above: bool, strict: bool) -> Node:
    """The same of numbers without a sign."""
    if bound < 0:
        return Cat((_DIGITS, _FRACTION)) if above else NOTHING
    whole, _, fraction = format(bound.copy_abs(), "f").partition(".")
    fraction = fraction.rstrip("0")
    if above:
        tail: Node = Cat((_DIGITS, _digit(1, 9), _DIGITS)) if strict else _DIGITS
    else:
        tail = NOTHING if strict else Repeat(_digit(0, 0), 0, None)
    for digit in reversed(fraction):  # it ends in no 0: a text that stops before it has a smaller number
        tail = Alt((Cat((_past(digit, above), _DIGITS)), Cat((literal(digit), tail)), NOTHING if above else EMPTY))
    may_end = not above if fraction else not strict
    node: Node = Alt((Cat((literal("."), tail)), EMPTY if may_end else NOTHING))
    for left, digit in enumerate(reversed(whole)):
        rest = (Repeat(_digit(0, 9), left, left), _FRACTION)
        node = Alt((Cat((_past(digit, above), *rest)), Cat((literal(digit), node))))
    length = Repeat(_digit(0, 9), len(whole) + 1, None) if above else Repeat(_digit(0, 9), 0, len(whole) - 1)
    return Alt((node, Cat((length, _FRACTION))))


def _digit(low: int, high: int) -> Node:
    return Chars(((48 + low, 48 + high),)) if low <= high else NOTHING


def _past(digit: str, above: bool) -> Node:
    """Any larger digit, or any smaller one."""
    return _digit(int(digit) + 1, 9) if above else _digit(0, int(digit) - 1)


def multiples(of: Decimal) -> Node:
    """Whole multiples of a positive number, as far as they are spelled as `DECIMAL` says.

    Read without its point, the text must be a multiple of `of` without its point; once as many digits as `of` has stand behind
    the point, only zeros may follow.

    Raises:
        ValueError: it needs more than 50,000 states.

    >>> from llmlab.reference.decoding._automaton import All, automaton
    >>> machine = automaton(All((DECIMAL, multiples(Decimal("0.25")))))
    >>> [text for text in ("1", "-0.5", "0.75", "0.750", "0.7", "1.125") if machine.accepts(text)]
    ['1', '-0.5', '0.75', '0.750']
    """
    whole, _, fraction = format(of, "f").partition(".")
    fraction = fraction.rstrip("0")
    modulus, places = int(whole + fraction), len(fraction)
    if modulus * (places + 2) > MOST_STATES:
        raise ValueError(f"multiples of {of} need more than {MOST_STATES} states")
    table = np.full((places + 2, modulus, 256), -1, dtype=np.int32)  # row 0: before the point, j + 1: j digits behind it
    remainder = np.arange(modulus)
    for digit in range(10):
        after = (10 * remainder + digit) % modulus
        table[0, :, 48 + digit] = after
        for place in range(places):
            table[1 + place, :, 48 + digit] = (2 + place) * modulus + after
    table[0, :, 46] = modulus + remainder
    table[-1, :, 48] = (1 + places) * modulus + remainder
    missing = [places, *range(places, -1, -1)]
    accepting = np.array([remainder * pow(10, count, modulus) % modulus == 0 for count in missing])
    return Cat((Repeat(_MINUS, 0, 1), Automaton(table.reshape(-1, 256), accepting.ravel())))
