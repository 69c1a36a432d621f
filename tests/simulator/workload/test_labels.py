"""Marks of requests: who sent them, how urgent they are, which adapter they use, what is guessed of their output."""

from pathlib import Path

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.simulator.workload.spec import load_workload
from llmlab.simulator.workload.workload import Workload

PLAIN = """requests: 4000
arrivals: {process: poisson, rate_per_s: 6}
prompt_tokens: {distribution: uniform, low: 16, high: 400}
output_tokens: {distribution: uniform, low: 16, high: 400}
"""


def load(tmp_path: Path, labels: str, seed: int = 0) -> Workload:
    path = tmp_path / "load.yaml"
    path.write_text(PLAIN + labels)
    return load_workload(path, seed)


def test_labels_change_nothing_else_and_follow_their_weights(tmp_path: Path) -> None:
    plain = load(tmp_path, "")
    marked = load(tmp_path, "labels: {clients: 4, priorities: 2, adapters: 8, base_share: 0.25, skew: 1, prediction_cv: 0.5}")
    for name in ("arrival_ns", "prompt_tokens", "output_tokens"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(marked, name))
    assert plain.labels(0) == {}
    shares = np.bincount(marked.client, minlength=4) / 4000
    np.testing.assert_allclose(shares, np.array([12, 6, 4, 3]) / 25, atol=0.03)
    assert set(marked.priority.tolist()) == {0, 1}
    assert np.mean(marked.adapter == -1) == pytest.approx(0.25, abs=0.03)
    assert set(marked.adapter.tolist()) == set(range(-1, 8))
    factor = marked.predicted_tokens / marked.output_tokens
    assert factor.mean() == pytest.approx(1.0, abs=0.05)
    assert factor.std() == pytest.approx(0.5, abs=0.07)
    assert load(tmp_path, "labels: {clients: 4}").first(10).labels(3)["client"] in range(4)


def test_a_perfect_guess_is_the_output(tmp_path: Path) -> None:
    marked = load(tmp_path, "labels: {prediction_cv: 0}")
    np.testing.assert_array_equal(marked.predicted_tokens, marked.output_tokens)


@pytest.mark.parametrize("labels", ["{clients: 0}", "{base_share: 2}", "{skew: -1}", "{luck: 1}", "{prediction_cv: .nan}"])
def test_labels_out_of_range_are_refused(tmp_path: Path, labels: str) -> None:
    with pytest.raises(InputError, match=r"load\.yaml"):
        load(tmp_path, f"labels: {labels}")
