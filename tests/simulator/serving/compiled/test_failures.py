"""Fleets whose replicas fail: the compiled loop equals the SimPy path in every field of both logs."""

from dataclasses import fields, replace

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.reference.serving.router import make_router
from llmlab.simulator.cost.step import StepCost
from llmlab.simulator.serving import failures
from llmlab.simulator.serving.cluster import NEVER, Log
from llmlab.simulator.serving.compiled.fleet import CompiledFleet, reason_against_fleet
from llmlab.simulator.serving.deployment import Deployment, resolve
from llmlab.simulator.serving.failures import Failures, Fault, Outage, Retries
from llmlab.simulator.serving.fleet import FleetCluster, FleetLog
from llmlab.simulator.serving.pools import Fleet, Pool, PrefixPool, Scaling, disaggregate
from llmlab.simulator.serving.simulate_fleet import simulate_fleet
from llmlab.simulator.serving.slo import Watch, parse_slo
from llmlab.simulator.workload.workload import Workload

MS = 1_000_000
ROUTERS = ("round_robin", "least_outstanding", "random", "power_of_two", "prefix_affinity", "kv_aware")
SCHEDULERS = ("chunked_prefill", "continuous_batching", "guaranteed_no_evict", "guaranteed_prefill_first")
BLOCK = 16


