"""Replicas behind a router, as SimPy processes that drive the reference schedulers. Units: integer nanoseconds and tokens.

Time is an integer, and the order of what happens at one instant is total, so that another implementation can reproduce every
event bit for bit:

1. arrivals, by request id (the order in which requests are sent);
2. ends of steps, by replica number; within a step, requests in the order of its slices. A closed-loop client whose request
   ends sends the next at once, and that arrival comes before the remaining ends of this instant;
3. starts of steps, by replica number: a step therefore sees everything that arrived or ended at its instant.

A request arrives at its router `frontend_ns` after it was sent; its tokens reach the client `reply_ns` after the step that
made them. With `lag_steps` = L the scheduler works ahead of the device: step k + 1 is chosen when L steps, the last of them in
proportion to its length, are still to run. What arrives during step k thus joins step k + 1 + floor(L) at the earliest, or
the one after it where less than the fraction of L is left of step k. A replica that runs out of work takes all there is.
For `settle_ns` after an idle pause its steps take `after_idle` times as long: clocks and caches have to recover. A scheduler
that waits for company (`DynamicBatching`) is told the time, and woken when its batch is due, as a start of that instant.

`fleet.py` adds what a whole site adds: unequal pools, outages, scaling, transfers, sessions. Their places in an instant are
between these: outages and repairs come before everything, then arrivals, then what is sent again (by request id), then ends of
transfers (by request id), then ends and starts of steps, and an autoscaler's tick after all.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import simpy

from llmlab.reference.serving._request import Batch, Request, Scheduler
from llmlab.reference.serving.dynamic_batching import DynamicBatching
from llmlab.reference.serving.router import Router
from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.serving.schedulers import shape_of
from llmlab.simulator.serving.slo import Watch
from llmlab.simulator.workload.workload import Workload

StepTime = Callable[[BatchShape], int]
"""Shape of a step -> its duration in nanoseconds, at least 1."""

ARRIVAL = 1
"""Rank of an arrival; ends of steps are 2 + replica, starts come after all ends. SimPy itself uses 0."""

NEVER = -1


class Moment(simpy.Event):
    """An event whose place among those of the same instant is its rank."""

    def happens(self, delay_ns: int, rank: int) -> Moment:
        """Let it happen `delay_ns` from now."""
        self._ok = True
        self._value = None
        self.env.schedule(self, priority=rank, delay=delay_ns)  # type: ignore[arg-type]
        return self


@dataclass(slots=True)
class Steps:
    """One entry per step, in order of their ends."""

    replica: array[int] = field(default_factory=lambda: array("q"))
    start_ns: array[int] = field(default_factory=lambda: array("q"))
    duration_ns: array[int] = field(default_factory=lambda: array("q"))
    prefill_tokens: array[int] = field(default_factory=lambda: array("q"))
    decode_requests: array[int] = field(default_factory=lambda: array("q"))
    context_tokens: array[int] = field(default_factory=lambda: array("q"))
    waiting: array[int] = field(default_factory=lambda: array("q"))
    preempted: array[int] = field(default_factory=lambda: array("q"))


SAMPLED_SHAPES = 256
"""At most this many steps are kept whole, evenly spaced, for questions about where the time goes."""


@dataclass(slots=True)
class Sample:
    """Every `stride`-th step's shape and duration; the stride doubles when the list is full."""

    shapes: list[tuple[BatchShape, int]] = field(default_factory=list)
    stride: int = 1

    def put(self, number: int, shape: BatchShape, duration_ns: int) -> None:
        """Keep step `number`, counted from 0, if it is due."""
        if number % self.stride:
            return
        if len(self.shapes) == SAMPLED_SHAPES:
            del self.shapes[1::2]
            self.stride *= 2
            if number % self.stride:
                return
        self.shapes.append((shape, duration_ns))


