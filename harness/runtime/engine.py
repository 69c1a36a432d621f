"""A real serving engine: the reference schedulers drive a causal language model with a paged KV cache, on this machine.

The same scheduler objects run in the simulator; here a step takes as long as it takes. Open loop: requests arrive at their
times, whatever the engine does. Closed loop: each of N clients sends its next request when its last one ended.
Units: seconds (since the run began) and tokens.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from llmlab.harness.runtime.sampling import Sampler, greedy
from llmlab.reference.errors import InputError
from llmlab.reference.serving._queue import Queue
from llmlab.reference.serving._request import Batch, Request, Slice
from llmlab.reference.serving.prefix_cache import block_hashes
from llmlab.simulator.cost.batch import BatchShape

REQUEST_COLUMNS = (
    "request_id",
    "arrival_s",
    "prompt_tokens",
    "output_tokens",
    "cached_tokens",
    "preemptions",
    "queue_s",
    "ttft_s",
    "tpot_s",
    "e2e_s",
)
"""Columns of the per-request table, the simulator's own. tpot_s is None where only one token came out."""

SPIN_S = 0.002
"""An idle engine sleeps until this long before the next arrival, then watches the clock: a sleep may end late."""


class Model(Protocol):
    """What the engine needs of a model; `kernels/models/llama_torch.py` is one."""

    def new_cache(self, num_blocks: int, block_tokens: int) -> Any:
        """Empty pools of key and value blocks."""

    def forward(
        self,
        ids_T: Tensor,
        positions_T: Tensor,
        cache: Any,
        query_starts_R1: Sequence[int],
        block_tables_RM: Tensor,
        context_lengths_R: Sequence[int],
    ) -> Tensor:
        """Compute one step of a packed batch; return each request's last-token logits_RV."""


@dataclass(frozen=True)
class Job:
    """What a client wants: a prompt, how many tokens at most, when (open loop), and which tokens end it early."""

    prompt: Sequence[int]
    output_tokens: int
    arrival_s: float = 0.0
    stop_ids: frozenset[int] = frozenset()


