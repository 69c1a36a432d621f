"""Time to move keys and values between workers over links that several transfers share. Units: bytes; integer nanoseconds.

Every worker has a port that sends and one that receives, each with the bandwidth of one device's link: the devices of a
worker send side by side, each its own share. A transfer takes both ports of its way for

    latency + bytes per device / (efficiency x bandwidth)

and starts when both are free; transfers get their ports in the order they were asked for. That order is fixed, so the times of
a given list of transfers can only fall when a link becomes faster.

Layer by layer, a transfer begins while the prompt is still being computed. With L layers and a prompt that took d from the
start of its first step to the end of its last, max(whole - d (L - 1) / L, whole / L) is left when the prompt is done; the part
hidden behind the computation is taken to find the link free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from llmlab.reference.errors import InputError
from llmlab.simulator.hardware.device import Link, links

NANOSECONDS = 1_000_000_000


class Move(NamedTuple):
    """One transfer as it happened; a worker of -1 is the store of shared prefixes."""

    request: int
    source: int
    target: int
    asked_ns: int
    start_ns: int
    end_ns: int
    tokens: int


@dataclass(frozen=True)
class Transfer:
    """How keys and values move.

    Attributes:
        link: name of a link in `links.yaml`.
        bytes_per_s: of one device and direction; the link's own where None.
        latency_s: of one transfer; the link's own where None.
        efficiency: part of the bandwidth a transfer reaches (an estimate: 0.8).
        layerwise: send each layer as soon as it is computed, instead of the whole cache at the end.
        first_token: whether the client gets its first token from the prefill worker at once, or from the decode worker once
            the cache has arrived there. Time per output token counts from the first token either way.
    """

    link: str = "infiniband-ndr"
    bytes_per_s: float | None = None
    latency_s: float | None = None
    efficiency: float = 0.8
    layerwise: bool = False
    first_token: str = "prefill"

    def __post_init__(self) -> None:
        if self.first_token not in ("prefill", "decode"):
            raise InputError("transfer", "first_token", self.first_token, "is neither prefill nor decode")
        if not 0 < self.efficiency <= 1:
            raise InputError("transfer", "efficiency", self.efficiency, "must lie in (0, 1]")
        if self.bytes_per_s is not None and not 0 < self.bytes_per_s < float("inf"):
            raise InputError("transfer", "bytes_per_s", self.bytes_per_s, "must be positive")
        if self.latency_s is not None and not 0 <= self.latency_s < float("inf"):
            raise InputError("transfer", "latency_s", self.latency_s, "must not be negative")
        _link(self.link)

    def way(self) -> tuple[float, int]:
        """Bytes per second a device's share moves at, and the latency in nanoseconds."""
        link = _link(self.link)
        bandwidth = link.bytes_per_s if self.bytes_per_s is None else self.bytes_per_s
        latency_s = link.latency_s if self.latency_s is None else self.latency_s
        return self.efficiency * bandwidth, round(latency_s * NANOSECONDS)


def _link(name: str) -> Link:
    known = links()
    if name not in known:
        raise InputError("transfer", "link", name, f"unknown; known: {', '.join(known)}")
    return known[name]


class Network:
    """Sending and receiving ports of workers, and when each is free again."""

    def __init__(self, transfer: Transfer) -> None:
        self.bytes_per_s, self.latency_ns = transfer.way()
        self.layerwise = transfer.layerwise
        self.sends_ns: dict[int, int] = {}
        self.receives_ns: dict[int, int] = {}

    def left_ns(self, bytes_per_device: float, *, layers: int = 1, computed_ns: int = 0) -> int:
        """Nanoseconds a transfer keeps its ports, once the prompt is computed."""
        whole_ns = bytes_per_device / self.bytes_per_s * NANOSECONDS
        if self.layerwise and layers > 1:
            whole_ns = max(whole_ns - computed_ns * (layers - 1) / layers, whole_ns / layers)
        return max(1, self.latency_ns + round(whole_ns))

    def move(self, source: int, target: int, now_ns: int, length_ns: int) -> tuple[int, int]:
        """Take both ports for `length_ns` as soon as both are free; return start and end."""
        start_ns = max(now_ns, self.sends_ns.get(source, 0), self.receives_ns.get(target, 0))
        self.sends_ns[source] = self.receives_ns[target] = start_ns + length_ns
        return start_ns, start_ns + length_ns
