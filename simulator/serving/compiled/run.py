"""Play a workload on the compiled loop: check that it can, lay out the arrays, read the log back.

What it supports is a list of what is known, not of what is not: a scheduler, router or option it has never heard of goes to
the SimPy path, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from llmlab.reference.serving import router as routers
from llmlab.reference.serving._queue import Queue
from llmlab.reference.serving._request import Request, Scheduler
from llmlab.reference.serving.chunked_prefill import ChunkedPrefill
from llmlab.reference.serving.continuous_batching import ContinuousBatching
from llmlab.reference.serving.inflight_batching import GuaranteedNoEvict, GuaranteedPrefillFirst
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.prefix_cache import PrefixCache
from llmlab.simulator.cost import assemble, compiled
from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.cost.compiled import CompiledCost, UncompilableError, compile_cost
from llmlab.simulator.cost.step import StepCost
from llmlab.simulator.serving.cluster import SAMPLED_SHAPES, Log, Sample, Steps, too_long
from llmlab.simulator.serving.compiled import loop, memory, records
from llmlab.simulator.serving.compiled.records import FAR, NEVER, World, new_memory
from llmlab.simulator.serving.energy import Power
from llmlab.simulator.serving.failures import Outage, Retries, failed
from llmlab.simulator.serving.sketch import GapCounts
from llmlab.simulator.serving.slo import Watch
from llmlab.simulator.workload.workload import LABELS, Workload

SCHEDULERS: dict[type, int] = {
    ChunkedPrefill: records.CHUNKED_PREFILL,
    ContinuousBatching: records.CONTINUOUS_BATCHING,
    GuaranteedNoEvict: records.GUARANTEED_NO_EVICT,
    GuaranteedPrefillFirst: records.GUARANTEED_PREFILL_FIRST,
}
ROUTERS: dict[type, int] = {
    routers.RoundRobin: records.ROUND_ROBIN,
    routers.LeastOutstanding: records.LEAST_OUTSTANDING,
    routers.Random: records.RANDOM,
    routers.PowerOfTwo: records.POWER_OF_TWO,
    routers.PrefixAffinity: records.PREFIX_AFFINITY,
    routers.KVAware: records.KV_AWARE,
}
LIMITS = {
    "blocks",
    "max_chunk_tokens",
    "max_num_batched_tokens",
    "max_num_seqs",
    "prefix_cache",
    "running",
    "waiting",
    "watermark_blocks",
}
"""What a scheduler of a known kind consists of; one that has more is not known."""

WORKLOAD = {
    "arrival_ns",
    "prompt_tokens",
    "output_tokens",
    "block_hashes",
    "hash_block_tokens",
    "clients",
    "think_ns",
    "session",
    "gap_ns",
    "name",
    *LABELS,
}
"""What a workload consists of; labels matter to schedulers that are not known here."""

MOST_SEATS = 1 << 16
"""Requests that run at once: more than any engine's, so that rows per replica stay small."""

GAPS = 1 << 20
STEPS = 1 << 18
EVENTS = 1 << 22


def reason_against(
    workload: Workload, schedulers: Sequence[Scheduler], cost: object, router: object, *, stretch: float = 1.0
) -> str | None:
    """Why the compiled loop cannot play this, or None where it can."""
    if unknown := {field.name for field in fields(workload)} - WORKLOAD:
        return f"a workload with {', '.join(sorted(unknown))}"
    if len(workload.session):
        return "sessions"
    first = schedulers[0]
    if type(first) not in SCHEDULERS or not isinstance(first, Queue):
        return f"scheduler {type(first).__name__}"
    slots = {name for kind in type(first).__mro__ for name in getattr(kind, "__slots__", ())}
    if extra := slots - LIMITS:
        return f"scheduler with {', '.join(sorted(extra))}"
    for scheduler in schedulers:
        if type(scheduler) is not type(first) or _limits(scheduler) != _limits(first):  # type: ignore[arg-type]
            return "replicas that differ"
    if type(first.blocks) is not KVBlocks or first.blocks.free_host_blocks:
        return "blocks in host memory"
    if first.prefix_cache is not None and type(first.prefix_cache) is not PrefixCache:
        return f"a {type(first.prefix_cache).__name__}"
    if first.max_num_seqs > MOST_SEATS:
        return f"max_num_seqs={first.max_num_seqs}"
    if type(router) not in ROUTERS:
        return f"router {type(router).__name__}"
    if getattr(router, "stale", 0):
        return "a router with late reports"
    if not isinstance(cost, StepCost):
        return f"step times of {type(cost).__name__}"
    try:
        compile_cost(cost, first.max_num_seqs, stretch=stretch)
    except UncompilableError as error:
        return str(error)
    return None


