"""A simulated run in the file format of `vllm bench serve --save-result --save-detailed`, so that tools made for it read ours.

Gaps between tokens are kept as a histogram over all requests, not per request: the statistics of `itl` are there, the lists
`itls` and `generated_texts` are not. `date` is fixed, because equal runs must give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmlab.reference.errors import InputError
from llmlab.reference.files import write_atomic
from llmlab.simulator.serving.metrics import statistics, weighted_statistics
from llmlab.simulator.serving.simulate import SimulationResult
from llmlab.simulator.serving.slo import Slo
from llmlab.simulator.workload.workload import NANOSECONDS

RESULT_ENDING = ".json"


def _milliseconds(name: str, found: Mapping[str, float | None], std_s: float) -> dict[str, float]:
    """Statistics in seconds as the tool names them; 0 where there is nothing, as it writes."""
    kinds = {"mean": "mean", "median": "p50", "p50": "p50", "p90": "p90", "p95": "p95", "p99": "p99"}
    return {f"{kind}_{name}_ms": 1e3 * (found[key] or 0.0) for kind, key in kinds.items()} | {f"std_{name}_ms": 1e3 * std_s}


def _latencies(name: str, seconds: np.ndarray) -> dict[str, float]:
    return _milliseconds(name, statistics(seconds), float(seconds.std()) if len(seconds) else 0.0)


def _gaps(gaps_ns: Mapping[int, int]) -> dict[str, float]:
    std_s = 0.0
    if gaps_ns:
        seconds, times = np.array(list(gaps_ns), dtype=float) / NANOSECONDS, np.array(list(gaps_ns.values()))
        mean_s = np.average(seconds, weights=times)
        std_s = float(np.sqrt(np.average((seconds - mean_s) ** 2, weights=times)))
    return _milliseconds("itl", weighted_statistics(gaps_ns), std_s)


def bench_result(result: SimulationResult, slo: Slo | None = None) -> dict[str, Any]:
    """The run as the dictionary that tool saves; latencies in ms, lists in seconds, rates per second."""
    table, workload, deployment = result.requests, result.workload, result.deployment
    done = np.isfinite(table["e2e_s"])
    start = np.where(np.isfinite(table["arrival_s"]), table["arrival_s"], 0.0)
    ends = (start + table["e2e_s"])[done]
    duration = float(ends.max() - start.min()) if done.any() else 0.0
    prompts, outputs = table["prompt_tokens"][done], table["output_tokens"][done]
    good = result.metrics(slo)["goodput_requests_per_s"] if slo is not None else None
    per_s = 1.0 / duration if duration else 0.0
    open_loop = not workload.clients and workload.rate_per_s
    return {
        "date": "19700101-000000",
        "endpoint_type": "llmlab-simulator",
        "backend": "llmlab-simulator",
        "label": f"{deployment.replicas} x TP{deployment.tensor_parallel} {result.site.profile.device.name}",
        "model_id": result.site.model.name,
        "tokenizer_id": result.site.model.name,
        "num_prompts": len(workload),
        "request_rate": workload.rate_per_s if open_loop else "inf",
        "burstiness": 1.0,
        "max_concurrency": workload.clients or None,
        "duration": duration,
        "completed": int(done.sum()),
        "failed": int((~done).sum()),
        "total_input_tokens": int(prompts.sum()),
        "total_output_tokens": int(outputs.sum()),
        "request_throughput": int(done.sum()) * per_s,
        "request_goodput": good,
        "output_throughput": int(outputs.sum()) * per_s,
        "total_token_throughput": int(outputs.sum() + prompts.sum()) * per_s,
        **_latencies("ttft", table["ttft_s"][done]),
        **_latencies("tpot", table["tpot_s"][np.isfinite(table["tpot_s"])]),
        **_gaps(result.log.gaps_ns),
        **_latencies("e2el", table["e2e_s"][done]),
        "input_lens": table["prompt_tokens"].tolist(),
        "output_lens": np.where(done, table["output_tokens"], 0).tolist(),
        "ttfts": np.where(np.isfinite(table["ttft_s"]), table["ttft_s"], 0.0).tolist(),
        "e2els": np.where(done, table["e2e_s"], 0.0).tolist(),
        "start_times": start.tolist(),
        "errors": ["" if ok else result.log.refused.get(i, "not finished") for i, ok in enumerate(done.tolist())],
    }


def write_bench_result(result: SimulationResult, path: str | Path, slo: Slo | None = None) -> Path:
    """Write `bench_result` as JSON.

    Raises:
        InputError: the name does not end in .json.
    """
    path = Path(path)
    if path.suffix != RESULT_ENDING:
        raise InputError(path, "file name", path.name, f"must end in {RESULT_ENDING}")
    return write_atomic(path, json.dumps(bench_result(result, slo), allow_nan=False))
