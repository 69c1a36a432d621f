"""A clock for tests of timing: no test asserts a speed."""

import itertools

import pytest


class Clock:
    """A clock that a call moves by the next of its durations."""

    def __init__(self, durations):
        self.now, self.durations, self.calls = 0.0, itertools.cycle(durations), 0

    def __call__(self):
        return self.now

    def call(self):
        self.calls += 1
        self.now += next(self.durations)


@pytest.fixture
def clock_of():
    """Make a clock of durations that repeat."""
    return Clock
