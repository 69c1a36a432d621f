"""A workload as a small YAML file, and `load_workload` for whatever a user points at.

    requests: 2000
    arrivals: {process: gamma, rate_per_s: 6, cv: 2}
    prompt_tokens: {distribution: lognormal, mean: 1200, cv: 1.0, high: 8000}
    output_tokens: {distribution: uniform, low: 16, high: 400}
    prefix: {kind: shared, groups: 10, tokens: 512}

or requests of a trace, rescaled (paths are relative to the file):

    trace: {file: azure2023_conv.csv.gz, window_s: [600, 1200], rate_factor: 2, first: 1000}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from llmlab.reference.errors import InputError
from llmlab.simulator.workload import synthetic
from llmlab.simulator.workload.trace import read_table, read_trace, token_counts
from llmlab.simulator.workload.workload import Workload

Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
Finite = Annotated[float, Field(gt=0, allow_inf_nan=False)]


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


class AtOnce(_Strict):
    """Everything at time 0."""

    process: Literal["at_once"]


class ClosedLoop(_Strict):
    """Clients that send again when answered."""

    process: Literal["closed_loop"]
    clients: PositiveInt
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


class SharedPrefix(_Strict):
    """System prompts shared by groups of requests."""

    kind: Literal["shared"]
    groups: PositiveInt
    tokens: PositiveInt


class CyclicPrefix(_Strict):
    """Whole prompts that come back in turn."""

    kind: Literal["cyclic"]
    prompts: PositiveInt
    groups: PositiveInt = 1
    tokens: Annotated[int, Field(ge=0)] = 0


class FromTrace(_Strict):
    """Requests of a trace file."""

    file: str
    window_s: tuple[float, float] | None = None
    first: PositiveInt | None = None
    rate_factor: Finite = 1.0
    clients: PositiveInt | None = None


Length = Annotated[Fixed | Uniform | Lognormal, Field(discriminator="distribution")]


class WorkloadSpec(_Strict):
    """The keys of the file; either `trace`, or `requests` with `arrivals` and lengths."""

    trace: FromTrace | None = None
    requests: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    duration_s: PositiveFloat | None = None
    arrivals: Annotated[Constant | Poisson | Gamma | AtOnce | ClosedLoop, Field(discriminator="process")] | None = None
    prompt_tokens: Length | None = None
    output_tokens: Length | None = None
    lengths_from: str | None = None
    prefix: Annotated[SharedPrefix | CyclicPrefix, Field(discriminator="kind")] | None = None
    block_tokens: PositiveInt = 16


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
    if spec.trace is None:
        missing = [name for name in ("arrivals",) if getattr(spec, name) is None]
        if spec.lengths_from is None:
            missing += [name for name in ("prompt_tokens", "output_tokens") if getattr(spec, name) is None]
        if spec.requests is None and spec.duration_s is None:
            missing.append("requests")
        if missing:
            raise InputError(path, missing[0], None, "is missing")
    else:
        extra = sorted(spec.model_fields_set - {"trace"})
        if extra:
            raise InputError(path, extra[0], content[extra[0]], "does not go together with trace")
    return spec


def _draw(length: Fixed | Uniform | Lognormal, count: int, rng: np.random.Generator) -> np.ndarray:
    if isinstance(length, Fixed):
        return synthetic.fixed(count, length.tokens)
    if isinstance(length, Uniform):
        return synthetic.uniform(count, length.low, length.high, rng)
    return synthetic.lognormal(count, length.mean, length.cv, rng, low=length.low, high=length.high)


def _arrive(arrivals: Any, count: int, rng: np.random.Generator) -> np.ndarray:
    if isinstance(arrivals, Constant):
        return synthetic.constant(count, arrivals.rate_per_s)
    if isinstance(arrivals, Poisson):
        return synthetic.poisson(count, arrivals.rate_per_s, rng)
    if isinstance(arrivals, Gamma):
        return synthetic.gamma(count, arrivals.rate_per_s, arrivals.cv, rng)
    return synthetic.at_once(count)


def _from_trace(chosen: FromTrace, path: Path) -> Workload:
    workload = read_trace(path.parent / chosen.file)
    if chosen.window_s is not None:
        workload = workload.window(*chosen.window_s)
    if chosen.first is not None:
        workload = workload.first(chosen.first)
    workload = workload.at_rate(chosen.rate_factor)
    return workload.with_clients(chosen.clients) if chosen.clients else workload


def make_workload(spec: WorkloadSpec, seed: int, path: Path) -> Workload:
    """Draw the workload; arrivals and the two lengths have a random stream each, so changing one leaves the others.

    Raises:
        InputError: values that do not go together; `path` is the file to name.
    """
    try:
        if spec.trace is not None:
            return _from_trace(spec.trace, path)
        arrival_rng, prompt_rng, output_rng = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(3))
        arrivals = spec.arrivals
        rate = getattr(arrivals, "rate_per_s", None)
        if spec.requests is not None:
            count = spec.requests
        elif rate is not None:
            count = max(1, round(rate * (spec.duration_s or 0)))
        else:
            raise InputError(path, "requests", None, "is missing (duration_s needs an arrival rate)")
        arrival_ns = _arrive(arrivals, count, arrival_rng)
        if spec.lengths_from is not None:
            table_path = path.parent / spec.lengths_from
            table = read_table(table_path)
            pairs = synthetic.empirical(
                count,
                token_counts(table, "prompt_tokens", table_path),
                token_counts(table, "output_tokens", table_path),
                prompt_rng,
            )
            prompt_tokens, output_tokens = pairs[:, 0], pairs[:, 1]
        if spec.prompt_tokens is not None:
            prompt_tokens = _draw(spec.prompt_tokens, count, prompt_rng)
        if spec.output_tokens is not None:
            output_tokens = _draw(spec.output_tokens, count, output_rng)
        hashes: tuple[np.ndarray, ...] = ()
        if isinstance(spec.prefix, SharedPrefix):
            hashes = synthetic.shared_prompts(prompt_tokens, spec.prefix.groups, spec.prefix.tokens, spec.block_tokens)
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
    """Read a trace (`.csv`, `.csv.gz`) or a workload file (`.yaml`, `.yml`).

    Raises:
        InputError: neither, or anything wrong inside.
    """
    path = Path(path)
    if path.suffix in (".yaml", ".yml"):
        return make_workload(read_spec(path), seed, path)
    if path.name.endswith((".csv", ".csv.gz")):
        return read_trace(path)
    raise InputError(path, "workload", path.name, "must end in .csv, .csv.gz, .yaml or .yml")
