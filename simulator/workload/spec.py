"""A workload as a small YAML file, and `load_workload` for whatever a user points at.

    requests: 2000
    arrivals: {process: gamma, rate_per_s: 6, cv: 2}
    prompt_tokens: {distribution: lognormal, mean: 1200, cv: 1.0, high: 8000}
    output_tokens: {distribution: uniform, low: 16, high: 400}
    prefix: {kind: shared, groups: 10, tokens: 512}

or requests of a trace, rescaled (paths are relative to the file):

    trace: {file: azure2023_conv.csv.gz, window_s: [600, 1200], rate_factor: 2, first: 1000}

or requests drawn from ServeGen's client tables:

    servegen: {windows: m-large_windows.csv.gz, lengths: m-large_lengths.csv.gz, window_s: [0, 600], clients: 20}

or sessions, whose `requests` are counted and whose `arrivals` begin; both lengths are then per turn:

    sessions: {turns: {distribution: uniform, low: 2, high: 8}, gap_s: {mean: 20, cv: 1}, system_tokens: 500}

Requests of any of these may be marked for policies that ask who sent them, how urgent they are and which adapter they use:

    labels: {clients: 8, priorities: 3, adapters: 16, skew: 1.2, prediction_cv: 0.5}

`llmlab workload fit` writes a file of the first kind from a trace, with `modulated` arrivals, lengths as `quantiles` and
prefixes of kind `reuse`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmlab.reference.errors import InputError
from llmlab.reference.serving._request import NO_ADAPTER
from llmlab.simulator.workload import synthetic
from llmlab.simulator.workload.formats import read_json
from llmlab.simulator.workload.servegen import read_servegen
from llmlab.simulator.workload.sessions import conversations
from llmlab.simulator.workload.trace import read_table, read_trace, token_counts
from llmlab.simulator.workload.workload import Workload

Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
Finite = Annotated[float, Field(ge=1e-9, le=1e12, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=1, le=2**31 - 1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Constant(_Strict):
    """Equal distances."""

    process: Literal["constant"]
    rate_per_s: Finite


class Poisson(_Strict):
    """Exponential gaps."""

    process: Literal["poisson"]
    rate_per_s: Finite


class Gamma(_Strict):
    """Gamma gaps with a coefficient of variation."""

    process: Literal["gamma"]
    rate_per_s: Finite
    cv: Finite


class Swing(_Strict):
    """One time scale on which the rate wanders: standard deviation of its logarithm and correlation time."""

    log_std: Annotated[float, Field(ge=0, le=5, allow_inf_nan=False)]
    seconds: Finite


class Modulated(_Strict):
    """Gamma gaps whose rate wanders."""

    process: Literal["modulated"]
    rate_per_s: Finite
    cv: Finite
    swings: list[Swing] = []


class AtOnce(_Strict):
    """Everything at time 0."""

    process: Literal["at_once"]


class ClosedLoop(_Strict):
    """Clients that send again when answered."""

    process: Literal["closed_loop"]
    clients: Whole
    think_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class Fixed(_Strict):
    """One length."""

    distribution: Literal["fixed"]
    tokens: Tokens


class Uniform(_Strict):
    """Whole numbers from low to high."""

    distribution: Literal["uniform"]
    low: Tokens
    high: Tokens


class Lognormal(_Strict):
    """Mean and coefficient of variation before clipping to low..high."""

    distribution: Literal["lognormal"]
    mean: Finite
    cv: Finite
    low: Tokens = 1
    high: Tokens = 2**31 - 1


class Quantiles(_Strict):
    """Lengths by their quantiles, straight lines between."""

    distribution: Literal["quantiles"]
    at: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2)]
    tokens: Annotated[list[Tokens], Field(min_length=2)]


class Table(_Strict):
    """A quantity by its quantiles, straight lines between."""

    at: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1)]
    values: Annotated[list[Annotated[float, Field(ge=0, allow_inf_nan=False)]], Field(min_length=1)]


class SharedPrefix(_Strict):
    """System prompts shared by groups of requests."""

    kind: Literal["shared"]
    groups: Whole
    tokens: Whole


class CyclicPrefix(_Strict):
    """Whole prompts that come back in turn."""

    kind: Literal["cyclic"]
    prompts: Whole
    groups: Whole = 1
    tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0


class ReusedPrefix(_Strict):
    """Prompts that continue earlier ones (see `synthetic.reused_prompts`)."""

    kind: Literal["reuse"]
    root_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    continued: Annotated[float, Field(ge=0, le=1)]
    depth: Table
    distance_requests: Table


class FromTrace(_Strict):
    """Requests of a trace file."""

    file: str
    window_s: tuple[float, float] | None = None
    first: Whole | None = None
    rate_factor: Finite = 1.0
    clients: Whole | None = None


class ServeGen(_Strict):
    """Requests drawn from ServeGen's client tables."""

    windows: str
    lengths: str
    window_s: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], Finite]
    rate_factor: Finite = 1.0
    clients: Whole | None = None


