"""What a borrowed profile is worth is measured, and widens the interval."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llmlab.harness.calibration.transfer import pooled, transfer_errors
from llmlab.simulator.cost.curves import FORMS
from llmlab.simulator.hardware.profile import kind_of, load_device, transfers

FOLDER = Path(os.environ.get("LLMLAB_DATA", "/nonexistent")) / "operators"
needs_tables = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the operator tables that LLMLAB_DATA points at")


@needs_tables
@pytest.mark.data
def test_a_card_predicted_from_another_generation_errs_more_than_by_its_own_curves():
    found = transfer_errors(FOLDER, [("rtx_4090", "RTX-4090", "rtx_pro_6000")]).set_index("curve")
    own = load_device("rtx-4090").curves
    assert (found["relation"] == "another generation").all()
    for curve in ("gemm.bfloat16", "attention_prefill.bfloat16"):
        assert found["mean_absolute_error"][curve] > 2 * own[curve].held_out["mean_absolute_error"]


def test_pooling_takes_the_wider_side_either_way():
    frame = pd.DataFrame(
        [
            {"relation": "r", "kind": "gemm", "rows": 10, "mean_absolute_error": 0.1, "low": 0.5, "median": 1, "high": 1.1},
            {"relation": "r", "kind": "gemm", "rows": 10, "mean_absolute_error": 0.3, "low": 0.9, "median": 1, "high": 2.0},
        ]
    )
    (record,) = pooled(frame)
    assert (record["rows"], record["mean_absolute_error"]) == (20, 0.2)
    assert (record["low"], record["high"]) == (0.5, 2.0)


def test_every_kind_has_a_measured_transfer_within_and_across_generations():
    for relation in ("same generation", "another generation"):
        for kind in ("gemm", "attention_prefill", "attention_decode", "memory", "moe", "collective"):
            record = transfers()[relation, kind]
            assert 0 < record["low"] < 1 < record["high"]
            assert record["curves"] >= 5
    assert {kind_of(name) for name in FORMS} == {
        "gemm",
        "attention_prefill",
        "attention_decode",
        "moe",
        "memory",
        "host",
        "collective",
    }


def test_borrowed_curves_have_wider_intervals_the_farther_the_lender():
    measured, near, far = load_device("h100"), load_device("h800"), load_device("b200")
    curve = measured.curves["attention_prefill.bfloat16"]

    def widths(profile):
        quantiles = [profile.quantile(curve, which) for which in ("0.05", "0.25", "0.5", "0.75", "0.95")]
        assert quantiles == sorted(quantiles)
        return np.log(quantiles[-1] / quantiles[0])

    assert widths(measured) < widths(near) < widths(far)
    assert "another generation" in far.notes[0]
    assert "same generation" in near.notes[0]
