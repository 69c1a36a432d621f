"""Flow programs come near measured collectives within a node."""

import os
from pathlib import Path

import numpy as np
import pytest

from llmlab.harness.validation.collectives import Measured, errors, in_switch, predicted

DATA = os.environ.get("LLMLAB_DATA", "")


@pytest.mark.data
@pytest.mark.skipif(not DATA, reason="needs LLMLAB_DATA")
def test_measured_collectives_come_out_on_sizes_that_were_not_fitted():
    found = errors(Path(DATA))
    assert np.mean([row["held_out"] for row in found]) < 0.13
    assert max(row["held_out"] for row in found) < 0.25


def test_prediction_grows_with_size_and_ranks():
    rows = [Measured("h100", "all_reduce", ranks, size, 1.0) for ranks in (2, 8) for size in (1e4, 1e6, 1e8)]
    seconds = predicted(rows).reshape(2, 3)
    assert (np.diff(seconds, axis=1) > 0).all()
    assert (np.diff(seconds, axis=0) > 0).all()


def test_sums_in_the_switch_are_left_out():
    assert in_switch(Measured("h100", "all_reduce", 8, 1e8, 1.0))
    assert not in_switch(Measured("a100", "all_reduce", 8, 1e8, 1.0))
