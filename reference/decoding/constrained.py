"""Constrained decoding: a finite automaton says which tokens may come next (Willard and Louf 2023, arXiv:2307.09702,
algorithms 3 and 4), for a regular expression or a JSON schema.

The automaton reads bytes, so that a token may end inside a character. All tokens are tried at once by walking their prefix
tree and the automaton side by side: a subtree is left at its first byte that leads nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from llmlab.reference.decoding._automaton import Automaton, Node, automaton, parse
from llmlab.reference.decoding._loop import Generated, Step, Stop, generate
from llmlab.reference.decoding._schema import schema_expression
from llmlab.reference.decoding.greedy import largest
from llmlab.reference.op import Procedure


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What a tokenizer's tokens stand for.

    Attributes:
        tokens: bytes of each id; empty ones (control tokens) are never allowed.
        end: id of the token that ends a text, allowed where the text is complete; its bytes are not read.
    """

    tokens: tuple[bytes, ...]
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.end < len(self.tokens):
            raise ValueError(f"end={self.end}: is none of the {len(self.tokens)} tokens")

    @cached_property
    def trie(self) -> Trie:
        """The tokens' prefix tree."""
        trie = Trie()
        for number, data in enumerate(self.tokens):
            if data and number != self.end:
                trie.add(data, number)
        return trie


@dataclass
class Trie:
    """A prefix tree of byte strings: children by byte, and the tokens that end here."""

    children: dict[int, Trie] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)

    def add(self, data: bytes, number: int) -> None:
        """Put a token in."""
        node = self
        for byte in data:
            node = node.children.setdefault(byte, Trie())
        node.ids.append(number)

    def reached(self, machine: Automaton, state: int) -> Iterator[tuple[int, int]]:
        """Tokens that the automaton can read from a state: (token, state after it)."""
        for byte, child in self.children.items():
            after = int(machine.table[state, byte])
            if after >= 0:
                yield from ((number, after) for number in child.ids)
                yield from child.reached(machine, after)


@dataclass(frozen=True, eq=False)
class Constraint:
    """Texts that an automaton accepts, token by token. States are the automaton's; a text ends by `vocabulary.end`."""

    machine: Automaton
    vocabulary: Vocabulary

    @classmethod
    def regex(cls, pattern: str, vocabulary: Vocabulary) -> Constraint:
        """The whole text matches a regular expression (what `_automaton.parse` reads)."""
        return cls(automaton(parse(pattern)), vocabulary)

    @classmethod
    def schema(cls, schema: Any, vocabulary: Vocabulary, *, recursion: int = 3) -> Constraint:
        """The whole text is a JSON value that a schema allows (what `_schema.schema_expression` reads)."""
        node: Node = schema_expression(schema, recursion=recursion)
        return cls(automaton(node), vocabulary)

    def mask(self, state: int) -> np.ndarray:
        """allowed_V after a text that led to this state."""
        allowed_V = np.zeros(len(self.vocabulary.tokens), dtype=bool)
        for number, _ in self.vocabulary.trie.reached(self.machine, state):
            allowed_V[number] = True
        allowed_V[self.vocabulary.end] = self.machine.accepting[state]
        return allowed_V

    def after(self, state: int, token: int) -> int:
        """The state after one more token; -1 where it is not allowed. The end leads nowhere."""
        data = self.vocabulary.tokens[token]
        return -1 if token == self.vocabulary.end or not data else self.machine.after(state, data)


def constrained(
    pattern: str, vocabulary: Sequence[bytes], end: int, choices: Sequence[float]
) -> list[tuple[tuple[int, ...], int]]:
    """Walk through a pattern: at each place the allowed tokens, and the one that `choices` (in [0, 1)) picks among them.

    The walk ends with the `end` token, where nothing is allowed (no token spells what is missing), or with the choices.

    Raises:
        ValueError: a pattern that cannot be read, that no text matches, or an end that is no token.

    >>> constrained("ab?", [b"a", b"b", b"ab", b""], 3, [0.0, 0.9])
    [((0, 2), 0), ((1, 3), 3)]
    """
    constraint = Constraint.regex(pattern, Vocabulary(tuple(vocabulary), end))
    return walk(constraint, constraint.mask, choices)


