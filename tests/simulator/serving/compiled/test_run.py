"""The compiled loop equals the SimPy path: every field of the log, whatever the workload and the options."""

from dataclasses import fields, replace

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.reference.serving.chunked_prefill import ChunkedPrefill
from llmlab.reference.serving.continuous_batching import ContinuousBatching
from llmlab.reference.serving.inflight_batching import GuaranteedNoEvict, GuaranteedPrefillFirst
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.prefix_cache import PrefixCache
from llmlab.reference.serving.router import make_router
from llmlab.simulator.cost.step import StepCost
from llmlab.simulator.serving.cluster import Cluster, Log
from llmlab.simulator.serving.compiled import run as compiled_run
from llmlab.simulator.serving.compiled.run import CompiledCluster, reason_against
from llmlab.simulator.serving.deployment import Deployment
from llmlab.simulator.serving.simulate import simulate
from llmlab.simulator.serving.slo import Watch, parse_slo
from llmlab.simulator.workload.workload import Workload

MS = 1_000_000
COST = StepCost.cached("meta-llama/Llama-3.1-8B", "h100")
ROUTERS = ("round_robin", "least_outstanding", "random", "power_of_two", "prefix_affinity", "kv_aware")


def draw_workload(rng):
    """Short requests, sometimes bunched at one instant, sometimes with prompts that branch off one another."""
    count = int(rng.integers(1, 61))
    spread = int(rng.choice([0, 40 * MS, 400 * MS, 5000 * MS]))
    arrival = np.sort(rng.integers(0, spread + 1, count))
    if rng.random() < 0.3:
        arrival = arrival // (20 * MS) * (20 * MS)
    prompts = rng.integers(1, int(rng.choice([8, 40, 300])), count)
    outputs = rng.integers(1, int(rng.choice([2, 12, 80])), count)
    hashes, size = (), int(rng.choice([2, 4, 8, 16]))
    if rng.random() < 0.6:
        alphabet = int(rng.integers(1, 4))
        hashes = []
        for tokens in prompts:
            chain, key = [], 0
            for _ in range(tokens // size):
                key = key * 4 + 1 + int(rng.integers(alphabet))
                chain.append(key % (1 << 40))
            hashes.append(np.array(chain, dtype=np.int64))
        if rng.random() < 0.2:  # not every prompt is named to its end
            hashes = [chain[: len(chain) // 2] for chain in hashes]
    workload = Workload(arrival, prompts, outputs, tuple(hashes), size)
    if rng.random() < 0.4:
        workload = workload.with_clients(int(rng.integers(1, 20)), float(rng.choice([0.0, 0.0, 0.02])))
    return workload


def draw_options(rng, workload):
    """A deployment, often one with too little memory, and the options of `Cluster`."""
    size = workload.hash_block_tokens
    block = int(rng.choice([size, max(1, size // 2), 2 * size]))
    if not workload.block_hashes:
        block = int(rng.choice([1, 3, 4, 16]))
    most = int((workload.prompt_tokens + workload.output_tokens).max())
    seqs = int(rng.choice([1, 3, 8, 64]))
    batched = seqs + int(rng.choice([0, 5, 64, 512]))
    kind = ChunkedPrefill if rng.random() < 0.6 else ContinuousBatching
    if rng.random() < 0.3:
        kind = GuaranteedNoEvict if kind is ChunkedPrefill else GuaranteedPrefillFirst
    if issubclass(kind, ContinuousBatching) and rng.random() < 0.8:
        batched = max(batched, most)
    limits = {"max_num_seqs": seqs, "max_num_batched_tokens": batched}
    if issubclass(kind, ChunkedPrefill) and rng.random() < 0.3:
        limits["max_chunk_tokens"] = int(rng.integers(1, 40))
    blocks = -(-most // block) + 1 + int(rng.choice([-2, 0, 3, 20, 1000]))
    blocks = max(2, blocks)
    if rng.random() < 0.3:
        limits["watermark_blocks"] = int(rng.integers(0, min(blocks, 4)))
    cluster = {
        "block_tokens": block,
        "frontend_ns": int(rng.choice([0, 0, 3 * MS])),
        "reply_ns": int(rng.choice([0, 2 * MS])),
        "lag_steps": float(rng.choice([0.0, 0.0, 1.0, 0.5, 1.7])),
        "after_idle": float(rng.choice([1.0, 1.37])),
        "settle_ns": int(rng.choice([0, 30 * MS])),
        "longest_tokens": most - 3 if rng.random() < 0.15 else None,
        "record_steps": True,
    }
    if not workload.block_hashes:
        cluster["block_tokens"] = 0
    caching = bool(rng.random() < 0.7)
    slo = None
    if rng.random() < 0.15:
        clauses = ["ttft_p90=30ms", "ttft_mean=20ms", "tpot_mean=7ms", "e2e_p50=60ms", "tpot_p99=9ms", "e2e_mean=100ms"]
        slo = ",".join(rng.choice(clauses, size=int(rng.integers(1, 4)), replace=False))
    return {
        "kind": kind,
        "blocks": blocks,
        "block": block,
        "limits": limits,
        "caching": caching,
        "replicas": int(rng.choice([1, 1, 2, 5])),
        "policy": str(rng.choice(ROUTERS)),
        "seed": int(rng.integers(1000)),
        "slo": slo,
        "stretch": float(rng.choice([1.0, 1.0, 1.3])),
        "cluster": cluster,
    }


def schedulers_of(options):
    made = []
    for _ in range(options["replicas"]):
        pool = KVBlocks(options["blocks"], options["block"])
        cache = PrefixCache(pool) if options["caching"] else None
        made.append(options["kind"](pool, prefix_cache=cache, **options["limits"]))
    return made


def logs(workload, options, cost=COST):
    """The log of both paths."""
    found = []
    for path in (Cluster, CompiledCluster):
        router = make_router(options["policy"], options["replicas"], np.random.default_rng(options["seed"]), block_tokens=16)
        cluster = dict(options["cluster"])
        if options["slo"]:
            cluster["watch"] = Watch(parse_slo(options["slo"]), workload.output_tokens)
        schedulers = schedulers_of(options)
        if path is Cluster:

            def step_ns(shape, stretch=options["stretch"]):
                return int(np.ceil(stretch * cost.step_ns(shape)))

            found.append(Cluster(workload, schedulers, step_ns, router, **cluster).run())
        else:
            assert reason_against(workload, schedulers, cost, router) is None
            found.append(CompiledCluster(workload, schedulers, cost, router, stretch=options["stretch"], **cluster).run())
    return found


def assert_same(one, other):
    for field in fields(Log):
        assert getattr(one, field.name) == getattr(other, field.name), field.name


@pytest.mark.parametrize("block", range(20))
def test_every_event_of_random_runs_is_the_same(block):
    for seed in range(20 * block, 20 * block + 20):
        rng = np.random.default_rng(seed)
        workload = draw_workload(rng)
        options = draw_options(rng, workload)
        simpy, fast = logs(workload, options)
        try:
            assert_same(simpy, fast)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from None


def one_run(seed=3):
    rng = np.random.default_rng(seed)
    workload = draw_workload(rng)
    return workload, draw_options(rng, workload)


@pytest.mark.parametrize("name", ["sent_ns", "first_token_ns", "finished_ns", "cached_tokens", "busy_ns", "replica"])
def test_one_nanosecond_or_token_more_anywhere_is_seen(name):
    """The comparison itself can fail: a single number that is off by one."""
    simpy, fast = logs(*one_run())
    assert_same(simpy, fast)
    getattr(fast, name)[-1] += 1
    with pytest.raises(AssertionError, match=name):
        assert_same(simpy, fast)


def test_a_wrong_price_of_one_step_is_seen():
    """The longest table entry a run uses, off by a part in a million, moves an event."""
    workload, options = one_run(1)
    simpy, _ = logs(workload, options)
    router = make_router(options["policy"], options["replicas"], np.random.default_rng(options["seed"]))
    cluster = CompiledCluster(workload, schedulers_of(options), COST, router, **options["cluster"])
    cluster.cost.parts.tokens_s[1:] *= 1.000001
    try:
        with pytest.raises(AssertionError):
            assert_same(simpy, cluster.run())
    finally:
        cluster.cost.parts.tokens_s[1:] = COST.tables.tokens_s[1:]


def test_preemption_and_eviction_happen_in_the_random_runs():
    """Else their equality would say nothing."""
    preempted = refused = gave_up = cached = 0
    for seed in range(40):
        simpy, _ = logs(*one_run(seed))
        preempted += sum(simpy.preemptions)
        refused += len(simpy.refused)
        gave_up += simpy.gave_up
        cached += sum(simpy.cached_tokens)
    assert min(preempted, refused, cached) > 20
    assert gave_up


def test_many_short_steps_fill_the_buffers_more_than_once(monkeypatch):
    monkeypatch.setattr(compiled_run, "GAPS", 64)
    monkeypatch.setattr(compiled_run, "STEPS", 16)
    monkeypatch.setattr(compiled_run, "EVENTS", 50)
    for seed in (2, 4):
        assert_same(*logs(*one_run(seed)))


class Unknown(ChunkedPrefill):
    """A policy nobody compiled."""


class WithMore(ContinuousBatching):
    """A known policy with something more to remember."""

    __slots__ = ("more",)


def test_what_is_not_known_is_left_to_the_readable_path():
    workload, _ = one_run(4)
    router = make_router("round_robin", 1, np.random.default_rng(0))
    limits = {"max_num_seqs": 2, "max_num_batched_tokens": 600}
    known = ChunkedPrefill(KVBlocks(40, 16), **limits)
    assert reason_against(workload, [known], COST, router) is None
    assert "Unknown" in reason_against(workload, [Unknown(KVBlocks(40, 16), **limits)], COST, router)
    assert "WithMore" in reason_against(workload, [WithMore(KVBlocks(40, 16), **limits)], COST, router)
    assert "differ" in reason_against(workload, [known, ChunkedPrefill(KVBlocks(41, 16), **limits)], COST, router)
    hosted = ChunkedPrefill(KVBlocks(40, 16, num_host_blocks=4), **limits)
    assert "host" in reason_against(workload, [hosted], COST, router)
    assert "step times" in reason_against(workload, [known], lambda shape: 1, router)
    late = make_router("round_robin", 1, np.random.default_rng(0))
    late.delay(5)
    assert "late" in reason_against(workload, [known], COST, late)
    turns = replace(workload, session=np.arange(len(workload)), gap_ns=np.zeros(len(workload), dtype=np.int64))
    assert reason_against(turns, [known], COST, router) == "sessions"


def test_simulate_takes_the_path_it_was_asked_for_and_says_which():
    deployment = Deployment("Meta-Llama-3-8B", "h100", replicas=2, router="power_of_two")
    rng = np.random.default_rng(5)
    workload = Workload(np.sort(rng.integers(0, 20 * 10**9, 300)), rng.integers(1, 900, 300), rng.integers(1, 200, 300))
    runs = {path: simulate(deployment, workload, path=path, seed=3, stretch=1.1) for path in ("simpy", "compiled", "auto")}
    assert {path: run.path for path, run in runs.items()} == {"simpy": "simpy", "compiled": "compiled", "auto": "compiled"}
    assert runs["simpy"].path_reason == "chosen"
    assert_same(runs["simpy"].log, runs["compiled"].log)
    assert runs["simpy"].metrics() == runs["compiled"].metrics()
    short = simulate(deployment, workload.first(5))
    assert (short.path, "tokens" in short.path_reason) == ("simpy", True)


def test_asking_the_compiled_path_for_what_it_does_not_know_is_an_error():
    deployment = Deployment("Meta-Llama-3-8B", "h100", scheduler="orca")
    workload = Workload([0], [100], [30_000])
    assert simulate(deployment, Workload([0, 0], [9, 9], [2, 2])).path == "simpy"
    with pytest.raises(InputError, match="Orca"):
        simulate(deployment, workload, path="compiled")


def test_sketches_of_a_run_are_near_its_statistics():
    pytest.importorskip("datasketches", reason="needs datasketches")
    deployment = Deployment("Meta-Llama-3-8B", "h100", replicas=2)
    rng = np.random.default_rng(5)
    workload = Workload(np.sort(rng.integers(0, 200 * 10**9, 4000)), rng.integers(1, 900, 4000), rng.integers(1, 60, 4000))
    exact, streamed = (simulate(deployment, workload, path="compiled", stream=stream) for stream in (False, True))
    ours, theirs = exact.metrics(parse_slo("ttft_p99=2s")), streamed.metrics(parse_slo("ttft_p99=2s"))
    for metric in ("ttft_s", "tpot_s", "e2e_s", "queue_s"):
        for name, value in ours[metric].items():
            assert theirs[metric].pop(name) == pytest.approx(value, rel=0.02), (metric, name)
        del ours[metric], theirs[metric]
    assert theirs.pop("mean_in_system") == pytest.approx(ours.pop("mean_in_system"))
    assert ours == theirs
