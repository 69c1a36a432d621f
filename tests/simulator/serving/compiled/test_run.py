"""The compiled loop equals the SimPy path: every field of the log, whatever the workload and the options."""

from dataclasses import fields

import numpy as np
import pytest

from llmlab.reference.serving.chunked_prefill import ChunkedPrefill
from llmlab.reference.serving.continuous_batching import ContinuousBatching
from llmlab.reference.serving.inflight_batching import GuaranteedNoEvict, GuaranteedPrefillFirst
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.prefix_cache import PrefixCache
from llmlab.reference.serving.router import make_router
from llmlab.simulator.cost.step import StepCost
from llmlab.simulator.serving.cluster import Cluster, Log
from llmlab.simulator.serving.compiled.run import CompiledCluster, reason_against
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