def _limits(scheduler: Queue) -> tuple[Any, ...]:
    return (
        scheduler.blocks.num_blocks,
        scheduler.blocks.block_tokens,
        scheduler.max_num_seqs,
        scheduler.max_num_batched_tokens,
        scheduler.watermark_blocks,
        getattr(scheduler, "max_chunk_tokens", None),
        scheduler.prefix_cache is None,
    )


@lru_cache(maxsize=1)
def _play() -> Any:
    """The compiled loop, taken from Numba's cache where none of its sources changed."""
    return loop.compiled_with(_sources())


def _sources() -> int:
    return compiled.sources(assemble, compiled, loop, memory, records)


def _mark() -> Path:
    """A file beside Numba's cache that says for which sources the loop was compiled."""
    return Path(_play().stats.cache_path) / f"loop.{_sources():014x}.compiled"


def is_compiled() -> bool:
    """Say whether the loop can be loaded rather than compiled."""
    return bool(_play().signatures) or _mark().exists()


class CompiledCluster:
    """The same as `cluster.Cluster`, for what `reason_against` finds nothing against; and with outages as `fleet.FleetCluster`.

    Args (beside those of `Cluster`):
        stretch: every step takes this many times as long.
        stream: the log keeps arrays.
        outages: what fails when.
        retries: what happens to the requests of a replica that failed.
        power: of one device; energy is counted where given.
        devices: of one replica.
    """

    def __init__(
        self,
        workload: Workload,
        schedulers: Sequence[Scheduler],
        cost: StepCost,
        router: Any,
        *,
        stretch: float = 1.0,
        stream: bool = False,
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
        outages: Sequence[Outage] = (),
        retries: Retries | None = None,
        power: Power | None = None,
        devices: int = 1,
    ) -> None:
        self.workload, self.schedulers, self.router = workload, cast(Sequence[Queue], schedulers), router
        self.stream = stream
        self.longest_tokens, self.record_steps, self.progress = longest_tokens, record_steps, progress
        first = self.schedulers[0]
        self.cost: CompiledCost = compile_cost(cost, first.max_num_seqs, stretch=stretch)
        count, replicas, block_size = len(workload), len(schedulers), first.blocks.block_tokens
        seats = min(first.max_num_seqs, count)
        hashed = bool(block_tokens and workload.block_hashes)
        caching = hashed and first.prefix_cache is not None

        run = np.zeros(1 if power is None else 2, dtype=records.RUN)
        run["stride"] = 1
        run["unfinished"], run["clients"], run["think_ns"] = count, workload.clients, workload.think_ns
        run["frontend_ns"], run["reply_ns"], run["settle_ns"] = frontend_ns, reply_ns, settle_ns
        run["router"], run["record_steps"], run["lag_whole"] = ROUTERS[type(router)], record_steps, int(lag_steps)
        run["balance"], run["capacity_blocks"] = getattr(router, "balance", 0), getattr(router, "capacity_blocks", 0)
        run["queue_tokens"] = getattr(router, "queue_tokens", 0)
        run["router_block_tokens"] = getattr(router, "block_tokens", 0)
        run["gateway_first"], run["gateway_last"], run["up"], run["metered"] = NEVER, NEVER, replicas, power is not None
        tries = 1  # of one request: every further one needs an outage
        if outages and retries is not None:
            run["limit"] = min(retries.limit, len(outages))
            tries += int(run["limit"][0])

        requests = np.zeros(count, dtype=records.REQUEST)
        requests["prompt_tokens"], requests["output_tokens"] = workload.prompt_tokens, workload.output_tokens
        for name in ("sent_ns", "scheduled_ns", "first_token_ns", "finished_ns", "replica", "emitted_ns"):
            requests[name] = NEVER
        requests["may_serve"] = self._may_serve()
        if workload.clients:  # every client sends its first request at once
            run["sent"] = min(workload.clients, count)
            requests["sent_ns"][: int(run["sent"][0])] = 0

        keys = np.zeros(1, dtype=np.int64)
        bits = 0
        if hashed:
            keys, bits = self._lay_out_keys(run, requests, block_tokens)

        pool = np.zeros(replicas, dtype=records.REPLICA)
        pool["policy"], pool["max_num_seqs"] = SCHEDULERS[type(first)], first.max_num_seqs
        pool["max_num_batched_tokens"] = first.max_num_batched_tokens
        pool["max_chunk_tokens"] = getattr(first, "max_chunk_tokens", first.max_num_batched_tokens)
        pool["watermark_blocks"], pool["num_blocks"], pool["block_tokens"] = (
            first.watermark_blocks,
            first.blocks.num_blocks,
            block_size,
        )
        pool["caching"], pool["free"], pool["least_free"] = caching, first.blocks.num_blocks, 2**62
        pool["event"], pool["idle"], pool["up"] = FAR, 1, 1
        for name in ("waiting_first", "waiting_last", "incoming_first", "incoming_last", "running_first", "running_last"):
            pool[name] = NEVER

        leaves = 1 << (replicas - 1).bit_length()
        winners = np.full(2 * leaves, NEVER, dtype=np.int64)
        winners[leaves : leaves + replicas] = np.arange(replicas)
        for place in range(leaves - 1, 0, -1):
            winners[place] = winners[2 * place]

        watches = np.zeros((0, 4))
        if watch is not None:
            rows = [watch.targets[metric] for metric in ("ttft", "tpot", "e2e")]
            run["watched"] = 1
            run["watch_ttft"], run["watch_tpot"], run["watch_e2e"] = np.cumsum([len(part) for part in rows]).tolist()
            watches = np.array([entry for part in rows for entry in part], dtype=float).reshape(-1, 4)
        draws = np.zeros(1)
        if isinstance(router, routers.Random):
            draws = router.rng.random(count * tries * (2 if isinstance(router, routers.PowerOfTwo) else 1))
        remembers = hashed and isinstance(router, routers.PrefixAffinity)
        meters = np.zeros(replicas, dtype=records.METER)
        meters["lag_fraction"], meters["after_idle"] = lag_steps - int(lag_steps), after_idle
        if power is not None:
            for name in ("decode_w", "prefill_w", "balance_rows"):
                meters[name] = getattr(power, name)
            meters["devices"] = devices
        most_keys = int(requests["num_keys"].max())
        all_keys = int(requests["num_keys"].sum())
        self.world = World(
            run=run,
            requests=requests,
            replicas=pool,
            arrival_ns=workload.arrival_ns,
            residues=np.zeros((replicas, block_size), dtype=np.int64),
            begun=np.zeros((replicas, seats), dtype=np.int64),
            fresh=np.zeros((replicas, seats), dtype=np.int64),
            heap=np.zeros((replicas, seats), dtype=np.int64),
            slices=np.zeros((replicas, seats), dtype=records.SLICE),
            winners=winners,
            gaps=np.zeros((min(GAPS, 4096 + 64 * count) + 2 * seats, 2), dtype=np.int64),
            steps=np.zeros(STEPS if record_steps else 1, dtype=records.STEP),
            refused=np.zeros(count if outages else max(1, int(np.count_nonzero(requests["may_serve"]))), dtype=np.int64),
            draws=draws,
            samples=np.zeros((len(run), SAMPLED_SHAPES), dtype=records.SAMPLE),
            sampled_prompts=np.zeros((len(run), SAMPLED_SHAPES, seats, 2), dtype=np.int64),
            watches=watches,
            meters=meters,
            keys=keys,
            bits=np.zeros(bits // 8 + 1, dtype=np.uint8),
            done=np.zeros(seats, dtype=np.int64),
            cache=new_memory(replicas, min(first.blocks.num_blocks, all_keys) + 1 if caching else 1),
            sent=new_memory(replicas, min(router.capacity_blocks, all_keys) + most_keys + 1 if remembers else 1),
            faults=self._faults(outages, [retries.pause_ns(n) for n in range(1, tries)] if retries is not None else []),
        )
        self.gaps = Gaps()
        self.steps: list[np.ndarray] = []

    @staticmethod
    def _faults(outages: Sequence[Outage], pauses_ns: Sequence[int]) -> np.ndarray:
        """Repairs and outages in the order in which they are played, and the pauses of retries."""
        events = [(outage.up_ns, 0, outage.replica) for outage in outages]
        events += [(outage.down_ns, 1, outage.replica) for outage in outages]
        faults = np.zeros(len(events), dtype=records.FAULT)
        for place, (when_ns, fails, replica) in enumerate(sorted(events)):
            faults[place]["at_ns"], faults[place]["fails"], faults[place]["replica"] = min(when_ns, FAR >> 2), fails, replica
        faults["pause_ns"][: len(pauses_ns)] = pauses_ns
        return faults

    def _may_serve(self) -> np.ndarray:
        """Which requests are refused on arrival, and by whom."""
        first, workload = self.schedulers[0], self.workload
        most = workload.prompt_tokens + workload.output_tokens - 1
        blocks = -(-most // first.blocks.block_tokens) + first.watermark_blocks
        never = blocks > first.blocks.num_blocks
        if isinstance(first, ContinuousBatching):
            never |= most > first.max_num_batched_tokens
        answer = np.where(never, records.NEVER_FITS, records.SERVABLE)
        if self.longest_tokens is not None:
            answer[most + 1 > self.longest_tokens] = records.TOO_LONG
        return answer

    def _lay_out_keys(self, run: np.ndarray, requests: np.ndarray, block_tokens: int) -> tuple[np.ndarray, int]:
        """All prefix identities in a row, and how many blocks they name; see `Workload.hashes`."""
        workload = self.workload
        own = np.array([len(part) for part in workload.block_hashes], dtype=np.int64)
        keys = np.concatenate([*(np.asarray(part, dtype=np.int64) for part in workload.block_hashes), [0]])
        if workload.hash_block_tokens % block_tokens == 0:
            parts = workload.hash_block_tokens // block_tokens
            count = own * parts
        elif block_tokens % workload.hash_block_tokens == 0:
            parts = block_tokens // workload.hash_block_tokens
            count = own // parts
            run["keys_are_finer"] = 1
        else:
            workload.hashes(0, block_tokens)  # says why
        run["key_parts"] = parts
        requests["first_key"] = np.cumsum(own) - own
        requests["num_keys"] = np.minimum(count, workload.prompt_tokens // block_tokens)
        requests["first_bit"] = np.cumsum(requests["num_keys"]) - requests["num_keys"]
        return keys, int(requests["num_keys"].sum())

    def run(self) -> Log:
        """Simulate until every request is finished or refused, or the watch gives up."""
        play, world, total = _play(), self.world, len(self.workload)
        state = loop.PAUSED
        while state == loop.PAUSED:
            fresh = not play.signatures
            state = int(play(world, self.cost, EVENTS))
            if fresh:
                with suppress(OSError):  # nobody waits for it
                    _mark().touch()
            self._empty_buffers()
            if self.progress is not None:
                self.progress(total - int(world.run["unfinished"][0]), total)
        if state == loop.STUCK:
            replica = int(world.run["stuck"][0]) - 1
            if replica < len(world.replicas):
                waiting = int(world.replicas["waiting"][replica])
                raise RuntimeError(f"replica {replica}: {waiting} requests wait and none can run")
            raise RuntimeError("nothing is left to happen and not every request is done")
        return self._log()

    def _empty_buffers(self) -> None:
        run = self.world.run
        self.gaps.add(self.world.gaps[: int(run["gaps"][0])])
        run["gaps"] = 0
        if self.record_steps:
            self.steps.append(self.world.steps[: int(run["steps"][0])].copy())
            run["steps"] = 0

    def _log(self) -> Log:
        run, requests, replicas = self.world.run, self.world.requests, self.world.replicas
        log = Log.empty(0, 0, record_steps=False)
        too_often = requests["failures"] > int(run["limit"][0])
        requests["preemptions"][(requests["finished_ns"] == NEVER) & ~too_often] = 0
        columns = {"cached_tokens": "cached_at_start"} | {
            name: name for name in ("sent_ns", "scheduled_ns", "first_token_ns", "finished_ns", "preemptions", "replica")
        }
        for name, column in columns.items():
            setattr(log, name, requests[column] if self.stream else requests[column].tolist())
        log.busy_ns = replicas["busy_ns"].tolist()
        log.least_free_blocks = replicas["least_free"].tolist()
        log.most_running = replicas["most_running"].tolist()
        log.sample = self.sample_of(0)
        log.refused = dict(self._why(int(index)) for index in self.world.refused[: int(run["refused"][0])])
        log.gaps_ns = self.gaps.counts()  # type: ignore[assignment]
        log.num_steps = int(run["num_steps"][0])
        log.gave_up = bool(run["gave_up"][0])
        if self.record_steps:
            log.steps = Steps()
            whole = np.concatenate(self.steps)
            for name in records.STEP.names or ():
                getattr(log.steps, name).frombytes(np.ascontiguousarray(whole[name]).tobytes())
        return log

    def _why(self, index: int) -> tuple[int, str]:
        """In the words of whoever refused it."""
        prompt, output = int(self.workload.prompt_tokens[index]), int(self.workload.output_tokens[index])
        if (failures := int(self.world.requests["failures"][index])) > int(self.world.run["limit"][0]):
            return index, failed(index, failures)
        if self.longest_tokens is not None and prompt + output > self.longest_tokens:
            return index, too_long(index, prompt + output, self.longest_tokens)
        try:
            self.schedulers[0].add(Request(index, prompt, output))
        except ValueError as reason:
            return index, str(reason)
        raise RuntimeError(f"request {index} was refused, but its scheduler takes it")

    def sample_of(self, row: int) -> Sample:
        """One of the samples of the steps: 0 by their ends, 1 by their starts."""
        counts = self.world.run[row]
        sample = Sample(stride=int(counts["stride"]))
        for place in range(int(counts["kept"])):
            kept = self.world.samples[row, place]
            prompts = self.world.sampled_prompts[row, place, : int(kept["prompts"])].tolist()
            shape = BatchShape(
                tuple((new, cached) for new, cached in prompts),
                int(kept["decode_requests"]),
                int(kept["context_tokens"]),
                int(kept["emitted"]),
            )
            sample.shapes.append((shape, int(kept["duration_ns"])))
        return sample


class Gaps:
    """Inter-token gaps and how often each occurred, merged now and then so that memory grows with the different ones only."""

    def __init__(self) -> None:
        self.merged = np.zeros((0, 2), dtype=np.int64)
        self.new: list[np.ndarray] = []
        self.pending = 0

    def add(self, pairs: np.ndarray) -> None:
        """Count pairs of a gap and its times."""
        self.new.append(pairs.copy())
        self.pending += len(pairs)
        if self.pending > max(4 * GAPS, len(self.merged)):
            self.merge()

    def merge(self) -> None:
        """Add up the times of equal gaps."""
        whole = np.concatenate([self.merged, *self.new])
        self.new, self.pending = [], 0
        whole = whole[np.argsort(whole[:, 0], kind="stable")]
        if not len(whole):
            self.merged = whole
            return
        first = np.flatnonzero(np.concatenate(([True], whole[1:, 0] != whole[:-1, 0])))
        self.merged = np.stack([whole[first, 0], np.add.reduceat(whole[:, 1], first)], axis=1)

    def counts(self) -> GapCounts:
        """Gap in nanoseconds -> how often, ascending."""
        self.merge()
        return GapCounts(self.merged)
