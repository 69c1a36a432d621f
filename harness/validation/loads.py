"""From a row's load columns to the requests to simulate: how many, how long, when, and what their prompts share.

A closed loop or an endless queue is measured in steady state, so more requests are simulated than are scored: the first
`warmup` are left out. Everything is a pure function of the row.
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmlab.harness.validation.resolve import Unsimulated, resolve_device, resolve_model
from llmlab.harness.validation.rows import LATENCIES, THROUGHPUTS, MeasuredRow
from llmlab.simulator.workload import synthetic
from llmlab.simulator.workload.workload import Workload

MOST_REQUESTS = 3000
"""Longer runs are cut to this many requests: their figures are means of a steady state by then."""

GENERATIONS = 2
"""A closed loop is scored over this many requests per client, after one that fills the engine."""

SHAREGPT_CV = (1.15, 0.96)
"""Coefficients of variation of ShareGPT prompt and answer lengths (500 conversations, filtered as vLLM's benchmark does)."""

SHAREGPT_MEANS = (220.0, 200.0)
"""Mean prompt and answer of the same, in tokens of recent vocabularies."""

IDENTITY_TOKENS = 16

DISTINCT_PROMPTS = 100
"""What inference-perf's shared-prefix load cycles through; the round in which none is cached yet is left out."""

MODES = (
    "static_batch",
    "offline_batch",
    "burst_all_at_once",
    "offline_max_throughput",
    "closed_loop_concurrency",
    "closed_loop_concurrency_disagg",
    "open_loop_poisson",
    "open_loop_constant_rate",
    "trace_replay",  # by its rate and mean lengths, where the file holds no requests
)
_STATIC = ("ttft_mean_ms", "tpot_mean_ms", "e2e_mean_ms", "out_tok_per_s", "out_tok_per_s_per_gpu")


@dataclass(frozen=True)
class Load:
    """The requests to simulate and which of them count.

    Attributes:
        warmup: requests sent first that are left out of every figure.
        thinned: of the first round of clients only every so-manieth request counts: the benchmark went on for that many times
            the later rounds simulated here, so that its start weighed less.
        whole_batch: all prompts are one step whatever the engine's limits (a static batch).
        offered_s: time from the first request until the last; throughput of an open loop is measured to its end.
    """

    workload: Workload
    warmup: int = 0
    whole_batch: bool = False
    thinned: int = 1

    @property
    def counted(self) -> np.ndarray:
        """Indices of the requests that enter the figures."""
        first = np.arange(self.warmup, self.workload.clients or self.warmup, self.thinned)
        return np.concatenate([first, np.arange(max(self.warmup, self.workload.clients or 0), len(self.workload))])


def metrics_of(row: MeasuredRow) -> tuple[str, ...]:
    """The metrics to predict: those the row measured or, where it has none, every metric of its load mode."""
    if row.measured:
        return tuple(row.measured)
    if row.load_mode == "static_batch":
        return _STATIC
    if row.load_mode == "offline_max_throughput":
        return THROUGHPUTS
    return LATENCIES + THROUGHPUTS


def _need(row: MeasuredRow, *columns: str) -> float:
    for column in columns:
        if (value := row.stated.get(column)) is not None:
            if value > 0:
                return value
            raise Unsimulated(f"{column} is 0")
    raise Unsimulated(f"{' and '.join(columns)} not stated")


def _lengths(row: MeasuredRow, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Prompt and output lengths with the row's means and the distribution it names (fixed where it names none)."""
    text = f"{row.text('len_dist')} {row.text('dataset')}".lower()
    if "sharegpt" in text:  # a known corpus: its means stand in for those a row does not state
        means = row.stated.get("isl", SHAREGPT_MEANS[0]), row.stated.get("osl", SHAREGPT_MEANS[1])
    else:
        means = _need(row, "isl"), _need(row, "osl")
    if match := re.search(r"uniform integer in \[(0?\.\d+)l, l\]", text):
        shortest = float(match.group(1))
        drawn = [synthetic.uniform(count, max(1, math.ceil(shortest * mean)), round(mean), rng) for mean in means]
    elif "uniform up to" in text:
        drawn = [synthetic.uniform(count, 1, max(1, round(2 * mean) - 1), rng) for mean in means]
    elif "sharegpt" in text or "openorca" in text or text.startswith("dataset"):
        drawn = [synthetic.lognormal(count, mean, cv, rng, low=4, high=8192) for mean, cv in zip(means, SHAREGPT_CV)]
    else:
        drawn = [synthetic.fixed(count, max(1, round(mean))) for mean in means]
    return drawn[0], drawn[1]


def _shared(row: MeasuredRow, prompts: np.ndarray) -> tuple[np.ndarray, ...]:
    """Prompt identities where the engine caches prefixes and the load repeats some.

    The shared-prefix load of inference-perf cycles through ten prompts in each of ten groups, whatever numbers of users a
    profile names: after the first hundred requests every prompt has been seen whole.
    """
    if not row.flags.get("prefix_caching", False):
        return ()
    text = row.text("prefix_sharing")
    found = re.search(r"(\d+) system prompts?.*?system prompt (\d+) tok", text)
    prefix = int(found.group(2)) if found else 0
    if "shared_prefix" in row.text("dataset"):
        return synthetic.cyclic_prompts(prompts, DISTINCT_PROMPTS, 10, prefix, IDENTITY_TOKENS)
    if found and prefix >= IDENTITY_TOKENS:
        return synthetic.shared_prompts(prompts, int(found.group(1)), prefix, IDENTITY_TOKENS)
    return ()


def _rounds(row: MeasuredRow, clients: int) -> int:
    """Requests per client of a closed loop that is measured from its start; 0 where only its steady state is known.

    InferenceX sends ten requests per client, all clients at once, after a warm-up that has ended by then.
    """
    if (requests := row.stated.get("num_requests")) is not None:
        return max(1, round(requests / clients))
    return 10 if "InferenceX" in row.text("len_dist") else 0


def _requests_beside(row: MeasuredRow) -> Workload | None:
    """The requests of a replayed trace, where the row names a per-request file that lies in its folder."""
    from llmlab.harness.validation.perrequest import read_runs, replay_load, settings_of

    named = re.search(r"\bperrequest_[\w.-]+?\.csv(?:\.gz)?", row.text("notes"))
    path = Path(row.where.rpartition(":")[0]).parent / named.group() if named else None
    if path is None or not path.is_file():
        return None
    for run in read_runs(path):
        try:
            settings = settings_of(run.name, run.stated)
            same = resolve_model(settings["model"]) == resolve_model(row.model)
            same &= resolve_device(settings["gpu"]).name == resolve_device(row.gpu).name
        except Unsimulated:
            continue
        if same and len(run) == row.count("num_requests"):
            return replay_load(run, settings)
    return None


def load_of(row: MeasuredRow) -> Load:
    """The requests this row's load sends.

    Raises:
        Unsimulated: a load mode out of reach, or a number it needs is not stated.
    """
    mode = row.load_mode
    if mode not in MODES:
        raise Unsimulated(f"load mode {mode}")
    if mode == "trace_replay" and (beside := _requests_beside(row)) is not None:
        return Load(beside)
    rng = np.random.default_rng(zlib.crc32(row.row_id.encode()))
    if mode == "static_batch":
        count = round(_need(row, "batch_size", "num_requests"))
        prompts, outputs = _lengths(row, count, rng)
        return Load(Workload(synthetic.at_once(count), prompts, outputs, name=row.row_id), whole_batch=True)
    if mode.startswith("closed_loop_concurrency"):
        clients = round(_need(row, "concurrency", "batch_size"))
        rounds = _rounds(row, clients)
        simulated = 1 + GENERATIONS
        if rounds:
            simulated = min(rounds, max(2 if clients > MOST_REQUESTS else simulated, MOST_REQUESTS // clients))
        count = clients * simulated
        prompts, outputs = _lengths(row, count, rng)
        hashes = _shared(row, prompts)
        workload = Workload(synthetic.at_once(count), prompts, outputs, hashes, IDENTITY_TOKENS, clients, name=row.row_id)
        if not rounds:
            return Load(workload, warmup=clients)
        return Load(workload, thinned=max(1, round((rounds - 1) / max(1, simulated - 1))))
    rate = (
        math.inf if mode in ("offline_batch", "burst_all_at_once", "offline_max_throughput") else _need(row, "request_rate_rps")
    )
    if "num_requests" not in row.stated and mode.startswith("open_loop") and "duration_s" in row.stated and rate < math.inf:
        count = max(1, round(rate * row.stated["duration_s"]))
    elif mode == "offline_max_throughput":
        count = round(row.stated.get("num_requests", MOST_REQUESTS))
    else:
        count = round(_need(row, "num_requests", "batch_size"))
    count = min(count, MOST_REQUESTS)
    prompts, outputs = _lengths(row, count, rng)
    if math.isinf(rate):
        arrivals = synthetic.at_once(count)
    elif mode == "open_loop_constant_rate":
        arrivals = synthetic.constant(count, rate)
    else:
        arrivals = synthetic.poisson(count, rate, rng)
    hashes = _shared(row, prompts)
    cycled = DISTINCT_PROMPTS if hashes and "shared_prefix" in row.text("dataset") else 0
    workload = Workload(arrivals, prompts, outputs, hashes, IDENTITY_TOKENS, name=row.row_id)
    return Load(workload, warmup=cycled if count > 2 * cycled else 0)
