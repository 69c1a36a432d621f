"""The simulator against queueing theory: its clock, its queue and its counts obey laws that know nothing of its code.

Service times are made deterministic or exponential by hand-made step costs, so that a replica is one server (at most one
request at a time) and a cluster behind a shared-queue router several.
"""

import math

import numpy as np
import pytest

from llmlab.reference.serving.chunked_prefill import ChunkedPrefill
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.router import make_router
from llmlab.simulator.serving.cluster import Cluster
from llmlab.simulator.serving.deployment import Deployment
from llmlab.simulator.serving.simulate import simulate
from llmlab.simulator.workload import synthetic
from llmlab.simulator.workload.workload import Workload

SERVICE_S = 0.1


def one_at_a_time(workload, step_ns, replicas=1, router="round_robin"):
    schedulers = [ChunkedPrefill(KVBlocks(10_000, 16), max_num_seqs=1, max_num_batched_tokens=100_000) for _ in range(replicas)]
    cluster = Cluster(workload, schedulers, step_ns, make_router(router, replicas, np.random.default_rng(0)))
    return cluster.run()


def single_token(count, rate, seed, prompts=None):
    rng = np.random.default_rng(seed)
    prompts = np.full(count, 8) if prompts is None else prompts
    return Workload(synthetic.poisson(count, rate, rng), prompts, np.ones(count))


def waits_s(log):
    return (np.array(log.scheduled_ns) - np.array(log.sent_ns)) / 1e9


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_a_server_with_fixed_service_waits_as_pollaczek_and_khinchine_say(load):
    """M/D/1: mean wait = rho s / (2 (1 - rho))."""
    means = [
        waits_s(one_at_a_time(single_token(8000, load / SERVICE_S, seed), lambda shape: int(SERVICE_S * 1e9))).mean()
        for seed in range(6)
    ]
    wanted = load * SERVICE_S / (2 * (1 - load))
    assert abs(np.mean(means) - wanted) < 4 * np.std(means, ddof=1) / math.sqrt(len(means)) + 1e-4


def test_a_server_with_exponential_service_waits_as_mm1():
    """M/M/1: mean wait = rho s / (1 - rho); the service time is the prompt's length, drawn exponentially."""
    load, means = 0.6, []
    for seed in range(8):
        rng = np.random.default_rng(100 + seed)
        prompts = np.maximum(1, np.rint(rng.exponential(10_000, 6000))).astype(int)
        workload = single_token(6000, load / SERVICE_S, seed, prompts)
        log = one_at_a_time(workload, lambda shape: round(shape.new_tokens * SERVICE_S * 1e9 / 10_000))
        means.append(waits_s(log).mean())
    wanted = load * SERVICE_S / (1 - load)
    assert abs(np.mean(means) - wanted) < 4 * np.std(means, ddof=1) / math.sqrt(len(means)) + 1e-3


def erlang_c(servers, offered):
    """Probability of waiting in M/M/c (Erlang 1917)."""
    terms = [offered**k / math.factorial(k) for k in range(servers)]
    last = offered**servers / math.factorial(servers) * servers / (servers - offered)
    return last / (sum(terms) + last)


def test_batch_slots_are_servers_of_one_queue():
    """M/M/c: a replica of c slots whose steps all take the same time serves geometric lives from one queue.

    Lives are geometric numbers of short steps, nearly exponential; the wait is that of Erlang's formula.
    """
    servers, load, step_s, mean_steps = 4, 0.7, 0.001, 100
    means = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        count = 6000
        outputs = rng.geometric(1 / mean_steps, count)
        arrivals = synthetic.poisson(count, servers * load / (mean_steps * step_s), rng)
        workload = Workload(arrivals, np.ones(count), outputs)
        scheduler = ChunkedPrefill(KVBlocks(10_000, 16), max_num_seqs=servers, max_num_batched_tokens=4096)
        router = make_router("round_robin", 1, np.random.default_rng(0))
        log = Cluster(workload, [scheduler], lambda shape: int(step_s * 1e9), router).run()
        means.append(waits_s(log).mean())
    offered = servers * load
    wanted = erlang_c(servers, offered) * mean_steps * step_s / (servers - offered)
    wanted += step_s / 2  # a request waits for the end of the step under way
    assert abs(np.mean(means) - wanted) < 4 * np.std(means, ddof=1) / math.sqrt(len(means)) + step_s


def test_littles_law():
    """Mean number in the system = arrival rate x mean time in it, exactly over a run that begins and ends empty."""
    rng = np.random.default_rng(0)
    workload = Workload(
        synthetic.poisson(300, 12.0, rng), synthetic.lognormal(300, 700, 1.0, rng), synthetic.lognormal(300, 100, 1.0, rng)
    )
    result = simulate(Deployment("meta-llama/Llama-3.1-8B", "h100", 1, 2), workload)
    sent, ended = np.array(result.log.sent_ns), np.array(result.log.finished_ns)
    moments = np.concatenate((sent, ended))
    change = np.concatenate((np.ones(300), -np.ones(300)))
    order = np.argsort(moments, kind="stable")
    inside = np.cumsum(change[order])
    span = moments.max() - moments.min()
    area = float(np.sum(inside[:-1] * np.diff(moments[order])))
    assert inside[-1] == 0
    assert area / span == pytest.approx(300 / span * (ended - sent).mean(), rel=1e-12)


def test_twice_the_bandwidth_and_compute_never_slow_a_request():
    from dataclasses import replace

    from llmlab.simulator.hardware.profile import load_device
    from llmlab.simulator.serving.deployment import resolve

    rng = np.random.default_rng(1)
    workload = Workload(
        synthetic.poisson(60, 6.0, rng), synthetic.lognormal(60, 600, 1.0, rng), synthetic.lognormal(60, 60, 1.0, rng)
    )
    slow = load_device("h100")
    faster = replace(slow, device=replace(slow.device, hbm_bytes_per_s=2 * slow.device.hbm_bytes_per_s))
    deployment = Deployment("meta-llama/Llama-3.1-8B", "h100", max_num_seqs=64, kv_blocks=20_000)
    before = simulate(resolve(deployment), workload).requests
    after = simulate(resolve(replace(deployment, device=faster)), workload).requests
    for metric in ("ttft_s", "e2e_s"):
        assert np.nanmean(after[metric]) < np.nanmean(before[metric])
        assert np.nanmax(after[metric] - before[metric]) < 0.05  # batches form anew; no request may lose more than a few steps