@dataclass(slots=True)
class Log:
    """What happened to each request (by id, -1 = never) and in each step.

    Attributes:
        sent_ns: when the client sent it.
        scheduled_ns: start of the first step that computed a part of it.
        first_token_ns: when the client had its first token.
        finished_ns: when the client had its last token.
        refused: why a replica refused it; such a request counts as failed.
        gaps_ns: inter-token gap -> how many tokens came after such a gap.
        num_steps: steps run, also where `steps` records none.
        busy_ns: per replica, the sum of its step durations.
        least_free_blocks: per replica, the fewest KV blocks that were free at the start of a step.
        most_running: per replica, the most requests one step computed.
        sample: some of the steps, whole.
        gave_up: the run was stopped because the objective was out of reach.
    """

    sent_ns: list[int]
    scheduled_ns: list[int]
    first_token_ns: list[int]
    finished_ns: list[int]
    cached_tokens: list[int]
    preemptions: list[int]
    replica: list[int]
    busy_ns: list[int]
    least_free_blocks: list[int]
    most_running: list[int]
    sample: Sample = field(default_factory=Sample)
    refused: dict[int, str] = field(default_factory=dict)
    gaps_ns: dict[int, int] = field(default_factory=dict)
    num_steps: int = 0
    steps: Steps | None = None
    gave_up: bool = False

    @classmethod
    def empty(cls, num_requests: int, num_replicas: int, *, record_steps: bool) -> Log:
        """A log in which nothing has happened yet."""
        return cls(
            sent_ns=[NEVER] * num_requests,
            scheduled_ns=[NEVER] * num_requests,
            first_token_ns=[NEVER] * num_requests,
            finished_ns=[NEVER] * num_requests,
            cached_tokens=[0] * num_requests,
            preemptions=[0] * num_requests,
            replica=[NEVER] * num_requests,
            busy_ns=[0] * num_replicas,
            least_free_blocks=[2**62] * num_replicas,
            most_running=[0] * num_replicas,
            steps=Steps() if record_steps else None,
        )


def too_long(index: int, tokens: int, longest_tokens: int) -> str:
    """Say that a request passes the model's context."""
    return f"request {index}: its {tokens} tokens pass the context of {longest_tokens} tokens"


