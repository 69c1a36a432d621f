"""A fleet in motion: the plain cluster, and around it outages, retries, scaling, moving caches and sessions.

Everything is added outside the replicas' loop, so a fleet of equal replicas without any of it gives the plain cluster's events
bit for bit. The order of what happens at one instant is total:

1. repairs, then outages, each by replica number;
2. first arrivals, then what is sent again (retries, by request id), then ends of transfers (by request id);
3. ends of steps and starts of steps, as in `cluster.py`;
4. an autoscaler's tick, and the end of a drained replica.

Disaggregated: a prefill worker computes the prompt and the first token; its blocks stay there until a decode worker has
reserved room for them and the transfer is over. A decode worker that holds part of the prompt in its prefix cache gets only
the rest. A request preempted on a decode worker is recomputed there. If the target fails during a transfer the prompt waits
for another; if the source fails it is a retry. A decode worker takes an arrived cache into its very next step, however far its
scheduler works ahead. Units: integer nanoseconds, tokens, joules.
"""

from __future__ import annotations

import math
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpy

from llmlab.reference.serving._request import Batch, Request, Scheduler
from llmlab.reference.serving.autoscaling import Autoscaler, Predictive, Reactive
from llmlab.reference.serving.disaggregated import Disaggregated
from llmlab.reference.serving.prefix_cache import most_reusable_blocks
from llmlab.reference.serving.router import Router
from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.serving.cluster import ARRIVAL, Cluster, Log, Moment, Replica, Sample
from llmlab.simulator.serving.deployment import Site
from llmlab.simulator.serving.energy import Power, balance_rows
from llmlab.simulator.serving.failures import NANOSECONDS, Outage, failed
from llmlab.simulator.serving.network import Move, Network
from llmlab.simulator.serving.pools import Fleet, PrefixPool, Scaling
from llmlab.simulator.serving.slo import Watch
from llmlab.simulator.workload.workload import Workload

FAULT = ARRIVAL - 0.5
TICK = 1e15
STORE = -1
"""Worker number of the shared prefix store in a record of transfers."""

UNPAID = ("off",)
SERVING = ("up", "draining")


@dataclass(slots=True)
class States:
    """What was observed at the start of each step, for pictures of a fleet over time."""

    at_ns: array[int] = field(default_factory=lambda: array("q"))
    replica: array[int] = field(default_factory=lambda: array("q"))
    duration_ns: array[int] = field(default_factory=lambda: array("q"))
    waiting: array[int] = field(default_factory=lambda: array("q"))
    running: array[int] = field(default_factory=lambda: array("q"))
    used_blocks: array[int] = field(default_factory=lambda: array("q"))
    watts: array[float] = field(default_factory=lambda: array("d"))


@dataclass(slots=True)
class FleetLog:
    """What only a fleet has.

    Attributes:
        retries: per request, how often it was sent again.
        turned: (when, replica, new state) of every change: off, starting, warming, warm, up, draining, down.
        moves: transfers of caches that ended.
        lost_moves: transfers that an outage ended.
        outages: as drawn.
        faults: drawn, by kind of part.
        busy_j: per replica, energy of its steps, all devices together.
        computing_ns: per replica, the part of its steps' time spent computing rather than reading.
        samples: per pool, some of its steps.
        states: one entry per step where asked for.
        fetched_tokens: per request, prompt tokens read from the shared store.
        end_ns: when the run ended.
    """

    retries: list[int]
    busy_j: list[float]
    computing_ns: list[float]
    samples: list[Sample]
    fetched_tokens: list[int]
    turned: list[tuple[int, int, str]] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    lost_moves: int = 0
    outages: list[Outage] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)
    states: States | None = None
    end_ns: int = 0

    def seconds_in(self, replica: int, states: Sequence[str], upto_ns: int | None = None) -> float:
        """Seconds a replica spent in any of these states."""
        end_ns = self.end_ns if upto_ns is None else upto_ns
        total, since, inside = 0, 0, False
        for when, number, state in self.turned:
            if number != replica or when > end_ns:
                continue
            if inside:
                total += when - since
            inside, since = state in states, when
        return (total + (end_ns - since if inside else 0)) / NANOSECONDS


