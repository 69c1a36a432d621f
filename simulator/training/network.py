"""Seconds of collectives among ranks of nodes: an algorithm per collective, latency and bandwidth per link.

Ranks of a node share its network ports. A ring over several nodes crosses each node's border once, so rings of other groups
that run at the same time take their share of the ports; inside a node the ring has its own link.
Units: bytes, seconds, ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmlab.reference.errors import InputError
from llmlab.simulator.hardware.device import Device, links
from llmlab.simulator.training.plan import ParallelPlan

if TYPE_CHECKING:
    from llmlab.simulator.training.topology import Topology

INSIDE_EFFICIENCY = 0.78
"""Part of the node link's peak that rings reach: 230 to 240 of 300 GB/s in published A100 all-reduces among 4 and 8 devices."""


@dataclass(frozen=True)
class Network:
    """Devices of one node and what joins them to each other and to other nodes.

    Attributes:
        node_devices: devices of one node.
        inside_bytes_per_s, outside_bytes_per_s: of one device's link, one direction, at the efficiency that is reached.
        inside_latency_s, outside_latency_s: of one hop.
    """

    node_devices: int
    inside_bytes_per_s: float
    outside_bytes_per_s: float
    inside_latency_s: float = 8e-6
    outside_latency_s: float = 2e-5

    @classmethod
    def of(cls, device: Device, efficiency: float, *, node_devices: int = 0, node_bytes_per_s: float = 0.0) -> Network:
        """The network of a device's usual node; `node_bytes_per_s` is what all ports of a node carry together."""
        size = node_devices or device.devices_per_node
        outside = node_bytes_per_s / size if node_bytes_per_s else device.node_link_bytes_per_s
        hop = links()[device.link].latency_s if device.link in links() else 5e-6
        return cls(size, device.link_bytes_per_s * INSIDE_EFFICIENCY, outside * efficiency, 3.0 * hop)

    def _bandwidth(self, ranks: int, stride: int) -> tuple[float, float]:
        """Bytes per second of a ring over `ranks` ranks that lie `stride` apart, and its latency per hop."""
        if ranks * stride <= self.node_devices:
            return self.inside_bytes_per_s, self.inside_latency_s
        inside = max(1, self.node_devices // stride)  # ranks of this group per node
        return min(self.inside_bytes_per_s, self.outside_bytes_per_s * inside), self.outside_latency_s

    def reduce_scatter_s(self, size: float, ranks: int, stride: int = 1) -> float:
        """Ring reduce-scatter (or all-gather) of `size` bytes in all.

        >>> Network(8, 1e9, 1e9, 0.0, 0.0).reduce_scatter_s(8e9, 4)
        6.0
        """
        if ranks <= 1 or size <= 0:
            return 0.0
        per_s, hop_s = self._bandwidth(ranks, stride)
        return (ranks - 1) / ranks * size / per_s + self._hops(ranks, stride) * hop_s

    def all_reduce_s(self, size: float, ranks: int, stride: int = 1) -> float:
        """Ring, or double binary tree where its latency wins (both move 2 (n - 1) / n of the bytes).

        >>> Network(8, 1e9, 1e9, 0.0, 0.0).all_reduce_s(8e9, 4)
        12.0
        """
        if ranks <= 1 or size <= 0:
            return 0.0
        return 2.0 * self.reduce_scatter_s(size, ranks, stride)

    def _hops(self, ranks: int, stride: int) -> float:
        """Hops one after another: a ring within the node, a tree over nodes."""
        inside = min(ranks, max(1, self.node_devices // stride))
        nodes = math.ceil(ranks / inside)
        return min(ranks - 1.0, (inside - 1) + 2.0 * math.log2(nodes) if nodes > 1 else inside - 1.0)

    def all_to_all_s(self, size: float, ranks: int, stride: int = 1, beyond: float = 1.0) -> float:
        """Every rank sends `size` / ranks bytes to each other one; what leaves the node goes over the rank's own port.

        `beyond` is the part of what would leave the node that does, where copies for several ranks of a node go as one.
        """
        if ranks <= 1 or size <= 0:
            return 0.0
        inside = min(ranks, max(1, self.node_devices // stride))
        seconds = (inside - 1) / ranks * size / self.inside_bytes_per_s + self.inside_latency_s
        if ranks > inside:
            leaving = beyond * (ranks - inside) / ranks * size
            seconds = max(seconds, leaving / self.outside_bytes_per_s + self.outside_latency_s)
        return seconds

    def copies_beyond_node(self, choices: int, ranks: int, stride: int = 1) -> float:
        """Nodes other than its own a token reaches with so many experts drawn evenly, over experts it has beyond its node.

        >>> round(Network(8, 1e9, 1e9).copies_beyond_node(8, 32), 3)
        0.45
        """
        nodes = ranks * stride / self.node_devices
        return nodes * (1.0 - (1.0 - 1.0 / nodes) ** choices) / choices if nodes > 1 else 1.0

    def send_s(self, size: float, stride: int) -> float:
        """Hand `size` bytes to the rank `stride` away."""
        if stride < self.node_devices:
            return size / self.inside_bytes_per_s + self.inside_latency_s
        return size / self.outside_bytes_per_s + self.outside_latency_s


@dataclass(frozen=True)
class Strides:
    """Distance between neighbouring ranks of each group: tensor, context, data, pipeline."""

    tp: int
    cp: int
    dp: int
    pp: int

    @classmethod
    def of(cls, plan: ParallelPlan) -> Strides:
        """Tensor-parallel ranks next to each other, pipeline stages furthest apart.

        >>> Strides.of(ParallelPlan(dp=2, tp=8, pp=4))
        Strides(tp=1, cp=8, dp=8, pp=16)
        """
        return cls(1, plan.tp, plan.tp * plan.cp, plan.tp * plan.cp * plan.dp)


@dataclass(frozen=True)
class TopologyNetwork(Network):
    """The same questions answered by running all groups of a plan at once on a topology whose links they share.

    Attributes:
        topology: a `topology.Topology`.
        devices: of the plan, ranks in the order of devices.
        protocols: what messages are sent with.
    """

    topology: Any = None
    devices: int = 0
    protocols: str = "ideal"

    @classmethod
    def on(cls, topology: Topology, devices: int, protocols: str = "ideal") -> TopologyNetwork:
        """The network a plan of so many devices finds on a topology.

        Raises:
            InputError: the topology has fewer devices, or no such protocols.
        """
        from llmlab.simulator.training.programs import protocols_of

        protocols_of(protocols)
        if topology.devices < devices:
            raise InputError(topology.name, "nodes", topology.devices, f"the plan needs {devices} devices")
        return cls(topology.node_devices, math.inf, math.inf, 0.0, 0.0, topology, devices, protocols)

    def _run(self, collective: str, size: float, ranks: int, stride: int) -> float:
        from llmlab.simulator.training.programs import concurrent_s

        if ranks <= 1 or size <= 0:
            return 0.0
        return concurrent_s(self.topology, collective, float(size), self.devices, ranks, stride, self.protocols)

    def reduce_scatter_s(self, size: float, ranks: int, stride: int = 1) -> float:
        """Reduce-scatter (or all-gather) of every group at once."""
        return self._run("reduce_scatter", size, ranks, stride)

    def all_reduce_s(self, size: float, ranks: int, stride: int = 1) -> float:
        """All-reduce of every group at once."""
        return self._run("all_reduce", size, ranks, stride)

    def all_to_all_s(self, size: float, ranks: int, stride: int = 1, beyond: float = 1.0) -> float:
        """All-to-all of every group at once; copies that go to a node as one are not told apart from the rest."""
        nodes = math.ceil(ranks * stride / self.node_devices)
        return self._run("all_to_all", size * (beyond if nodes > 1 else 1.0), ranks, stride)

    def send_s(self, size: float, stride: int) -> float:
        """Every rank but the last ones sends to the rank `stride` further at once."""
        return self._run("send", size, 2, stride)
