"""Steps of the real engine on this machine, for calibration: closed loops of requests with evenly spread lengths.

Nothing here looks like a workload: every concurrency from one client to a full batch, every prompt length from a few tokens
to several chunks. Units: seconds and tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from llmlab.harness.runtime.engine import Engine, Job, Step, quiet_python

FEWEST_STEPS = 12
"""Steps of each loop, however slow the machine is."""

Say = Callable[[str, int, int], None]


def probe(
    make_engine: Callable[[], Engine],
    *,
    vocab_size: int,
    clients: Sequence[int],
    seconds: float,
    longest_prompt: int,
    longest_output: int,
    rng: np.random.Generator,
    say: Say = lambda name, done, total: None,
) -> list[Step]:
    """Run a closed loop at each number of clients for an equal share of `seconds`, twice over; return all steps.

    The order is gone through twice, so that a machine that grows slower or faster shows as spread and not as a trend.
    The first steps of each loop, which warm caches up, are dropped.
    """
    steps: list[Step] = []
    share = seconds / (2 * len(clients))
    with quiet_python():
        for number, count in enumerate([*clients, *clients]):
            say("calibrating", number, 2 * len(clients))
            engine = make_engine()
            in_flight = 0
            until = engine.now() + share
            while engine.now() < until or len(engine.steps) < FEWEST_STEPS:
                while in_flight < count:
                    prompt = rng.integers(0, vocab_size, _length(longest_prompt, rng)).tolist()
                    engine.submit(Job(prompt, int(rng.integers(1, longest_output + 1))))
                    in_flight += 1
                in_flight -= len(engine.step() or ())
            steps += engine.steps[3:]
    return steps


def probe_pauses(
    make_engine: Callable[[], Engine],
    *,
    vocab_size: int,
    seconds: float,
    pause_s: float,
    longest_prompt: int,
    rng: np.random.Generator,
    say: Say = lambda name, done, total: None,
) -> list[Step]:
    """One request after another with idle pauses of `pause_s` on average between them; return all steps.

    A machine that has been idle is slower at first: its clock has dropped, and others have had the caches.
    """
    engine = make_engine()
    begun = engine.now()
    with quiet_python():
        while (spent := engine.now() - begun) < seconds or len(engine.steps) < FEWEST_STEPS:
            say("calibrating after pauses", round(spent), round(seconds))
            engine.sleep(float(rng.uniform(0.5, 1.5)) * pause_s)
            engine.submit(Job(rng.integers(0, vocab_size, _length(longest_prompt, rng)).tolist(), 6))
            while engine.step() is not None:
                pass
    return engine.steps


def _length(longest: int, rng: np.random.Generator) -> int:
    """Evenly spread over all lengths, or as often over their logarithms: short prompts are short steps, and count too."""
    if rng.random() < 0.5:
        return int(rng.integers(1, longest + 1))
    return round(float(np.exp(rng.uniform(0.0, np.log(longest)))))