Length = Annotated[Fixed | Uniform | Lognormal | Quantiles, Field(discriminator="distribution")]


class Pause(_Strict):
    """Lognormal pauses; cv 0 makes them equal."""

    mean: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    cv: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0


class Sessions(_Strict):
    """Turns that contain the conversation so far and follow the answer before: chats, or agents that wait for tools."""

    turns: Length
    gap_s: Pause
    system_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    system_groups: Whole = 1
    most_tokens: Tokens | None = None


class Labels(_Strict):
    """How many clients, priorities and adapters there are, with weights rank ** -skew, and how far guesses of outputs err.

    `base_share` of the requests use no adapter; a guess is the output times a lognormal factor with this variation.
    """

    clients: Whole | None = None
    priorities: Whole | None = None
    adapters: Whole | None = None
    base_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    skew: Annotated[float, Field(ge=0, le=10)] = 0.0
    prediction_cv: Annotated[float, Field(ge=0, le=10)] | None = None


Arrivals = Annotated[Constant | Poisson | Gamma | Modulated | AtOnce | ClosedLoop, Field(discriminator="process")]


class WorkloadSpec(_Strict):
    """The keys of the file; `trace`, or `servegen`, or `requests` with `arrivals` and lengths."""

    trace: FromTrace | None = None
    servegen: ServeGen | None = None
    requests: Annotated[int, Field(ge=1, le=20_000_000)] | None = None
    duration_s: Finite | None = None
    arrivals: Annotated[Constant | Poisson | Gamma | Modulated | AtOnce | ClosedLoop, Field(discriminator="process")] | None = (
        None
    )
    prompt_tokens: Length | None = None
    output_tokens: Length | None = None
    length_rank_correlation: Annotated[float, Field(ge=-1, le=1)] = 0.0
    lengths_from: str | None = None
    prefix: Annotated[SharedPrefix | CyclicPrefix | ReusedPrefix, Field(discriminator="kind")] | None = None
    sessions: Sessions | None = None
    labels: Labels | None = None
    block_tokens: Whole = 16


def read_spec(path: str | Path) -> WorkloadSpec:
    """Read and check a YAML workload.

    Raises:
        InputError: unreadable, not YAML, an unknown or missing key, a value out of range.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode()
        content = yaml.safe_load(text)
    except OSError as error:
        raise InputError(path, "file", path.name, error.strerror or "cannot be read") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(path, "file", path.name, f"is not YAML ({error})") from None
    if not isinstance(content, dict):
        raise InputError(path, "file", path.name, "must hold keys such as requests, arrivals, prompt_tokens")
    try:
        spec = WorkloadSpec.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise InputError(path, where, first.get("input"), first["msg"]) from None
    alone = next((name for name in ("trace", "servegen") if getattr(spec, name) is not None), None)
    if alone is None:
        missing = [name for name in ("arrivals",) if getattr(spec, name) is None]
        if spec.lengths_from is None:
            missing += [name for name in ("prompt_tokens", "output_tokens") if getattr(spec, name) is None]
        if spec.requests is None and spec.duration_s is None:
            missing.append("requests")
        if missing:
            raise InputError(path, missing[0], None, "is missing")
    else:
        extra = sorted(spec.model_fields_set - {alone, "labels"})
        if extra:
            raise InputError(path, extra[0], content[extra[0]], f"does not go together with {alone}")
    return spec


def _measured_lengths(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Prompt and output lengths of a file, in pairs; a CSV needs no arrival times for this."""
    if path.name.removesuffix(".gz").endswith(".csv"):
        table = read_table(path)
        return token_counts(table, "prompt_tokens", path), token_counts(table, "output_tokens", path)
    found = load_workload(path)
    return found.prompt_tokens, found.output_tokens


def _draw(length: Fixed | Uniform | Lognormal | Quantiles, count: int, rng: np.random.Generator) -> np.ndarray:
    if isinstance(length, Fixed):
        return synthetic.fixed(count, length.tokens)
    if isinstance(length, Quantiles):
        return synthetic.from_quantiles(rng.random(count), length.at, length.tokens)
    if isinstance(length, Uniform):
        return synthetic.uniform(count, length.low, length.high, rng)
    return synthetic.lognormal(count, length.mean, length.cv, rng, low=length.low, high=length.high)