@dataclass(slots=True)
class Progress:
    """A request on its way through the engine: its tokens, and when things happened (None = not yet)."""

    request: Request
    job: Job
    tokens: list[int]
    arrival_s: float
    scheduled_s: float | None = None
    token_s: list[float] = field(default_factory=list)

    @property
    def generated(self) -> list[int]:
        """Tokens that came out."""
        return self.tokens[len(self.job.prompt) :]

    def row(self) -> dict[str, Any]:
        """This request's row of the table."""
        outputs = len(self.token_s)
        first, last = (self.token_s[0] - self.arrival_s, self.token_s[-1] - self.arrival_s) if outputs else (None, None)
        return dict(
            zip(
                REQUEST_COLUMNS,
                (
                    self.request.id,
                    self.arrival_s,
                    len(self.job.prompt),
                    outputs,
                    self.request.cached_tokens,
                    self.request.preemptions,
                    None if self.scheduled_s is None else self.scheduled_s - self.arrival_s,
                    first,
                    None if first is None or last is None or outputs < 2 else (last - first) / (outputs - 1),
                    last,
                ),
                strict=True,
            )
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One step as it ran.

    Attributes:
        start_s: when the scheduler was asked.
        duration_s: until every token of the step was handed out.
        host_s: the part of it outside the model: scheduling, packing, choosing tokens, bookkeeping.
        shape: what was computed.
        preempted: requests that lost their cache.
    """

    start_s: float
    duration_s: float
    host_s: float
    shape: BatchShape
    preempted: int


@dataclass
class Run:
    """What a run left behind: one row per request in order of arrival, one entry per step, and the tokens themselves."""

    requests: list[dict[str, Any]]
    steps: list[Step]
    outputs: dict[int, list[int]]
    token_s: dict[int, list[float]]
    wall_s: float
    refused: dict[int, str] = field(default_factory=dict)

    def step_rows(self) -> list[dict[str, Any]]:
        """The steps as plain rows, the shape's fields beside the times."""
        return [
            {"start_s": s.start_s, "duration_s": s.duration_s, "host_s": s.host_s, "preempted": s.preempted, **asdict(s.shape)}
            for s in self.steps
        ]

    def inter_token_s(self) -> list[float]:
        """Gaps between consecutive tokens of a request, over all requests."""
        return [gap for times in self.token_s.values() for gap in np.diff(times).tolist()]


class Engine:
    """Serves jobs with a model and a scheduler.

    Args:
        model: weights and forward pass.
        scheduler: fresh; its pool of blocks sizes the cache.
        sampler: chooses tokens from logits; greedy unless said.
        clock: seconds; only differences matter.
        sleep: lets that many of the clock's seconds pass.

    A second `run` finds the prefix cache as the first one left it; ids go on counting.
    """

    def __init__(
        self,
        model: Model,
        scheduler: Queue,
        *,
        sampler: Sampler = greedy,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.model, self.scheduler, self.sampler = model, scheduler, sampler
        self.clock, self.sleep = clock, sleep
        self.block_tokens = scheduler.blocks.block_tokens
        self.cache = model.new_cache(scheduler.blocks.num_blocks, self.block_tokens)
        self.device = getattr(model, "device", torch.device("cpu"))
        self.progress: dict[int, Progress] = {}
        self.refused: dict[int, str] = {}
        self.steps: list[Step] = []
        self._next_id = 0
        self._begun = clock()

    def now(self) -> float:
        """Seconds since the run began."""
        return self.clock() - self._begun

    def submit(self, job: Job, arrival_s: float | None = None) -> Request | None:
        """Queue a job that arrived at `arrival_s` (now, where not given); None where it can never be served.

        Raises:
            InputError: an empty prompt, or no token wanted.
        """
        index = self._next_id
        if not len(job.prompt) or job.output_tokens < 1:
            field_, value = ("output_tokens", job.output_tokens) if len(job.prompt) else ("prompt", [])
            raise InputError(f"job {index}", field_, value, "must hold at least one token")
        hashes = block_hashes(job.prompt, self.block_tokens) if self.scheduler.prefix_cache is not None else ()
        request = Request(index, len(job.prompt), job.output_tokens, hashes)
        self._next_id += 1
        try:
            self.scheduler.add(request)
        except ValueError as reason:
            self.refused[index] = str(reason)
            return None
        arrival_s = self.now() if arrival_s is None else arrival_s
        self.progress[index] = Progress(request, job, list(job.prompt), arrival_s)
        return request

    def step(self) -> list[Request] | None:
        """Run one step; return the requests that ended in it, or None where there was nothing to run."""
        start_s = self.now()
        batch = self.scheduler.schedule()
        if not batch.slices:
            return None
        packed = self._pack(batch)
        before_s = self.now()
        logits_RV = self.model.forward(*packed)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        forward_s = self.now() - before_s
        chosen = self._choose(batch, logits_RV)
        ended = self._hand_out(batch, chosen, start_s)
        shape = BatchShape(
            tuple(batch.prefill), batch.decode_requests, batch.decode_context_tokens, batch.emitted, batch.draft_tokens
        )
        duration_s = self.now() - start_s
        self.steps.append(Step(start_s, duration_s, duration_s - forward_s, shape, len(batch.preempted)))
        return ended

    def run(self, jobs: Sequence[Job], *, clients: int | None = None) -> Run:
        """Serve all jobs, open loop by their arrival times or, with `clients`, closed loop; return what happened.

        Raises:
            InputError: fewer than one client, or arrival times that are not finite, not in order or negative.
        """
        if clients is not None and clients < 1:
            raise InputError("run", "clients", clients, "must be at least 1")
        arrivals = [job.arrival_s for job in jobs]
        if clients is None:
            for index, (before, at) in enumerate(zip([0.0, *arrivals], arrivals)):
                if not before <= at < float("inf"):
                    raise InputError("run", "arrival_s", at, f"must be finite and not before {before} (job {index})")
        waiting = deque(jobs)
        with quiet_python():
            self._begun = self.clock()
            self.steps, self.refused, first = [], {}, self._next_id
            if clients is None:
                self._open_loop(waiting)
            else:
                self._closed_loop(waiting, clients)
            wall_s = self.now()
        served = {index: progress for index, progress in self.progress.items() if index >= first}
        return Run(
            requests=[progress.row() for progress in served.values()],
            steps=self.steps,
            outputs={index: progress.generated for index, progress in served.items()},
            token_s={index: progress.token_s for index, progress in served.items()},
            wall_s=wall_s,
            refused=self.refused,
        )

    def _open_loop(self, waiting: deque[Job]) -> None:
        busy = True
        while waiting or busy:
            while waiting and waiting[0].arrival_s <= self.now():
                job = waiting.popleft()
                self.submit(job, job.arrival_s)
            busy = self._advance() is not None
            if not busy and waiting:
                pause_s = waiting[0].arrival_s - self.now() - SPIN_S
                if pause_s > 0:
                    self.sleep(pause_s)

    def _closed_loop(self, waiting: deque[Job], clients: int) -> None:
        def send(count: int) -> None:
            while count and waiting:  # a client whose request is refused sends the next one
                count -= self.submit(waiting.popleft()) is not None

        send(clients)
        while (ended := self._advance()) is not None:
            send(len(ended))

    def _advance(self) -> list[Request] | None:
        """Run a step; where a scheduler gave up its whole batch to make room, ask again."""
        ended = self.step()
        return self.step() if ended is None and self.scheduler.waiting else ended

    def _pack(self, batch: Batch) -> tuple[Any, ...]:
        """The model's arguments: tokens, positions, cache, where each request begins, block tables, context lengths."""
        ids: list[int] = []
        positions: list[int] = []
        for part in batch.slices:
            start, end = part.start, part.start + part.tokens
            ids += self._tokens(part)
            positions += range(start, end)
        longest = max(len(part.request.blocks) for part in batch.slices)
        tables_RM = np.zeros((len(batch.slices), longest), dtype=np.int64)
        for row_M, part in zip(tables_RM, batch.slices):
            row_M[: len(part.request.blocks)] = part.request.blocks
        return (
            torch.tensor(ids),
            torch.tensor(positions),
            self.cache,
            list(accumulate((part.tokens for part in batch.slices), initial=0)),
            torch.from_numpy(tables_RM),
            [part.start + part.tokens for part in batch.slices],
        )

    def _tokens(self, part: Slice) -> list[int]:
        """The tokens a slice computes."""
        return self.progress[part.request.id].tokens[part.start : part.start + part.tokens]

    def _choose(self, batch: Batch, logits_RV: Tensor) -> list[list[int]]:
        """The tokens that come out of each slice that emits, in order: one of each here."""
        rows = [row for row, part in enumerate(batch.slices) if part.emits]
        if not rows:
            return []
        if len(rows) < len(batch.slices):
            logits_RV = logits_RV[rows]
        steps = [(batch.slices[row].request.id, batch.slices[row].request.generated_tokens) for row in rows]
        return [[token] for token in self.sampler(logits_RV, steps)]

    def _hand_out(self, batch: Batch, chosen: Sequence[Sequence[int]], start_s: float) -> list[Request]:
        """Append the tokens, tell the scheduler, stamp the times; return the requests that ended."""
        emitting = [part.request for part in batch.slices if part.emits]
        stopped = []
        came = []
        for request, tokens in zip(emitting, chosen):
            progress = self.progress[request.id]
            before = len(progress.tokens)
            for token in tokens:
                progress.tokens.append(token)
                if self.scheduler.prefix_cache is not None and len(progress.tokens) % self.block_tokens == 0:
                    self._name_last_block(progress)
                if token in progress.job.stop_ids:
                    stopped.append(request)
                    break
            came.append(len(progress.tokens) - before)
        ended = self.scheduler.complete(batch)
        for request in stopped:
            if request not in ended:
                self.scheduler.finish(request)
                ended.append(request)
        now = self.now()
        for request, count in zip(emitting, came):
            self.progress[request.id].token_s += [now] * count
        for part in batch.slices:
            progress = self.progress[part.request.id]
            if progress.scheduled_s is None:
                progress.scheduled_s = start_s
        return ended

    def _name_last_block(self, progress: Progress) -> None:
        """Give the block of known tokens that was just filled its identity, so that a later turn finds it."""
        request, size = progress.request, self.block_tokens
        last = request.block_hashes[-1].to_bytes(16, "little") if request.block_hashes else b""
        request.block_hashes += block_hashes(progress.tokens[-size:], size, salt=last)


@contextmanager
def quiet_python() -> Iterator[None]:
    """Keep the garbage collector out of the timings: what exists is frozen and no collection runs."""
    was_on = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The request table by column, None as NaN."""
    return {
        name: np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=np.float64)
        for name in REQUEST_COLUMNS
    }
