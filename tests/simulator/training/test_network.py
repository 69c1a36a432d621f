"""Laws of links: closed forms where nothing contends, fair shares where it does, routes, bisections and bad files."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.reference.errors import InputError
from llmlab.reference.parallel._traffic import Traffic
from llmlab.reference.parallel.collectives import collective, volume
from llmlab.simulator.model.description import load_model
from llmlab.simulator.training import topology as topology_module
from llmlab.simulator.training.contention import Flow, max_min_rates
from llmlab.simulator.training.network import Network, TopologyNetwork
from llmlab.simulator.training.operators import layer_cost
from llmlab.simulator.training.plan import framework, plan_of
from llmlab.simulator.training.programs import (
    ALGORITHMS,
    Phase,
    Program,
    Protocol,
    candidates,
    concurrent_s,
    parse_ranks,
    predicted_s,
    program,
    run,
    run_collective,
)
from llmlab.simulator.training.step import predict_step
from llmlab.simulator.training.topology import read_topology, topology_of

EXAMPLES = sorted((Path(topology_module.__file__).parent / "examples").glob("*.yaml"))
WIRE = {"bytes_per_s": 1e9, "latency_s": 1e-6}


def one_switch(devices=8):
    return topology_of({"nodes": 1, "node": {"devices": devices, **WIRE}})


def nodes_of(nodes, devices=1, **network):
    return topology_of({"nodes": nodes, "node": {"devices": devices, **WIRE}, "network": {**WIRE, **network}})


def send(topology, *pairs, size=1e6):
    return run(topology, [program(topology, "send", "direct", pair, size) for pair in pairs])


CLOSED = [
    ("all_reduce", "ring"),
    ("all_reduce", "tree"),
    ("all_reduce", "halving_doubling"),
    ("reduce_scatter", "ring"),
    ("reduce_scatter", "halving_doubling"),
    ("all_gather", "halving_doubling"),
    ("all_to_all", "pairwise"),
]


@pytest.mark.parametrize(
    ("name", "algorithm", "ranks"),
    [(*pair, n) for pair in CLOSED for n in (2, 3, 4, 8) if n != 3 or pair[1] != "halving_doubling"],  # needs a power of two
)
def test_alone_on_a_switch_a_collective_takes_its_closed_form(name, algorithm, ranks):
    known = volume(name, algorithm, ranks, 1e6)
    topology = one_switch()
    made = program(topology, name, algorithm, range(ranks), 1e6)
    protocol = Protocol("any", start_s=3e-6, round_s=2e-6)
    one_after_another = 2 if algorithm == "tree" else 1  # what the root gets on the way up no rank sends as a whole
    expected = 3e-6 + known.rounds * 3e-6 + one_after_another * known.sent_bytes / 1e9
    assert run(topology, [made], protocol).makespan_s == pytest.approx(expected, abs=3e-8)
    assert predicted_s(topology, made, protocol) == pytest.approx(expected)


@pytest.mark.parametrize("ranks", [2, 4, 5, 8])
@pytest.mark.parametrize("name", ["all_reduce", "reduce_scatter", "all_to_all", "broadcast"])
def test_programs_send_what_the_algorithms_send(name, ranks):
    size = 8 * 840
    for algorithm in ALGORITHMS[name]:
        if algorithm in ("direct", "hierarchical", "hierarchical_tree") or (name, algorithm) == ("broadcast", "ring"):
            continue  # directly and along a line are not in the reference, two levels have a test of their own
        try:
            made = program(one_switch(), name, algorithm, range(ranks), size)
        except InputError:
            assert ranks == 5
            assert algorithm == "halving_doubling"
            continue
        traffic = Traffic()
        collective(operation=name, algorithm=algorithm, parts=[np.zeros(840)] * ranks, traffic=traffic)
        ours: Counter[tuple[int, int]] = Counter()
        for phase in made.phases:
            for flow in phase.flows:
                ours[flow.source, flow.target] += flow.size
        assert set(ours) == set(traffic.sent_bytes)
        for pair, sent in ours.items():
            assert sent == pytest.approx(traffic.sent_bytes[pair])


def test_two_levels_send_what_the_reference_sends():
    made = program(nodes_of(2, 4), "all_reduce", "hierarchical", range(8), 8 * 840)
    traffic = Traffic()
    collective(operation="all_reduce", algorithm="hierarchical", parts=[np.zeros(840)] * 8, ranks_per_node=4, traffic=traffic)
    assert made.sent_bytes == pytest.approx(traffic.total_bytes)


def test_two_flows_on_a_link_take_twice_as_long_and_a_third_elsewhere_does_not_care():
    topology = one_switch()
    assert send(topology, (0, 1)).makespan_s == pytest.approx(1e-3 + 1e-6)
    both = send(topology, (0, 1), (0, 2), (3, 4))
    assert both.seconds == pytest.approx((2e-3 + 1e-6, 2e-3 + 1e-6, 1e-3 + 1e-6))


def test_the_shorter_flow_leaves_its_share_to_the_longer():
    topology = one_switch()
    made = [Program("send", "direct", (0, 1), (Phase((Flow(0, 1, size),)),)) for size in (1e6, 3e6)]
    assert run(topology, made).seconds == pytest.approx((2e-3 + 1e-6, 4e-3 + 1e-6))


@given(
    st.lists(st.sets(st.integers(0, 4), min_size=1, max_size=4).map(sorted), min_size=1, max_size=9),
    st.lists(st.floats(1.0, 100.0), min_size=5, max_size=5),
)
def test_every_flow_has_a_full_link_on_which_none_is_faster(routes, capacities):
    rates = max_min_rates(routes, np.array(capacities))
    load = np.zeros(5)
    for route, rate in zip(routes, rates):
        load[route] += rate
    assert (load <= np.array(capacities) * (1 + 1e-9)).all()
    for route, rate in zip(routes, rates):
        assert any(
            load[link] >= capacities[link] * (1 - 1e-9)
            and rate >= max(r for other, r in zip(routes, rates) if link in other) * (1 - 1e-9)
            for link in route
        )


@pytest.mark.parametrize("oversubscription", [1, 2, 4])
def test_an_oversubscribed_tree_slows_what_crosses_it_by_that(oversubscription):
    topology = nodes_of(8, shape="fat_tree", nodes_per_leaf=4, oversubscription=oversubscription)
    across = send(topology, *[(i, i + 4) for i in range(4)]).makespan_s
    below = send(topology, (0, 1), (2, 3)).makespan_s
    assert below == pytest.approx(1e-3 + 1e-6)
    assert across == pytest.approx(oversubscription * 1e-3 + 2e-6)


def test_hashed_flows_collide_where_evenly_spread_packets_do_not():
    sizes = {"shape": "fat_tree", "nodes_per_leaf": 8}
    pairs = [(i, i + 8) for i in range(8)]
    even = send(nodes_of(16, **sizes), *pairs).makespan_s
    hashed = send(nodes_of(16, **sizes, spines=8), *pairs)
    assert hashed.makespan_s >= 2 * even * 0.99
    assert hashed.makespan_s == send(nodes_of(16, **sizes, spines=8), *pairs).makespan_s


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_no_exchange_beats_the_bisection(path):
    topology = read_topology(path)
    half = topology.devices // 2
    pairs = [(i, i + half) for i in range(half)] + [(i + half, i) for i in range(half)]
    assert send(topology, *pairs).makespan_s >= half * 1e6 / topology.bisection_bytes_per_s()


def test_bisections_are_those_of_the_books():
    assert nodes_of(16, shape="torus", dims=[4, 4]).bisection_bytes_per_s() == pytest.approx(2 * 4 * 1e9)
    assert nodes_of(8, shape="torus", dims=[8]).bisection_bytes_per_s() == pytest.approx(2e9)
    assert nodes_of(8).bisection_bytes_per_s() == pytest.approx(4e9)
    assert nodes_of(8, shape="fat_tree", nodes_per_leaf=4, oversubscription=2).bisection_bytes_per_s() == pytest.approx(2e9)
    assert nodes_of(8, 2, shape="rails").bisection_bytes_per_s() == pytest.approx(8e9)
    assert nodes_of(4, shape="dragonfly", groups=4, routers_per_group=1).bisection_bytes_per_s() == pytest.approx(2e9)


def test_neighbours_of_a_torus_ring_do_not_contend():
    torus = nodes_of(16, shape="torus", dims=[4, 4])
    rows = [program(torus, "all_reduce", "ring", range(4 * i, 4 * i + 4), 1e6) for i in range(4)]
    columns = [program(torus, "all_reduce", "ring", range(i, 16, 4), 1e6) for i in range(4)]
    alone = run(torus, rows[:1]).makespan_s
    assert run(torus, rows + columns).makespan_s == pytest.approx(alone)
    assert alone == pytest.approx(predicted_s(torus, rows[0]))


def test_a_torus_goes_the_shorter_way_round():
    torus = nodes_of(16, shape="torus", dims=[4, 4])
    hops = [len(torus.route(0, other)) - 2 for other in (1, 2, 3, 4, 15)]  # two more into and out of the routers
    assert hops == [1, 2, 1, 1, 2]


def test_rings_over_nodes_use_every_rail():
    node = {"devices": 4, "bytes_per_s": 1e10, "latency_s": 1e-6}
    rails, narrow = (topology_of({"nodes": 4, "node": node, "network": {**WIRE, **own}}) for own in ({}, {"ports": 1}))
    made = program(rails, "all_reduce", "ring", range(16), 16e6)
    outgoing = {f"{a}" for link in run(rails, [made]).busiest_links(99) for a, b in [link["link"].split(">")] if "leaf" in b}
    assert outgoing == {f"gpu{i}" for i in range(16)}
    assert predicted_s(narrow, made) == pytest.approx(4 * predicted_s(rails, made), rel=0.01)


def test_groups_that_share_a_port_share_its_bandwidth():
    lone, shared = nodes_of(4, 4), nodes_of(4, 4, ports=1)
    assert concurrent_s(shared, "all_reduce", 1e8, 16, 4, 4) == pytest.approx(
        4 * concurrent_s(lone, "all_reduce", 1e8, 16, 4, 4), rel=0.01
    )


def test_small_messages_take_the_tree_and_large_ones_the_ring():
    topology = nodes_of(32)
    by_size = [candidates(topology, "all_reduce", range(32), size, "nccl-hopper")[0][1].algorithm for size in (1e3, 1e10)]
    assert by_size == ["double_binary_tree", "ring"]


def test_bytes_on_links_are_those_of_the_routes():
    topology = nodes_of(4, 2, shape="dragonfly", groups=2, routers_per_group=2)
    made = program(topology, "all_to_all", "pairwise", range(8), 8e6)
    done = run(topology, [made])
    hops = sum(flow.size * len(topology.route(flow.source, flow.target)) for phase in made.phases for flow in phase.flows)
    assert done.link_bytes.sum() == pytest.approx(hops)
    assert len(done.sent) == 7 * 8


def test_a_slow_link_slows_those_that_cross_it():
    topology = one_switch()
    slow = topology.slowed_by("gpu0>nvswitch0=4")
    made = [program(topology, "send", "direct", pair, 1e6) for pair in ((0, 1), (2, 3))]
    assert run(slow, made).seconds == pytest.approx((4e-3 + 1e-6, 1e-3 + 1e-6))


def test_the_same_run_gives_the_same_bytes():
    def once():
        done, figures = run_collective(
            read_topology(EXAMPLES[0]), "all_reduce", 1e7, range(32), groups=4, layout="strided", record=True
        )
        return repr(done.trace_events()), repr(figures)

    assert once() == once()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run_every_collective(path):
    topology = read_topology(path)
    for name in ALGORITHMS:
        ranks = [0, topology.devices - 1] if name == "send" else range(16)
        done, figures = run_collective(topology, name, 1e6, ranks)
        assert figures["seconds"] >= figures["predicted_s"] * (1 - 1e-6)
        assert 0 < figures["busiest_links"][0]["busy"] <= 1 + 1e-9
        assert {event["ph"] for event in done.trace_events()} == {"M", "X"}


def test_a_step_on_a_topology_feels_its_contention():
    model, plan = load_model("openai/gpt3-13b"), plan_of("megatron", dp=4, tp=8, pp=2, global_batch=64, sequence=2048)

    def data_s(**network):
        links = topology_of(
            {"nodes": 8, "node": {"devices": 8, "link": "nvlink3"}, "network": {"link": "infiniband-hdr", **network}}
        )
        step = predict_step(model, plan, "a100", network=TopologyNetwork.on(links, 64), fit_memory=False)
        assert sum(step.to_json()["breakdown_s"].values()) == pytest.approx(step.seconds)
        return step.seconds, step.breakdown.data_s

    full, half = data_s(), data_s(ports=4)
    assert half[0] > full[0]
    assert data_s(shape="fat_tree", nodes_per_leaf=1, oversubscription=4)[0] > half[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "must hold keys"),
        ({}, "nodes=None"),
        ({"nodes": 2}, "2 nodes need a network"),
        ({"nodes": 0}, "nodes=0"),
        ({"nodes": 1, "speed": 3}, "speed=3"),
        ({"nodes": 1, "node": {"devices": 2, "bytes_per_s": -1}}, "bytes_per_s=-1"),
        ({"nodes": 1, "node": {"devices": 2}}, "give a link by name"),
        ({"nodes": 1, "node": {"devices": 2, "link": "string"}}, "link='string'"),
        ({"nodes": 2, "network": {"shape": "web", **WIRE}}, "shape='web'"),
        ({"nodes": 4, "network": {"shape": "torus", "dims": [3], **WIRE}}, "must multiply to 4"),
        ({"nodes": 4, "network": {"shape": "fat_tree", **WIRE}}, "nodes_per_leaf"),
        ({"nodes": 4, "network": {"shape": "dragonfly", "groups": 3, "routers_per_group": 1, **WIRE}}, "must divide 4 nodes"),
        ({"nodes": 2, "node": {"devices": 4, **WIRE}, "network": {"ports": 3, **WIRE}}, "must divide 4 devices"),
        ({"nodes": 2, "network": {"bytes_per_s": float("nan"), "latency_s": 0}}, "bytes_per_s=nan"),
    ],
)
def test_a_file_that_cannot_be_is_one_line(content, words):
    with pytest.raises(InputError, match=r"^[^\n]+$") as raised:
        topology_of(content, "links.yaml")
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t: program(t, "gossip", "ring", [0, 1], 1.0), "collective='gossip'"),
        (lambda t: program(t, "all_reduce", "star", [0, 1], 1.0), "algorithm='star'"),
        (lambda t: program(t, "all_reduce", "ring", [0, 8], 1.0), "ranks=8"),
        (lambda t: program(t, "all_reduce", "ring", [0, 0], 1.0), "appears twice"),
        (lambda t: program(t, "all_reduce", "ring", [0, 1], -1.0), "bytes=-1.0"),
        (lambda t: program(t, "send", "direct", [0], 1.0), "too few"),
        (lambda t: parse_ranks(t, "a-b"), "ranks='a-b'"),
        (lambda t: run_collective(t, "all_reduce", 1.0, range(8), groups=3), "groups=3"),
        (lambda t: run_collective(t, "all_reduce", 1.0, range(8), protocols="smoke"), "protocols='smoke'"),
        (lambda t: t.slowed_by("gpu0>moon=2"), "no such link"),
        (lambda t: TopologyNetwork.on(t, 16), "the plan needs 16"),
    ],
)
def test_a_run_that_cannot_be_is_one_line(call, words):
    with pytest.raises(InputError, match=r"^[^\n]+$") as raised:
        call(one_switch())
    assert words in str(raised.value)


def test_computing_loses_to_what_runs_beside_it_and_to_nothing_else():
    model = load_model("openai/gpt3-13b")
    plan = plan_of("megatron", dp=8, tp=8, global_batch=64, sequence=2048)

    def seconds(share, overlap):
        habits = replace(framework("megatron"), overlap_share={"other": share}, tp_overlap=overlap, dp_overlap=overlap)
        return predict_step(model, plan, "a100", habits=habits).seconds

    assert seconds(0.3, 0.0) == seconds(0.0, 0.0)
    assert seconds(0.0, 0.9) < seconds(0.1, 0.9) < seconds(0.3, 0.9) < seconds(0.3, 0.0)


@pytest.mark.parametrize("degrees", [{"ep": 2}, {"ep": 8}, {"tp": 2, "ep": 4}, {"tp": 4, "ep": 8}])
def test_however_experts_are_dealt_a_replica_does_the_same_work(degrees):
    model = load_model("mistralai/Mixtral-8x7B-v0.1")

    def flops(**own):
        plan = plan_of("megatron", **{"dp": 8, **own}, global_batch=8, sequence=2048)
        return layer_cost(model, "H100-SXM-80GB", plan).flops * plan.tp

    assert flops(**degrees) == pytest.approx(flops(), rel=0.01)


def test_a_token_goes_to_each_node_once():
    network = Network(8, 1e11, 1e10)
    assert network.copies_beyond_node(8, 8) == 1.0
    drawn = np.random.default_rng(0).permuted(np.tile(np.arange(256), (4000, 1)), axis=1)[:, :8]
    nodes = [set((row // 64).tolist()) - {0} for row in drawn]  # 8 experts per rank, 8 ranks per node
    copies = [int((row // 64 != 0).sum()) for row in drawn]
    assert network.copies_beyond_node(8, 32) == pytest.approx(sum(map(len, nodes)) / sum(copies), rel=0.02)
