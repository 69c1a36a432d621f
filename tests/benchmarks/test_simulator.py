"""Speed of the serving simulator's two loops: `pytest --benchmark -k simulator`; `llmlab bench --simulator` runs longer."""

import pytest

from llmlab.harness.timing.simulator import QUICK, measure

pytestmark = pytest.mark.speed


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.path)
def test_simulator(case, benchmark):
    found = benchmark.pedantic(measure, args=(case,), rounds=3, warmup_rounds=1)
    benchmark.extra_info.update(found)
