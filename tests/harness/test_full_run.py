"""The tables the report is made of, from results made up of plain numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmlab.cli import main
from llmlab.harness.full_run import (
    PRESET_WORKLOAD,
    disagreements,
    headlines,
    here_tables,
    published_section,
    published_tables,
    schedule_rows,
    training_section,
    training_tables,
)
from llmlab.reference.catalog import component_ids
from llmlab.reports.page import page
from llmlab.simulator.workload.spec import load_workload
from tests.reports.report_example import example


def _published() -> dict[str, Any]:
    rows = [
        {
            "row_id": f"r-{i}", "metric": "tpot_mean_ms", "measured": 10.0, "predicted": 9.0 + i, "low": 8.0, "high": 12.0,
            "source": "s", "fitted": True, "load_mode": "static_batch", "device": "d", "model": "m", "scored": i < 2,
        }
        for i in range(3)
    ]  # fmt: skip
    line = {"n": 2, "mean_abs_error": 0.05, "median_abs_error": 0.05, "p90_abs_error": 0.1, "bias": -0.05, "coverage": 1.0}
    line["width"] = 0.4
    labels = {"load_mode": "static_batch", "metric": "tpot_mean_ms"}
    return {
        "rows": rows,
        "excluded": [],
        "summary": {
            "rows": 3, "simulated": 3, "excluded": 0, "unscored": 1, "excluded_reasons": [],
            "by_metric": [labels | line], "by_source": [{"source": "s"} | labels | line],
            "left_out": [labels | {"without_own_model": 0.12, "without_own_device": None, "without_own_source": 0.2}],
            "sources": [{"source": "s", "rows": 3, "scored": 2, "unscored": 1, "excluded": 0, "why": "not stated"}],
        },
    }  # fmt: skip


def _here() -> dict[str, Any]:
    rows = [
        {
            "row_id": "here-10%", "metric": metric, "measured": 11.0, "predicted": 10.0, "low": 9.0, "high": 10.5,
            "source": "t", "fitted": False, "load": load, "saturated": load > 1,
        }
        for load in (0.1, 1.3)
        for metric in ("ttft_mean_ms", "tpot_mean_ms")
    ]  # fmt: skip
    line = {"kind": "tpot", "n": 1, "mean_abs_error": 0.09, "median_abs_error": 0.09, "p90_abs_error": 0.09, "bias": -0.09}
    counts = {"below_saturation": [line | {"coverage": 0.0}], "parameters": 1e8, "machine": "a machine", "threads": 2}
    return {"rows": rows, "summary": counts | {"capacity_requests_per_s": 1.5}}


def test_ambiguous_rows_are_not_drawn() -> None:
    (picture,) = published_tables(_published())["pictures"]
    assert [row["predicted"] for row in picture["rows"]] == [9.0, 10.0]
    assert picture["rows"][0]["group"] == "static batch"


def test_a_miss_of_the_interval_is_shown_as_one() -> None:
    rows = here_tables(_here())["rows"]
    assert all(row["inside"] is False for row in rows)
    assert rows[0]["error"] == pytest.approx(10 / 11 - 1)
    assert {row["saturated"] for row in rows} == {"yes", "no"}


def test_the_tables_fit_the_page() -> None:
    report = example()
    report["sections"] |= {"published": published_tables(_published()), "here": here_tables(_here())}
    html = page(report)
    assert "100 million" in html
    assert "3 of 3 published operating points" in html
    assert "12.0 %" in html  # without its own model
    assert "not stated" in html


def test_headlines_are_made_of_what_is_there() -> None:
    missing = {"missing": "x"}
    sections = dict.fromkeys(("machine", "components", "calibration", "here", "published", "plan"), missing)
    assert headlines(sections) == []
    tiles = headlines(sections | {"published": published_tables(_published()), "here": here_tables(_here())})
    assert [tile["value"] for tile in tiles] == ["9.0 %", "5.0 %"]


def test_without_data_the_published_rows_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMLAB_DATA", raising=False)
    assert "LLMLAB_DATA" in published_section(lambda name, done, total: None, 10)["missing"]


def test_without_data_the_schedules_are_shown_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMLAB_DATA", raising=False)
    section = training_section(lambda name, done, total: None)
    assert "LLMLAB_DATA" in section["missing_runs"]
    assert {row["schedule"] for row in section["schedules"]} >= {"1f1b", "zb_h1", "dualpipe"}
    assert "ZB" not in page(example() | {"sections": example()["sections"] | {"training": section}})


def test_every_schedule_with_a_formula_idles_and_holds_what_it_says() -> None:
    for row in schedule_rows():
        if row["bubble_form"] is not None:
            assert row["bubble"] == pytest.approx(row["bubble_form"], abs=1e-9), row["schedule"]
        if row["peak_form"] is not None:
            assert row["peak"] == pytest.approx(row["peak_form"]), row["schedule"]


def test_training_rows_fit_the_page() -> None:
    line = {"n": 1, "mean_abs_error": 0.1, "median_abs_error": 0.1, "p90_abs_error": 0.1, "bias": 0.1, "coverage": 1.0}
    row = {"row_id": "r", "metric": "iter_time_s", "measured": 10.0, "predicted": 11.0, "fitted": False, "hardware": "A100-SXM"}
    summary = {
        "excluded": 1, "speed_by_set": [{"source": "s", "metric": "iter_time_s", **line}], "memory_by_set": [],
        "left_out": {"megatron: s": {"n": 1, "mean_abs_error": 0.2}}, "excluded_reasons": {"TPU": 1},
        "speed": line, "memory": line,
    }  # fmt: skip
    section = {"schedules": schedule_rows(), **training_tables({"rows": [row], "summary": summary})}
    report = example()
    report["sections"] |= {"training": section}
    html = page(report)
    assert "1 published training runs" in html
    assert "megatron: s" in html
    assert [tile["value"] for tile in headlines(report["sections"])].count("10.0 %") == 1


ROOT = Path(__file__).resolve().parents[2]


def test_every_disagreement_names_a_component_and_a_file_that_shows_it() -> None:
    rows = disagreements()
    assert rows
    for row in rows:
        assert set(row) == {"component", "library", "differs", "right", "test"}
        assert row["component"] in component_ids()
        path, _, test = row["test"].partition("::")
        assert (ROOT / path).is_file(), path
        assert f"def {test}" in (ROOT / path).read_text() or not test, row["test"]


def test_the_shipped_workload_is_like_the_trace_it_names() -> None:
    workload = load_workload(PRESET_WORKLOAD, 0)
    assert workload.rate_per_s == pytest.approx(5.53, rel=0.05)
    assert workload.prompt_tokens.mean() == pytest.approx(1155, rel=0.05)
    assert workload.output_tokens.mean() == pytest.approx(211, rel=0.05)


@pytest.mark.parametrize("arguments", [["--slo", "ttft_p99=-2s"], ["--slo", "nonsense"], ["--out", "report.txt"]])
def test_nonsense_ends_before_anything_is_run(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
