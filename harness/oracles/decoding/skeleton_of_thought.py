"""Exact enumeration: one question after the other, the skeleton read line by line without a regular expression."""

from __future__ import annotations

import asyncio

from llmlab.harness.oracle import oracle
from llmlab.reference.decoding.skeleton_of_thought import POINT, SKELETON, SKELETON_OF_THOUGHT, Answer, Ask


@oracle(SKELETON_OF_THOUGHT, library="exact enumeration")
def skeleton_of_thought(ask: Ask, question: str, *, least: int = 3, most: int = 10) -> Answer:
    def said(prompt: str) -> str:
        async def once() -> str:
            return await ask(prompt)

        return asyncio.run(once())

    skeleton = "1." + said(SKELETON.format(question=question, least=least, most=most))
    numbered: list[tuple[int, str]] = []
    for line in skeleton.split("\n"):
        number, dot, point = line.strip().partition(".")
        if dot and number.isdigit() and point.strip() and int(number) not in [n for n, _ in numbered]:
            numbered.append((int(number), point.strip()))
    numbered = numbered[:most]
    if not numbered:
        return Answer((), (), skeleton)
    whole = "\n".join(f"{number}. {point}" for number, point in numbered)
    rest = [said(POINT.format(question=question, skeleton=whole, number=number, point=point)) for number, point in numbered]
    parts = [f"{number}. {point}{more}" for (number, point), more in zip(numbered, rest)]
    return Answer(tuple(point for _, point in numbered), tuple(rest), "\n\n".join(parts))
