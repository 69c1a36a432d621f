"""Read what other tools write: results of load generators and public traces, each turned into a `Workload`.

| format | told by | arrivals | lengths |
|---|---|---|---|
| Mooncake JSON lines (arXiv:2407.00079) | `input_length` | `timestamp`, ms | tokens, `hash_ids` of 512-token blocks |
| vLLM `vllm bench serve --save-detailed` | `input_lens` | `start_times`, else its own rate and burstiness | tokens |
| GuideLLM report | `benchmarks` | `start_time` | tokens |
| inference-perf per-request report | `info` | `start_time` | tokens |
| ShareGPT conversations | `conversations` | all at once | first question and first answer |
| BurstGPT CSV (arXiv:2401.17644), read by `trace` | `Request tokens` | `Timestamp`, s | tokens |

Requests that failed there (no output, or an error) are left out, and the workload's name says how many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from llmlab.reference.errors import InputError
from llmlab.simulator.workload import synthetic
from llmlab.simulator.workload.text import parse_json, parse_json_lines, read_text
from llmlab.simulator.workload.workload import NANOSECONDS, Workload

MOONCAKE_BLOCK_TOKENS = 512
BYTES_PER_TOKEN = 4.0
"""UTF-8 bytes per token of English text under the vocabularies in use; ShareGPT files hold text, not token counts."""

Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Seconds = Annotated[float, Field(ge=-1e15, le=1e15, allow_inf_nan=False)]


class _Loose(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class MooncakeLine(_Loose):
    """One request of a Mooncake trace."""

    timestamp: Annotated[float, Field(ge=0, le=1e14, allow_inf_nan=False)]
    input_length: Annotated[int, Field(ge=1, le=2**31 - 1)]
    output_length: Annotated[int, Field(ge=1, le=2**31 - 1)]
    hash_ids: list[Annotated[int, Field(ge=0, le=2**62)]] = []


class VllmResult(_Loose):
    """What `vllm bench serve` saves, with `--save-detailed`."""

    input_lens: list[Count]
    output_lens: list[Count]
    start_times: list[Seconds] | None = None
    errors: list[str | None] | None = None
    request_rate: float | str | None = None
    burstiness: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    max_concurrency: Annotated[int, Field(ge=1)] | None = None


class GuideRequest(_Loose):
    """One finished request of a GuideLLM report."""

    prompt_tokens: Annotated[Count, Field(validation_alias=AliasChoices("prompt_tokens", "input_tokens"))]
    output_tokens: Count
    start_time: Annotated[Seconds, Field(validation_alias=AliasChoices("start_time", "request_start_time"))]


class GuideRequests(_Loose):
    """Its requests by outcome."""

    successful: list[GuideRequest] = []
    errored: list[Any] = []
    incomplete: list[Any] = []


class GuideBenchmark(_Loose):
    """One benchmark of it."""

    requests: GuideRequests


class GuideReport(_Loose):
    """A GuideLLM report."""

    benchmarks: Annotated[list[GuideBenchmark], Field(min_length=1)]


class PerfInfo(_Loose):
    """Token counts of one request."""

    input_tokens: Count
    output_tokens: Count


class PerfRequest(_Loose):
    """One request of inference-perf's per-request report."""

    start_time: Seconds
    info: PerfInfo
    error: Any = None


class Turn(_Loose):
    """One message."""

    speaker: Annotated[str, Field(validation_alias=AliasChoices("from", "role"))]
    text: Annotated[str, Field(validation_alias=AliasChoices("value", "content"))]


class Conversation(_Loose):
    """One ShareGPT conversation."""

    conversations: Annotated[list[Turn], Field(validation_alias=AliasChoices("conversations", "messages"))]


T = TypeVar("T")


def _check(kind: type[T], content: Any, path: Path) -> T:
    """Validate; the first mistake becomes the error."""
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        shown = repr(first.get("input"))
        raise InputError(path, where, shown if len(shown) <= 60 else shown[:60] + "...", first["msg"]) from None


def _workload(
    path: Path,
    start_s: Sequence[float] | np.ndarray,
    prompts: Sequence[int],
    outputs: Sequence[int],
    *,
    hashes: tuple[np.ndarray, ...] = (),
    hash_block_tokens: int = 16,
    left_out: int = 0,
) -> Workload:
    """Sort by time, count time from the first request, and drop requests without tokens."""
    times, prompt_tokens, output_tokens = np.asarray(start_s, float), np.asarray(prompts), np.asarray(outputs)
    kept = np.flatnonzero((prompt_tokens >= 1) & (output_tokens >= 1)) if len(times) else np.empty(0, int)
    left_out += len(times) - len(kept)
    if not len(kept):
        raise InputError(path, "file", path.name, f"holds no finished request ({left_out} failed)")
    order = kept[np.argsort(times[kept], kind="stable")]
    since = times[order] - times[order[0]]
    if since[-1] > 100 * 365 * 86400:
        raise InputError(path, "start_time", float(times[order[-1]]), "is more than a century after the first")
    return Workload(
        np.rint(since * NANOSECONDS).astype(np.int64),
        prompt_tokens[order],
        output_tokens[order],
        tuple(hashes[i] for i in order) if hashes else (),
        hash_block_tokens,
        name=path.name + (f" ({left_out} failed requests left out)" if left_out else ""),
    )