class Replica:
    """One engine: a scheduler, and a clock that asks how long each of its batches takes."""

    def __init__(
        self, cluster: Cluster, number: int, scheduler: Scheduler, step_ns: StepTime, *, lag_steps: float, num_replicas: int
    ) -> None:
        self.cluster, self.number, self.scheduler, self.step_ns = cluster, number, scheduler, step_ns
        self.lag_steps = lag_steps
        self.lag_steps_whole = int(lag_steps)
        self.lag_fraction = lag_steps - self.lag_steps_whole
        self.end_ns = self.duration_ns = 0  # of the running step
        self.end_rank, self.start_rank = ARRIVAL + 1 + number, ARRIVAL + 1 + num_replicas + number
        self.incoming: deque[tuple[int, Request]] = deque()  # (first step it may join, request)
        self.step = 0
        self.wake: Moment | None = None  # set while idle
        self.settled_ns = 0  # steps that start before it take `after_idle` times as long
        self.emitted_ns = cluster.emitted_ns
        self.blocks = getattr(scheduler, "blocks", None)

    def receive(self, request: Request) -> None:
        """Take a request now, or `lag_steps` later while the engine is working ahead."""
        if self.wake is None and self.lag_steps:
            left_ns = self.end_ns - int(self.cluster.env.now)
            missed = left_ns < self.lag_fraction * self.duration_ns
            self.incoming.append((self.step + 1 + self.lag_steps_whole + missed, request))
            return
        self.add(request)
        if self.wake is not None and self.scheduler.waiting:
            self.wake.happens(0, self.start_rank)
            self.wake = None

    def add(self, request: Request) -> None:
        """Hand a request to the scheduler; one that can never fit is refused."""
        if isinstance(self.scheduler, DynamicBatching):
            self.scheduler.now_ns = int(self.cluster.env.now)
        try:
            self.scheduler.add(request)
        except ValueError as reason:
            self.cluster.router.finished(self.number)
            self.cluster.refuse(request.id, str(reason))

    def run(self) -> Generator[simpy.Event, None, None]:
        """Serve forever: choose a batch, let its time pass, hand out its tokens; sleep while there is nothing to do."""
        env, scheduler, log = self.cluster.env, self.scheduler, self.cluster.log
        while True:
            while self.incoming and self.incoming[0][0] <= self.step + 1:
                self.add(self.incoming.popleft()[1])
            if isinstance(scheduler, DynamicBatching):
                scheduler.now_ns = int(env.now)
            batch = scheduler.schedule()
            if not batch.slices:
                if batch.preempted:
                    continue  # the last one left took its own blocks; it is admitted again
                if self.incoming:
                    while self.incoming:  # nothing was scheduled ahead of them
                        self.add(self.incoming.popleft()[1])
                    continue
                due_ns = scheduler.wake_ns if isinstance(scheduler, DynamicBatching) else None
                if scheduler.waiting and due_ns is None and not self.may_wait():
                    raise RuntimeError(f"replica {self.number}: {len(scheduler.waiting)} requests wait and none can run")
                self.wake = Moment(env)
                if due_ns is not None:
                    self.ring_at(due_ns, self.wake)
                yield self.wake
                self.settled_ns = int(env.now) + self.cluster.settle_ns
                continue

            self.step += 1
            start_ns = int(env.now)
            shape = shape_of(batch, scheduler)
            duration_ns = self.step_ns(shape)
            if start_ns < self.settled_ns:
                duration_ns = round(duration_ns * self.cluster.after_idle)
            if self.blocks is not None and (free := self.blocks.free_blocks) < log.least_free_blocks[self.number]:
                log.least_free_blocks[self.number] = free
            if len(batch.slices) > log.most_running[self.number]:
                log.most_running[self.number] = len(batch.slices)
            if batch.prefill:
                for part in batch.slices:
                    if part.request.generated_tokens == 0:
                        self.note_begun(part.request, start_ns)
            self.end_ns, self.duration_ns = start_ns + duration_ns, duration_ns
            yield Moment(env).happens(duration_ns, self.end_rank)

            log.sample.put(log.num_steps, shape, duration_ns)
            log.num_steps += 1
            log.busy_ns[self.number] += duration_ns
            if log.steps is not None:
                self.note_step(log.steps, batch, start_ns, duration_ns)
            finished = scheduler.complete(batch)
            if batch.emitted:
                self.note_tokens(batch, start_ns, start_ns + duration_ns)
            for request in finished:
                self.cluster.finish(request, self.number)
            if env.peek() <= env.now:  # else nothing can come in between
                yield Moment(env).happens(0, self.start_rank)

    def ring_at(self, due_ns: int, wake: Moment) -> None:
        """Wake at that time, unless something else did before."""

        def ring(_: simpy.Event) -> None:
            if self.wake is wake:
                self.wake = None
                wake.happens(0, self.start_rank)

        Moment(self.cluster.env).happens(due_ns - int(self.cluster.env.now), self.start_rank).callbacks.append(ring)

    def may_wait(self) -> bool:
        """Say whether something outside this replica will make room for what waits; here nothing is outside."""
        return False

    def note_begun(self, request: Request, now_ns: int) -> None:
        """Record the start of the first step that computes a part of a request."""
        log = self.cluster.log
        if log.scheduled_ns[request.id] == NEVER:
            log.scheduled_ns[request.id] = now_ns
            log.cached_tokens[request.id] = request.cached_tokens

    def note_tokens(self, batch: Batch, start_ns: int, now_ns: int) -> None:
        """Record first tokens and the gaps between tokens; most gaps of a step are equal, so they are counted together."""
        emitted_ns, gaps_ns = self.emitted_ns, self.cluster.log.gaps_ns
        common, count = 0, 0
        for part in batch.slices:
            if part.emits:
                index = part.request.id
                gap = now_ns - emitted_ns[index]
                emitted_ns[index] = now_ns
                if gap == common:
                    count += 1
                elif gap > now_ns:  # emitted_ns was NEVER
                    self.note_begun(part.request, start_ns)  # one of a single missing token is no prefill
                    self.cluster.first_token(index, now_ns)
                else:
                    if count:
                        gaps_ns[common] = gaps_ns.get(common, 0) + count
                    common, count = gap, 1
                if part.accepted:  # guesses that held come with it
                    gaps_ns[0] = gaps_ns.get(0, 0) + part.accepted
        if count:
            gaps_ns[common] = gaps_ns.get(common, 0) + count

    def note_step(self, steps: Steps, batch: Batch, start_ns: int, duration_ns: int) -> None:
        """Record one step."""
        steps.replica.append(self.number)
        steps.start_ns.append(start_ns)
        steps.duration_ns.append(duration_ns)
        steps.prefill_tokens.append(sum(new for new, _ in batch.prefill))
        steps.decode_requests.append(batch.decode_requests)
        steps.context_tokens.append(batch.decode_context_tokens)
        steps.waiting.append(len(self.scheduler.waiting) + len(self.incoming))
        steps.preempted.append(len(batch.preempted))


