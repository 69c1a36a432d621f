"""Refits without a group: what slopes say agrees with a real refit, and a group that fits alone is not flattered."""

from __future__ import annotations

import numpy as np
import pytest

from llmlab.harness.validation.fit_engines import spread
from llmlab.harness.validation.left_out import (
    GROUPS,
    Response,
    bare_profile,
    fitted_constants,
    left_out,
    log_errors,
    refit,
    responses,
    summarized,
    table_file,
    unfitted,
)
from llmlab.harness.validation.left_out_table import beside
from llmlab.harness.validation.rows import MeasuredRow
from llmlab.harness.validation.serving import predict
from llmlab.simulator.cost.engine import load_engine


def _row(number: int, source: str = "a", *, factor: float = 1.0, gpu: str = "H100-SXM-80GB", batch: int = 4) -> MeasuredRow:
    """A static batch that took `factor` times what the simulator says."""
    texts = {"engine": "trtllm", "engine_version": "0.9.0", "weight_dtype": "fp16", "source": source}
    stated = {"tp": 1, "n_gpus": 1, "isl": 64 * (1 + number % 3), "osl": 8, "batch_size": batch}
    bare = MeasuredRow("here:1", f"r-{source}-{number}", "meta-llama/Llama-2-7b", gpu, "static_batch", texts, stated)
    figures = predict(bare)
    measured = {metric: figures[metric] * factor for metric in ("ttft_mean_ms", "tpot_mean_ms")}
    return MeasuredRow("here:1", bare.row_id, bare.model, gpu, "static_batch", texts, stated, {}, {}, measured)


def _all(jobs: list) -> list[dict[str, float]]:
    return [log_errors(job) for job in jobs]


@pytest.fixture(scope="module")
def found() -> list[Response]:
    rows = [_row(i, "a", batch=1 + i) for i in range(9)] + [_row(i, "b", factor=1.2, batch=1 + i) for i in range(2)]
    return responses(rows, _all)


def test_slopes_are_those_of_the_simulator(found: list[Response]) -> None:
    one, engine = found[0], load_engine("trtllm")
    name = fitted_constants(engine).index("sustained_compute")
    moved = engine.with_constants(sustained_compute=engine.sustained_compute * 0.98)
    change = log_errors((one.row, "trtllm", moved, None))["ttft_mean_ms"] - one.errors["ttft_mean_ms"]
    assert change == pytest.approx(one.slopes["ttft_mean_ms"][name] * np.log(0.98), rel=0.25, abs=1e-4)


def test_rows_the_simulator_made_move_nothing(found: list[Response]) -> None:
    change = refit([one for one in found if one.row.source == "a"])
    assert change is not None
    assert np.abs(change).max() < 1e-6


def test_a_slow_source_is_only_as_good_as_the_others_say(found: list[Response]) -> None:
    records = left_out(found, "source")
    slow = [record for record in records if record["group"] == "b"]
    assert slow
    for record in slow:  # the other source fits the simulator exactly, so leaving b out keeps its whole error
        assert record["left_out"] == pytest.approx(1 / 1.2 - 1, rel=1e-6)
    for record in (record for record in records if record["group"] == "a"):  # two rows cannot fit nine constants
        assert record["fitted"] == pytest.approx(0.0, abs=1e-9)
    assert max(abs(record["left_out"]) for record in records if record["group"] == "a") > 0.05


def test_too_few_rows_fit_nothing(found: list[Response]) -> None:
    assert refit(found[:3]) is None


def test_generic_constants_keep_how_the_engine_works() -> None:
    engine = load_engine("trtllm")
    plain = unfitted(engine)
    assert plain.sustained_compute == 1.0
    assert (plain.static_scales, plain.decode_group) == (engine.static_scales, engine.decode_group)
    assert plain.decode_key_core_s > 0


def test_a_device_left_out_loses_its_shares() -> None:
    row = _row(0, gpu="L40S")
    bare = bare_profile(row)
    assert bare is not None
    assert (bare.device.memory_share, bare.device.sustained_share) == (1.0, 1.0)
    assert bare_profile(_row(0)) is None
    one = responses([row], _all)[0]
    assert one.bare["tpot_mean_ms"] < one.errors["tpot_mean_ms"] - 0.02


def test_the_table_holds_every_group_and_stands_beside_errors(found: list[Response]) -> None:
    import yaml

    table = yaml.safe_load(table_file({by: left_out(found, by) for by in GROUPS}, len(found), "2026-01-01"))
    assert set(table["overall"]) == set(GROUPS)
    assert {line["group"] for line in table["groups"]["source"]} == {"a", "b"}
    lines = [
        {"load_mode": "static_batch", "metric": "tpot_mean_ms", "n": 3, "mean_abs_error": 0.05},
        {"load_mode": "open_loop_poisson", "metric": "tpot_mean_ms", "n": 3, "mean_abs_error": 0.05},
    ]
    (line,) = beside(lines, table)
    assert line["left_out_rows"] == 11
    assert line["without_own_source"] > 0
    assert beside(lines, {}) == []


def test_summaries_average_absolute_errors() -> None:
    records = [{"by": "x", "fitted": 0.1, "left_out": -0.3}, {"by": "x", "fitted": -0.1, "left_out": 0.1}]
    assert summarized(records, "by") == [
        {"by": "x", "n": 2, "fitted": 0.1, "left_out": 0.2, "fitted_median": 0.1, "left_out_median": 0.2}
    ]


def test_a_spread_takes_every_engine_and_few_rows() -> None:
    rows = [_row(i, batch=1 + i) for i in range(12)]
    assert 1 < len(spread(rows, 3)) <= 3
    assert spread([], 3) == []
