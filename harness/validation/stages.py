"""Reads runs in long form (one line per metric of each stage) and turns every stage into one row of measured figures.

A stage file has the columns `experiment`, `stage`, `metric`, `value` and the configuration of the run, repeated on every line.
What was found about such runs decides what counts (see `not_scored` and `left_out`):

- requests come at constant distances and cycle through 100 distinct prompts in 10 groups, so after the first hundred the
  prefix cache holds all but the last block of each;
- the first minute warms the engine up: for mixtures of experts the mean TTFT of the first 300 requests is 7.8 times what it
  is later. A first stage of those is predicted and not scored;
- where several copies stand behind a balancer whose policy is unknown, the copies are predicted and not scored;
- `all` of a run with stages repeats them; runs that appear under two names are counted once;
- overload (more than a tenth of the requests failed) measures the client's timeout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from llmlab.harness.validation.rows import MeasuredRow, numbered_lines
from llmlab.reference.errors import InputError

REQUIRED = ("experiment", "stage", "metric", "value")
OVERLOADED = 0.1
"""Part of failed requests from which a stage measures its client's patience."""
WARMUP_SUBSETS = ("blis-first300",)
OUT_OF_TIME_MS = 10_000.0
"""A mean TTFT above this at a constant rate is a queue that grows until the run ends; its value says how long the run was."""
LARGEST = 1e12
"""Above it a number is a mistake."""
_METRICS = {
    "ttft_mean": "ttft_mean_ms",
    "ttft_median": "ttft_p50_ms",
    "ttft_p90": "ttft_p90_ms",
    "ttft_p95": "ttft_p95_ms",
    "ttft_p99": "ttft_p99_ms",
    "e2e_mean": "e2e_mean_ms",
    "e2e_median": "e2e_p50_ms",
    "e2e_p90": "e2e_p90_ms",
    "e2e_p95": "e2e_p95_ms",
    "e2e_p99": "e2e_p99_ms",
    "tpot_mean_cfglen": "tpot_mean_ms",
    "tpot_mean": "tpot_mean_ms",
    "tpot_median": "tpot_p50_ms",
    "tpot_p95": "tpot_p95_ms",
    "tpot_p99": "tpot_p99_ms",
    "requests_per_sec": "req_per_s",
}
"""Metrics that mean what this project's columns mean. Gaps between events and re-tokenised output counts do not."""
_CONSTANT = re.compile(r"constant|burstiness (?:50|100)", re.IGNORECASE)