def kv_bytes_per_device(site: Site) -> float:
    """Bytes of one token's keys and values on each device that holds a part of its request's cache."""
    deployment = site.deployment
    group = max(1, deployment.tensor_parallel // deployment.attention_data_parallel)
    return site.model.kv_bytes_per_token(group, site.cost.kv_dtype) / deployment.pipeline_parallel


class KeepsBlocks:
    """A scheduler whose finished requests leave their blocks on the worker until they are let go."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.kept: dict[int, list[int]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scheduler, name)

    def complete(self, batch: Batch) -> list[Request]:
        """Complete the batch; requests that end keep a reference to their blocks."""
        blocks = self.scheduler.blocks  # type: ignore[attr-defined]
        for part in batch.slices:
            request = part.request
            if part.emits and request.blocks and request.generated_tokens + 1 >= request.output_tokens:
                self.kept[request.id] = list(request.blocks)
                blocks.fork(request.blocks)
        return self.scheduler.complete(batch)

    def let_go(self, request: int) -> None:
        """Give back what a request left."""
        self.scheduler.blocks.free(self.kept.pop(request))  # type: ignore[attr-defined]


class Worker(Replica):
    """A replica that can be off, start, drain, fail, and hand over its requests."""

    blocks: Any

    def __init__(self, cluster: FleetCluster, number: int, pool: int, site: Site, role: str, stretch: float) -> None:
        self.pool, self.site, self.role = pool, site, role
        self.fleet = cluster
        self.state = "off"
        self.after_repair = "up"
        self.broken = False
        self.process: simpy.Process | None = None
        self.step_w = self.step_computing = 0.0  # of the running step
        self.started = 0  # counts starts: what was asked for before another one is void
        cost = site.cost
        self.power = Power.of(site.profile.device, balance_rows(cost))
        self.devices = site.deployment.devices // site.deployment.replicas
        self.price = cost.step_ns if stretch == 1.0 else lambda shape: math.ceil(stretch * cost.step_ns(shape))
        super().__init__(
            cluster,
            number,
            self.new_scheduler(),
            self.metered,
            lag_steps=site.engine.scheduling_lag_steps,
            num_replicas=cluster.num_workers,
        )

    def new_scheduler(self) -> Scheduler:
        """A fresh scheduler over empty blocks."""
        scheduler = self.site.new_scheduler()
        return KeepsBlocks(scheduler) if self.role == "prefill" else scheduler  # type: ignore[return-value]

    def metered(self, shape: BatchShape) -> int:
        """Duration of a step; note its energy and what the replica looks like at its start."""
        duration_ns = self.price(shape)
        log, tokens = self.fleet.fleet_log, shape.new_tokens
        self.step_w, self.step_computing = self.devices * self.power.watts(tokens), self.power.computing(tokens)
        log.busy_j[self.number] += self.step_w * duration_ns / NANOSECONDS
        log.computing_ns[self.number] += self.step_computing * duration_ns
        self.fleet.pool_steps[self.pool] += 1
        log.samples[self.pool].put(self.fleet.pool_steps[self.pool] - 1, shape, duration_ns)
        if (states := log.states) is not None:
            states.at_ns.append(int(self.fleet.env.now))
            states.replica.append(self.number)
            states.duration_ns.append(duration_ns)
            states.waiting.append(len(self.scheduler.waiting) + len(self.incoming))
            states.running.append(len(self.scheduler.running))
            states.used_blocks.append(self.blocks.num_blocks - self.blocks.free_blocks if self.blocks is not None else 0)
            states.watts.append(self.step_w)
        return duration_ns

    def may_wait(self) -> bool:
        """What waits may start once a cache that is moved away leaves its blocks, or one that comes is in use and then done."""
        return bool(getattr(self.scheduler, "kept", None)) or any(
            flight.target == self.number and flight.blocks for flight in self.fleet.flights.values()
        )

    def start(self) -> None:
        """Begin to serve, empty and asleep."""
        self.wake = Moment(self.fleet.env)
        self.process = self.fleet.env.process(self.serve(self.wake))

    def serve(self, begin: Moment) -> Generator[simpy.Event, None, None]:
        """Sleep until the first request is there, then run."""
        yield begin
        yield from self.run()

    def stop(self) -> list[Request]:
        """End the loop wherever it is; return its requests: running, waiting, not yet taken in. Everything held is gone."""
        env = self.fleet.env
        if self.process is not None and self.process.is_alive:
            left_ns = self.end_ns - int(env.now)
            if self.wake is None and self.duration_ns and left_ns >= 0:  # the running step is lost, its time was spent
                self.fleet.log.busy_ns[self.number] += self.duration_ns - left_ns
                self.fleet.fleet_log.busy_j[self.number] -= self.step_w * left_ns / NANOSECONDS
                self.fleet.fleet_log.computing_ns[self.number] -= self.step_computing * left_ns
            target = self.process.target
            if target.callbacks is not None:
                target.callbacks.remove(self.process._resume)
        self.process, self.wake = None, None
        self.end_ns = self.duration_ns = 0
        held = [*self.scheduler.running, *self.scheduler.waiting, *(request for _, request in self.incoming)]
        self.incoming.clear()
        self.scheduler = self.new_scheduler()
        self.blocks = self.scheduler.blocks  # type: ignore[attr-defined]
        return held

    def nudge(self) -> None:
        """Wake an idle loop, because there may be something to do."""
        if self.wake is not None:
            self.wake.happens(0, self.start_rank)
            self.wake = None

    def adopt(self, request: Request) -> None:
        """Go on with a request whose cache has arrived."""
        self.scheduler.running.append(request)
        self.nudge()


class Store:
    """Prefixes all workers can read: block hash -> nothing, the one used longest ago first."""

    def __init__(self, pool: PrefixPool, block_bytes: float) -> None:
        self.capacity_blocks = max(1, int(pool.capacity_bytes / block_bytes))
        self.known: OrderedDict[int, None] = OrderedDict()

    def match(self, hashes: Sequence[int]) -> int:
        """Leading blocks it holds."""
        count = 0
        for block in hashes:
            if block not in self.known:
                break
            self.known.move_to_end(block)
            count += 1
        return count

    def put(self, hashes: Sequence[int]) -> None:
        """Hold these blocks too."""
        for block in hashes:
            self.known[block] = None
            self.known.move_to_end(block)
        while len(self.known) > self.capacity_blocks:
            self.known.popitem(last=False)


@dataclass(slots=True)
class Flight:
    """A cache on its way: from `source` (or the store) to `target`, for a request that goes on there."""

    request: Request
    source: int
    target: int
    blocks: list[int]
    asked_ns: int
    start_ns: int
    tokens: int


class FleetCluster(Cluster):
    """Pools of workers behind one gateway; `run` plays a workload to the end."""

    def __init__(
        self,
        workload: Workload,
        fleet: Fleet,
        sites: Sequence[Site],
        router: Router,
        *,
        outages: Sequence[Outage] = (),
        stretch: float = 1.0,
        record_steps: bool = False,
        record_states: bool = False,
        watch: Watch | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        first = sites[0]
        super().__init__(
            workload,
            [],
            first.cost.step_ns,
            router,
            block_tokens=first.deployment.block_tokens if first.deployment.prefix_caching else 0,
            frontend_ns=round(first.engine.host_request_s * NANOSECONDS),
            longest_tokens=first.longest_tokens,
            record_steps=record_steps,
            watch=watch,
            progress=progress,
        )
        self.plan, self.sites = fleet, sites
        self.num_workers = sum(site.deployment.replicas for site in sites)
        self.log = Log.empty(len(workload), self.num_workers, record_steps=record_steps)
        self.fleet_log = FleetLog(
            retries=[0] * len(workload),
            busy_j=[0.0] * self.num_workers,
            computing_ns=[0.0] * self.num_workers,
            samples=[Sample() for _ in sites],
            fetched_tokens=[0] * len(workload),
            outages=list(outages),
            states=States() if record_states else None,
        )
        self.pool_steps = [0] * len(sites)
        self.workers = [
            Worker(self, sum(s.deployment.replicas for s in sites[:number]) + copy, number, site, pool.role, stretch)
            for number, (pool, site) in enumerate(zip(fleet.pools, sites))
            for copy in range(site.deployment.replicas)
        ]
        self.replicas = [*self.workers]
        self.takes = [worker.number for worker in self.workers if worker.role != "decode"]
        self.decoders = [worker.number for worker in self.workers if worker.role == "decode"]
        self.place = {number: place for group in (self.takes, self.decoders) for place, number in enumerate(group)}
        for number in range(self.num_workers):
            router.allow(number, False)
        self.pools = Disaggregated(len(self.takes), len(self.decoders)) if self.decoders else None
        self.network = Network(fleet.transfer)
        pool = fleet.prefix_pool
        self.store: Store | None = None
        if pool is not None and self.block_tokens:
            per_token = first.model.kv_bytes_per_token(1, first.cost.kv_dtype)
            self.store = Store(pool, per_token * self.block_tokens)
            self.store_free_ns = [0] * self.num_workers
        self.gateway: deque[int] = deque()
        self.emitted_tokens = [0] * len(workload)  # of requests that are not on a worker
        self.preempted = [0] * len(workload)  # on workers that it has left
        self.flights: dict[int, Flight] = {}
        self.arrived = [0] * len(sites)  # since the last tick of the pool's autoscaler
        self.uneven = len(sites) > 1
        self.probes = [site.new_scheduler() for site in sites]  # asked whether a request could ever fit
        self.client_free = True
        self.has_sessions = len(workload.session) > 0
        self.next_start = 0
        count = 2 * (len(workload) + 2)
        self.again_rank = [ARRIVAL + (index + 1) / count for index in range(len(workload))]

    # The course of a run -----------------------------------------------------------------------------------------------------

    def run(self) -> Log:
        """Simulate until every request is finished, refused or failed, or the watch gives up."""
        for worker in self.workers:
            scaling = self.plan.pools[worker.pool].scaling
            first = self.first_of(worker.pool)
            rank = worker.number - first
            state = "up"
            if scaling is not None and rank >= scaling.least:
                state = "warm" if rank < scaling.least + scaling.warm else "off"
            self.turn(worker, state)
        if self.fleet_log.outages:
            self.env.process(self.fail_and_repair())
        for number, pool in enumerate(self.plan.pools):
            if pool.scaling is not None:
                self.env.process(self.scale(number, pool.scaling))
        if self.workload.clients:
            for _ in range(min(self.workload.clients, len(self.workload))):
                self.send_next(0)
        else:
            self.env.process(self.open_loop())
        self.env.run(until=self.over)
        self.fleet_log.end_ns = int(self.env.now)
        return self.log

    def first_of(self, pool: int) -> int:
        """Number of a pool's first worker."""
        return sum(site.deployment.replicas for site in self.sites[:pool])

    def turn(self, worker: Worker, state: str) -> None:
        """Change a worker's state, and what depends on it."""
        served, worker.state = worker.state in SERVING, state
        self.fleet_log.turned.append((int(self.env.now), worker.number, state))
        if state in SERVING and not served:
            worker.start()
        up = state == "up"
        if worker.role != "decode":
            self.allow(worker.number, up)
        elif self.pools is not None:
            self.pools.decode_up[self.place[worker.number]] = up
        if up:
            self.dispatch()
            self.admit()

    # Arrivals, sessions ------------------------------------------------------------------------------------------------------

    def open_loop(self) -> Generator[simpy.Event, None, None]:
        """Send every request at its time; of a session only the first."""
        session = self.workload.session
        for request, sent_ns in enumerate(self.workload.arrival_ns.tolist()):
            if self.has_sessions and request and session[request] == session[request - 1]:
                continue
            delay_ns = sent_ns + self.frontend_ns - int(self.env.now)
            if delay_ns:
                yield Moment(self.env).happens(delay_ns, ARRIVAL)
            self.log.sent_ns[request] = sent_ns
            self.deliver(request)

    def send_next(self, think_ns: int) -> None:
        """A closed-loop client sends the next request, or the first of the next session."""
        if not self.has_sessions:
            super().send_next(think_ns)
            return
        if self.next_start < len(self.workload):
            first = self.next_start
            self.next_start = first + len(self.rest_of(first)) + 1
            self.send(first, think_ns)

    def rest_of(self, index: int) -> range:
        """Later turns of the same session."""
        if not self.has_sessions:
            return range(0)
        session = self.workload.session
        end = index + 1
        while end < len(session) and session[end] == session[index]:
            end += 1
        return range(index + 1, end)

    def send(self, index: int, pause_ns: int) -> None:
        """Let a client send one request after a pause."""
        self.log.sent_ns[index] = int(self.env.now) + pause_ns
        arrival = Moment(self.env).happens(pause_ns + self.frontend_ns, ARRIVAL)
        arrival.callbacks.append(lambda _: self.deliver(index))

    def deliver(self, index: int) -> None:
        """A request reaches the gateway for the first time."""
        tokens = self.prompt_tokens[index] + self.output_tokens[index]
        if self.longest_tokens is not None and tokens > self.longest_tokens:
            self.refuse(index, f"request {index}: its {tokens} tokens pass the context of {self.longest_tokens} tokens")
            return
        if self.uneven and (why := self.never_fits(index)):
            self.refuse(index, why)
            return
        for number, pool in enumerate(self.plan.pools):
            self.arrived[number] += pool.role != "decode"
        self.gateway.append(index)
        self.dispatch()

    def can_serve(self, worker: Worker, index: int) -> bool:
        """Whether a worker of this pool could ever hold the request."""
        output = 1 if worker.role == "prefill" else self.output_tokens[index]
        probe, request = self.probes[worker.pool], Request(index, self.prompt_tokens[index], output)
        try:
            probe.add(request)
        except ValueError:
            return False
        probe.finish(request)
        return True

    def never_fits(self, index: int) -> str:
        """Say why no worker could ever serve a request, or nothing."""
        for group, what in ((self.takes, "take"), (self.decoders, "continue")):
            firsts = {self.workers[number].pool: self.workers[number] for number in group}
            if firsts and not any(self.can_serve(worker, index) for worker in firsts.values()):
                tokens = self.prompt_tokens[index] + self.output_tokens[index]
                return f"request {index}: no replica can {what} its {tokens} tokens"
        return ""

    def dispatch(self) -> None:
        """Route what waits at the gateway, in order of arrival, as long as a replica is up that can serve it."""
        while self.gateway and self.router.candidates:
            index = self.gateway[0]
            wrong: list[int] = []
            if self.uneven:
                wrong = [number for number in self.router.candidates if not self.can_serve(self.workers[number], index)]
                if len(wrong) == len(self.router.candidates):
                    return
            self.gateway.popleft()
            for number in wrong:
                self.allow(number, False)
            self.router.now = int(self.env.now)
            self.hand_out(index)
            for number in wrong:
                self.allow(number, True)

    def allow(self, number: int, up: bool) -> None:
        """Let a worker be given arrivals, or not."""
        self.router.allow(number, up)
        if self.pools is not None:
            self.pools.prefill_up[self.place[number]] = up

    def hand_out(self, index: int) -> None:
        """Choose a worker for one request and give it, after reading a shared prefix where that pays."""
        request = self.new_request(index)
        emitted = self.emitted_tokens[index]
        if self.pools is None:
            request.generated_tokens = emitted
            chosen = self.router.route(request)
        else:  # one token of a prompt that contains what was emitted before
            request.prompt_tokens += emitted
            request.output_tokens = 1
            if self.plan.router is None:
                place = self.pools.arrive(index, request.prompt_tokens, [self.reusable(n, request) for n in self.takes])
                chosen = self.takes[place]
                self.router.outstanding[chosen] += 1
            else:
                chosen = self.router.route(request)
                tokens = request.prompt_tokens - self.reusable(chosen, request)
                self.pools.take(index, self.place[chosen], tokens)
        self.log.replica[index] = chosen
        worker = self.workers[chosen]
        if self.store is not None and self.read_store(worker, request):
            return
        worker.receive(request)

    def cached_blocks(self, worker: Worker, request: Request) -> int:
        """Leading blocks of the prompt in a worker's prefix cache."""
        cache = getattr(worker.scheduler, "prefix_cache", None)
        if cache is None or not request.block_hashes:
            return 0
        most = most_reusable_blocks(request.known_tokens, self.block_tokens)
        return len(cache.find(request.block_hashes, most_blocks=most))

    def reusable(self, number: int, request: Request) -> int:
        """Prompt tokens a worker need not compute, as its own cache stands."""
        return self.cached_blocks(self.workers[number], request) * self.block_tokens

    # The shared store of prefixes --------------------------------------------------------------------------------------------

    def read_store(self, worker: Worker, request: Request) -> bool:
        """Begin to read a prefix the worker lacks, if the store has enough more of it; say whether."""
        store, pool = self.store, self.plan.prefix_pool
        assert store is not None
        assert pool is not None
        most = most_reusable_blocks(request.known_tokens, self.block_tokens)
        own = self.cached_blocks(worker, request)
        more = store.match(request.block_hashes[:most]) - own
        if more * self.block_tokens < pool.least_tokens:
            return False
        now_ns = int(self.env.now)
        tokens = more * self.block_tokens
        size = tokens * kv_bytes_per_device(worker.site)
        length_ns = max(1, round((pool.latency_s + size / pool.bytes_per_s) * NANOSECONDS))
        start_ns = max(now_ns, self.store_free_ns[worker.number])
        self.store_free_ns[worker.number] = start_ns + length_ns
        flight = Flight(request, STORE, worker.number, [], now_ns, start_ns, tokens)
        self.fly(flight, start_ns + length_ns)
        return True

    def inject(self, worker: Worker, request: Request, tokens: int) -> None:
        """Put blocks read from the store into a worker's prefix cache, as far as there is room."""
        own = self.cached_blocks(worker, request)
        most = most_reusable_blocks(request.known_tokens, self.block_tokens)
        blocks = worker.blocks
        wanted = min(most, own + tokens // self.block_tokens)
        cache = worker.scheduler.prefix_cache  # type: ignore[attr-defined]
        held = cache.take(request.block_hashes, most_blocks=own)
        count = min(wanted - own, blocks.free_blocks)
        if count > 0:
            fresh = blocks.allocate(count)
            cache.insert(request.block_hashes[own : own + count], fresh)
            blocks.free(fresh)
            self.fleet_log.fetched_tokens[request.id] += count * self.block_tokens
        blocks.free(held)

    # Moving caches -----------------------------------------------------------------------------------------------------------

    def fly(self, flight: Flight, end_ns: int) -> None:
        """Note a transfer and let it end."""
        index = flight.request.id
        self.flights[index] = flight
        end = Moment(self.env).happens(end_ns - int(self.env.now), self.again_rank[index] + 0.5)  # type: ignore[arg-type]
        end.callbacks.append(lambda _: self.land(flight))

    def land(self, flight: Flight) -> None:
        """A transfer is over; one that an outage ended earlier is void."""
        request, now_ns = flight.request, int(self.env.now)
        index = request.id
        if self.flights.get(index) is not flight:
            return
        del self.flights[index]
        target = self.workers[flight.target]
        move = Move(index, flight.source, flight.target, flight.asked_ns, flight.start_ns, now_ns, flight.tokens)
        self.fleet_log.moves.append(move)
        if flight.source == STORE:
            self.inject(target, request, flight.tokens)
            target.receive(request)
            return
        self.release(flight.source, index)
        if self.plan.transfer.first_token == "decode" and self.log.first_token_ns[index] < 0:
            self.emitted_ns[index] = now_ns
            super().first_token(index, now_ns)
        cache = getattr(target.scheduler, "prefix_cache", None)
        if cache is not None:
            target.scheduler.remember(cache, request)  # type: ignore[attr-defined]
        target.adopt(request)

    def release(self, number: int, index: int) -> None:
        """A cache is no longer needed on the prefill worker."""
        source = self.workers[number]
        source.scheduler.let_go(index)  # type: ignore[attr-defined]
        if source.scheduler.waiting:
            source.nudge()
        self.settle(source)

    def blocks_of(self, index: int) -> int:
        """Blocks of a computed prompt on a decode worker."""
        tokens = self.prompt_tokens[index] + self.emitted_tokens[index]
        return -(-tokens // self.sites[0].deployment.block_tokens)

    def prefilled(self, request: Request, worker: Worker) -> None:
        """A prefill worker has computed a prompt and its next token."""
        index = request.id
        assert self.pools is not None
        self.preempted[index] += request.preemptions
        self.emitted_tokens[index] += 1
        if self.emitted_tokens[index] >= self.output_tokens[index]:
            self.pools.left(index)
            if self.plan.transfer.first_token == "decode" and self.log.first_token_ns[index] < 0:
                super().first_token(index, int(self.env.now))
            self.release(worker.number, index)
            whole = self.new_request(index)
            self.end(whole, worker)
            return
        self.router.now = int(self.env.now)
        self.router.finished(worker.number)
        self.pools.prefilled(index, self.blocks_of(index))
        for number, pool in enumerate(self.plan.pools):
            self.arrived[number] += pool.role == "decode"
        self.admit()

    def admit(self) -> None:
        """Reserve room on decode workers for computed prompts, in order, and move their caches."""
        if self.pools is None or not self.pools.held:
            return
        targets = [self.workers[number] for number in self.decoders]
        coming = [0] * len(targets)
        for flight in self.flights.values():
            if flight.source != STORE:
                coming[self.place[flight.target]] += 1
        seats = [
            worker.site.max_num_seqs - len(worker.scheduler.running) - len(worker.scheduler.waiting) - coming[place]
            for place, worker in enumerate(targets)
        ]
        # what was preempted on a worker goes on before anything new comes to it
        free = [-1 if worker.scheduler.waiting else worker.blocks.free_blocks for worker in targets]
        if self.uneven and self.pools.held:
            head = self.pools.held[0][0]
            free = [room if self.can_serve(worker, head) else -1 for room, worker in zip(free, targets)]
        for index, place in self.pools.admit(free, seats):
            self.move_to(index, targets[place])

    def move_to(self, index: int, target: Worker) -> None:
        """Reserve blocks on a decode worker and start the transfer of what its prefix cache lacks."""
        source = self.workers[self.log.replica[index]]
        request, emitted = self.new_request(index), self.emitted_tokens[index]
        request.generated_tokens = emitted
        request.computed_tokens = self.prompt_tokens[index] + emitted - 1
        blocks, size = target.blocks, self.blocks_of(index)
        cache = getattr(target.scheduler, "prefix_cache", None)
        found: list[int] = []
        if cache is not None and request.block_hashes:
            found = cache.take(request.block_hashes, most_blocks=most_reusable_blocks(request.known_tokens, self.block_tokens))
        request.blocks = found + blocks.allocate(size - len(found))
        request.remembered_blocks = len(found)
        self.router.outstanding[target.number] += 1
        tokens = request.computed_tokens - len(found) * self.sites[0].deployment.block_tokens
        now_ns = int(self.env.now)
        per_device = max(kv_bytes_per_device(worker.site) for worker in (source, target))
        length_ns = self.network.left_ns(
            max(0, tokens) * per_device,
            layers=source.site.model.layers,
            computed_ns=now_ns - self.log.scheduled_ns[index],
        )
        start_ns, end_ns = self.network.move(source.number, target.number, now_ns, length_ns)
        self.fly(Flight(request, source.number, target.number, request.blocks, now_ns, start_ns, max(0, tokens)), end_ns)
        self.log.replica[index] = source.number

    # Ends --------------------------------------------------------------------------------------------------------------------

    def first_token(self, index: int, now_ns: int) -> None:
        """A first token exists; the client has it unless it travels with the cache."""
        travels = self.pools is not None and self.plan.transfer.first_token == "decode"
        if not travels:
            super().first_token(index, now_ns)

    def finish(self, request: Request, replica: int) -> None:
        """A worker is done with a request."""
        worker = self.workers[replica]
        if self.store is not None and request.block_hashes:
            self.store.put(request.block_hashes[: request.known_tokens // self.block_tokens])
        if worker.role == "prefill":
            self.prefilled(request, worker)
            return
        if worker.role == "decode":
            self.log.replica[request.id] = replica
        request.preemptions += self.preempted[request.id]
        self.end(request, worker)

    def end(self, request: Request, worker: Worker) -> None:
        """The last token exists: the session goes on, and there is room for others."""
        index = request.id
        later = self.rest_of(index)
        self.client_free = not later
        self.router.now = int(self.env.now)
        super().finish(request, worker.number)
        self.client_free = True
        if later:
            self.send(later[0], int(self.workload.gap_ns[later[0]]))
        self.settle(worker)
        self.admit()

    def refuse(self, index: int, reason: str) -> None:
        """A request cannot be served, or failed too often; with it the rest of its session ends."""
        if self.pools is not None and index in self.pools.at:
            self.pools.left(index)
        for turn in self.rest_of(index):
            self.log.refused[turn] = f"session {self.workload.session[index]} ended at request {index}"
            self.unfinished -= 1
        super().refuse(index, reason)

    def one_less(self) -> None:
        """Count an end; a closed-loop client goes on only where its session is over."""
        if self.client_free or not self.workload.clients:
            super().one_less()
            return
        self.unfinished -= 1

    def settle(self, worker: Worker) -> None:
        """A draining worker that has nothing left goes off, once all else of this instant has happened."""
        if worker.state == "draining" and self.empty(worker):
            Moment(self.env).happens(0, TICK).callbacks.append(lambda _: self.go_off(worker))  # type: ignore[arg-type]

    def go_off(self, worker: Worker) -> None:
        """End a drained worker, unless it is wanted again."""
        if worker.state == "draining" and self.empty(worker):
            worker.stop()
            self.turn(worker, "off")

    def empty(self, worker: Worker) -> bool:
        """Whether nothing is on a worker, nor on its way to it, nor left there."""
        return (
            not self.router.outstanding[worker.number]
            and not getattr(worker.scheduler, "kept", None)
            and not any(worker.number in (flight.source, flight.target) for flight in self.flights.values())
        )

    # Outages -----------------------------------------------------------------------------------------------------------------

    def fail_and_repair(self) -> Generator[simpy.Event, None, None]:
        """Play the drawn outages."""
        events = [(outage.up_ns, 0, outage.replica) for outage in self.fleet_log.outages]
        events += [(outage.down_ns, 1, outage.replica) for outage in self.fleet_log.outages]
        for when_ns, fails, replica in sorted(events):
            if when_ns > self.env.now:
                yield Moment(self.env).happens(when_ns - int(self.env.now), FAULT)  # type: ignore[arg-type]
            if fails:
                self.fail(self.workers[replica])
            else:
                self.repair(self.workers[replica])

    def fail(self, worker: Worker) -> None:
        """A worker and all it holds is gone."""
        worker.broken = True
        worker.started += 1
        if worker.state == "off":
            return
        worker.after_repair = {"draining": "off", "warm": "warm", "warming": "warm"}.get(worker.state, "up")
        kept = list(getattr(worker.scheduler, "kept", ()))
        lost = worker.stop()
        self.turn(worker, "down")
        self.router.lost(worker.number)
        self.router.now = int(self.env.now)
        for request in lost:
            self.preempted[request.id] += request.preemptions
            if worker.role != "prefill":
                self.emitted_tokens[request.id] = request.generated_tokens
            self.router.finished(worker.number)
            if self.pools is not None and worker.role == "prefill":
                self.pools.left(request.id)
        again = [request.id for request in lost]
        for index, flight in sorted(self.flights.items()):
            if worker.number not in (flight.source, flight.target):
                continue
            del self.flights[index]
            self.fleet_log.lost_moves += 1
            if flight.source == STORE:
                self.router.finished(worker.number)
                if self.pools is not None:
                    self.pools.left(index)
                again.append(index)
                continue
            self.router.finished(flight.target)
            assert self.pools is not None
            if flight.source == worker.number:
                self.workers[flight.target].blocks.free(flight.blocks)
                self.workers[flight.target].nudge()
            else:
                self.pools.hold_again(index, self.blocks_of(index))
        if self.pools is not None:
            self.pools.drop_held(kept)
        for index in again + kept:
            self.send_again(index)
        for other in self.workers:
            self.settle(other)
        self.admit()

    def repair(self, worker: Worker) -> None:
        """A worker is whole again."""
        worker.broken = False
        if worker.state == "down":
            self.turn(worker, worker.after_repair)

    def send_again(self, index: int) -> None:
        """Send a request whose worker failed once more, after a pause, unless it failed too often."""
        count = self.fleet_log.retries[index] + 1
        if count > self.plan.retries.limit:
            self.log.preemptions[index] = self.preempted[index]
            self.refuse(index, failed(index, count))
            return
        self.fleet_log.retries[index] = count
        pause_ns = self.plan.retries.pause_ns(count)
        arrival = Moment(self.env).happens(pause_ns, self.again_rank[index])  # type: ignore[arg-type]
        arrival.callbacks.append(lambda _: self.arrive_again(index))

    def arrive_again(self, index: int) -> None:
        """A retry reaches the gateway."""
        self.gateway.append(index)
        self.dispatch()

    # Scaling -----------------------------------------------------------------------------------------------------------------

    def scale(self, pool: int, scaling: Scaling) -> Generator[simpy.Event, None, None]:
        """Observe a pool and change its number of workers, at every tick."""
        site, first = self.sites[pool], self.first_of(pool)
        workers = self.workers[first : first + site.deployment.replicas]
        cold_ns = self.cold_start_ns(site, scaling)
        policy: Reactive | Predictive = Reactive(scaling.target, scaling.tolerance)
        if scaling.policy == "predictive":
            ahead_s = cold_ns / NANOSECONDS if scaling.ahead_s is None else scaling.ahead_s
            policy = Predictive(
                scaling.rate_per_replica * scaling.interval_s, ahead_s / scaling.interval_s, scaling.alpha, scaling.beta
            )
        scaler = Autoscaler(policy, least=scaling.least, most=len(workers), patience=scaling.patience)
        interval_ns = max(1, round(scaling.interval_s * NANOSECONDS))
        while True:
            yield Moment(self.env).happens(interval_ns, TICK)  # type: ignore[arg-type]
            ready = sum(worker.state == "up" for worker in workers)
            unfinished = sum(self.router.outstanding[worker.number] for worker in workers)
            if self.pools is not None and workers[0].role == "decode":
                unfinished += sum(1 for entry in self.pools.held)
            else:
                unfinished += len(self.gateway)
            wanted = scaler.tick(self.arrived[pool], unfinished, ready)
            self.arrived[pool] = 0
            if unfinished and not ready:
                wanted = max(1, wanted)
            self.reach(workers, wanted, scaling, cold_ns)

    @staticmethod
    def cold_start_ns(site: Site, scaling: Scaling) -> int:
        """Nanoseconds from off to serving: reading the weights, and the engine's own start."""
        deployment = site.deployment
        whole = site.model.weight_bytes(
            deployment.tensor_parallel,
            site.cost.weight_dtype,
            expert_parallel=deployment.expert_parallel,
            attention_data_parallel=deployment.attention_data_parallel,
        )
        size = whole / deployment.pipeline_parallel
        return round((size / scaling.load_bytes_per_s + scaling.engine_start_s) * NANOSECONDS)

    def reach(self, workers: Sequence[Worker], wanted: int, scaling: Scaling, cold_ns: int) -> None:
        """Start or stop workers until `wanted` serve or will; keep the warm ones replenished."""
        have = sum(worker.state in ("up", "starting") for worker in workers)
        for state in ("draining", "warm", "warming", "off"):
            for worker in workers:
                if have >= wanted:
                    break
                if worker.state == state and not (state in ("off", "warming") and worker.broken):
                    have += 1
                    if state == "draining":
                        self.turn(worker, "up")
                    elif state == "warming":  # it loads already
                        self.turn(worker, "starting")
                    else:
                        warm_ns = round(scaling.warm_start_s * NANOSECONDS)
                        self.begin(worker, "starting", "up", warm_ns if state == "warm" else cold_ns)
        for worker in reversed(workers):
            if have > wanted and worker.state == "starting":
                have -= 1
                worker.started += 1
                self.turn(worker, "off")
        surplus = sorted(
            (worker for worker in workers if worker.state == "up"),
            key=lambda worker: (self.router.outstanding[worker.number], -worker.number),
        )
        for worker in surplus[: max(0, have - wanted)]:
            self.turn(worker, "draining")
            self.settle(worker)
        loaded = sum(worker.state in ("warm", "warming") for worker in workers)
        for worker in workers:
            if loaded < scaling.warm and worker.state == "off" and not worker.broken:
                loaded += 1
                self.begin(worker, "warming", "warm", cold_ns)

    def begin(self, worker: Worker, state: str, then: str, after_ns: int) -> None:
        """Start a worker; it is ready after a while, unless something else happens to it."""
        worker.started += 1
        ticket = worker.started
        self.turn(worker, state)

        def ready(_: simpy.Event) -> None:
            if worker.started == ticket:
                self.turn(worker, "up" if worker.state == "starting" else then)

        Moment(self.env).happens(max(1, after_ns), FAULT).callbacks.append(ready)  # type: ignore[arg-type]