def draw_workload(rng):
    """Requests over a second or two, often with prompts that branch off one another, in an open or a closed loop."""
    count = int(rng.integers(1, 50))
    arrival = np.sort(rng.integers(0, int(rng.choice([1, 300 * MS, 2000 * MS])), count))
    if rng.random() < 0.4:
        arrival = arrival // (50 * MS) * (50 * MS)
    prompts = rng.integers(1, int(rng.choice([40, 400])), count)
    outputs = rng.integers(1, int(rng.choice([3, 30, 120])), count)
    hashes = ()
    if rng.random() < 0.7:
        alphabet = int(rng.integers(1, 3))
        hashes = []
        for tokens in prompts:
            chain, key = [], 0
            for _ in range(tokens // BLOCK):
                key = key * 3 + 1 + int(rng.integers(alphabet))
                chain.append(key % (1 << 40))
            hashes.append(np.array(chain, dtype=np.int64))
    workload = Workload(arrival, prompts, outputs, tuple(hashes), BLOCK)
    if rng.random() < 0.3:
        workload = workload.with_clients(int(rng.integers(1, 20)), float(rng.choice([0.0, 0.02])))
    return workload


def draw_outages(rng, replicas):
    """Outages of every replica, disjoint, on a grid where arrivals, repairs and other outages fall on the same instants."""
    grid = int(rng.choice([1, 50 * MS]))
    found = []
    for replica in range(replicas):
        spells = []
        for _ in range(int(rng.choice([0, 1, 2, 6]))):
            down = int(rng.integers(0, 3000 * MS)) // grid * grid
            spells.append((down, down + max(1, int(rng.exponential(400 * MS)) // grid * grid)))
        found += [Outage(replica, down, up) for down, up in failures.merged(spells)]
    return sorted(found, key=lambda outage: (outage.down_ns, outage.replica))


def draw_run(seed):
    """A workload, a fleet with its site, outages, and the options of a run."""
    rng = np.random.default_rng(seed)
    workload = draw_workload(rng)
    most = int((workload.prompt_tokens + workload.output_tokens).max())
    scheduler, replicas = str(rng.choice(SCHEDULERS)), int(rng.choice([1, 2, 3, 5]))
    seats = int(rng.choice([1, 4, 32]))
    deployment = Deployment(
        "meta-llama/Llama-3.1-8B",
        "h100",
        engine=str(rng.choice(["vllm", "sglang", "trtllm"])),
        replicas=replicas,
        scheduler=scheduler,
        max_num_seqs=seats,
        max_num_batched_tokens=max(seats, 1024 if scheduler in SCHEDULERS[1::2] else int(rng.choice([32, 100, 512]))),
        kv_blocks=-(-most // BLOCK) + int(rng.choice([0, 2, 10, 1000])),
        block_tokens=BLOCK,
        prefix_caching=bool(rng.random() < 0.8),
    )
    site = resolve(deployment)
    if rng.random() < 0.3:
        site = replace(site, engine=replace(site.engine, scheduling_lag_steps=float(rng.choice([0.0, 1.0, 1.6]))))
    pauses = {"limit": int(rng.choice([0, 1, 3])), "backoff_s": float(rng.choice([0.0, 0.05, 0.1]))}
    fleet = Fleet((Pool(deployment),), router=str(rng.choice(ROUTERS)), retries=Retries(**pauses, factor=2.0))
    options = {
        "outages": draw_outages(rng, replicas),
        "stretch": float(rng.choice([1.0, 1.3])),
        "record_steps": True,
    }
    slo = str(rng.choice(["ttft_p90=300ms", "e2e_mean=2s", "tpot_mean=15ms"])) if rng.random() < 0.25 else None
    return workload, fleet, site, options, slo, int(rng.integers(1000))


def built(cluster, run):
    workload, fleet, site, options, slo, seed = run
    replicas = site.deployment.replicas
    router = make_router(fleet.router, replicas, np.random.default_rng(seed), block_tokens=BLOCK)
    watch = Watch(parse_slo(slo), workload.output_tokens) if slo else None
    if cluster is CompiledFleet:
        assert reason_against_fleet(workload, fleet, [site], router) is None
    return cluster(workload, fleet, [site], router, watch=watch, **options)


def logs(run):
    """Both logs of both paths."""
    readable = built(FleetCluster, run)
    return (readable.run(), readable.fleet_log), built(CompiledFleet, run).play()


def assert_same(one, other):
    for kind, ours, theirs in zip((Log, FleetLog), one, other):
        for field in fields(kind):
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name


@pytest.mark.parametrize("block", range(10))
def test_every_event_of_random_fleets_that_fail_is_the_same(block):
    for seed in range(20 * block, 20 * block + 20):
        try:
            assert_same(*logs(draw_run(seed)))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from None


def nothing_up(fleet_log, when_ns):
    """Whether every replica was down at that time."""
    last = {replica: state for when, replica, state in fleet_log.turned if when <= when_ns}
    return bool(last) and set(last.values()) == {"down"}


def test_outages_retries_and_lost_prefix_caches_happen_in_the_random_runs():
    """Else their equality would say nothing."""
    seen = dict.fromkeys(("lost steps", "retries", "failed", "preempted", "cached", "computed again", "waited", "gave up"), 0)
    for seed in range(60):
        run = draw_run(seed)
        (log, fleet_log), _ = logs(run)
        steady = built(CompiledFleet, (*run[:3], run[3] | {"outages": []}, *run[4:])).run()
        seen["lost steps"] += sum(log.busy_ns) > sum(log.steps.duration_ns)
        seen["retries"] += sum(fleet_log.retries)
        seen["failed"] += sum("failed" in why for why in log.refused.values())
        seen["preempted"] += sum(log.preemptions)
        seen["cached"] += sum(log.cached_tokens)
        seen["computed again"] += sum(log.steps.prefill_tokens) > sum(steady.steps.prefill_tokens)
        seen["gave up"] += log.gave_up
        seen["waited"] += sum(nothing_up(fleet_log, sent) for sent in log.sent_ns)
    assert min(seen.values()) >= 3, seen


def test_a_lost_prefix_cache_costs_what_it_had_saved():
    """The same prompt twice: the second finds it cached, unless its replica failed in between."""
    block = np.arange(1, 21)
    workload = Workload([0, 2000 * MS], [320, 330], [4, 4], (block, block), BLOCK)
    deployment = Deployment("meta-llama/Llama-3.1-8B", "h100", prefix_caching=True, block_tokens=BLOCK)
    fleet = Fleet((Pool(deployment),), router="prefix_affinity")
    for outages, cached in (([], [0, 320]), ([Outage(0, 500 * MS, 600 * MS)], [0, 0])):
        one, other = logs((workload, fleet, resolve(deployment), {"outages": outages, "record_steps": True}, None, 0))
        assert_same(one, other)
        assert one[0].cached_tokens == cached


def one_with_everything():
    for seed in range(60):
        run = draw_run(seed)
        found = logs(run)
        if sum(found[0][1].retries) and found[0][0].finished_ns[-1] != NEVER and found[0][0].steps.start_ns:
            return run, found
    raise AssertionError("no run with a retry")


@pytest.mark.parametrize("name", ["first_token_ns", "finished_ns", "busy_ns", "cached_tokens", "retries", "busy_j", "end_ns"])
def test_one_unit_more_anywhere_is_seen(name):
    """The comparison itself can fail: a single number that is off by one, or by one part in a million."""
    _, (one, other) = one_with_everything()
    assert_same(one, other)
    log = other[0] if hasattr(other[0], name) else other[1]
    if name == "end_ns":
        log.end_ns += 1
    elif name == "busy_j":
        log.busy_j[0] *= 1 + 1e-6
    else:
        getattr(log, name)[-1] += 1
    with pytest.raises(AssertionError, match=name):
        assert_same(one, other)


def test_an_outage_one_nanosecond_later_is_seen():
    (workload, fleet, site, options, slo, seed), (one, _) = one_with_everything()
    later = [outage._replace(down_ns=outage.down_ns + 1, up_ns=outage.up_ns + 1) for outage in options["outages"]]
    moved = built(CompiledFleet, (workload, fleet, site, options | {"outages": later}, slo, seed))
    moved.outages = options["outages"]
    with pytest.raises(AssertionError):
        assert_same(one, moved.play())


def test_a_repaired_replica_sees_what_arrives_at_that_instant():
    """It begins to serve when everything of the instant is there: one step computes what waited and what just came."""
    workload = Workload([10 * MS, 50 * MS], [20, 30], [2, 2])
    deployment = Deployment("meta-llama/Llama-3.1-8B", "h100")
    site = resolve(deployment)
    site = replace(site, engine=replace(site.engine, host_request_s=0.0, scheduling_lag_steps=0.0))
    options = {"outages": [Outage(0, 0, 50 * MS)], "record_steps": True}
    one, other = logs((workload, Fleet((Pool(deployment),), router="round_robin"), site, options, None, 0))
    assert_same(one, other)
    assert (one[0].steps.start_ns[0], one[0].steps.prefill_tokens[0]) == (50 * MS, 50)


def failing(**changes):
    deployment = Deployment("meta-llama/Llama-3.1-8B", "h100", replicas=4)
    faults = Failures(gpu=Fault(20, 2), node=Fault(60, 5))
    return Fleet((Pool(deployment),), router="kv_aware", failures=faults, **changes)


def some_requests(count=400):
    rng = np.random.default_rng(4)
    return Workload(np.sort(rng.integers(0, 60 * 10**9, count)), rng.integers(1, 900, count), rng.integers(1, 200, count))


def test_simulate_fleet_takes_the_path_it_was_asked_for_and_says_which():
    workload, fleet = some_requests(), failing()
    runs = {path: simulate_fleet(fleet, workload, path=path, seed=3) for path in ("simpy", "compiled", "auto")}
    assert {path: run.path for path, run in runs.items()} == {"simpy": "simpy", "compiled": "compiled", "auto": "compiled"}
    assert runs["simpy"].path_reason == "chosen"
    assert_same((runs["simpy"].log, runs["simpy"].fleet_log), (runs["compiled"].log, runs["compiled"].fleet_log))
    assert runs["simpy"].metrics() == runs["compiled"].metrics()
    assert runs["compiled"].metrics()["retries"] > 0
    assert (runs["simpy"].bound_by, runs["simpy"].breakdown) == (runs["compiled"].bound_by, runs["compiled"].breakdown)


def with_session(workload):
    return replace(workload, session=np.arange(len(workload)), gap_ns=np.zeros(len(workload), dtype=np.int64))


PLAIN = failing().pools[0]


@pytest.mark.parametrize(
    ("fleet", "said"),
    [
        (failing(staleness_s=0.1), "late"),
        (failing(prefix_pool=PrefixPool()), "store of prefixes"),
        (replace(failing(), pools=(PLAIN, PLAIN)), "several pools"),
        (replace(failing(), pools=(replace(PLAIN, scaling=Scaling()),)), "scaling"),
        (disaggregate(PLAIN.deployment, 1, 1), "several pools"),
        (replace(failing(), pools=(replace(PLAIN, deployment=replace(PLAIN.deployment, scheduler="orca")),)), "Orca"),
    ],
)
def test_what_is_not_known_is_left_to_the_readable_path(fleet, said):
    with pytest.raises(InputError, match=said):
        simulate_fleet(fleet, some_requests(4), path="compiled")
    run = simulate_fleet(fleet, some_requests(4), path="auto")
    assert run.path == "simpy"


def test_sessions_and_states_are_left_to_the_readable_path():
    with pytest.raises(InputError, match="sessions"):
        simulate_fleet(failing(), with_session(some_requests(4)), path="compiled")
    with pytest.raises(InputError, match="states"):
        simulate_fleet(failing(), some_requests(4), path="compiled", record="states")


def test_a_fleet_with_more_than_is_known_is_left_to_the_readable_path():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Larger(Fleet):
        more: int = 0

    fleet = Larger(failing().pools)
    router = make_router("random", 4, np.random.default_rng(0))
    assert "more" in reason_against_fleet(some_requests(4), fleet, [resolve(PLAIN.deployment)], router)
    assert isinstance(resolve(PLAIN.deployment).cost, StepCost)
