"""Links between devices as a graph, from a few lines of YAML; routes over it. Units: bytes, seconds; one direction.

    nodes: 16                                                    # 16 x 8 devices, ranks in this order
    node: {devices: 8, shape: nvswitch, link: nvlink4, efficiency: 0.8}
    network: {shape: fat_tree, link: infiniband-ndr, ports: 8, nodes_per_leaf: 4, oversubscription: 2}

Inside a node: `nvswitch` (every device has a link to a switch that never blocks), `all_pairs` (a device's links are split over
the others), `pcie_tree` (devices under switches of `devices_per_switch`, those under the host). Between nodes: `switch` (one,
never blocking), `fat_tree` (leaves of `nodes_per_leaf`, above them spines; `spines: 0` is one that spreads packets evenly,
otherwise flows choose among so many by hash), `rails` (port p of every node on a network of its own), `torus` (`dims`), and
`dragonfly` (`groups` of `routers_per_group`, all joined within a group, one link between two groups: Kim et al. 2008,
doi:10.1109/ISCA.2008.19). Either side takes a `link` of `links.yaml` or `bytes_per_s` and `latency_s`.

A route is the cheapest way, a hop within a node costing 1 and one between nodes 10; where several are as cheap, every vertex
picks one by a hash of the flow (equal-cost multipath, RFC 2992). A torus is walked dimension by dimension, the shorter way
round, upwards on a tie. Traffic to another rail thus crosses NVLink first (as NCCL does since 2.12).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import networkx as nx
import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmlab.reference.errors import InputError
from llmlab.simulator.hardware.device import Device, links

INSIDE, OUTSIDE = 1, 10
"""Cost of a hop: links of a node are preferred to those between nodes."""

MOST_DEVICES = 16384
UNLIMITED = 1e15


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid")

    link: str | None = None
    bytes_per_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    latency_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    efficiency: float = Field(default=1.0, gt=0, le=1)

    def speed(self, where: str, path: object) -> tuple[float, float]:
        """Bytes per second that are reached, and seconds of one hop.

        Raises:
            InputError: neither a known link nor a bandwidth.
        """
        if self.link is not None and self.link not in links():
            raise InputError(path, f"{where}.link", self.link, f"unknown; known: {', '.join(links())}")
        named = links()[self.link] if self.link is not None else None
        if named is None and self.bytes_per_s is None:
            raise InputError(path, f"{where}.bytes_per_s", None, "give a link by name, or its bytes_per_s and latency_s")
        per_s = self.bytes_per_s if self.bytes_per_s is not None else named.bytes_per_s if named else 0.0
        hop = self.latency_s if self.latency_s is not None else named.latency_s if named else 0.0
        return per_s * self.efficiency, hop


class _Node(_Wire):
    devices: int = Field(default=1, ge=1, le=1024)
    shape: Literal["nvswitch", "all_pairs", "pcie_tree"] = "nvswitch"
    devices_per_switch: int = Field(default=4, ge=1)


class _Between(_Wire):
    shape: Literal["switch", "fat_tree", "rails", "torus", "dragonfly"] = "switch"
    ports: int | None = Field(default=None, ge=1)
    nodes_per_leaf: int | None = Field(default=None, ge=1)
    oversubscription: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    spines: int = Field(default=0, ge=0, le=1024)
    dims: list[int] | None = None
    groups: int | None = Field(default=None, ge=1)
    routers_per_group: int | None = Field(default=None, ge=1)
    global_bytes_per_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    nodes: int = Field(ge=1, le=MOST_DEVICES)
    node: _Node = Field(default_factory=_Node)
    network: _Between | None = None


@dataclass(frozen=True, eq=False)
class Topology:
    """A directed graph of links; device d is the vertex `gpu<d>`.

    Attributes:
        name: of the file.
        graph: edges carry `number`, `bytes_per_s`, `latency_s`, `cost`.
        devices: in all.
        node_devices: of a node.
        dims: of a torus of nodes, else empty.
    """

    name: str
    graph: nx.DiGraph
    devices: int
    node_devices: int
    dims: tuple[int, ...] = ()
    _ways: dict[str, dict[str, float]] = field(default_factory=dict)
    _routes: dict[tuple[int, int, int], tuple[int, ...]] = field(default_factory=dict)

    @cached_property
    def edges(self) -> list[tuple[str, str]]:
        """Links by number."""
        return list(self.graph.edges)

    @cached_property
    def bytes_per_s(self) -> np.ndarray:
        """Bandwidth of each link."""
        return np.array([self.graph.edges[edge]["bytes_per_s"] for edge in self.edges])

    @cached_property
    def latency_s(self) -> np.ndarray:
        """Latency of each link."""
        return np.array([self.graph.edges[edge]["latency_s"] for edge in self.edges])

    def slowed(self, link: str, factor: float) -> Topology:
        """The same with one link, `from>to`, `factor` times slower.

        Raises:
            InputError: no such link, or a factor that is not positive and finite.
        """
        ends = tuple(link.split(">"))
        if len(ends) != 2 or not self.graph.has_edge(*ends):
            raise InputError(self.name, "slow link", link, f"no such link; one is {'>'.join(self.edges[0])}")
        if not (math.isfinite(factor) and factor > 0):
            raise InputError(self.name, "slow link", factor, "must be slower by a positive finite factor")
        graph = self.graph.copy()
        graph.edges[ends]["bytes_per_s"] /= factor
        return Topology(self.name, graph, self.devices, self.node_devices, self.dims)

    def slowed_by(self, words: str) -> Topology:
        """The same with one link slower, said as `from>to=factor`.

        Raises:
            InputError: other words, or no such link.
        """
        link, _, factor = words.partition("=")
        try:
            value = float(factor)
        except ValueError:
            raise InputError(self.name, "slow link", words, "give it as from>to=factor") from None
        return self.slowed(link, value)

    def route(self, source: int, target: int, label: int = 0) -> tuple[int, ...]:
        """Numbers of the links a flow from one device to another takes; `label` tells flows of a pair apart."""
        key = source, target, label
        if key not in self._routes:
            ends = f"gpu{source}", f"gpu{target}"
            walk = self._along_dimensions(source, target) if self.dims else self._cheapest(*ends, label)
            self._routes[key] = tuple(self.graph.edges[a, b]["number"] for a, b in pairwise(walk))
        return self._routes[key]

    def route_latency_s(self, source: int, target: int) -> float:
        """Seconds an empty message needs."""
        return float(self.latency_s[list(self.route(source, target))].sum())

    def _cheapest(self, source: str, target: str, label: int) -> list[str]:
        if target not in self._ways:
            reverse = self.graph.reverse(copy=False)
            self._ways[target] = nx.single_source_dijkstra_path_length(reverse, target, weight="cost")
        left = self._ways[target]
        walk = [source]
        while (at := walk[-1]) != target:
            onward = [to for to, edge in self.graph.adj[at].items() if left.get(to, math.inf) + edge["cost"] == left[at]]
            pick = zlib.crc32(f"{source}>{target}#{label}@{at}".encode()) % len(onward) if len(onward) > 1 else 0
            walk.append(onward[pick])
        return walk

    def _along_dimensions(self, source: int, target: int) -> list[str]:
        a, b = source // self.node_devices, target // self.node_devices
        if a == b:
            return self._cheapest(f"gpu{source}", f"gpu{target}", 0)
        where, goal = (list(np.unravel_index(node, self.dims)) for node in (a, b))
        walk = [f"router{a}"]
        for axis, size in enumerate(self.dims):
            ahead = int(goal[axis] - where[axis]) % size
            step = 1 if ahead <= size - ahead else -1
            while where[axis] != goal[axis]:
                where[axis] = (where[axis] + step) % size
                walk.append(f"router{np.ravel_multi_index(where, self.dims)}")
        return [f"gpu{source}", *walk, f"gpu{target}"]

    def bisection_bytes_per_s(self) -> float:
        """The most that the first half of the nodes can send to the second: the maximum flow between them."""
        half = self.devices // 2
        graph = nx.DiGraph()
        for a, b, edge in self.graph.edges(data=True):
            graph.add_edge(a, b, capacity=edge["bytes_per_s"])
        for device in range(self.devices):
            ends = ("from", f"gpu{device}") if device < half else (f"gpu{device}", "to")
            graph.add_edge(*ends)  # no capacity: unbounded
        return float(nx.maximum_flow_value(graph, "from", "to"))


def read_topology(path: str | Path) -> Topology:
    """Read a topology; see the head of this file.

    Raises:
        InputError: unreadable, not YAML, an unknown key or link, a value out of range, or sizes that do not fit together.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_bytes().decode())
    except OSError as error:
        raise InputError(path, "file", path.name, error.strerror or "cannot be read") from None
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(path, "file", path.name, f"is not YAML ({' '.join(str(error).split())})") from None
    return topology_of(content, path)