def _converse(spec: WorkloadSpec, arrival_ns: np.ndarray, streams: Any, path: Path) -> Workload:
    """Draw the turns of sessions that begin at these times."""
    chosen, arrivals = spec.sessions, spec.arrivals
    assert chosen is not None
    if spec.prefix is not None or spec.lengths_from is not None or spec.length_rank_correlation:
        raise InputError(path, "sessions", None, "does not go together with prefix, lengths_from or length_rank_correlation")
    prompt_rng, output_rng, turn_rng, gap_rng = streams
    turns = _draw(chosen.turns, len(arrival_ns), turn_rng)
    count = int(turns.sum())
    if count > 20_000_000:
        raise InputError(path, "sessions.turns", count, "makes more than 20000000 requests")
    assert spec.prompt_tokens is not None
    assert spec.output_tokens is not None
    new, output = _draw(spec.prompt_tokens, count, prompt_rng), _draw(spec.output_tokens, count, output_rng)
    spread = np.sqrt(np.log1p(chosen.gap_s.cv**2))
    gaps = chosen.gap_s.mean * np.exp(spread * gap_rng.standard_normal(count) - spread**2 / 2)
    workload = conversations(
        arrival_ns,
        turns,
        new,
        output,
        gaps,
        system_tokens=chosen.system_tokens,
        system_groups=chosen.system_groups,
        most_tokens=chosen.most_tokens,
        block_tokens=spec.block_tokens,
        name=path.name,
    )
    return workload.with_clients(arrivals.clients, arrivals.think_s) if isinstance(arrivals, ClosedLoop) else workload


def _arrive(arrivals: Any, count: int, rng: np.random.Generator) -> np.ndarray:
    if isinstance(arrivals, Constant):
        return synthetic.constant(count, arrivals.rate_per_s)
    if isinstance(arrivals, Poisson):
        return synthetic.poisson(count, arrivals.rate_per_s, rng)
    if isinstance(arrivals, Gamma):
        return synthetic.gamma(count, arrivals.rate_per_s, arrivals.cv, rng)
    if isinstance(arrivals, Modulated):
        swings = [(swing.log_std, swing.seconds) for swing in arrivals.swings]
        return synthetic.modulated(count, arrivals.rate_per_s, arrivals.cv, swings, rng)
    return synthetic.at_once(count)


def _from_trace(chosen: FromTrace, path: Path) -> Workload:
    workload = load_workload(path.parent / chosen.file)
    if chosen.window_s is not None:
        workload = workload.window(*chosen.window_s)
    if chosen.first is not None:
        workload = workload.first(chosen.first)
    workload = workload.at_rate(chosen.rate_factor)
    return workload.with_clients(chosen.clients) if chosen.clients else workload


def _mark(workload: Workload, labels: Labels, seed: int) -> Workload:
    """Mark the requests, from a random stream of its own."""
    count = len(workload)
    drawn: dict[str, Any] = {}
    streams = map(np.random.default_rng, np.random.SeedSequence(seed, spawn_key=(7,)).spawn(5))
    choices = (("client", labels.clients), ("priority", labels.priorities), ("adapter", labels.adapters))
    for (name, kinds), rng in zip(choices, streams):
        if kinds is not None:
            weights = np.arange(1, kinds + 1, dtype=float) ** -labels.skew
            drawn[name] = rng.choice(kinds, size=count, p=weights / weights.sum())
    base_rng, guess_rng = streams
    if labels.adapters is not None:
        drawn["adapter"] = np.where(base_rng.random(count) < labels.base_share, NO_ADAPTER, drawn["adapter"])
    if labels.prediction_cv is not None:
        spread = np.sqrt(np.log1p(labels.prediction_cv**2))
        factor = np.exp(spread * guess_rng.standard_normal(count) - spread**2 / 2)
        drawn["predicted_tokens"] = np.maximum(1, np.rint(workload.output_tokens * factor)).astype(np.int64)
    return replace(workload, **drawn)


def make_workload(spec: WorkloadSpec, seed: int, path: Path) -> Workload:
    """Draw the workload, and mark its requests where labels are asked for.

    Raises:
        InputError: values that do not go together; `path` is the file to name.
    """
    workload = _unmarked(spec, seed, path)
    return workload if spec.labels is None else _mark(workload, spec.labels, seed)


