"""One row in, one deployment and load simulated, predictions out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llmlab.cli import main
from llmlab.harness.validation.resolve import Unsimulated
from llmlab.harness.validation.rows import LATENCIES, THROUGHPUTS, MeasuredRow
from llmlab.harness.validation.serving import KEYS, predict, setup_of, summary_tables, validate_serving
from llmlab.reference.errors import InputError
from llmlab.simulator.cost.engine import EngineModel, load_engine

HEADER = (
    "row_id,source,model,gpu,n_gpus,engine,engine_version,weight_dtype,tp,pp,load_mode,batch_size,concurrency,"
    "request_rate_rps,num_requests,isl,osl,ttft_mean_ms,tpot_mean_ms,quality,core"
)
STATIC = "s-1,made,meta-llama/Llama-2-7b,H100-SXM-80GB,1,trtllm,0.9.0,fp16,1,1,static_batch,8,,,,128,32,25,7,A,True"
CLOSED = "c-1,made,meta-llama3-8b-instruct,A100-80GB,2,nim-trtllm,1.0,fp16,2,1,closed_loop_concurrency,,4,,,200,50,,,B,False"
OPEN = "o-1,made,Qwen/Qwen3-14B,H100-SXM-80GB,1,vllm,0.15.1,bf16,1,1,open_loop_constant_rate,,,5,20,200,50,40,12,C,True"
FALCON = "f-1,made,somebody/falcon-9000B,H100-SXM-80GB,8,trtllm,0.9.0,fp8,8,1,static_batch,8,,,,128,32,25,7,A,True"


def _row(
    mode: str = "static_batch",
    *,
    engine: str = "trtllm",
    version: str = "0.9.0",
    flags: dict[str, bool] | None = None,
    **stated: float,
) -> MeasuredRow:
    texts = {"engine": engine, "engine_version": version, "weight_dtype": "fp16"}
    stated = {"tp": 1, "n_gpus": 1, "isl": 128, "osl": 32} | stated
    return MeasuredRow("here:1", "r-1", "meta-llama/Llama-2-7b", "H100-SXM-80GB", mode, texts, stated, flags or {})


def _file(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("\n".join((HEADER, *lines)) + "\n")
    return path


def test_a_static_batch_starts_together_and_ends_together() -> None:
    figures = predict(_row(batch_size=8))
    assert figures["e2e_mean_ms"] == pytest.approx(figures["ttft_mean_ms"] + 31 * figures["tpot_mean_ms"])
    assert figures["e2e_p99_ms"] == pytest.approx(figures["e2e_p50_ms"])
    assert figures["out_tok_per_s"] == pytest.approx(8 * 32 / figures["e2e_mean_ms"] * 1e3)


def test_a_closed_loop_obeys_littles_law() -> None:
    figures = predict(_row("closed_loop_concurrency", engine="nim-trtllm", version="1.0", concurrency=6))
    assert figures["req_per_s"] * figures["e2e_mean_ms"] == pytest.approx(6e3)
    assert figures["out_tok_per_s"] == pytest.approx(32 * figures["req_per_s"])


def test_a_slow_open_loop_keeps_up_with_its_arrivals() -> None:
    figures = predict(_row("open_loop_constant_rate", engine="vllm", version="0.15.1", request_rate_rps=2, num_requests=60))
    assert figures["req_per_s"] == pytest.approx(2, rel=0.05)


def test_more_devices_are_faster_and_more_bytes_are_slower() -> None:
    one, two = (predict(_row(batch_size=8, tp=tp, n_gpus=tp))["tpot_mean_ms"] for tp in (1, 2))
    long = predict(_row(batch_size=8, isl=3000))["tpot_mean_ms"]
    assert two < one < long


def test_cached_prompts_come_sooner() -> None:
    texts = {
        "engine": "vllm", "engine_version": "0.15.1", "dataset": "inference-perf shared_prefix",
        "prefix_sharing": "10 system prompts x 5 users, system prompt 100 tok",
    }  # fmt: skip
    stated = {"tp": 1, "isl": 600, "osl": 20, "request_rate_rps": 4, "num_requests": 400}
    found = [
        predict(
            MeasuredRow("w", "r", "meta-llama/Llama-2-7b", "H100-SXM-80GB", "open_loop_constant_rate", texts, stated, flags)
        )
        for flags in ({"prefix_caching": True}, {"prefix_caching": False})
    ]
    assert found[0]["ttft_p50_ms"] < 0.8 * found[1]["ttft_p50_ms"]


def test_given_constants_replace_the_shipped_ones() -> None:
    slow = {"trtllm": load_engine("trtllm").with_constants(host_step_s=50e-3)}
    assert predict(_row(batch_size=1), slow)["tpot_mean_ms"] > 50


def test_the_engine_fields_of_a_row_are_honoured() -> None:
    row = _row(
        "open_loop_poisson", engine="vllm", version="0.15.1", request_rate_rps=1, num_requests=5, max_num_seqs=7,
        max_num_batched_tokens=1024, kv_blocks=500, kv_block_size=32, flags={"chunked_prefill": False},
    )  # fmt: skip
    deployment = setup_of(row).deployment
    assert (deployment.max_num_seqs, deployment.max_num_batched_tokens) == (7, 1024)
    assert (deployment.kv_blocks, deployment.block_tokens) == (500, 32)
    assert deployment.scheduler == "continuous_batching"
    assert isinstance(deployment.engine, EngineModel)


@pytest.mark.parametrize(
    ("model", "version", "static"),
    [
        ("nvidia/Llama-3.1-8B-Instruct-FP8", "1.0", True),
        ("nvidia/Llama-3.1-8B-Instruct-FP8", "1.2.0", False),
        ("meta-llama/Llama-3.1-8B", "1.0", False),
    ],
)
def test_only_checkpoints_with_known_scales_run_with_static_ones(model: str, version: str, static: bool) -> None:
    texts = {"engine": "trtllm", "engine_version": version, "weight_dtype": "fp8"}
    stated = {"tp": 1.0, "n_gpus": 1.0, "isl": 128.0, "osl": 8.0, "num_requests": 4.0}
    engine = setup_of(MeasuredRow("here:1", "r-1", model, "H100-SXM-80GB", "offline_batch", texts, stated)).deployment.engine
    assert isinstance(engine, EngineModel)
    assert engine.static_scales == static


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pp": 2}, "pipeline parallelism"),
        ({"dp": 4}, "1 devices for tensor parallelism 1 and 4 replicas"),
        ({"n_gpus": 4}, "4 devices for tensor parallelism 1"),
        ({"tp": 3, "n_gpus": 3}, "tensor_parallel"),
        ({"isl": 10**7}, "does not fit|refused"),
    ],
)
def test_what_is_out_of_reach_has_a_reason(changes: dict[str, float], reason: str) -> None:
    mode = "closed_loop_concurrency" if "isl" in changes else "static_batch"
    with pytest.raises(Unsimulated, match=reason):
        predict(_row(mode, batch_size=2, concurrency=2, **changes))


def test_a_model_too_large_for_the_device_does_not_fit() -> None:
    row = MeasuredRow(
        "w", "r", "meta-llama/Llama-2-70b", "A100-80GB", "closed_loop_concurrency", {"engine": "vllm"},
        {"tp": 1, "concurrency": 1, "isl": 10, "osl": 10},
    )  # fmt: skip
    with pytest.raises(Unsimulated, match="does not fit"):
        predict(row)


def test_the_result_has_its_promised_shape(tmp_path: Path) -> None:
    result = validate_serving([_file(tmp_path, STATIC, CLOSED, OPEN, FALCON)])
    assert set(result) == {"rows", "excluded", "summary"}
    assert all(tuple(row) == KEYS for row in result["rows"])
    assert result["excluded"] == [{"row_id": "f-1", "reason": "no description of model somebody/falcon-9000B"}]
    measured = {(row["row_id"], row["metric"]): row["measured"] for row in result["rows"]}
    assert measured["s-1", "ttft_mean_ms"] == 25.0
    assert {metric for row, metric in measured if row == "s-1"} == {"ttft_mean_ms", "tpot_mean_ms"}
    assert {metric for row, metric in measured if row == "c-1"} == {*LATENCIES, *THROUGHPUTS}
    assert all(measured["c-1", metric] is None for metric in LATENCIES)
    assert all(0 < row["low"] <= row["predicted"] <= row["high"] for row in result["rows"])
    counts = result["summary"]
    assert (counts["rows"], counts["simulated"], counts["excluded"], counts["unscored"]) == (4, 3, 1, 1)
    assert {line["source"] for line in counts["by_source"]} == {"made"}
    assert all(title for title, _ in summary_tables(result))


def test_ambiguous_rows_are_predicted_and_not_scored(tmp_path: Path) -> None:
    result = validate_serving([_file(tmp_path, OPEN)])
    assert result["rows"]
    assert result["summary"]["overall"]["n"] == 0


def test_processes_do_not_change_the_figures(tmp_path: Path) -> None:
    path = _file(tmp_path, STATIC, *(CLOSED.replace("c-1", f"c-{i}").replace(",,4,", f",,{2 + i},") for i in range(9)))
    one, two = (validate_serving([path], workers=workers)["rows"] for workers in (1, 2))
    assert one == two


def test_core_and_limit_choose_rows(tmp_path: Path) -> None:
    path = _file(tmp_path, STATIC, CLOSED, OPEN, FALCON)
    assert validate_serving([path], core=True)["summary"]["rows"] == 3
    assert validate_serving([path], limit=2)["summary"]["rows"] == 2
    with pytest.raises(InputError, match="limit"):
        validate_serving([path], limit=0)
    with pytest.raises(InputError, match="core"):
        validate_serving([_file(tmp_path, CLOSED)], core=True)


def test_the_command_prints_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "serving", "--runs", str(_file(tmp_path, STATIC)), "--json"]) == 0
    assert {row["metric"] for row in json.loads(capsys.readouterr().out)["rows"]} == {"ttft_mean_ms", "tpot_mean_ms"}
    assert main(["validate", "serving", "--runs", str(_file(tmp_path, STATIC, FALCON))]) == 0
    assert "falcon" in capsys.readouterr().out


def test_the_command_refuses_a_bad_file_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "serving", "--runs", str(_file(tmp_path, STATIC.replace(",128,", ",-1,"))), "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("llmlab: ")
    assert len(printed.err.splitlines()) == 1


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif("LLMLAB_DATA" not in os.environ, reason="needs the measured data that LLMLAB_DATA points at")
def test_core_rows_stay_as_close_as_they_were() -> None:
    folder = Path(os.environ["LLMLAB_DATA"]) / "measured"
    names = ("trtllm09_static_dli", "nvidia_nim_dli", "blis_vllm")
    result = validate_serving([folder / f"{name}.csv.gz" for name in names], core=True, limit=120)
    assert result["excluded"] == []
    errors = {(line["load_mode"], line["metric"]): line["mean_abs_error"] for line in result["summary"]["by_metric"]}
    assert errors["static_batch", "tpot_mean_ms"] < 0.1
    assert errors["closed_loop_concurrency", "tpot_mean_ms"] < 0.12
    assert errors["open_loop_constant_rate", "e2e_mean_ms"] < 0.08


def test_an_offline_job_streams_no_tokens() -> None:
    slow = load_engine("trtllm-v1").with_constants(host_request_step_s=1e-3)
    quick = load_engine("trtllm-v1").with_constants(host_request_step_s=1e-7)
    row = _row("offline_max_throughput", version="1.2", num_requests=40)
    keys = ("trtllm-v1", "trtllm-1.0", "trtllm")
    rates = [predict(row, dict.fromkeys(keys, engine))["out_tok_per_s"] for engine in (slow, quick)]
    assert rates[0] == pytest.approx(rates[1], rel=0.1)
