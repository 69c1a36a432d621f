"""Laws of the simulated cluster, with step times of the test's own: queueing theory, conservation, order of ties."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.reference.serving._request import Batch
from llmlab.reference.serving.chunked_prefill import ChunkedPrefill
from llmlab.reference.serving.continuous_batching import ContinuousBatching
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.prefix_cache import PrefixCache
from llmlab.reference.serving.router import make_router
from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.serving.cluster import NEVER, Cluster, Log, Sample
from llmlab.simulator.serving.metrics import request_table
from llmlab.simulator.workload import synthetic
from llmlab.simulator.workload.workload import Workload

MS = 1_000_000


def affine(shape: BatchShape) -> int:
    """A made-up engine: 5 ms, 10 us per new token, 10 ns per token attended to."""
    context = shape.decode_context_tokens + sum(new * (old + new) for new, old in shape.prefill)
    return 5 * MS + 10_000 * shape.new_tokens + 10 * context


def run(
    workload, step_ns=affine, *, replicas=1, blocks=4000, seqs=32, batched=512, cache=False, kind=ChunkedPrefill, **options
):
    def scheduler():
        pool = KVBlocks(blocks, 16)
        prefix_cache = PrefixCache(pool) if cache else None
        return kind(pool, max_num_seqs=seqs, max_num_batched_tokens=batched, prefix_cache=prefix_cache)

    router = make_router(options.pop("policy", "round_robin"), replicas, np.random.default_rng(options.pop("seed", 0)))
    return Cluster(workload, [scheduler() for _ in range(replicas)], step_ns, router, **options).run()


def random_workload(seed, count=200, rate=20.0):
    rng = np.random.default_rng(seed)
    return Workload(
        synthetic.poisson(count, rate, rng), synthetic.lognormal(count, 200, 1, rng, high=3000), rng.integers(1, 60, count)
    )


def test_steps_soon_after_an_idle_pause_take_longer_and_later_ones_do_not():
    """Steps of 5 ms: those that start within 12 ms of waking take twice as long."""
    workload = Workload([7 * MS], [1], [6])
    durations = run(workload, lambda shape: 5 * MS, after_idle=2.0, settle_ns=12 * MS, record_steps=True).steps.duration_ns
    assert list(durations) == [10 * MS, 10 * MS, 5 * MS, 5 * MS, 5 * MS, 5 * MS]


def test_a_single_request_takes_the_sum_of_its_steps():
    """Chunks of 512 of a prompt of 1200 tokens, then one token at a time over a growing context."""
    log = run(Workload([7 * MS], [1200], [5]))
    chunks = [affine(BatchShape(((512, 0),), 0, 0, 0)), affine(BatchShape(((512, 512),), 0, 0, 0))]
    chunks.append(affine(BatchShape(((176, 1024),), 0, 0, 1)))
    decodes = [affine(BatchShape((), 1, 1200 + i, 1)) for i in range(1, 5)]
    assert log.scheduled_ns == [7 * MS]
    assert log.first_token_ns == [7 * MS + sum(chunks)]
    assert log.finished_ns == [7 * MS + sum(chunks) + sum(decodes)]
    assert log.num_steps == 7
    assert log.gaps_ns == {gap: decodes.count(gap) for gap in decodes}


def test_frontend_and_reply_delay_only_what_the_client_sees():
    bare, late = run(Workload([0], [10], [4])), run(Workload([0], [10], [4]), frontend_ns=3 * MS, reply_ns=2 * MS)
    assert late.scheduled_ns[0] - bare.scheduled_ns[0] == 3 * MS
    assert late.first_token_ns[0] - bare.first_token_ns[0] == 5 * MS
    assert late.finished_ns[0] - bare.finished_ns[0] == 5 * MS
    assert late.gaps_ns == bare.gaps_ns


def test_one_server_with_fixed_service_waits_as_m_d_1():
    """Mean wait of M/D/1 is rho D / (2 (1 - rho)) (Pollaczek-Khinchine)."""
    service_ns, rho, count = 10 * MS, 0.7, 40_000
    arrivals = synthetic.poisson(count, rho / 0.01, np.random.default_rng(3))
    log = run(Workload(arrivals, np.ones(count), np.ones(count)), lambda shape: service_ns, seqs=1, batched=1)
    wait_s = request_table(Workload(arrivals, np.ones(count), np.ones(count)), log)["queue_s"]
    expected_s = rho * 0.01 / (2 * (1 - rho))
    batches = wait_s.reshape(40, -1).mean(axis=1)  # means of batches are nearly independent
    assert abs(wait_s.mean() - expected_s) < 4 * batches.std() / np.sqrt(40)
    assert batches.std() / np.sqrt(40) < 0.1 * expected_s


@pytest.mark.parametrize("kind", [ChunkedPrefill, ContinuousBatching])
def test_littles_law_holds_exactly(kind):
    """The integral over time of the number in the system is the sum of times in the system."""
    workload = random_workload(1, rate=60)
    log = run(workload, kind=kind, batched=4096)
    sent, ended = np.array(log.sent_ns), np.array(log.finished_ns)
    moments = np.concatenate((sent, ended))
    change = np.concatenate((np.ones(len(sent)), -np.ones(len(ended))))
    order = np.argsort(moments, kind="stable")
    inside = np.cumsum(change[order])[:-1]
    assert int((inside * np.diff(moments[order])).sum()) == int((ended - sent).sum())


@given(
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.sampled_from(["round_robin", "random", "power_of_two", "least_outstanding", "prefix_affinity"]),
    st.booleans(),
    st.sampled_from([0, 0.4, 1, 2.5]),
    st.sampled_from([ChunkedPrefill, ContinuousBatching]),
)
def test_every_request_and_every_token_is_accounted_for(seed, replicas, policy, scarce, lag_steps, kind):
    workload = random_workload(seed, count=60, rate=80)
    log = run(
        workload,
        replicas=replicas,
        policy=policy,
        blocks=60 if scarce else 4000,
        batched=512 if kind is ChunkedPrefill else 2048,
        cache=True,
        kind=kind,
        lag_steps=lag_steps,
        record_steps=True,
    )
    finished = {i for i, when in enumerate(log.finished_ns) if when != NEVER}
    assert finished | set(log.refused) == set(range(60))
    assert not finished & set(log.refused)
    served = sorted(finished)
    assert sum(log.gaps_ns.values()) == int((workload.output_tokens[served] - 1).sum())
    for i in served:
        assert log.sent_ns[i] == workload.arrival_ns[i] <= log.scheduled_ns[i] < log.first_token_ns[i] <= log.finished_ns[i]
    total_gap = sum(gap * times for gap, times in log.gaps_ns.items())
    assert total_gap == sum(log.finished_ns[i] - log.first_token_ns[i] for i in served)
    computed = np.array(log.steps.prefill_tokens).sum() + np.array(log.steps.decode_requests).sum()
    needed = (workload.prompt_tokens + workload.output_tokens - 1)[served].sum()
    preempted = sum(log.preemptions)
    assert computed == needed if not preempted else computed > needed
    assert sum(log.steps.preempted) == preempted
    for replica in range(replicas):
        own = np.array(log.steps.replica) == replica
        start, duration = np.array(log.steps.start_ns)[own], np.array(log.steps.duration_ns)[own]
        assert (start[1:] >= start[:-1] + duration[:-1]).all()
        assert duration.sum() == log.busy_ns[replica]
    assert log.num_steps == len(log.steps.replica)


@given(st.integers(0, 10**6))
def test_steps_of_half_the_length_halve_a_burst_exactly(seed):
    """Without arrivals to wait for, decisions do not depend on time."""
    workload = replace(random_workload(seed, count=40), arrival_ns=np.zeros(40))
    slow, fast = run(workload, lambda shape: 2 * affine(shape)), run(workload, affine)
    assert [2 * when for when in fast.finished_ns] == slow.finished_ns


@given(st.integers(0, 10**6), st.sampled_from([1, 8]))
def test_doubling_the_speed_never_slows_the_last_finish(seed, seqs):
    workload = random_workload(seed, count=60, rate=30)
    slow = run(workload, lambda shape: 2 * affine(shape), seqs=seqs)
    fast = run(workload, affine, seqs=seqs)
    assert max(fast.finished_ns) <= max(slow.finished_ns)
    mean = [np.subtract(log.finished_ns, log.sent_ns).mean() for log in (fast, slow)]
    assert mean[0] <= mean[1]


def test_arrival_at_the_end_of_a_step_joins_the_next_one():
    step = lambda shape: 10 * MS  # noqa: E731
    log = run(Workload([0, 20 * MS], [4, 4], [5, 1]), step)
    assert log.scheduled_ns == [0, 20 * MS]
    assert log.finished_ns == [50 * MS, 30 * MS]


def test_all_that_arrives_at_one_instant_starts_together():
    log = run(Workload([5, 5, 5], [4, 4, 4], [1, 1, 1]), lambda shape: 10 * MS)
    assert log.finished_ns == [5 + 10 * MS] * 3
    assert log.num_steps == 1


@pytest.mark.parametrize("lag_steps", [0, 1, 3])
def test_working_ahead_delays_what_arrives_during_a_step(lag_steps):
    log = run(Workload([0, 15 * MS], [4, 4], [20, 2]), lambda shape: 10 * MS, lag_steps=lag_steps)
    assert log.scheduled_ns[1] == (2 + lag_steps) * 10 * MS


@pytest.mark.parametrize(("arrives_ms", "joins"), [(12, 2), (16, 2), (18, 3)])
def test_a_fraction_of_a_step_ahead_is_missed_only_near_its_end(arrives_ms, joins):
    """With 0.3 steps ahead, a step of 10 ms is chosen 3 ms before the one before it ends."""
    log = run(Workload([0, arrives_ms * MS], [4, 4], [20, 2]), lambda shape: 10 * MS, lag_steps=0.3)
    assert log.scheduled_ns[1] == joins * 10 * MS


def test_work_ahead_ends_when_the_replica_runs_dry():
    log = run(Workload([0, MS, 2 * MS], [4, 4, 4], [1, 1, 1]), lambda shape: 10 * MS, lag_steps=3)
    assert log.scheduled_ns == [0, 10 * MS, 10 * MS]


def test_a_closed_loop_keeps_its_clients_busy():
    workload = replace(random_workload(2, count=50), arrival_ns=np.zeros(50), clients=4, think_ns=3 * MS)
    log = run(workload)
    events = sorted([(when, 1) for when in log.sent_ns] + [(when + 3 * MS, 0) for when in log.finished_ns])
    assert max(np.cumsum([1 if sent else -1 for _, sent in events])) == 4
    for i in range(4, 50):
        assert any(log.sent_ns[i] == log.finished_ns[j] + 3 * MS for j in range(i))


def test_a_static_batch_advances_in_lockstep():
    log = run(Workload(np.zeros(8), np.full(8, 32), np.full(8, 10)), lambda shape: 10 * MS)
    assert log.finished_ns == [100 * MS] * 8
    assert log.num_steps == 10
    assert log.gaps_ns == {10 * MS: 72}


def test_a_repeated_prompt_is_computed_once():
    hashes = synthetic.cyclic_prompts(np.full(6, 100), distinct=2, groups=1, prefix_tokens=0, block_tokens=16)
    workload = Workload(np.arange(6) * 10**9, np.full(6, 100), np.full(6, 2), hashes)
    log = run(workload, cache=True)
    assert log.cached_tokens == [0, 0, 96, 96, 96, 96]
    assert run(workload, cache=False).cached_tokens == [0] * 6


def test_what_can_never_fit_is_refused_and_said():
    log = run(Workload([0, 0, 0], [10_000, 10, 900], [1, 1, 200]), blocks=100, longest_tokens=1000)
    assert sorted(log.refused) == [0, 2]
    assert "10001 tokens pass the context" in log.refused[0]
    assert log.finished_ns[1] != NEVER
    log = run(Workload([0], [1601], [1]), blocks=100)
    assert "101 blocks" in log.refused[0]


def test_event_counts_do_not_drift():
    log = run(random_workload(0), replicas=3, policy="power_of_two", seed=5, blocks=80)
    assert (log.num_steps, sum(log.preemptions), len(log.gaps_ns), len(log.refused)) == (4635, 8, 1375, 2)


PROGRAM = """
import json, sys
sys.path.insert(0, {folder!r})
from test_cluster import random_workload, run
log = run(random_workload(4), replicas=4, policy='power_of_two', seed=9, blocks=120, cache=True)
print(json.dumps([log.finished_ns, log.replica, log.preemptions]))
"""


def test_same_bytes_in_every_process_whatever_the_hash_seed(monkeypatch):
    from pathlib import Path

    outputs = set()
    for hash_seed in ("0", "1234"):
        monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
        code = PROGRAM.format(folder=str(Path(__file__).parent))
        outputs.add(
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout
        )
    assert len(outputs) == 1
    assert len(json.loads(outputs.pop())[0]) == 200


def test_the_sample_of_steps_is_even_and_bounded():
    sample = Sample()
    for number in range(10_000):
        sample.put(number, BatchShape((), 1, number, 1), 1)
    numbers = [shape.decode_context_tokens for shape, _ in sample.shapes]
    assert len(numbers) <= 256
    assert set(np.diff(numbers)) == {sample.stride}
    assert numbers[0] == 0
    assert numbers[-1] > 10_000 - 2 * sample.stride


def test_a_stuck_scheduler_is_reported():
    class Stuck(ChunkedPrefill):
        def schedule(self):
            return Batch()

    with pytest.raises(RuntimeError, match="1 requests wait and none can run"):
        run(Workload([0], [4], [2]), kind=Stuck)


def test_nothing_has_happened_in_an_empty_log():
    assert Log.empty(2, 1, record_steps=False).finished_ns == [NEVER, NEVER]