def _mooncake(content: list[Any], path: Path) -> Workload:
    lines = _check(list[MooncakeLine], content, path)
    hashes = tuple(np.array(line.hash_ids, dtype=np.int64) for line in lines)
    return _workload(
        path,
        [line.timestamp / 1e3 for line in lines],
        [line.input_length for line in lines],
        [line.output_length for line in lines],
        hashes=hashes if any(map(len, hashes)) else (),
        hash_block_tokens=MOONCAKE_BLOCK_TOKENS,
    )


def _vllm(content: dict[str, Any], path: Path, seed: int) -> Workload:
    result = _check(VllmResult, content, path)
    count = len(result.input_lens)
    for name in ("output_lens", "start_times", "errors"):
        values = getattr(result, name)
        if values is not None and len(values) != count:
            raise InputError(path, name, f"{len(values)} values", f"input_lens has {count}")
    if result.start_times is not None:
        times: Sequence[float] | np.ndarray = result.start_times
    else:
        try:
            rate = float(result.request_rate) if result.request_rate is not None else math.nan
        except ValueError:
            rate = math.nan
        if not rate > 0:
            raise InputError(
                path, "request_rate", result.request_rate, "must be a positive rate or inf: there are no start_times"
            )
        # The tool draws gaps from a Gamma distribution whose shape it calls burstiness.
        rng = np.random.default_rng(seed)
        times = np.zeros(count)
        if math.isfinite(rate):
            times = synthetic.gamma(count, rate, result.burstiness**-0.5, rng) / NANOSECONDS
    outputs = [0 if error else tokens for tokens, error in zip(result.output_lens, result.errors or [None] * count)]
    found = _workload(path, times, result.input_lens, outputs)
    closed = result.max_concurrency is not None and result.start_times is None and not np.any(times)
    return found.with_clients(min(result.max_concurrency or 1, len(found))) if closed else found


def _guidellm(content: dict[str, Any], path: Path) -> Workload:
    report = _check(GuideReport, content, path)
    requests = [request for benchmark in report.benchmarks for request in benchmark.requests.successful]
    failed = sum(len(b.requests.errored) + len(b.requests.incomplete) for b in report.benchmarks)
    return _workload(
        path,
        [request.start_time for request in requests],
        [request.prompt_tokens for request in requests],
        [request.output_tokens for request in requests],
        left_out=failed,
    )


def _inference_perf(content: list[Any], path: Path) -> Workload:
    requests = _check(list[PerfRequest], content, path)
    return _workload(
        path,
        [request.start_time for request in requests],
        [request.info.input_tokens for request in requests],
        [0 if request.error else request.info.output_tokens for request in requests],
    )


def _sharegpt(content: list[Any], path: Path) -> Workload:
    prompts: list[int] = []
    outputs: list[int] = []
    for conversation in _check(list[Conversation], content, path):
        turns = [turn for turn in conversation.conversations if turn.speaker != "system"]
        pair = [turn.text for turn in turns[:2]] if len(turns) >= 2 and turns[0].speaker in ("human", "user") else ["", ""]
        for text, lengths in zip(pair, (prompts, outputs)):
            lengths.append(math.ceil(len(text.encode(errors="replace")) / BYTES_PER_TOKEN))
    return _workload(path, np.zeros(len(prompts)), prompts, outputs)


def read_json(path: str | Path, seed: int = 0) -> Workload:
    """Read a `.json` or `.jsonl` (or `.gz`) file of any format above; `seed` draws arrivals a file only describes.

    Raises:
        InputError: unreadable, malformed, of no known format, or without a finished request.
    """
    path = Path(path)
    text = read_text(path)
    lines = path.name.removesuffix(".gz").endswith((".jsonl", ".ndjson"))
    content = parse_json_lines(text, path) if lines else parse_json(text, path)
    del text
    if isinstance(content, dict):
        if "input_lens" in content:
            return _vllm(content, path, seed)
        if "benchmarks" in content:
            return _guidellm(content, path)
        shown = ", ".join(list(map(str, content))[:6])
        known = "input_lens (vllm bench serve --save-detailed) or benchmarks (GuideLLM)"
        raise InputError(path, "file", path.name, f"is of no known format: has keys {shown}; wanted {known}")
    first = content[0] if isinstance(content, list) and content else None
    readers: dict[str, Callable[[list[Any], Path], Workload]] = {
        "input_length": _mooncake,
        "info": _inference_perf,
        "conversations": _sharegpt,
        "messages": _sharegpt,
    }
    for key, reader in readers.items():
        if isinstance(first, dict) and key in first:
            return reader(content, path)
    raise InputError(path, "file", path.name, f"is of no known format: its entries have none of {', '.join(readers)}")
