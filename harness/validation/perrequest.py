"""Replays of measured runs request by request: same arrivals and lengths, and every request's latencies compared.

A per-request file has one line per request: `prompt_tokens`, `output_tokens`, `ttft_ms`, and `e2e_ms` or `decode_ms`; mostly
`arrival_s`; and columns that name the run (`run`, `exp` or `experiment`, `workload`, `qps`). What the file does not say of the
deployment stands in `replay_settings.yaml` with its source. A run that neither describes is excluded with the reason.

A replay is one simulation. Its figures are those of the run's requests as the file has them: mean and quantiles of TTFT, TPOT
and E2E, beside how well single requests are matched (rank correlation, median absolute error). Phases of one run share its
engine and its cache, so they are simulated together and scored apart.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from llmlab.harness.validation.resolve import (
    Unsimulated,
    on_device,
    resolve_device,
    resolve_engine,
    resolve_kv_dtype,
    resolve_model,
    resolve_weight_dtype,
)
from llmlab.harness.validation.rows import MeasuredRow, numbered_lines
from llmlab.reference.errors import InputError
from llmlab.simulator.cost.engine import EngineModel, load_engine
from llmlab.simulator.workload import synthetic
from llmlab.simulator.workload.workload import Workload

SETTINGS = Path(__file__).resolve().parent / "replay_settings.yaml"
REQUIRED = ("prompt_tokens", "output_tokens", "ttft_ms")
NAMES = ("run", "exp", "experiment", "workload", "qps")
"""Columns whose values together name a run."""
MODE = "trace_replay"
STATISTICS = ("mean", "p50", "p90", "p99")
BLOCK_TOKENS = 16
FEWEST_FOR_TAILS = 100
"""The 99th percentile of fewer requests is their maximum, and is not scored."""

MOST_HIDDEN_REUSE = 0.05
"""Part of requests that may have found their prompt in a cache without the file's saying so."""

LARGEST = 1e9
"""No length, time or latency in a run is larger."""
CURVE_POINTS = 41
MOST_PAIRS = 150

_TEXT = ("model", "gpu", "engine", "engine_version", "weight_dtype", "kv_dtype", "clock", "router")
_COUNTS = (
    "tp",
    "ep",
    "attention_data_parallel",
    "replicas",
    "max_num_seqs",
    "max_num_batched_tokens",
    "kv_blocks",
    "shared_prefix_tokens",
    "shared_prefix_groups",
)
_NUMBERS = ("gpu_memory_utilization", "arrivals_per_s")
_NOTES = ("source", "excluded", "unscored")
_KNOWN = (*_TEXT, *_COUNTS, *_NUMBERS, "prefix_caching", *_NOTES)


@dataclass(frozen=True, eq=False)
class Run:
    """The requests of one run in order of arrival.

    Attributes:
        name: file's name of the run.
        arrival_s: from the first request, or None where the file has none.
        phase: label of each request's phase; one label where the run has no phases.
        session: whose conversation a request continues, -1 where the file does not say.
        stated: settings that the file states itself.
    """

    where: str
    source: str
    name: str
    arrival_s: np.ndarray | None
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray
    ttft_ms: np.ndarray
    e2e_ms: np.ndarray
    phase: np.ndarray
    session: np.ndarray
    stated: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    @property
    def tpot_ms(self) -> np.ndarray:
        """(E2E - TTFT) / (output tokens - 1); NaN for a single token."""
        return tpot(self.ttft_ms, self.e2e_ms, self.output_tokens)


def tpot(ttft: np.ndarray, e2e: np.ndarray, output_tokens: np.ndarray) -> np.ndarray:
    """Time per output token after the first; NaN where there is none.

    >>> tpot(np.array([10.0, 5.0]), np.array([50.0, 5.0]), np.array([5, 1]))
    array([10., nan])
    """
    more = output_tokens - 1
    return np.where(more > 0, (e2e - ttft) / np.maximum(more, 1), np.nan)