class Cluster:
    """A workload, a router and replicas; `run` plays it to the end."""

    def __init__(
        self,
        workload: Workload,
        schedulers: Sequence[Scheduler],
        step_ns: StepTime,
        router: Router,
        *,
        block_tokens: int = 16,
        frontend_ns: int = 0,
        reply_ns: int = 0,
        lag_steps: float = 0.0,
        after_idle: float = 1.0,
        settle_ns: int = 0,
        longest_tokens: int | None = None,
        record_steps: bool = False,
        watch: Watch | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.progress = progress
        self.longest_tokens = longest_tokens
        self.after_idle, self.settle_ns = after_idle, settle_ns
        self.workload, self.router, self.watch = workload, router, watch
        self.block_tokens, self.frontend_ns, self.reply_ns = block_tokens, frontend_ns, reply_ns
        self.env = simpy.Environment(initial_time=0)
        self.log = Log.empty(len(workload), len(schedulers), record_steps=record_steps)
        self.emitted_ns = [NEVER] * len(workload)
        self.unfinished = len(workload)
        self.sent = 0
        self.over = Moment(self.env)
        self.prompt_tokens, self.output_tokens = workload.prompt_tokens.tolist(), workload.output_tokens.tolist()
        self.replicas = [
            Replica(self, number, scheduler, step_ns, lag_steps=lag_steps, num_replicas=len(schedulers))
            for number, scheduler in enumerate(schedulers)
        ]

    def run(self) -> Log:
        """Simulate until every request is finished or refused, or the watch gives up."""
        for replica in self.replicas:
            self.env.process(replica.run())
        if self.workload.clients:
            for _ in range(min(self.workload.clients, len(self.workload))):
                self.send_next(0)
        else:
            self.env.process(self.open_loop())
        self.env.run(until=self.over)
        return self.log

    def open_loop(self) -> Generator[simpy.Event, None, None]:
        """Send every request at its time, whatever happened to the earlier ones."""
        for request, sent_ns in enumerate(self.workload.arrival_ns.tolist()):
            delay_ns = sent_ns + self.frontend_ns - int(self.env.now)
            if delay_ns:
                yield Moment(self.env).happens(delay_ns, ARRIVAL)
            self.log.sent_ns[request] = sent_ns
            self.deliver(request)

    def send_next(self, think_ns: int) -> None:
        """A closed-loop client sends the next request of the list after its pause."""
        if self.sent < len(self.workload):
            request, self.sent = self.sent, self.sent + 1
            self.log.sent_ns[request] = int(self.env.now) + think_ns
            arrival = Moment(self.env).happens(think_ns + self.frontend_ns, ARRIVAL)
            arrival.callbacks.append(lambda _: self.deliver(request))

    def deliver(self, index: int) -> None:
        """Route one request to a replica, unless it is longer than the model's context."""
        tokens = self.prompt_tokens[index] + self.output_tokens[index]
        if self.longest_tokens is not None and tokens > self.longest_tokens:
            self.refuse(index, too_long(index, tokens, self.longest_tokens))
            return
        request = self.new_request(index)
        chosen = self.router.route(request)
        self.log.replica[index] = chosen
        self.replicas[chosen].receive(request)

    def new_request(self, index: int) -> Request:
        """A request nothing has been computed of."""
        return Request(
            index,
            self.prompt_tokens[index],
            self.output_tokens[index],
            self.workload.hashes(index, self.block_tokens) if self.block_tokens else (),
            **self.workload.labels(index),
        )

    def first_token(self, index: int, now_ns: int) -> None:
        """The first token of a request exists."""
        self.log.first_token_ns[index] = now_ns + self.reply_ns
        if self.watch is not None and self.watch.first_token(now_ns + self.reply_ns - self.log.sent_ns[index]):
            self.give_up()

    def finish(self, request: Request, replica: int) -> None:
        """The last token of a request exists."""
        index = request.id
        self.log.finished_ns[index] = finished_ns = int(self.env.now) + self.reply_ns
        self.log.preemptions[index] = request.preemptions
        self.router.finished(replica)
        if self.watch is not None:
            first_ns, sent_ns = self.log.first_token_ns[index], self.log.sent_ns[index]
            if self.watch.finished(finished_ns - first_ns, finished_ns - sent_ns, request.output_tokens):
                self.give_up()
        self.one_less()

    def refuse(self, index: int, reason: str) -> None:
        """This request can never be served."""
        self.log.refused[index] = reason
        if self.watch is not None and self.watch.failed():
            self.give_up()
        self.one_less()

    def one_less(self) -> None:
        """Stop when the last one is done; in a closed loop its client goes on."""
        self.unfinished -= 1
        if self.progress is not None and self.unfinished % 64 == 0:
            self.progress(len(self.workload) - self.unfinished, len(self.workload))
        if not self.unfinished:
            self.stop()
        elif self.workload.clients:
            self.send_next(self.workload.think_ns)

    def give_up(self) -> None:
        """Stop: the objective cannot be met any more."""
        self.log.gave_up = True
        self.stop()

    def stop(self) -> None:
        """End the run at this instant."""
        if not self.over.triggered:
            self.over.happens(0, 0)
