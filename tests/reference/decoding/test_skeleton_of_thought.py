"""What only skeleton-of-thought has: independent points, all asked for before any is answered."""

import asyncio

import pytest

from llmlab.reference.decoding.skeleton_of_thought import Scripted, points_of, skeleton_of_thought


def test_all_points_are_asked_for_before_any_is_answered() -> None:
    events: list[str] = []

    async def ask(prompt: str) -> str:
        if prompt.endswith("Skeleton:\n1."):
            return " one\n2. two\n3. three"
        events.append("asked")
        await asyncio.sleep(0.001)
        events.append("answered")
        return " more"

    told = skeleton_of_thought(ask, "why?")
    assert events == ["asked"] * 3 + ["answered"] * 3
    assert told.text == "1. one more\n\n2. two more\n\n3. three more"


def test_the_order_of_answers_does_not_matter() -> None:
    def slow(delays: list[float]):  # type: ignore[no-untyped-def]
        async def ask(prompt: str) -> str:
            if prompt.endswith("Skeleton:\n1."):
                return " a\n2. b\n3. c"
            number = int(prompt.rsplit("\n", 1)[-1][0])
            await asyncio.sleep(delays[number - 1])
            return f" {number}"

        return ask

    assert skeleton_of_thought(slow([0.003, 0.002, 0.0]), "?") == skeleton_of_thought(slow([0.0, 0.001, 0.002]), "?")


def test_no_more_points_than_asked_for() -> None:
    ask = Scripted(" a\n2. b\n3. c\n4. d")
    assert skeleton_of_thought(ask, "?", least=1, most=2).points == ("a", "b")


def test_a_skeleton_without_points_is_the_answer() -> None:
    told = skeleton_of_thought(Scripted("\nI do not know"), "?")
    assert told.points == ()
    assert told.text == "1.\nI do not know"


def test_numbers_inside_a_point_are_no_points() -> None:
    assert points_of("1. Costs 3.50 euros\n 2) no\n2. Lasts 2 years.") == [(1, "Costs 3.50 euros"), (2, "Lasts 2 years.")]


@pytest.mark.parametrize(("least", "most"), [(0, 3), (4, 3)])
def test_limits_that_make_no_sense_are_named(least: int, most: int) -> None:
    with pytest.raises(ValueError, match=f"least={least}, most={most}"):
        skeleton_of_thought(Scripted(""), "?", least=least, most=most)