def _number(path: Path, line: int, column: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise InputError(path, column, cell, f"is not a number (line {line})") from None
    if not 0 <= value <= LARGEST:
        raise InputError(path, column, cell, f"must be finite and not negative (line {line})")
    return value


def _positive(path: Path, line: int, column: str, cell: str) -> float:
    if (value := _number(path, line, column, cell)) <= 0:
        raise InputError(path, column, cell, f"must be positive (line {line})")
    return value


def read_stages(path: str | Path) -> list[MeasuredRow]:
    """Read a stage file: one row per (source set, experiment, stage), with what speaks against it in `unread`.

    Raises:
        InputError: unreadable, a required column missing, or a value that is no number.
    """
    path = Path(path)
    measured: dict[tuple[str, str, str], dict[str, float]] = {}
    first: dict[tuple[str, str, str], tuple[int, dict[str, str]]] = {}
    for number, row in numbered_lines(path, REQUIRED):
        key = (row.get("source_set", ""), row["experiment"], row["stage"])
        first.setdefault(key, (number, row))
        column = _METRICS.get(row["metric"], "")
        if column and row["value"]:
            measured.setdefault(key, {})[column] = _number(path, number, "value", row["value"])
    if not first:
        raise InputError(path, "", path.name, "has a header and no rows")
    source = re.sub(r"\.csv(\.gz)?$", "", path.name)
    counted: set[tuple[str, str]] = set()
    rows = []
    for key, (line, facts) in first.items():
        stage = _stage(path, line, source, key, facts, measured.get(key, {}))
        same = (facts.get("canonical_experiment") or key[1], key[2])
        reason = left_out(facts, measured.get(key, {}), staged=_has_stages(first, key))
        if not reason and same in counted:
            reason = "the same run under another name"
        if not reason:
            counted.add(same)
        rows.append(replace(stage, unread={"stage": reason}) if reason else stage)
    return rows


def _count(cell: str) -> float:
    """A count, or 0 where the cell holds none."""
    try:
        return float(cell)
    except ValueError:
        return 0.0


def _has_stages(first: Mapping[tuple[str, str, str], object], key: tuple[str, str, str]) -> bool:
    """Whether the run also has figures of its own stages."""
    return any(other[:2] == key[:2] and other[2] != "all" for other in first)


def left_out(cells: Mapping[str, str], measured: Mapping[str, float], *, staged: bool) -> str:
    """Why a stage cannot be compared; empty where it can."""
    if cells["stage"] == "all" and staged:
        return "repeats the run's stages"
    if cells.get("source_set") in WARMUP_SUBSETS:
        return "the first 300 requests: the engine's warm-up"
    if "sweep" in cells.get("arrival", "") or "throughput" in cells["stage"] or "synchronous" in cells["stage"]:
        return "a sweep of loads in one run: compared per request"
    if re.fullmatch(r"\d+:.*", cells["stage"]):
        return "a sweep of loads in one run: compared per request"
    if "trace" in cells.get("arrival", "") or "per-request file" in cells.get("arrival", ""):
        return "arrivals are in a per-request file"
    failed, sent = _count(cells.get("n_failed", "")), _count(cells.get("n_requests", ""))
    if "OVERLOAD" in cells.get("note", "") or failed > OVERLOADED * sent > 0:
        return "overload: more than a tenth of the requests failed"
    if measured.get("ttft_mean_ms", 0.0) > OUT_OF_TIME_MS:
        return "overload: the queue grows until the run ends"
    return ""


def not_scored(cells: Mapping[str, str]) -> bool:
    """Whether the stage holds the warm-up of a mixture of experts."""
    moe = "mixtral" in cells.get("model", "").lower() or bool(
        re.search(r"\d+x\d+b|-a\d+b|\de\b", cells.get("model", "").lower())
    )
    return moe and cells["stage"] == "0"


def _stage(
    path: Path, line: int, source: str, key: tuple[str, str, str], cells: Mapping[str, str], measured: Mapping[str, float]
) -> MeasuredRow:
    stated: dict[str, float] = {}
    unread: dict[str, str] = {}
    names = {
        "tp": "tp",
        "n_gpus": "n_gpu_per_replica",
        "dp": "dp",
        "max_num_seqs": "max_num_seqs",
        "max_num_batched_tokens": "max_num_batched_tokens",
        "kv_blocks": "kv_blocks_gpu",
        "kv_block_size": "kv_block_tokens",
        "num_requests": "n_requests",
    }
    for column, theirs in names.items():
        cell = cells.get(theirs, "")
        if not cell or cell == "default":
            continue
        try:
            value = float(cell)
        except ValueError:
            unread[theirs] = cell
            continue
        if not 0 <= value <= LARGEST or value != int(value):
            raise InputError(path, theirs, cell, f"must be a whole number, 0 or more (line {line})")
        stated[column] = value
    prompt = cells.get("prompt_len_mean") or ""
    shared, question = cells.get("shared_prefix_len") or "0", cells.get("question_len") or ""
    prefix_tokens = _number(path, line, "shared_prefix_len", shared)
    if question:
        stated["isl"] = _positive(path, line, "question_len", question) + prefix_tokens
    if prompt:  # as the server's tokenizer counted, where that is known
        stated["isl"] = _positive(path, line, "prompt_len_mean", prompt)
    output = cells.get("output_len_cfg") or cells.get("output_len_mean") or ""
    if output:
        stated["osl"] = _positive(path, line, "output_len_cfg", output)
    for column, theirs in (("request_rate_rps", "rate_rps"), ("duration_s", "duration_s")):
        cell = cells.get(theirs, "")
        if cell and ";" not in cell:
            stated[column] = _positive(path, line, theirs, cell)
    replicas = cells.get("replicas", "")
    constant = bool(_CONSTANT.search(cells.get("arrival", "")))
    cycled = bool(cells.get("n_prefix_groups"))
    texts = {
        "source": source,
        "engine": "vllm" if cells.get("engine", "").startswith("vllm") else cells.get("engine", ""),
        "engine_version": cells.get("engine_version", ""),
        "weight_dtype": "bf16" if "bf16" in cells.get("precision", "").lower() else cells.get("precision", ""),
        "dataset": "inference-perf shared_prefix" if cycled else "",
        "prefix_sharing": f"{cells['n_prefix_groups'].split('.')[0]} system prompts, system prompt {round(prefix_tokens)} tok"
        if cycled
        else "",
        "n_instances": re.sub(r"^(\d+) prefill \+ (\d+) decode$", r"\1P\2D", replicas) if replicas not in ("", "1") else "",
        "quality": "C" if not_scored(cells) or "policy" in cells.get("config_confidence", "") else "A",
        "other_config": f"gpu_mem_util={cells['gpu_mem_util']}" if cells.get("gpu_mem_util") else "",
    }
    return MeasuredRow(
        where=f"{path}:{line}",
        row_id="/".join(part for part in (source, *key) if part),
        model=cells.get("model", ""),
        gpu=_device(cells.get("gpu", "")),
        load_mode="open_loop_constant_rate" if constant else cells.get("arrival", "") or "unknown",
        texts={name: text for name, text in texts.items() if text},
        stated=stated,
        flags={"prefix_caching": "on" in cells.get("prefix_caching", "").lower()} if cells.get("prefix_caching") else {},
        unread=unread,
        measured=dict(measured),
    )


def _device(name: str) -> str:
    """The device without a remark in brackets; 80 GB of an H100 whose form is not said are those of the SXM board here.

    >>> _device("RTX4090-24GB"), _device("H100-80GB (log does not print it)")
    ('RTX-4090', 'H100-SXM-80GB')
    """
    plain = re.sub(r"\s*\(.*\)", "", name)
    plain = re.sub(r"^([AH]\d00)-(\d+GB)(?:-SXM)?$", r"\1-SXM-\2", plain)
    return {"RTX4090-24GB": "RTX-4090", "RTXPRO6000-96GB": "RTX-PRO-6000-96GB"}.get(plain, plain)
