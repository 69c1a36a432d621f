"""`validate here --training` on a machine whose times are formulas, and once, small, on this one."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: the trainer runs on it")

from llmlab.harness.calibration.ranks import COLLECTIVES, MESSAGE_BYTES, UPDATE_ELEMENTS, Round
from llmlab.harness.validation import here_training as here
from llmlab.reference.errors import InputError
from llmlab.reference.models._config import ModelConfig

MS = 1e-3
ACTIONS = {"F": 2 * MS, "I": 2 * MS, "W": 1.5 * MS, "B": 3.5 * MS}
FLOPS_PER_S, LATENCY_S, BYTES_PER_S, ELEMENTS_PER_S = 4e10, 2e-5, 2e9, 2e8


def seconds_of(config: ModelConfig, tokens: int) -> dict[str, float]:
    product = 2.0 * config.num_parameters * tokens / FLOPS_PER_S
    return {"F": product, "I": product, "W": product, "B": 2 * product}


def one_round(slower: float = 1.0) -> Round:
    pieces = dict.fromkeys(("whole", "cut", "cut, rows split", "stage"), ACTIONS)
    pieces |= {config.name: seconds_of(config, microbatch * sequence) for config, microbatch, sequence in here.OTHERS}
    return Round(
        {name: {kind: slower * seconds for kind, seconds in own.items()} for name, own in pieces.items()},
        {(what, size): LATENCY_S + size / BYTES_PER_S for what in COLLECTIVES for size in MESSAGE_BYTES},
        dict.fromkeys(MESSAGE_BYTES, 1e-9),
        {size: size / ELEMENTS_PER_S for size in UPDATE_ELEMENTS},
        {(m, n, k): 2.0 * m * n * k / FLOPS_PER_S for m, n, k in here.PRODUCTS},
    )


def rounds(*slower: float) -> list[list[Round]]:
    return [[one_round(factor)] * 2 for factor in slower or (1.0,)]


def composed(name: str, *slower: float) -> here.Composed:
    return here.Composed(here.PLANS[name], rounds(*slower))


def updated(elements: float) -> float:
    return elements / ELEMENTS_PER_S


def test_a_pipeline_is_its_schedule_replayed() -> None:
    table, layer = here.MODEL.vocab_size * here.MODEL.hidden_size, here.bucket_elements()["layer 0"]
    after = updated(3 * layer + table + here.MODEL.hidden_size)
    plain, split = composed("pp2-1f1b").figures, composed("pp2-zb-h1").figures
    M = here.PLANS["pp2-1f1b"].microbatches
    assert plain["step_s"] == pytest.approx((M + 1) * (ACTIONS["F"] + ACTIONS["B"]) + after, rel=1e-3)
    assert plain["bubble_fraction"] == pytest.approx(1 / (M + 1), rel=1e-3)
    assert split["bubble_fraction"] < plain["bubble_fraction"]
    assert split["step_s"] == pytest.approx(plain["step_s"] - 2 * ACTIONS["W"], rel=1e-3)
    assert set(split) == {"forward_ms", "input_ms", "weight_ms", "bubble_fraction", "step_s"}


def test_a_stage_of_zero_moves_what_it_moves() -> None:
    step = {name: composed(name).figures["step_s"] for name in ("dp2", "zero1", "zero2", "zero3")}
    sizes = [size * here.ITEM for size in here.bucket_elements().values()]
    M = here.PLANS["dp2"].microbatches
    scattered = sum(LATENCY_S + size / BYTES_PER_S for size in sizes)
    gathered = sum(LATENCY_S + size / 2 / BYTES_PER_S for size in sizes)
    assert step["zero2"] - step["zero1"] == pytest.approx((M - 1) * scattered, rel=0.1)
    table = LATENCY_S + sizes[0] / 2 / BYTES_PER_S
    assert step["zero3"] - step["zero2"] == pytest.approx((2 * M - 1) * gathered - M * table, rel=0.1)
    halved = updated(sum(here.bucket_elements().values()) / 2)
    assert step["dp2"] - step["zero1"] == pytest.approx(halved + scattered - scattered - gathered, rel=0.1)


def test_tensor_parallel_steps_pay_two_sums_a_layer_and_way() -> None:
    plan = here.PLANS["tp2"]
    found = composed("tp2").figures
    hidden = plan.microbatch * plan.sequence * here.MODEL.hidden_size * here.ITEM
    sums = (2 * here.MODEL.num_hidden_layers + 1) * (LATENCY_S + hidden / BYTES_PER_S)
    assert found["backward_ms"] == pytest.approx(1e3 * (ACTIONS["B"] + sums), rel=0.05)


def test_the_price_of_a_model_that_was_not_fitted() -> None:
    price = here.Price(rounds(), {"dp2": here.PLANS["dp2"]})
    plan = here.PLANS["dp2"]
    computing = 6.0 * here.MODEL.num_parameters * plan.tokens / 2 / FLOPS_PER_S
    sums = sum(here.bucket_elements().values()) * here.ITEM / BYTES_PER_S
    expected = computing + sums + updated(sum(here.bucket_elements().values()))
    priced = price.of["dp2"]
    assert priced.seconds == pytest.approx(expected, rel=0.2)
    assert priced.low <= priced.seconds <= priced.high
    assert priced.held_mb["state_mb"] == pytest.approx(16 * here.MODEL.num_parameters / 1e6, rel=1e-3)


def rows_when(measured: float, *slower: float) -> list[dict[str, Any]]:
    one = composed("pp2-1f1b", *slower)
    figures = {metric: measured * value for metric, value in one.figures.items()} | {"state_mb": 1.0, "activations_mb": 1.0}
    priced = here.Priced(one.figures["step_s"], 0.9 * one.figures["step_s"], 1.1 * one.figures["step_s"], {"state_mb": 1.0})
    return here.rows_of("pp2-1f1b", [one], [priced], figures)


def test_what_was_predicted_lies_in_its_interval_and_a_slower_machine_does_not() -> None:
    def inside(rows: list[dict[str, Any]]) -> list[bool]:
        steps = [row for row in rows if row["metric"] == "step_s"]
        return [row["low"] <= row["measured"] <= row["high"] for row in steps]

    assert inside(rows_when(1.0, 0.9, 1.0, 1.1)) == [True, True]
    assert inside(rows_when(1.5, 0.9, 1.0, 1.1)) == [False, False]


def test_rows_have_the_columns_of_validate_here() -> None:
    for row in rows_when(1.0):
        assert set(row) >= {"row_id", "metric", "measured", "predicted", "low", "high", "source", "fitted"}


def test_a_plan_of_another_number_of_ranks_is_refused() -> None:
    with pytest.raises(InputError, match="has 4 ranks"):
        here.validate_here_training(plans={"four": replace(here.PLANS["dp2"], tp=2)})


def test_it_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    small = ModelConfig("small", "llama", 32, 64, 2, 4, 2, 8, vocab_size=64)
    monkeypatch.setattr(here, "MODEL", small)
    monkeypatch.setattr(here, "PRODUCTS", here.PRODUCTS[:12])
    plans = {name: replace(here.PLANS[name], sequence=16, microbatch=2, global_batch=8) for name in ("zero3", "pp2-zb-h1")}
    found = here.validate_here_training(effort=here.Effort(1, 1, 0.0, 1), plans=plans)
    rows = json.loads(json.dumps(found.result, allow_nan=False))["rows"]
    metrics = {(row["plan"], row["source"], row["metric"]) for row in rows}
    assert ("zero3", "price", "step_s") in metrics
    assert ("pp2-zb-h1", "replay", "bubble_fraction") in metrics
    assert all(np.isfinite([row["measured"], row["predicted"], row["low"], row["high"]]).all() for row in rows)
    state = {row["plan"]: row for row in rows if row["metric"] == "state_mb"}
    assert state["zero3"]["measured"] == pytest.approx(8 * small.num_parameters / 1e6, rel=0.01)
    assert [timeline.schedule.name for timeline in found.timelines] == ["zb-h1 predicted", "zb-h1 measured"]
    assert [title for title, _ in here.tables(found.result)][-1] == "errors"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--training", "--plot", "picture.txt"], "picture.txt"),
        (["--training", "--timeline", "trace.txt"], "trace.txt"),
        (["--plot", "picture.png"], "needs --training"),
    ],
)
def test_the_command_refuses_bad_files_in_one_line(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from llmlab.cli import main

    assert main(["validate", "here", *arguments]) == 2
    shown = capsys.readouterr()
    assert named in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_figures_of_a_busy_machine_are_said_to_mean_little() -> None:
    rows = [{**row, "others": 0.4} for row in rows_when(1.0)]
    price = here.Price(rounds(), {"dp2": here.PLANS["dp2"]})
    shown = dict(here.tables({"rows": rows, "summary": here.summarize(rows, price, 0.02)}))
    assert "these figures say little: others used the processors" in shown
    quiet = [{**row, "others": 0.01} for row in rows]
    assert len(list(here.tables({"rows": quiet, "summary": here.summarize(quiet, price, 0.02)}))) == 2
