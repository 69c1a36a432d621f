"""Skeleton-of-thought: ask for the points of an answer, then for all points at once (Ning et al. 2023, arXiv:2307.15337,
section 2; the prompts say what its prompts 1 and 2 say, in other words).

The points are independent requests: an engine that batches them writes the answer in the time of its longest point.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmlab.reference.op import Procedure

Ask = Callable[[str], Awaitable[str]]
"""A prompt -> its completion, when it is there."""

SKELETON = (
    "List only the skeleton of an answer to the question below: {least} to {most} numbered points, each of 3 to 5 words, "
    "without explanation.\n\nQuestion:\n{question}\n\nSkeleton:\n1."
)
POINT = (
    "You write one part of an answer to the question below. Its whole skeleton is given; write point {number} alone, in one or "
    "two very short sentences, and nothing of the other points.\n\nQuestion:\n{question}\n\nSkeleton:\n{skeleton}\n\n"
    "{number}. {point}"
)


@dataclass(frozen=True)
class Answer:
    """The points, what each became, and the text they make together."""

    points: tuple[str, ...]
    expansions: tuple[str, ...]
    text: str


def points_of(skeleton: str) -> list[tuple[int, str]]:
    """Numbered lines, in order, each number once; other lines are not points.

    >>> points_of("1. Heat the oil\\n2.Add salt \\n- stir\\n2. Again")
    [(1, 'Heat the oil'), (2, 'Add salt')]
    """
    found: dict[int, str] = {}
    for number, point in re.findall(r"^\s*(\d+)\.[ \t]*(\S.*?)\s*$", skeleton, flags=re.MULTILINE):
        found.setdefault(int(number), point)
    return list(found.items())


async def answer(ask: Ask, question: str, *, least: int = 3, most: int = 10) -> Answer:
    """Ask for a skeleton, then for every point without waiting for the others.

    A skeleton without points is answered as it is. The completion of the first prompt goes on after "1.", and that of a point
    after the point's own words.
    """
    skeleton = "1." + await ask(SKELETON.format(question=question, least=least, most=most))
    points = points_of(skeleton)[:most]
    if not points:
        return Answer((), (), skeleton)
    whole = "\n".join(f"{number}. {point}" for number, point in points)
    prompts = [POINT.format(question=question, skeleton=whole, number=number, point=point) for number, point in points]
    expansions = await asyncio.gather(*map(ask, prompts))
    text = "\n\n".join(f"{number}. {point}{rest}" for (number, point), rest in zip(points, expansions))
    return Answer(tuple(point for _, point in points), tuple(expansions), text)


def skeleton_of_thought(ask: Ask, question: str, *, least: int = 3, most: int = 10) -> Answer:
    """Run `answer` to its end and return it.

    Raises:
        ValueError: fewer than one point, or more at least than at most.
    """
    if not 1 <= least <= most:
        raise ValueError(f"least={least}, most={most}: need at least one point, and no more at least than at most")
    return asyncio.run(answer(ask, question, least=least, most=most))


@dataclass(frozen=True)
class Scripted:
    """A stand-in for a model: the skeleton for the first kind of prompt, a sentence about its point for the second."""

    skeleton: str
    salt: int = 0

    async def __call__(self, prompt: str) -> str:
        """Answer after letting the others go first."""
        await asyncio.sleep(0)
        if prompt.endswith("Skeleton:\n1."):
            return self.skeleton
        last = prompt.rsplit("\n", 1)[-1]
        return f": {last.split(' ', 1)[-1].lower()} ({len(prompt) + self.salt})."


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    words = ["heat", "oil", "salt", "time", "price", "order", "light", "water"]

    def point() -> str:
        return " ".join(rng.choice(words, int(rng.integers(1, 5))))

    lines = [
        f" {point()}",
        *(f"{number}.{' ' * int(rng.integers(0, 3))}{point()}" for number in range(2, int(rng.integers(2, 9)))),
    ]
    if rng.random() < 0.3:
        lines.insert(int(rng.integers(1, len(lines) + 1)), f"- {point()}")
    if rng.random() < 0.2:
        lines = ["", point()]
    ask = Scripted("\n".join(lines), int(rng.integers(100)))
    return {"ask": ask, "question": f"What about {point()}?", "most": int(rng.integers(3, 9))}


SKELETON_OF_THOUGHT = Procedure(reference=skeleton_of_thought, examples=_examples, paper="arXiv:2307.15337")
