"""A small report with every kind of section, made up of plain numbers."""

from __future__ import annotations

import math
from typing import Any


def example() -> dict[str, Any]:
    """Tables shaped like those of `harness.full_run`, with every section present."""
    loads = [("closed 1", 0.1), ("open 25 %", 0.25), ("open 50 %", 0.5), ("open 80 %", 0.8)]
    metrics = [("ttft_mean_ms", 40.0), ("tpot_mean_ms", 9.0), ("e2e_mean_ms", 640.0)]
    here = [
        {
            "load": load, "metric": metric, "predicted": base * (1 + busy), "low": base * (1 + busy) * 0.9,
            "high": base * (1 + busy) * 1.1, "measured": base * (1 + 1.04 * busy), "error": -0.01, "inside": True,
            "saturated": "no",
        }
        for load, busy in loads
        for metric, base in metrics
    ]  # fmt: skip
    published = [
        {"measured": 5.0 * 1.3**i, "predicted": 5.0 * 1.3**i * (1 + 0.08 * math.sin(i)), "group": group}
        for i in range(12)
        for group in ("static batch", "closed loop", "constant rate")
    ]
    return {
        "title": "llmlab report",
        "lead": "2-core test machine, made up for a test.",
        "made": "Made in 12 s",
        "data_file": "report.json",
        "headlines": [
            {"value": "24 of 24", "label": "components agree", "detail": "with their references and oracles"},
            {"value": "6.2 %", "label": "median TPOT error here", "detail": "4 loads below saturation"},
            {"value": "7.4 %", "label": "median TPOT error, published", "detail": "1,154 rows"},
            {"value": "2 × H100", "label": "cheapest deployment", "detail": "$5.98 per hour"},
        ],
        "sections": {
            "machine": {
                "facts": [
                    {"name": "processor", "value": "Example 9000, 2 cores, AVX-512"},
                    {"name": "memory", "value": "24 GiB"},
                    {"name": "versions", "value": "Python 3.11, numpy 2.4, torch 2.13, numba 0.68"},
                ],
                "peaks": [
                    {"name": "memory bandwidth", "value": 45.2, "unit": "GB/s", "how": "triad over 256 MB, 2 threads"},
                    {"name": "float32 arithmetic", "value": 487.0, "unit": "GFLOP/s", "how": "matrix product, n = 2048"},
                ],
            },
            "components": {
                "rows": [
                    {
                        "id": f"family.component_{i}", "kind": "op", "twins": "numba, torch", "oracle": "torch.nn.functional",
                        "passed": 20 + i, "failed": 0, "ok": True,
                    }
                    for i in range(20)
                ],
                "speeds": [
                    {
                        "op": "attention.gqa", "shape": "llama-3-8b decode 4k", "dtype": "float32",
                        "case": "llama-3-8b decode 4k, float32", "backend": backend,
                        "fraction": 0.9 / ratio, "peer": peer, "best": 0.002 * ratio, "median": 0.0021 * ratio, "remarks": "",
                    }
                    for backend, ratio, peer in (
                        ("numba", 1.0, 1.1), ("torch (unlocked)", 1.1, None), ("torch", 1.4, None), ("numpy", 3.2, 0.34)
                    )
                ],
                "speeds_missing": "",
                "fractions": [
                    {"label": label, "backend": backend, "percent": percent}
                    for label, backend, percent in (
                        ("rms_norm", "numba", 91.0), ("rms_norm", "torch", 40.0), ("gqa decode", "numba", 84.0),
                        ("rope", "torch", 35.0),
                    )
                ],
                "disagreements": [
                    {"component": "models.t5", "library": "a library", "differs": "so", "right": "the paper", "test": "a.py"}
                ],
            },
            "calibration": {
                "text": "126 operator shapes were timed; half of them fitted the curves, the other half tested them.",
                "points": [
                    {"operator": operator, "measured": 0.05 * 1.6**i, "predicted": 0.05 * 1.6**i * (1 + 0.05 * math.cos(i))}
                    for i in range(10)
                    for operator in ("gemm", "attention")
                ],
                "rows": [
                    {"operator": "gemm", "n": 40, "median_error": 0.031, "p90_error": 0.09},
                    {"operator": "attention", "n": 24, "median_error": 0.047, "p90_error": 0.12},
                ],
            },
            "here": {
                "text": "A model of 100 million parameters served lengths drawn from a real trace.",
                "rows": here,
                "summary": [
                    {"metric": metric, "n": 4, "median_abs_error": 0.02, "mean_abs_error": 0.03, "bias": -0.01, "coverage": 1.0}
                    for metric, _ in metrics
                ],
                "pictures": [
                    {
                        "metric": metric, "title": metric, "unit": "ms",
                        "rows": [{"label": row["load"], **row} for row in here if row["metric"] == metric],
                    }
                    for metric, _ in metrics
                ],
            },
            "published": {
                "text": "Every row of the published tables was simulated.",
                "pictures": [{"metric": "tpot_mean_ms", "title": "Time per output token", "unit": "ms", "rows": published}],
                "rows": [
                    {
                        "source": source, "load_mode": "static_batch", "metric": "tpot_mean_ms", "n": 300,
                        "mean_abs_error": 0.07, "median_abs_error": 0.05,
                        "bias": -0.02, "coverage": 0.91,
                    }
                    for source in ("one table", "another table")
                ],
                "metrics": [
                    {
                        "load": "static batch", "metric": "tpot_mean_ms", "n": 600, "median_abs_error": 0.05,
                        "mean_abs_error": 0.07, "bias": -0.02, "coverage": 0.91, "width": 0.4, "without_own_model": 0.11,
                        "without_own_device": 0.09, "without_own_source": None,
                    }
                ],
                "sources": [
                    {"source": "one table", "rows": 320, "scored": 300, "unscored": 8, "excluded": 12, "why": "isl not stated"}
                ],
                "excluded": [{"reason": "no description of model tiiuae/falcon-180B", "count": 376}],
            },
            "ratios": {
                "text": "1 of 2 statements hold in sign and order.",
                "rows": [
                    {
                        "id": name, "paper": "A paper", "comparison": "new / old", "stated": "2-4", "obtained": 3.1,
                        "holds": holds, "source": "arXiv",
                    }
                    for name, holds in (("P1", True), ("P2", False))
                ],
            },
            "training": {
                "schedules": [
                    {"schedule": "1f1b", "stages": 4, "bubble": 0.27, "bubble_form": 0.27, "peak": 4.0, "peak_form": 4.0},
                    {"schedule": "zb_2p", "stages": 4, "bubble": 0.01, "bubble_form": None, "peak": 8.0, "peak_form": None},
                ],
                "text": "12 published training runs.",
                "pictures": [{"metric": "iter_time_s", "title": "Seconds per step", "unit": "s", "rows": published}],
                "rows": [
                    {
                        "source": "a set", "metric": "iter_time_s", "n": 12, "mean_abs_error": 0.06, "median_abs_error": 0.04,
                        "bias": 0.0, "coverage": 0.9,
                    }
                ],
                "left_out": [{"left_out": "megatron: a set", "n": 12, "mean_abs_error": 0.1}],
                "excluded": [{"reason": "global batch is not stated", "count": 7}],
            },
            "speed": {
                "text": "The same requests on both loops.",
                "rows": [
                    {
                        "case": case, "steps": 91715, "seconds": 91715 / rate, "steps/s": rate,
                        "steps/s of processor time": rate, "peak memory, GB": 0.2, "from start to ready, s": 1.0,
                    }
                    for case, rate in (("simpy", 39_000.0), ("compiled", 900_000.0))
                ],
            },
            "plan": {
                "text": "Llama-3.1-70B for 19,366 conversation requests with a median first token within 2 s.",
                "fronts": [
                    {
                        "metric": "ttft_p99", "title": "Cost against first-token latency", "x": "US dollars per hour",
                        "y": "TTFT p99, ms", "limit": 2000.0,
                        "points": [
                            {
                                "x": 3.0 * (i + 1), "y": 9000.0 / (i + 1) ** 1.4, "label": "H100, TP 4 × 2", "keeps": i > 2,
                                "chosen": i == 3, "group": ("H100", "H200")[i % 2],
                            }
                            for i in range(9)
                        ],
                    }
                ],
                "columns": [
                    ("device", "device", "text"),
                    ("usd_per_hour", "$ per hour", "number"),
                    ("keeps", "keeps the promise", "verdict"),
                ],
                "rows": [
                    {"device": "H100", "usd_per_hour": 12.0, "keeps": True, "chosen": True},
                    {"device": "H200", "usd_per_hour": 15.2, "keeps": True, "chosen": False},
                ],
                "binds": "HBM bandwidth",
                "command": "vllm serve meta-llama/Llama-3.1-70B --tensor-parallel-size 4 --max-num-seqs 256",
            },
        },
    }  # fmt: skip