def _unmarked(spec: WorkloadSpec, seed: int, path: Path) -> Workload:
    """Draw the workload; arrivals and the two lengths have a random stream each, so changing one leaves the others.

    Raises:
        InputError: values that do not go together; `path` is the file to name.
    """
    try:
        if spec.trace is not None:
            return _from_trace(spec.trace, path)
        if spec.servegen is not None:
            profile = spec.servegen
            return read_servegen(
                path.parent / profile.windows,
                path.parent / profile.lengths,
                window_s=profile.window_s,
                rate_factor=profile.rate_factor,
                most_clients=profile.clients,
                seed=seed,
            )
        streams = np.random.SeedSequence(seed).spawn(4)
        arrival_rng, prompt_rng, output_rng, prefix_rng = map(np.random.default_rng, streams)
        arrivals = spec.arrivals
        rate = getattr(arrivals, "rate_per_s", None)
        if spec.requests is not None:
            count = spec.requests
        elif rate is not None:
            count = max(1, round(rate * (spec.duration_s or 0)))
        else:
            raise InputError(path, "requests", None, "is missing (duration_s needs an arrival rate)")
        arrival_ns = _arrive(arrivals, count, arrival_rng)
        if spec.sessions is not None:
            more = [*map(np.random.default_rng, streams[3].spawn(2))]
            return _converse(spec, arrival_ns, (prompt_rng, output_rng, *more), path)
        if spec.lengths_from is not None:
            pairs = synthetic.empirical(count, *_measured_lengths(path.parent / spec.lengths_from), prompt_rng)
            prompt_tokens, output_tokens = pairs[:, 0], pairs[:, 1]
        if spec.prompt_tokens is not None:
            prompt_tokens = _draw(spec.prompt_tokens, count, prompt_rng)
        if spec.output_tokens is not None:
            output_tokens = _draw(spec.output_tokens, count, output_rng)
        if rho := spec.length_rank_correlation:
            prompt, output = spec.prompt_tokens, spec.output_tokens
            if not (isinstance(prompt, Quantiles) and isinstance(output, Quantiles)):
                raise InputError(path, "length_rank_correlation", rho, "needs both lengths as quantiles")
            left, right = synthetic.correlated_uniforms(count, rho, prompt_rng)
            prompt_tokens = synthetic.from_quantiles(left, prompt.at, prompt.tokens)
            output_tokens = synthetic.from_quantiles(right, output.at, output.tokens)
        hashes: tuple[np.ndarray, ...] = ()
        if isinstance(spec.prefix, SharedPrefix):
            hashes = synthetic.shared_prompts(prompt_tokens, spec.prefix.groups, spec.prefix.tokens, spec.block_tokens)
        elif isinstance(spec.prefix, ReusedPrefix):
            hashes = synthetic.reused_prompts(
                prompt_tokens,
                spec.block_tokens,
                root_tokens=spec.prefix.root_tokens,
                continued=spec.prefix.continued,
                depth=(spec.prefix.depth.at, spec.prefix.depth.values),
                distance=(spec.prefix.distance_requests.at, spec.prefix.distance_requests.values),
                rng=prefix_rng,
            )
        elif isinstance(spec.prefix, CyclicPrefix):
            prompt_tokens = prompt_tokens[np.arange(count) % spec.prefix.prompts]
            hashes = synthetic.cyclic_prompts(
                prompt_tokens, spec.prefix.prompts, spec.prefix.groups, spec.prefix.tokens, spec.block_tokens
            )
        return Workload(
            arrival_ns,
            prompt_tokens,
            output_tokens,
            hashes,
            spec.block_tokens,
            clients=arrivals.clients if isinstance(arrivals, ClosedLoop) else 0,
            think_ns=round(arrivals.think_s * 1e9) if isinstance(arrivals, ClosedLoop) else 0,
            name=path.name,
        )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(path, "workload", path.name, str(error)) from None


def load_workload(path: str | Path, seed: int = 0) -> Workload:
    """Read a trace (`.csv`), a result of another tool (`.json`, `.jsonl`; all also `.gz`) or a workload file (`.yaml`).

    Raises:
        InputError: neither, or anything wrong inside.
    """
    path = Path(path)
    if path.suffix in (".yaml", ".yml"):
        return make_workload(read_spec(path), seed, path)
    if (plain := path.name.removesuffix(".gz")).endswith(".csv"):
        return read_trace(path)
    if plain.endswith((".json", ".jsonl", ".ndjson")):
        return read_json(path, seed)
    raise InputError(path, "workload", path.name, "must end in .csv, .json, .jsonl (or these with .gz), .yaml or .yml")
