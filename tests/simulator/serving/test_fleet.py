"""Laws of fleets: nothing lost or counted twice whatever fails, scales or moves; else the plain cluster bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.reference.errors import InputError
from llmlab.simulator.cost.extras import Features
from llmlab.simulator.serving import simulate_fleet as module
from llmlab.simulator.serving.cluster import NEVER
from llmlab.simulator.serving.deployment import Deployment
from llmlab.simulator.serving.failures import Failures, Fault, Outage, Retries
from llmlab.simulator.serving.fleet import STORE, FleetCluster
from llmlab.simulator.serving.network import Network, Transfer
from llmlab.simulator.serving.pools import BOOKKEEPING, PADDED, Fleet, Pool, PrefixPool, Scaling, disaggregate
from llmlab.simulator.serving.schedulers import SCHEDULERS
from llmlab.simulator.serving.simulate import simulate
from llmlab.simulator.serving.simulate_fleet import simulate_fleet
from llmlab.simulator.workload import synthetic
from llmlab.simulator.workload.sessions import conversations
from llmlab.simulator.workload.workload import Workload

EIGHT_B = Deployment("meta-llama/Llama-3.1-8B", "h100", max_num_seqs=16, max_num_batched_tokens=512)
SECOND = 10**9


def random_workload(seed, count=50, rate=40.0, shared=True):
    rng = np.random.default_rng(seed)
    prompts = synthetic.lognormal(count, 300, 1, rng, high=2000)
    hashes = synthetic.shared_prompts(prompts, 4, 160, 16) if shared else ()
    return Workload(synthetic.poisson(count, rate, rng), prompts, rng.integers(1, 60, count), hashes)


def chats(seed, sessions=12, rate=10.0):
    rng = np.random.default_rng(seed)
    turns = rng.integers(1, 6, sessions)
    count = int(turns.sum())
    return conversations(
        synthetic.poisson(sessions, rate, rng),
        turns,
        rng.integers(20, 300, count),
        rng.integers(1, 60, count),
        rng.exponential(0.3, count),
        system_tokens=100,
        system_groups=2,
    )


@pytest.fixture
def played(monkeypatch):
    """Runs, together with the cluster that played them."""
    kept = []

    class Kept(FleetCluster):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            kept.append(self)

    monkeypatch.setattr(module, "FleetCluster", Kept)

    def play(*arguments, **options):
        result = simulate_fleet(*arguments, **options)
        return result, kept.pop()

    return play


def assert_conserved(result, cluster):
    """Every request finished or failed, once; no block, seat, count or transfer left behind; clocks go forward."""
    log, extra, workload = result.log, result.fleet_log, result.workload
    finished = {i for i, when in enumerate(log.finished_ns) if when != NEVER}
    assert finished | set(log.refused) == set(range(len(workload)))
    assert not finished & set(log.refused)
    for i in finished:
        assert workload.arrival_ns[i] * (not workload.clients) <= log.sent_ns[i] <= log.scheduled_ns[i]
        assert log.scheduled_ns[i] < log.first_token_ns[i] <= log.finished_ns[i] <= extra.end_ns
    tokens = int((workload.output_tokens[sorted(finished)] - 1).sum())
    assert sum(log.gaps_ns.values()) >= tokens
    if not log.refused:
        assert sum(log.gaps_ns.values()) == tokens
    assert not cluster.flights
    assert not cluster.gateway
    assert cluster.router.outstanding == [0] * cluster.num_workers
    if cluster.pools is not None:
        assert not cluster.pools.held
        assert not cluster.pools.at
        assert cluster.pools.queued_tokens == [0] * len(cluster.takes)
    for worker in cluster.workers:
        assert not worker.scheduler.running
        assert not worker.scheduler.waiting
        assert not getattr(worker.scheduler, "kept", ())
        assert worker.blocks.free_blocks == worker.blocks.num_blocks
        up_s = extra.seconds_in(worker.number, ("up", "draining"))
        assert log.busy_ns[worker.number] / 1e9 <= up_s + 1e-9
    times = [when for when, _, _ in extra.turned]
    assert times == sorted(times)
    for port in ("source", "target"):
        for number in range(cluster.num_workers):
            own = [(m.start_ns, m.end_ns) for m in extra.moves if getattr(m, port) == number and m.source != STORE]
            assert all(one[1] <= two[0] for one, two in zip(sorted(own), sorted(own)[1:]))
    if log.steps is not None:
        for number in range(cluster.num_workers):
            own = np.array(log.steps.replica) == number
            start, length = np.array(log.steps.start_ns)[own], np.array(log.steps.duration_ns)[own]
            assert (start[1:] >= start[:-1] + length[:-1]).all()


@given(
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.sampled_from(["round_robin", "random", "power_of_two", "least_outstanding", "prefix_affinity", "kv_aware"]),
    st.sampled_from([None, 70]),
    st.sampled_from([0, 5]),
)
@settings(max_examples=25)
def test_a_fleet_of_equal_replicas_is_the_plain_cluster_bit_for_bit(seed, replicas, router, kv_blocks, clients):
    workload = random_workload(seed)
    if clients:
        workload = workload.with_clients(clients, 0.01)
    deployment = replace(EIGHT_B, replicas=replicas, router=router, kv_blocks=kv_blocks)
    plain = simulate(deployment, workload, seed=seed, record="steps")
    fleet = simulate_fleet(deployment, workload, seed=seed, record="steps")
    for name in (
        "finished_ns",
        "first_token_ns",
        "scheduled_ns",
        "sent_ns",
        "replica",
        "gaps_ns",
        "refused",
        "busy_ns",
        "steps",
    ):
        assert getattr(fleet.log, name) == getattr(plain.log, name), name
    assert fleet.log.cached_tokens == plain.log.cached_tokens
    assert fleet.metrics()["ttft_s"] == plain.metrics()["ttft_s"]


def fleets(draw):
    """Any fleet: plain or disaggregated, failing or not, scaling or not, with scarce blocks or plenty."""
    kv_blocks = draw(st.sampled_from([None, 200]))
    failing = draw(st.booleans())
    scaling = draw(st.sampled_from([None, "reactive", "predictive"]))
    options = {
        "failures": Failures(gpu=Fault(1.5, 0.3), node=Fault(4.0, 0.2), horizon_s=60) if failing else None,
        "retries": Retries(draw(st.sampled_from([0, 2, 50])), draw(st.sampled_from([0.0, 0.05]))),
        "staleness_s": draw(st.sampled_from([0.0, 0.2])),
        "prefix_pool": PrefixPool(least_tokens=32) if draw(st.booleans()) else None,
        "transfer": Transfer(
            bytes_per_s=draw(st.sampled_from([2e8, 5e10])),
            layerwise=draw(st.booleans()),
            first_token=draw(st.sampled_from(["prefill", "decode"])),
        ),
    }
    base = replace(EIGHT_B, kv_blocks=kv_blocks, replicas=3)
    grows = None
    if scaling:
        grows = Scaling(
            scaling,
            least=draw(st.integers(0, 1)),
            interval_s=0.1,
            target=4,
            rate_per_replica=15,
            patience=2,
            warm=draw(st.integers(0, 1)),
            warm_start_s=0.05,
            load_bytes_per_s=1e12,
            engine_start_s=0.2,
        )
    kind = draw(st.sampled_from(["plain", "uneven", "disaggregated"]))
    if kind == "plain":
        return Fleet((Pool(base, scaling=grows),), router=draw(st.sampled_from([None, "kv_aware", "random"])), **options)
    if kind == "uneven":
        other = replace(base, device="l40s", replicas=1, kv_blocks=150)
        return Fleet(
            (Pool(base, scaling=grows), Pool(other)), router=draw(st.sampled_from(["power_of_two", "round_robin"])), **options
        )
    return Fleet(
        (Pool(replace(base, replicas=2), "prefill"), Pool(replace(base, tensor_parallel=2), "decode", grows)),
        router=draw(st.sampled_from([None, "kv_aware", "least_outstanding"])),
        **options,
    )


@given(st.data(), st.integers(0, 10**6), st.sampled_from(["open", "closed", "chats", "closed chats"]))
@settings(max_examples=50)
def test_nothing_is_lost_or_counted_twice(data, seed, load):
    fleet = fleets(data.draw)
    workload = chats(seed) if "chats" in load else random_workload(seed)
    if "closed" in load:
        workload = workload.with_clients(4, 0.01)
    kept = []

    class Kept(FleetCluster):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            kept.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FleetCluster", Kept)
        result = simulate_fleet(fleet, workload, seed=seed, record="steps")
        again = simulate_fleet(fleet, workload, seed=seed, record="steps")
    assert_conserved(result, kept[0])
    assert again.log == result.log
    assert again.fleet_log == result.fleet_log
    assert again.metrics() == result.metrics()


SHARING = [name for name in SCHEDULERS if name not in PADDED + BOOKKEEPING]
NEEDED = {
    "swapping": Features(swap_bytes=1e9),
    "multi_lora": Features(max_loras=2),
    "speculative": Features(drafter="ngram", num_drafts=3),
}


@pytest.mark.parametrize("scheduler", SHARING)
def test_every_scheduler_shares_its_requests_with_other_workers(played, scheduler):
    """Disaggregated, failing, short of blocks: with each scheduler the laws hold."""
    engine = replace(
        EIGHT_B,
        scheduler=scheduler,
        features=NEEDED.get(scheduler, Features()),
        kv_blocks=300,
        max_num_batched_tokens=4096,
    )
    fleet = replace(disaggregate(engine, 2, 2), failures=Failures(gpu=Fault(1.0, 0.2), horizon_s=60), retries=Retries(50, 0.01))
    result, cluster = played(fleet, random_workload(1), record="steps")
    assert_conserved(result, cluster)
    assert result.metrics()["finished"] == 50
    assert result.metrics()["outages"] > 0


def test_the_law_of_conservation_notices_a_lost_block(played):
    result, cluster = played(disaggregate(EIGHT_B, 1, 1), random_workload(1))
    assert_conserved(result, cluster)
    cluster.workers[0].blocks.allocate(1)
    with pytest.raises(AssertionError):
        assert_conserved(result, cluster)


def given_outages(monkeypatch, outages):
    monkeypatch.setattr(module, "draw_outages", lambda *_, **__: (sorted(outages, key=lambda o: o.down_ns), {}))


def test_what_a_failed_replica_held_goes_on_elsewhere_with_its_tokens(monkeypatch):
    """One long answer, its replica out halfway: no token is made twice, one gap holds the retry."""
    given_outages(monkeypatch, [Outage(0, SECOND, 100 * SECOND)])
    fleet = Fleet((Pool(replace(EIGHT_B, replicas=2)),), failures=Failures(), retries=Retries(1, 0.5))
    whole = simulate_fleet(replace(fleet, failures=None), Workload([0], [400], [300]))
    result = simulate_fleet(fleet, Workload([0], [400], [300]))
    log, plain = result.log, whole.log
    assert log.first_token_ns == plain.first_token_ns
    assert sum(log.gaps_ns.values()) == 299
    assert max(log.gaps_ns) > SECOND // 2
    assert log.replica == [1]
    assert result.fleet_log.retries == [1]
    assert 0.5 < (log.finished_ns[0] - plain.finished_ns[0]) / SECOND < 0.6  # the pause, a lost step and one longer prefill


def test_time_to_first_token_counts_from_the_first_sending(monkeypatch):
    given_outages(monkeypatch, [Outage(0, 10**6, 2 * SECOND), Outage(0, 2 * SECOND + 10**6, 3 * SECOND)])
    fleet = Fleet((Pool(EIGHT_B),), failures=Failures(), retries=Retries(5, 0.0))
    result = simulate_fleet(fleet, Workload([0], [400], [2]))
    assert result.requests["ttft_s"][0] > 3
    assert result.requests["retries"][0] <= 2


def test_a_request_that_failed_too_often_fails_for_good(monkeypatch):
    given_outages(monkeypatch, [Outage(0, second * SECOND + 5 * 10**7, (second + 1) * SECOND) for second in range(4)])
    fleet = Fleet((Pool(EIGHT_B),), failures=Failures(), retries=Retries(2, 0.0))
    result = simulate_fleet(fleet, Workload([0], [400], [300]))
    assert result.log.refused == {0: "request 0: its replica failed 3 times"}
    assert result.metrics()["failed"] == 1


def test_an_outage_at_the_end_of_a_step_loses_the_step(monkeypatch):
    alone = simulate_fleet(Fleet((Pool(EIGHT_B),)), Workload([0], [400], [3]), record="steps")
    steps = alone.log.steps
    end_ns = steps.start_ns[0] + steps.duration_ns[0]
    given_outages(monkeypatch, [Outage(0, end_ns, SECOND)])
    fleet = Fleet((Pool(EIGHT_B),), failures=Failures(), retries=Retries(2, 0.0))
    result = simulate_fleet(fleet, Workload([0], [400], [3]), record="steps")
    assert len(result.log.steps.start_ns) == len(steps.start_ns)
    assert result.log.steps.start_ns[0] == SECOND
    assert sum(result.log.busy_ns) == sum(alone.log.busy_ns) + steps.duration_ns[0]


def test_availability_is_mtbf_of_mtbf_and_mttr():
    """Over many short cycles the time up approaches MTBF / (MTBF + MTTR)."""
    fault = Fault(2.0, 0.5)
    fleet = Fleet(
        (Pool(replace(EIGHT_B, replicas=8)),), failures=Failures(network=fault, horizon_s=1000), retries=Retries(99, 0)
    )
    workload = Workload(np.arange(300) * SECOND, np.full(300, 20), np.full(300, 2))
    found = simulate_fleet(fleet, workload, seed=4).metrics()
    cycles = 8 * 300 / 2.5
    assert abs(found["availability"] - 0.8) < 4 * 0.8 * 0.2 * np.sqrt(2 / cycles)
    assert found["finished"] == 300


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=50)
def test_doubling_the_bandwidth_never_ends_a_transfer_later(seed, layerwise):
    rng = np.random.default_rng(seed)
    ends = []
    for bytes_per_s in (1e10, 2e10):
        network = Network(Transfer(bytes_per_s=bytes_per_s, layerwise=layerwise))
        draws, now = np.random.default_rng(rng.bit_generator.seed_seq), 0
        own = []
        for _ in range(40):
            now += int(draws.integers(0, 10**7))
            length = network.left_ns(float(draws.integers(1, 10**9)), layers=32, computed_ns=int(draws.integers(0, 10**8)))
            own.append(network.move(int(draws.integers(3)), 3 + int(draws.integers(2)), now, length)[1])
        ends.append(own)
    assert all(fast <= slow for slow, fast in zip(*ends))


def test_a_faster_network_never_lengthens_the_mean_of_a_disaggregated_run():
    workload = random_workload(3, count=120, rate=15)
    means = []
    for bytes_per_s in (2.5e8, 5e8, 1e9, 1e10, 1e11):
        fleet = disaggregate(EIGHT_B, 2, 1, transfer=Transfer(bytes_per_s=bytes_per_s))
        means.append(simulate_fleet(fleet, workload).metrics()["e2e_s"]["mean"])
    assert means == sorted(means, reverse=True)


def test_a_transfer_takes_its_bytes_over_the_bandwidth():
    fleet = disaggregate(EIGHT_B, 1, 1, transfer=Transfer(bytes_per_s=1e9, latency_s=0.001, efficiency=0.5))
    result = simulate_fleet(fleet, Workload([0], [400], [3]))
    (move,) = result.fleet_log.moves
    size = 400 * result.site.model.kv_bytes_per_token(1, "bfloat16")
    assert move.end_ns - move.start_ns == round((0.001 + size / 5e8) * 1e9)
    assert max(result.log.gaps_ns) > move.end_ns - move.start_ns  # it comes between the first two tokens
    late = simulate_fleet(replace(fleet, transfer=replace(fleet.transfer, first_token="decode")), Workload([0], [400], [3]))
    assert late.log.first_token_ns[0] == result.log.first_token_ns[0] + move.end_ns - move.start_ns
    assert late.log.finished_ns == result.log.finished_ns
    assert max(late.log.gaps_ns) < move.end_ns - move.start_ns


def test_workers_of_several_devices_send_side_by_side():
    """Two devices hold half the heads each: half the bytes per port."""
    transfer = Transfer(bytes_per_s=1e9, latency_s=0.0, efficiency=1.0)
    spans = []
    for degree in (1, 2):
        fleet = disaggregate(EIGHT_B, 1, 1, prefill_tensor_parallel=degree, decode_tensor_parallel=degree, transfer=transfer)
        (move,) = simulate_fleet(fleet, Workload([0], [400], [3])).fleet_log.moves
        spans.append(move.end_ns - move.start_ns)
    assert spans[0] == pytest.approx(2 * spans[1], abs=2)
    uneven = disaggregate(EIGHT_B, 1, 1, decode_tensor_parallel=2, transfer=transfer)
    (move,) = simulate_fleet(uneven, Workload([0], [400], [3])).fleet_log.moves
    assert move.end_ns - move.start_ns == spans[0]


def test_layers_sent_early_leave_less_to_wait_for():
    workload = Workload([0], [2000], [3])
    whole, layered = (
        simulate_fleet(disaggregate(EIGHT_B, 1, 1, transfer=Transfer(bytes_per_s=5e9, layerwise=early)), workload)
        for early in (False, True)
    )
    assert layered.log.first_token_ns == whole.log.first_token_ns
    assert layered.log.finished_ns[0] < whole.log.finished_ns[0]


def test_a_prompt_waits_for_blocks_on_the_decode_worker(played):
    fleet = disaggregate(EIGHT_B, 1, 1, decode=replace(EIGHT_B, kv_blocks=45))
    workload = Workload([0, 0, 0], [400, 400, 400], [100, 100, 100])
    result, cluster = played(fleet, workload)
    assert_conserved(result, cluster)
    assert [move.asked_ns for move in result.fleet_log.moves][1] >= result.log.finished_ns[0]


def test_a_decode_worker_gets_only_what_its_prefix_cache_lacks():
    hashes = synthetic.cyclic_prompts(np.full(2, 400), distinct=1, groups=1, prefix_tokens=0, block_tokens=16)
    workload = Workload([0, 10 * SECOND], [400, 400], [3, 3], hashes)
    result = simulate_fleet(disaggregate(EIGHT_B, 1, 1), workload)
    assert [move.tokens for move in result.fleet_log.moves] == [400, 0]
    assert result.log.cached_tokens == [0, 384]


def test_a_shared_store_spares_the_prefill_of_what_another_worker_computed():
    count = 8
    hashes = synthetic.cyclic_prompts(np.full(count, 2000), distinct=1, groups=1, prefix_tokens=0, block_tokens=16)
    workload = Workload(np.arange(count) * SECOND, np.full(count, 2000), np.full(count, 3), hashes)
    fleet = Fleet((Pool(replace(EIGHT_B, replicas=4)),), router="round_robin")
    alone = simulate_fleet(fleet, workload)
    shared = simulate_fleet(replace(fleet, prefix_pool=PrefixPool(bytes_per_s=5e10)), workload)
    assert alone.log.cached_tokens == [0] * 4 + [1984] * 4
    assert shared.log.cached_tokens == [0] + [1984] * 7
    assert shared.metrics()["prefix_reads"]["count"] == 3
    assert shared.metrics()["ttft_s"]["mean"] < alone.metrics()["ttft_s"]["mean"]


def test_turns_wait_for_the_answer_before_and_find_it_cached():
    workload = chats(5)
    result = simulate(replace(EIGHT_B, router="prefix_affinity", replicas=2), workload)
    log, table = result.log, result.requests
    for i in range(1, len(workload)):
        if workload.session[i] == workload.session[i - 1]:
            assert log.sent_ns[i] == log.finished_ns[i - 1] + workload.gap_ns[i]
            before = workload.prompt_tokens[i - 1] + workload.output_tokens[i - 1]
            assert table["cached_tokens"][i] == (before - 1) // 16 * 16
    sessions = result.metrics()["sessions"]
    assert sessions["finished"] == sessions["count"] == 12
    assert sessions["later_turns_cached_fraction"] > 0.5


def test_a_session_ends_with_a_turn_that_cannot_be_served():
    workload = conversations(
        np.zeros(2, dtype=int), np.array([3, 1]), np.array([50, 5000, 50, 50]), np.full(4, 4), np.zeros(4), block_tokens=16
    )
    result = simulate(replace(EIGHT_B, kv_blocks=100), workload)
    assert set(result.log.refused) == {1, 2}
    assert "session 0 ended at request 1" in result.log.refused[2]
    assert result.metrics()["sessions"]["finished"] == 1


def test_clients_lead_one_session_after_another():
    workload = chats(6).with_clients(2)
    result = simulate(EIGHT_B, workload)
    first = np.flatnonzero(result.requests["turn"] == 0)
    turns = np.diff(np.append(first, len(workload)))
    begin, end = np.array(result.log.sent_ns)[first], np.array(result.log.finished_ns)[first + turns - 1]
    events = sorted([(when, 1) for when in begin] + [(when, -1) for when in end])
    assert max(np.cumsum([change for _, change in events])) <= 2
    assert result.metrics()["finished"] == len(workload)


def scaled(**changes):
    options = {"interval_s": 1.0, "target": 4, "patience": 3, "engine_start_s": 2.0, "load_bytes_per_s": 1e10} | changes
    return Fleet((Pool(replace(EIGHT_B, replicas=5), scaling=Scaling(**options)),))


def test_a_pool_grows_with_its_load_and_shrinks_after_it(played):
    busy, quiet = np.sort(np.random.default_rng(0).integers(0, 20 * SECOND, 800)), np.arange(25, 120, 2) * SECOND
    arrivals = np.concatenate((busy, quiet))
    workload = Workload(arrivals, np.full(len(arrivals), 200), np.full(len(arrivals), 100))
    result, cluster = played(scaled(), workload)
    assert_conserved(result, cluster)
    changes = [state for _, _, state in result.fleet_log.turned]
    assert changes.count("starting") >= 2
    assert changes.count("draining") >= 2
    cold_ns = cluster.cold_start_ns(result.site, result.fleet.pools[0].scaling)
    asked = {number: when for when, number, state in result.fleet_log.turned if state == "starting"}
    ready = {number: when for when, number, state in result.fleet_log.turned if state == "up" and when}
    assert all(ready[number] - asked[number] == cold_ns for number in asked)
    fixed = simulate_fleet(replace(EIGHT_B, replicas=5), workload).metrics()
    assert result.metrics()["gpu_hours"] < 0.5 * fixed["gpu_hours"]
    assert result.metrics()["energy_j"] < fixed["energy_j"]


def test_warm_replicas_answer_sooner_and_cost_more():
    arrivals = np.sort(np.random.default_rng(0).integers(0, 20 * SECOND, 800))
    workload = Workload(arrivals, np.full(800, 300), np.full(800, 200))
    cold, warm = (simulate_fleet(scaled(warm=count, warm_start_s=0.1), workload).metrics() for count in (0, 2))
    assert warm["ttft_s"]["mean"] <= cold["ttft_s"]["mean"]
    assert warm["e2e_s"]["mean"] < cold["e2e_s"]["mean"]
    assert warm["gpu_hours"] > cold["gpu_hours"]


def test_unequal_replicas_get_only_what_they_can_hold():
    small = replace(EIGHT_B, device="l40s", kv_blocks=40)
    fleet = Fleet((Pool(small), Pool(EIGHT_B)), router="round_robin")
    workload = Workload(np.arange(10) * SECOND, [100, 2000] * 5, [10] * 10)
    result = simulate_fleet(fleet, workload)
    assert not result.log.refused
    assert result.log.replica[1::2] == [1] * 5
    assert 0 in result.log.replica[::2]
    alone = simulate_fleet(Fleet((Pool(small), Pool(small)), router="round_robin"), workload)
    assert sorted(alone.log.refused) == [1, 3, 5, 7, 9]


def test_stale_signals_herd_requests():
    workload = Workload(np.arange(60) * 10**6, np.full(60, 500), np.full(60, 50))
    fleet = Fleet((Pool(replace(EIGHT_B, replicas=4)),))
    fresh, stale = (simulate_fleet(replace(fleet, staleness_s=s), workload) for s in (0.0, 0.03))
    assert np.bincount(fresh.log.replica).max() == 15
    assert np.bincount(stale.log.replica[:30], minlength=4).tolist() == [30, 0, 0, 0]
    assert stale.metrics()["ttft_s"]["mean"] > fresh.metrics()["ttft_s"]["mean"]


def test_energy_lies_between_idle_and_the_power_limit():
    workload = random_workload(2)
    result = simulate_fleet(replace(EIGHT_B, replicas=2), workload)
    found, device = result.metrics(), result.site.profile.device
    seconds = result.fleet_log.end_ns / 1e9
    assert 2 * seconds * device.idle_power_w < found["energy_j"] < 2 * seconds * device.power_w
    (pool,) = found["pools"]
    assert pool["prefill_bound_s"] + pool["decode_bound_s"] == pytest.approx(pool["busy_s"])
    assert found["usd_per_request"] * found["finished"] == pytest.approx(found["usd"])
    plain = simulate(replace(EIGHT_B, replicas=2), workload).metrics()
    assert plain["energy_j"] < plain["energy_most_j"]
    assert found["energy_basis"] == plain["energy_basis"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Fleet(()), "pools"),
        (lambda: Fleet((Pool(EIGHT_B, "prefill"),)), "both everywhere, or prefill and decode"),
        (lambda: Fleet((Pool(EIGHT_B), Pool(EIGHT_B, "decode"))), "both everywhere"),
        (lambda: Fleet((Pool(EIGHT_B), Pool(replace(EIGHT_B, block_tokens=32)))), "block_tokens=32"),
        (lambda: Fleet((Pool(EIGHT_B),), router="psychic"), "router='psychic'"),
        (lambda: Fleet((Pool(EIGHT_B),), staleness_s=-1), "staleness_s=-1"),
        (lambda: Pool(EIGHT_B, "cook"), "role='cook'"),
        (lambda: Pool(replace(EIGHT_B, scheduler="static_batching"), "decode"), "scheduler='static_batching'"),
        (lambda: Fleet((Pool(replace(EIGHT_B, scheduler="static_batching")),), failures=Failures()), "not with failures"),
        (lambda: Pool(EIGHT_B, scaling=Scaling(least=2)), "together need more"),
        (lambda: Scaling("clairvoyant"), "policy='clairvoyant'"),
        (lambda: Scaling(alpha=2), "alpha=2"),
        (lambda: Scaling(patience=0), "patience=0"),
        (lambda: Transfer("string"), "unknown; known"),
        (lambda: Transfer(efficiency=0), "efficiency=0"),
        (lambda: Transfer(first_token="gateway"), "first_token='gateway'"),
        (lambda: PrefixPool(bytes_per_s=0), "bytes_per_s=0"),
    ],
)
def test_what_makes_no_fleet_is_named(make, said):
    with pytest.raises(InputError, match=said):
        make()
