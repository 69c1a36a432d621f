"""From load columns to requests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llmlab.harness.validation.loads import MOST_REQUESTS, load_of, metrics_of
from llmlab.harness.validation.resolve import Unsimulated
from llmlab.harness.validation.rows import METRICS, MeasuredRow


def _row(
    mode: str, *, texts: dict[str, str] | None = None, flags: dict[str, bool] | None = None, **stated: float
) -> MeasuredRow:
    return MeasuredRow("here:1", "r-1", "m", "g", mode, texts or {}, stated, flags or {})


def test_a_static_batch_is_one_burst_of_equal_requests() -> None:
    load = load_of(_row("static_batch", batch_size=5, isl=128, osl=16))
    assert load.whole_batch
    assert load.workload.prompt_tokens.tolist() == [128] * 5
    assert not load.workload.arrival_ns.any()


def test_a_closed_loop_keeps_its_clients_and_drops_the_first_round() -> None:
    load = load_of(_row("closed_loop_concurrency", concurrency=3, isl=10, osl=4))
    assert load.workload.clients == load.warmup == 3
    assert len(load.workload) > 2 * load.warmup


def test_a_constant_rate_has_constant_gaps() -> None:
    load = load_of(_row("open_loop_constant_rate", request_rate_rps=4, num_requests=20, isl=10, osl=4))
    assert set(np.diff(load.workload.arrival_ns).tolist()) == {250_000_000}


def test_random_arrivals_have_the_stated_mean_and_repeat_themselves() -> None:
    row = _row("open_loop_poisson", request_rate_rps=4, num_requests=10 * MOST_REQUESTS, isl=10, osl=4)
    first, second = load_of(row).workload, load_of(row).workload
    assert len(first) == MOST_REQUESTS
    assert first.rate_per_s == pytest.approx(4, rel=0.1)
    assert first.arrival_ns.tolist() == second.arrival_ns.tolist()


def test_uniform_lengths_stay_in_their_range() -> None:
    texts = {"len_dist": "uniform integer in [0.8L, L] for both lengths"}
    load = load_of(_row("closed_loop_concurrency", texts=texts, concurrency=64, isl=1000, osl=100))
    assert load.workload.prompt_tokens.min() >= 800
    assert load.workload.prompt_tokens.max() <= 1000
    assert 80 <= load.workload.output_tokens.mean() <= 100


def test_cyclic_prompts_are_shared_only_where_the_engine_caches_them() -> None:
    texts = {
        "dataset": "inference-perf shared_prefix multi-turn (codegen)",
        "prefix_sharing": "11 system prompts x 4 users, system prompt 100 tok",
    }
    stated = {"request_rate_rps": 5, "num_requests": 250, "isl": 566, "osl": 247}
    hashes = load_of(
        _row("open_loop_constant_rate", texts=texts, flags={"prefix_caching": True}, **stated)
    ).workload.block_hashes
    assert hashes[7].tolist() == hashes[107].tolist() == hashes[207].tolist()
    assert hashes[7].tolist() != hashes[8].tolist()
    assert hashes[7][:6].tolist() == hashes[17][:6].tolist()
    assert load_of(_row("open_loop_constant_rate", texts=texts, **stated)).workload.block_hashes == ()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (_row("production_day", isl=1, osl=1), "load mode production_day"),
        (_row("trace_replay", num_requests=3, isl=1, osl=1), "request_rate_rps not stated"),
        (_row("static_batch", batch_size=1, osl=1), "isl not stated"),
        (_row("closed_loop_concurrency", isl=1, osl=1), "concurrency and batch_size not stated"),
        (_row("open_loop_poisson", num_requests=5, isl=1, osl=1), "request_rate_rps not stated"),
        (_row("static_batch", batch_size=0, isl=1, osl=1), "batch_size is 0"),
    ],
)
def test_what_is_not_stated_is_the_reason(row: MeasuredRow, reason: str) -> None:
    with pytest.raises(Unsimulated, match=reason):
        load_of(row)


def test_an_unmeasured_row_asks_for_every_metric_of_its_mode() -> None:
    assert metrics_of(_row("open_loop_poisson")) == METRICS
    assert "tpot_mean_ms" in metrics_of(_row("static_batch"))
    measured = MeasuredRow("here:1", "r", "m", "g", "static_batch", measured={"ttft_mean_ms": 3.0})
    assert metrics_of(measured) == ("ttft_mean_ms",)


def test_a_replayed_trace_takes_the_requests_of_the_file_it_names(tmp_path):
    lines = ["run,arrival_s,prompt_tokens,output_tokens,ttft_ms,e2e_ms,model,gpu,engine"]
    for gpu, prompt in (("H200-SXM-141GB", 7), ("H100-SXM-80GB", 33)):
        lines += [f"{gpu},{i},{prompt + i},{2 + i},5,50,meta-llama/Llama-3.1-8B,{gpu},vllm" for i in range(3)]
    (tmp_path / "perrequest_mine.csv").write_text("\n".join(lines) + "\n")
    row = MeasuredRow(
        f"{tmp_path}/rows.csv:2",
        "r-1",
        "meta-llama/Llama-3.1-8B",
        "H100-SXM-80GB",
        "trace_replay",
        {"notes": "timings in perrequest_mine.csv; measured twice"},
        {"num_requests": 3, "request_rate_rps": 1, "isl": 20, "osl": 3},
    )
    assert load_of(row).workload.prompt_tokens.tolist() == [33, 34, 35]
    other = replace(row, texts={"notes": "timings in perrequest_gone.csv"})
    assert load_of(other).workload.prompt_tokens.tolist() == [20, 20, 20]
