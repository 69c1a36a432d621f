"""Stages in long form become rows; what cannot be compared says why."""

import pytest

from llmlab.harness.validation.stages import read_stages
from llmlab.reference.errors import InputError

COLUMNS = [
    "source_set",
    "experiment",
    "stage",
    "model",
    "gpu",
    "n_gpu_per_replica",
    "replicas",
    "tp",
    "engine",
    "engine_version",
    "max_num_batched_tokens",
    "max_num_seqs",
    "gpu_mem_util",
    "kv_blocks_gpu",
    "prefix_caching",
    "arrival",
    "rate_rps",
    "duration_s",
    "n_requests",
    "n_failed",
    "n_prefix_groups",
    "shared_prefix_len",
    "question_len",
    "output_len_cfg",
    "note",
    "canonical_experiment",
    "metric",
    "value",
]
STAGE = {
    "source_set": "set",
    "experiment": "run-1",
    "stage": "1",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "gpu": "H100-80GB-SXM",
    "n_gpu_per_replica": "1",
    "replicas": "1",
    "tp": "1",
    "engine": "vllm (fork)",
    "engine_version": "0.15.1",
    "max_num_batched_tokens": "2048",
    "max_num_seqs": "128",
    "gpu_mem_util": "0.9",
    "prefix_caching": "on (default)",
    "arrival": "constant spacing",
    "rate_rps": "8",
    "duration_s": "600",
    "n_requests": "4800",
    "n_prefix_groups": "10",
    "shared_prefix_len": "100",
    "question_len": "447",
    "output_len_cfg": "248",
    "metric": "ttft_mean",
    "value": "25.5",
}


def written(tmp_path, *stages):
    lines = [",".join(COLUMNS)]
    lines += [",".join(stage.get(column, "") for column in COLUMNS) for stage in stages]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_lines_of_a_stage_become_one_row(tmp_path):
    more = [STAGE, STAGE | {"metric": "tpot_mean_cfglen", "value": "7.5"}, STAGE | {"metric": "sse_gap_mean", "value": "3.7"}]
    (row,) = read_stages(written(tmp_path, *more))
    assert row.measured == {"ttft_mean_ms": 25.5, "tpot_mean_ms": 7.5}  # gaps between events are no inter-token times
    assert row.load_mode == "open_loop_constant_rate"
    assert row.scored
    assert (row.stated["isl"], row.stated["osl"], row.stated["request_rate_rps"]) == (547, 248, 8)
    assert row.gpu == "H100-SXM-80GB"
    assert row.flags == {"prefix_caching": True}
    assert row.row_id == "runs/set/run-1/1"
    assert not row.unread


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"source_set": "blis-first300"}, "warm-up"),
        ({"note": "OVERLOAD >10% failures"}, "overload"),
        ({"n_failed": "600"}, "overload"),
        ({"value": "40000"}, "queue grows"),
        ({"arrival": "trace (ShareGPT) per-request file"}, "per-request file"),
        ({"stage": "1:throughput"}, "per request"),
    ],
)
def test_a_stage_that_cannot_be_compared_says_why(tmp_path, change, reason):
    (row,) = read_stages(written(tmp_path, STAGE | change))
    assert reason in row.unread["stage"]


def test_a_sum_of_stages_and_a_second_name_are_counted_once(tmp_path):
    again = STAGE | {"experiment": "2026-run-1", "canonical_experiment": "run-1"}
    rows = read_stages(written(tmp_path, STAGE, STAGE | {"stage": "all"}, again))
    assert [row.unread.get("stage", "") for row in rows] == ["", "repeats the run's stages", "the same run under another name"]


def test_copies_and_separate_pools_are_said_as_elsewhere(tmp_path):
    pools = [STAGE | {"experiment": name, "replicas": name} for name in ("1", "3", "2 prefill + 1 decode")]
    assert [row.text("n_instances") for row in read_stages(written(tmp_path, *pools))] == ["", "3", "2P1D"]


def test_the_warm_up_of_a_mixture_of_experts_is_not_scored(tmp_path):
    mixtral = STAGE | {"model": "mistralai/Mixtral-8x7B-v0.1"}
    rows = read_stages(written(tmp_path, mixtral | {"stage": "0"}, mixtral, STAGE | {"experiment": "dense", "stage": "0"}))
    assert [row.scored for row in rows] == [False, True, True]


@pytest.mark.parametrize(
    ("stage", "field"),
    [(STAGE | {"value": "fast"}, "value"), (STAGE | {"value": "-1"}, "value"), (STAGE | {"rate_rps": "x"}, "rate_rps")],
)
def test_a_malformed_value_is_named(tmp_path, stage, field):
    with pytest.raises(InputError) as caught:
        read_stages(written(tmp_path, stage))
    assert caught.value.field == field


def test_a_missing_column_is_named(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("experiment,stage,metric\na,0,ttft_mean\n")
    with pytest.raises(InputError, match="value"):
        read_stages(path)