def _setting(where: object, key: str, value: Any) -> Any:
    """One checked setting."""
    if key in _COUNTS:
        number = float(value)
        if not (number == int(number) and number >= (0 if key == "shared_prefix_tokens" else 1)):
            raise ValueError
        return int(number)
    if key in _NUMBERS:
        if not 0 < float(value) < math.inf:
            raise ValueError
        return float(value)
    if key == "prefix_caching":
        known = {"true": True, "false": False, "1": True, "0": False}
        return known[str(value).strip().lower()]
    if key == "clock" and value not in ("engine", "client"):
        raise ValueError
    return str(value)


def read_settings(path: str | Path = SETTINGS) -> list[tuple[re.Pattern[str], dict[str, Any]]]:
    """Read the list of run settings.

    Raises:
        InputError: not such a list, an unknown key, or a value out of range.
    """
    import yaml

    path = Path(path)
    try:
        records = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(path, "", path.name, f"cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) and "match" in record for record in records):
        raise InputError(path, "match", None, "expected a list of settings, each with a pattern")
    found = []
    for record in records:
        pattern = str(record.pop("match"))
        checked = {}
        for key, value in record.items():
            if key not in _KNOWN:
                raise InputError(path, str(key), value, f"unknown key of {pattern}; known: {', '.join(_KNOWN)}")
            try:
                checked[key] = _setting(path, key, value)
            except (TypeError, ValueError, KeyError):
                raise InputError(path, key, value, f"of {pattern}: out of range") from None
        try:
            found.append((re.compile(pattern), checked))
        except re.error as error:
            raise InputError(path, "match", pattern, str(error)) from None
    return found


@lru_cache(maxsize=1)
def _shipped() -> list[tuple[re.Pattern[str], dict[str, Any]]]:
    return read_settings()


def settings_of(name: str, stated: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a run's deployment: the shipped entry for its name, overruled by what the file itself states.

    Raises:
        Unsimulated: nothing is known, or the entry says why it is out of reach.
    """
    known = next((dict(found) for pattern, found in _shipped() if pattern.search(name)), {})
    known |= stated
    if reason := known.get("excluded"):
        raise Unsimulated(reason)
    for key in ("model", "gpu", "engine"):
        if not known.get(key):
            raise Unsimulated(f"configuration of the run unknown: {key} not stated")
    return known


def read_runs(path: str | Path) -> list[Run]:
    """Read a per-request file: one entry per run, in order of first appearance.

    Raises:
        InputError: unreadable, a required column missing, or a cell that is not what its column is for.
    """
    path = Path(path)
    groups: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for number, row in numbered_lines(path, REQUIRED):
        if not {"e2e_ms", "decode_ms"} & row.keys():
            raise InputError(path, "e2e_ms", "", "column is missing (nor is there decode_ms)")
        name = "|".join(row[column] for column in NAMES if row.get(column))
        groups.setdefault(name or path.name, []).append((number, row))
    if not groups:
        raise InputError(path, "", path.name, "has a header and no rows")
    source = re.sub(r"\.csv(\.gz)?$", "", path.name)
    return [_run(path, source, name, rows) for name, rows in groups.items()]


def _column(path: Path, rows: Sequence[tuple[int, Mapping[str, str]]], column: str, least: float) -> np.ndarray:
    values = np.empty(len(rows))
    for place, (line, row) in enumerate(rows):
        try:
            values[place] = value = float(row[column])
        except ValueError:
            raise InputError(path, column, row[column], f"is not a number (line {line})") from None
        if not least <= value <= LARGEST:
            raise InputError(path, column, row[column], f"must be between {least:g} and {LARGEST:g} (line {line})")
    return values


def _run(path: Path, source: str, name: str, rows: list[tuple[int, dict[str, str]]]) -> Run:
    first = rows[0][1]
    arrival = _column(path, rows, "arrival_s", 0.0) if any(row.get("arrival_s") for _, row in rows) else None
    ttft = _column(path, rows, "ttft_ms", 0.0)
    e2e = _column(path, rows, "e2e_ms", 0.0) if "e2e_ms" in first else ttft + _column(path, rows, "decode_ms", 0.0)
    order = np.argsort(arrival, kind="stable") if arrival is not None else np.arange(len(rows))
    tokens = {}
    for column in ("prompt_tokens", "output_tokens"):
        tokens[column] = np.rint(_column(path, rows, column, 1.0)).astype(np.int64)[order]
    sessions: dict[str, int] = {}
    session = [sessions.setdefault(row["user_id"], len(sessions)) if row.get("user_id") else -1 for _, row in rows]
    stated = {}
    for key in (*_TEXT, *_COUNTS, *_NUMBERS, "prefix_caching"):
        if cell := first.get(key):
            line = rows[0][0]
            try:
                stated[key] = _setting(path, key, cell)
            except (TypeError, ValueError, KeyError):
                raise InputError(path, key, cell, f"out of range (line {line})") from None
    return Run(
        where=f"{path}:{rows[0][0]}",
        source=source,
        name=name,
        arrival_s=None if arrival is None else arrival[order] - arrival[order][0],
        prompt_tokens=tokens["prompt_tokens"],
        output_tokens=tokens["output_tokens"],
        ttft_ms=ttft[order],
        e2e_ms=e2e[order],
        phase=np.array([row.get("phase", "") for _, row in rows])[order],
        session=np.array(session)[order],
        stated=stated,
    )


def prefixes(run: Run, shared_tokens: int) -> tuple[np.ndarray, ...]:
    """Identities of full prompt blocks: a prefix common to all, or the conversation a prompt continues; else its own.

    A later prompt of one session contains the earlier ones, so their common full blocks are equal.
    """
    full = run.prompt_tokens // BLOCK_TOKENS
    if shared_tokens >= BLOCK_TOKENS:
        return synthetic.shared_prompts(run.prompt_tokens, 1, shared_tokens, BLOCK_TOKENS)
    if (run.session < 0).all():
        return ()
    most = int(full.max()) + 1
    place = np.arange(len(run)) + len(run)  # a request without a session is one of its own
    owner = np.where(run.session >= 0, run.session, place)
    return tuple(owner[i] * most + np.arange(full[i]) for i in range(len(run)))


def hidden_reuse(run: Run, settings: Mapping[str, Any], cached_tokens: np.ndarray) -> float:
    """Part of the requests whose first token came sooner than all devices together could compute the prompt at their peak.

    Their prompts were in a cache already, though nothing in the file says that they repeat.
    """
    from llmlab.simulator.hardware.profile import load_device
    from llmlab.simulator.model.description import load_model

    model = load_model(resolve_model(settings["model"]).name)
    dtype = resolve_weight_dtype(settings.get("weight_dtype", ""), settings["model"])
    peak = load_device(resolve_device(settings["gpu"]).name).limits(dtype).flops_per_s * settings.get("tp", 1)
    config = model.config
    matrices = config.num_active_parameters - 2 * config.vocab_size * config.hidden_size
    least_ms = 2.0 * matrices * (run.prompt_tokens - cached_tokens) / peak * 1e3
    return float((run.ttft_ms < least_ms).mean())


def replay_load(run: Run, settings: Mapping[str, Any]) -> Workload:
    """The run's requests as a workload.

    Raises:
        Unsimulated: no arrivals, and no rate to draw them at.
    """
    if run.arrival_s is not None:
        arrivals = np.rint(run.arrival_s * 1e9).astype(np.int64)
    elif rate := settings.get("arrivals_per_s"):
        rng = np.random.default_rng(zlib.crc32(run.name.encode()))
        arrivals = synthetic.poisson(len(run), rate, rng)
    else:
        raise Unsimulated("arrival times neither in the file nor stated")
    hashes = prefixes(run, int(settings.get("shared_prefix_tokens", 0)))
    return Workload(arrivals, run.prompt_tokens, run.output_tokens, hashes, BLOCK_TOKENS, name=run.name)


def replay(run: Run, engines: Mapping[str, EngineModel] | None = None) -> dict[str, np.ndarray]:
    """Simulate one run; the per-request table, in milliseconds and in the run's order.

    Args:
        run: what was measured.
        engines: constants to use instead of the shipped ones, by engine key (what a fit varies).

    Raises:
        Unsimulated: the run is out of reach, with the reason.
    """
    from llmlab.simulator.serving.deployment import Deployment, resolve
    from llmlab.simulator.serving.simulate import simulate

    settings = settings_of(run.name, run.stated)
    workload = replay_load(run, settings)
    model, device = resolve_model(settings["model"]), resolve_device(settings["gpu"])
    facts = on_device(resolve_engine(settings["engine"], settings.get("engine_version", "")), device)
    weight_dtype = resolve_weight_dtype(settings.get("weight_dtype", ""), settings["model"])
    kv_dtype = resolve_kv_dtype(settings.get("kv_dtype", ""), weight_dtype, facts.key)
    engine = (engines or {}).get(facts.key) or load_engine(facts.key)
    if settings.get("clock") == "engine":
        engine = engine.with_constants(host_request_s=0.0)
    batched = settings.get("max_num_batched_tokens") or facts.max_num_batched_tokens
    if not facts.chunked:
        batched = max(batched, int((run.prompt_tokens + run.output_tokens).max()))
    try:
        site = resolve(
            Deployment(
                model=model.name,
                device=device.name,
                tensor_parallel=settings.get("tp", 1),
                expert_parallel=settings.get("ep", 1),
                attention_data_parallel=settings.get("attention_data_parallel", 1),
                replicas=settings.get("replicas", 1),
                router=settings.get("router", "round_robin"),
                scheduler="chunked_prefill" if facts.chunked else "continuous_batching",
                max_num_seqs=min(settings.get("max_num_seqs") or facts.max_num_seqs, batched),
                max_num_batched_tokens=batched,
                block_tokens=BLOCK_TOKENS,
                gpu_memory_utilization=settings.get("gpu_memory_utilization", 0.9),
                prefix_caching=settings.get("prefix_caching", facts.prefix_caching) and bool(workload.block_hashes),
                weight_dtype=weight_dtype,
                kv_dtype=kv_dtype,
                engine=engine,
                kv_blocks=settings.get("kv_blocks"),
                max_model_tokens=0,
            )
        )
    except InputError as error:
        raise Unsimulated(str(error)) from None
    result = simulate(site, workload)
    if refused := result.log.refused:
        raise Unsimulated(f"{len(refused)} of {len(run)} requests refused: {next(iter(refused.values()))}")
    if (
        not settings.get("unscored")
        and hidden_reuse(run, settings, np.asarray(result.requests["cached_tokens"])) > MOST_HIDDEN_REUSE
    ):
        raise Unsimulated(
            "prompts repeat and the file does not say which: first tokens came sooner than the devices' peak allows"
        )
    return {metric: np.asarray(result.requests[f"{metric}_s"]) * 1e3 for metric in ("ttft", "tpot", "e2e")}


def _figures(name: str, values: np.ndarray) -> dict[str, float]:
    kept = values[np.isfinite(values)]
    if not len(kept):
        return {}
    found = {f"{name}_mean_ms": float(kept.mean())}
    for p in (50, 90, 99):
        if p < 99 or len(kept) >= FEWEST_FOR_TAILS:
            found[f"{name}_p{p}_ms"] = float(np.quantile(kept, p / 100))
    return found


@dataclass(frozen=True, eq=False)
class Replay:
    """A run (or one phase of it) beside its simulation.

    Attributes:
        row: the run's measured figures, in the form every other measurement has.
        figures: the simulated ones; empty where `reason` says why.
        measured, simulated: per request and metric, in milliseconds.
    """

    row: MeasuredRow
    figures: Mapping[str, float]
    measured: Mapping[str, np.ndarray] = field(default_factory=dict)
    simulated: Mapping[str, np.ndarray] = field(default_factory=dict)
    reason: str = ""

    def matches(self) -> dict[str, Any]:
        """How single requests are matched: rank correlation and median absolute relative error per metric."""
        from scipy.stats import spearmanr

        found: dict[str, Any] = {"row_id": self.row.row_id, "source": self.row.source, "requests": 0}
        for metric, measured in self.measured.items():
            simulated = self.simulated[metric]
            kept = np.isfinite(measured) & np.isfinite(simulated) & (measured > 0)
            found["requests"] = max(found["requests"], int(kept.sum()))
            varied = kept.sum() > 2 and np.ptp(measured[kept]) > 0 and np.ptp(simulated[kept]) > 0
            errors = np.abs(simulated[kept] / measured[kept] - 1)
            found[f"{metric}_rank_correlation"] = (
                round(float(spearmanr(measured[kept], simulated[kept]).statistic), 4) if varied else None
            )
            found[f"{metric}_median_abs_error"] = round(float(np.median(errors)), 4) if len(errors) else None
        return found

    def curves(self) -> dict[str, Any]:
        """What a picture needs: quantiles of both distributions and some pairs (measured, simulated), per metric in ms."""
        levels = np.linspace(0.0, 1.0, CURVE_POINTS)
        found: dict[str, Any] = {"row_id": self.row.row_id}
        for metric in ("ttft", "e2e"):
            measured, simulated = self.measured[metric], self.simulated[metric]
            some = np.unique(np.linspace(0, len(measured) - 1, min(len(measured), MOST_PAIRS)).round().astype(int))
            found[metric] = {
                "measured": [round(float(value), 3) for value in np.quantile(measured, levels)],
                "simulated": [round(float(value), 3) for value in np.quantile(simulated, levels)],
                "pairs": [[round(float(measured[i]), 3), round(float(simulated[i]), 3)] for i in some],
            }
        return found


def _row_of(run: Run, name: str, chosen: np.ndarray, settings: Mapping[str, Any]) -> MeasuredRow:
    values = {"ttft": run.ttft_ms, "tpot": run.tpot_ms, "e2e": run.e2e_ms}
    measured = {key: value for metric, all_ in values.items() for key, value in _figures(metric, all_[chosen]).items()}
    texts = {key: str(settings[key]) for key in ("engine", "engine_version", "weight_dtype", "kv_dtype") if key in settings}
    texts |= {"source": run.source, "quality": "C" if settings.get("unscored") else "A"}
    stated = {"num_requests": float(chosen.sum()), "osl": float(run.output_tokens[chosen].mean())}
    return MeasuredRow(
        run.where, name, settings.get("model", ""), settings.get("gpu", ""), MODE, texts, stated, {}, {}, measured
    )


def replays(run: Run, engines: Mapping[str, EngineModel] | None = None) -> list[Replay]:
    """Replay one run: one entry per phase, or one that says why there is none."""
    everything = np.ones(len(run), dtype=bool)
    name = f"{run.source}/{run.name}"
    try:
        settings = settings_of(run.name, run.stated)
        simulated = replay(run, engines)
    except Unsimulated as reason:
        return [Replay(_row_of(run, name, everything, run.stated), {}, reason=str(reason))]
    measured = {"ttft": run.ttft_ms, "tpot": run.tpot_ms, "e2e": run.e2e_ms}
    found = []
    for phase in dict.fromkeys(run.phase.tolist()):
        chosen = run.phase == phase
        row = _row_of(run, f"{name}|{phase}" if phase else name, chosen, settings)
        mine = {metric: values[chosen] for metric, values in simulated.items()}
        figures = {key: value for metric, values in mine.items() for key, value in _figures(metric, values).items()}
        found.append(Replay(row, figures, {metric: values[chosen] for metric, values in measured.items()}, mine))
    return found