def walk(
    constraint: Constraint, mask: Callable[[int], np.ndarray], choices: Sequence[float]
) -> list[tuple[tuple[int, ...], int]]:
    """The same, by whoever computes the masks."""
    state, steps = 0, []
    for choice in choices:
        allowed = tuple(np.flatnonzero(mask(state)).tolist())
        if not allowed:
            break
        token = allowed[int(choice * len(allowed))]
        steps.append((allowed, token))
        if token == constraint.vocabulary.end:
            break
        state = constraint.after(state, token)
    return steps


@dataclass
class Follow:
    """A choice of tokens that keeps to a constraint: others' logits become -inf before `choose` sees them."""

    constraint: Constraint
    choose: Callable[[np.ndarray], int] = largest
    _state: int = field(default=0, init=False)

    def __call__(self, logits_V: np.ndarray) -> int:
        """Choose the next token.

        Raises:
            ValueError: no token is allowed.
        """
        allowed_V = self.constraint.mask(self._state)
        if not allowed_V.any():
            raise ValueError("no token of the vocabulary goes on from here")
        token = int(self.choose(np.where(allowed_V, logits_V, -np.inf)))
        self._state = self.constraint.after(self._state, token)
        return token


def constrained_decoding(
    step: Step,
    prompt: Sequence[int],
    constraint: Constraint,
    *,
    max_tokens: int,
    choose: Callable[[np.ndarray], int] = largest,
) -> Generated:
    """Continue a prompt by a text of the constraint; reason "id" says that it is complete.

    Raises:
        ValueError: an empty prompt, or a place where no token is allowed.
    """
    return generate(step, prompt, Follow(constraint, choose), Stop(max_tokens, frozenset({constraint.vocabulary.end})))


_PATTERNS = (
    "[ab]+-[0-2]{2,3}\\.?",
    "(yes|no|maybe)( (yes|no))*",
    "-?(0|[1-9][0-9]*)(\\.[0-9]+)?",
    "[^ab]{1,4}",
    "(é|a)+b?",
    "a{0,3}(bc|[x-z]?)*",
    '\\{"a": (true|false)(, "b": "[a-z ]*")?\\}',
    ".?",
)


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    letters = 'abcexyzsnotrulfm012-. é{}":,'
    singles = [c.encode() for c in letters] + [b"\xc3", b"\xa9"]
    words = ["yes", "no", " no", "true", '": ', "ab", "12", "éa", "-1", "maybe"]
    longer = [w.encode() for w in rng.choice(words, int(rng.integers(0, 9)))]
    vocabulary = [*singles, *longer, b"", b"<end>"]
    return {
        "pattern": str(rng.choice(_PATTERNS)),
        "vocabulary": vocabulary,
        "end": len(vocabulary) - 1,
        "choices": rng.random(int(rng.integers(1, 12))).tolist(),
    }


def _timed(rng: np.random.Generator) -> dict[str, Any]:
    """32,000 tokens of one to eight letters and digits, and a record's pattern."""
    letters = np.frombuffer(b'abcdefghijklmnopqrstuvwxyz0123456789 ",:{}', dtype=np.uint8)
    vocabulary = [bytes(rng.choice(letters, int(rng.integers(1, 9)))) for _ in range(32_000)]
    pattern = '\\{"name": ?"[a-z ]{1,20}", ?"age": ?[0-9]{1,3}\\}'
    return {
        "pattern": pattern,
        "vocabulary": [*(bytes([c]) for c in letters), *vocabulary, b""],
        "end": 42 + 32_000,
        "choices": [0.5] * 8,
    }


CONSTRAINED = Procedure(
    reference=constrained,
    examples=_examples,
    paper="arXiv:2307.09702",
    shapes={"32k tokens, a record of two fields": _timed},
)