def topology_of(content: Any, path: object = "topology") -> Topology:
    """Build a topology from what such a file holds.

    Raises:
        InputError: as `read_topology`.

    >>> one = topology_of({"nodes": 1, "node": {"devices": 4, "bytes_per_s": 1e9, "latency_s": 1e-6}})
    >>> one.devices, len(one.edges), one.route(0, 3)
    (4, 8, (0, 7))
    """
    if not isinstance(content, Mapping):
        raise InputError(path, "file", type(content).__name__, "must hold keys such as nodes and network")
    try:
        read = _File.model_validate(dict(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        value = None if first["type"] == "missing" else first.get("input")
        raise InputError(path, place, value, first["msg"]) from None
    if read.nodes > 1 and read.network is None:
        raise InputError(path, "network", None, f"{read.nodes} nodes need a network")
    if read.nodes * read.node.devices > MOST_DEVICES:
        raise InputError(path, "nodes", read.nodes, f"more than {MOST_DEVICES} devices in all")
    graph = nx.DiGraph()
    _build_nodes(graph, read, path)
    dims: tuple[int, ...] = ()
    if read.network is not None and read.nodes > 1:
        dims = _build_network(graph, read, path)
    for number, edge in enumerate(graph.edges):
        graph.edges[edge]["number"] = number
    name = path.name if isinstance(path, Path) else str(path)
    return Topology(name, graph, read.nodes * read.node.devices, read.node.devices, dims)


def _join(graph: nx.DiGraph, a: str, b: str, per_s: float, latency_s: float, cost: int) -> None:
    for ends in ((a, b), (b, a)):
        graph.add_edge(*ends, bytes_per_s=per_s, latency_s=latency_s, cost=cost)


def _build_nodes(graph: nx.DiGraph, read: _File, path: object) -> None:
    """Devices and what joins them in their node; a way over a switch has the link's latency once."""
    devices = read.node.devices
    per_s, hop = read.node.speed("node", path) if devices > 1 else (0.0, 0.0)
    for node in range(read.nodes):
        own = [f"gpu{node * devices + i}" for i in range(devices)]
        graph.add_nodes_from(own)
        if devices == 1:
            continue
        if read.node.shape == "nvswitch":
            for device in own:
                _join(graph, device, f"nvswitch{node}", per_s, hop / 2, INSIDE)
        elif read.node.shape == "all_pairs":
            for i, a in enumerate(own):
                for b in own[i + 1 :]:
                    _join(graph, a, b, per_s / (devices - 1), hop, INSIDE)
        else:
            for i, device in enumerate(own):
                _join(graph, device, f"pcie{node}.{i // read.node.devices_per_switch}", per_s, hop / 4, INSIDE)
            for switch in range(math.ceil(devices / read.node.devices_per_switch)):
                _join(graph, f"pcie{node}.{switch}", f"host{node}", per_s, hop / 4, INSIDE)


def _build_network(graph: nx.DiGraph, read: _File, path: object) -> tuple[int, ...]:
    network = read.network
    assert network is not None
    per_s, hop = network.speed("network", path)
    devices = read.node.devices
    ports = network.ports or devices
    if devices % ports:
        raise InputError(path, "network.ports", ports, f"must divide {devices} devices of a node")
    if network.shape in ("torus", "dragonfly"):
        attach = _build_torus if network.shape == "torus" else _build_dragonfly
        return attach(graph, read, network, per_s, hop, path)
    planes = ports if network.shape == "rails" else 1
    group = network.nodes_per_leaf or read.nodes
    if network.shape == "fat_tree" and network.nodes_per_leaf is None:
        raise InputError(path, "network.nodes_per_leaf", None, "a fat tree needs it")
    leaves = math.ceil(read.nodes / group)
    for node in range(read.nodes):
        for port in range(ports):
            leaf = f"leaf{port % planes}.{node // group}"
            first = node * devices + port * (devices // ports)
            outlet = f"gpu{first}"
            if ports < devices:
                outlet = f"nic{node}.{port}"
                for device in range(first, first + devices // ports):
                    _join(graph, f"gpu{device}", outlet, UNLIMITED, 0.0, INSIDE)
            _join(graph, outlet, leaf, per_s, hop / 2, OUTSIDE)
    if leaves > 1:
        up = per_s * group * ports / planes / network.oversubscription
        for plane in range(planes):
            for below in range(leaves):
                for spine in range(network.spines or 1):
                    ends = f"leaf{plane}.{below}", f"spine{plane}.{spine}"
                    _join(graph, *ends, up / (network.spines or 1), hop / 2, OUTSIDE)
    return ()


def _routers(graph: nx.DiGraph, read: _File, per_s: float) -> None:
    """A router per node; what its devices put into it is bounded by the links between routers alone."""
    for node in range(read.nodes):
        for device in range(node * read.node.devices, (node + 1) * read.node.devices):
            _join(graph, f"gpu{device}", f"router{node}", UNLIMITED, 0.0, OUTSIDE)


def _build_torus(graph: nx.DiGraph, read: _File, network: _Between, per_s: float, hop: float, path: object) -> tuple[int, ...]:
    dims = tuple(network.dims or ())
    if not dims or min(dims) < 1 or math.prod(dims) != read.nodes:
        raise InputError(path, "network.dims", network.dims, f"must multiply to {read.nodes} nodes")
    _routers(graph, read, per_s)
    for node in range(read.nodes):
        where = np.unravel_index(node, dims)
        for axis, size in enumerate(dims):
            if size > 1:
                there = list(where)
                there[axis] = (there[axis] + 1) % size
                _join(graph, f"router{node}", f"router{np.ravel_multi_index(there, dims)}", per_s, hop, OUTSIDE)
    return dims


def _build_dragonfly(
    graph: nx.DiGraph, read: _File, network: _Between, per_s: float, hop: float, path: object
) -> tuple[int, ...]:
    groups, routers = network.groups, network.routers_per_group
    if not groups or not routers or read.nodes % (groups * routers):
        raise InputError(path, "network.groups", groups, f"groups x routers_per_group must divide {read.nodes} nodes")
    for node in range(read.nodes):
        router = f"router{node * groups * routers // read.nodes}"
        for port in range(network.ports or read.node.devices):
            shared = read.node.devices // (network.ports or read.node.devices)
            first = node * read.node.devices + port * shared
            outlet = f"gpu{first}"
            if shared > 1:
                outlet = f"nic{node}.{port}"
                for device in range(first, first + shared):
                    _join(graph, f"gpu{device}", outlet, UNLIMITED, 0.0, INSIDE)
            _join(graph, outlet, router, per_s, hop / 2, OUTSIDE)
    for group in range(groups):
        for a in range(routers):
            for b in range(a + 1, routers):
                _join(graph, f"router{group * routers + a}", f"router{group * routers + b}", per_s, hop, OUTSIDE)
    between = network.global_bytes_per_s * network.efficiency if network.global_bytes_per_s is not None else per_s
    used = [0] * groups  # global links of a group are dealt to its routers in turn
    for a in range(groups):
        for b in range(a + 1, groups):
            one, other = (f"router{g * routers + used[g] % routers}" for g in (a, b))
            _join(graph, one, other, between, hop, OUTSIDE)
            used[a], used[b] = used[a] + 1, used[b] + 1
    return ()


def node_topology(device: Device, nodes: int, efficiency: float, inside_efficiency: float, devices: int = 0) -> Topology:
    """A device's usual nodes behind one network that never blocks: what a plan runs on where nothing else is said."""
    size = devices or device.devices_per_node
    inside = links()[device.link].latency_s if device.link in links() else 5e-6
    content: dict[str, Any] = {
        "nodes": nodes,
        "node": {
            "devices": size,
            "bytes_per_s": device.link_bytes_per_s,
            "latency_s": inside,
            "efficiency": inside_efficiency,
        },
        "network": {"shape": "rails", "bytes_per_s": device.node_link_bytes_per_s, "latency_s": 5e-6, "efficiency": efficiency},
    }
    return topology_of(content, f"{nodes} nodes of {device.name}")


def check_ranks(topology: Topology, ranks: Sequence[int]) -> None:
    """Refuse ranks that are no devices, or appear twice.

    Raises:
        InputError: so.
    """
    for rank in ranks:
        if not 0 <= rank < topology.devices:
            raise InputError(topology.name, "ranks", rank, f"there are {topology.devices} devices, from 0")
    if len(set(ranks)) < len(ranks):
        raise InputError(topology.name, "ranks", list(ranks)[:8], "a rank appears twice")
