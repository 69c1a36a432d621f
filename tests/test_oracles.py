"""Every reference against code nobody here wrote, and the proof that the comparison can fail."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from llmlab.harness import parity
from llmlab.harness.oracle import Oracle, oracles_of
from llmlab.reference.catalog import components
from llmlab.reference.op import Op, Procedure


def oracle_params() -> Iterator[Any]:
    for component in components().values():
        for oracle in oracles_of(component):
            yield pytest.param(component, oracle, id=f"{component.id}-{oracle.library}")


@pytest.mark.parametrize(("component", "oracle"), list(oracle_params()))
def test_reference_equals_oracle(component: Op | Procedure, oracle: Oracle) -> None:
    if oracle.missing():
        pytest.skip(oracle.missing())
    for seed in range(4):
        if isinstance(component, Procedure):
            parity.assert_passed(parity.check_oracle(component, oracle, seed))
        else:
            for options in component.options:
                parity.assert_passed(parity.check_oracle(component, oracle, seed, options=options))


@pytest.mark.parametrize(("component", "oracle"), list(oracle_params()))
def test_oracle_check_refuses_a_wrong_reference(component: Op | Procedure, oracle: Oracle) -> None:
    if oracle.missing():
        pytest.skip(oracle.missing())
    if isinstance(component, Procedure):
        results = [component.reference(**component.examples(np.random.default_rng(seed))) for seed in range(8)]
        assert any(not component.same(left, right) for left in results for right in results), "its comparison accepts anything"
        return

    def off(*arrays: np.ndarray, **options: Any) -> Any:
        result = oracle.function(*arrays, **options)
        parts = result if isinstance(result, tuple) else (result,)
        return tuple(np.asarray(part) * 1.001 + 1e-3 for part in parts)

    verdicts = [parity.check_oracle(component, dataclasses.replace(oracle, function=off), seed) for seed in range(3)]
    assert not all(verdict.passed for verdict in verdicts)
