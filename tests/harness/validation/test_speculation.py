"""Speed-up of speculation: the real runs change no token, take the steps the law expects, and the prediction follows it."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch")

from llmlab.harness.validation.speculation import (
    Plan,
    as_run,
    known_text,
    predicted_speedup,
    tables,
    validate_speculation,
)
from llmlab.reference.models.llama import tiny_config
from llmlab.simulator.cost.batch import BatchShape

PLAN = Plan(acceptances=(0.0, 0.5, 1.0), drafts=(3,), requests=2, prompt_tokens=6, output_tokens=17, calibrate_s=0.3, rounds=1)


def test_every_row_tells_the_same_text_in_fewer_steps() -> None:
    result = validate_speculation(plan=PLAN, config=tiny_config("llama-3"))
    assert [row["acceptance"] for row in result["rows"]] == [0.0, 0.5, 1.0]
    assert all(row["same_tokens"] for row in result["rows"])
    steps = [row["tokens_per_step"] for row in result["rows"]]
    assert steps[0] == 1.0
    assert steps[2] == 4.0  # sixteen decoded tokens in steps of four
    assert 1.0 < steps[1] < 4.0
    predicted = [row["predicted"] for row in result["rows"]]
    assert predicted == sorted(predicted)
    assert all(row["measured"] > 0 for row in result["rows"])
    ((title, shown),) = tables(result)
    assert "speculation" in title
    assert len(shown) == 3


class Flat:
    """Steps that take a second, whatever they hold."""

    def seconds(self, shape: BatchShape) -> float:
        return 1.0


def test_where_steps_cost_the_same_the_speedup_is_the_tokens_per_step() -> None:
    assert predicted_speedup(Flat(), 0.5, 2, 100) == 1.75  # type: ignore[arg-type]
    assert predicted_speedup(Flat(), 1.0, 3, 100, draft_call_s=1 / 3) == 2.0  # type: ignore[arg-type]


def test_a_decode_with_guesses_runs_as_a_short_prompt() -> None:
    shape = BatchShape((), 2, 2 * 50, 8, 6)
    assert as_run(shape) == BatchShape(((4, 46), (4, 46)), 0, 0, 8, 0)
    assert as_run(BatchShape((), 2, 100, 2)) == BatchShape((), 2, 100, 2)
    assert as_run(shape).new_tokens == shape.new_tokens


def test_known_texts_are_guessed_right_as_often_as_asked() -> None:
    text = np.arange(1000).tolist()
    guess = known_text({0: text}, {0: 0}, acceptance=0.7, seed=1, vocab_size=2000)
    made = guess(0, text[:1], 999)
    assert sum(a == b for a, b in zip(made, text[1:])) / 999 == pytest.approx(0.7, abs=0.05)
    assert guess(0, text[:998], 9)[2:] == []
