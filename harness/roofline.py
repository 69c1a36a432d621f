"""The machine's limit for an operator, from the operator's own cost: the slower of moving its bytes and doing its arithmetic.

    limit = max(bytes / bandwidth, flops / peak[dtype])         fraction = limit / measured

Bandwidth depends on where the data fits: repeated calls find a small operator's arrays in a cache, so the bandwidth is the
one measured on a working set of the same size. A fraction above 1 means the work was not done, or the cost is wrong.
(Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model".)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class Peaks:
    """What one device was measured to reach.

    Attributes:
        device: "cpu" or "cuda".
        machine: digest of the machine description it was measured on.
        bandwidth: (working set in bytes, best bytes per second), working sets ascending.
        flops: best FLOP/s (integer operations for int8) per dtype, over all methods tried.
        methods: per dtype, what each method reached ("fma", "numpy", "torch").
        latency_s: shortest time of one kernel launch (an empty parallel region on a CPU).
        noisy: something else used the machine meanwhile.
    """

    device: str
    machine: str
    bandwidth: Sequence[tuple[float, float]]
    flops: Mapping[str, float]
    methods: Mapping[str, Mapping[str, float]]
    latency_s: float
    noisy: bool

    def bandwidth_at(self, working_set: float) -> float:
        """Bytes per second for a working set, interpolated in the logarithm of its size; constant beyond both ends."""
        sizes = [size for size, _ in self.bandwidth]
        if working_set <= sizes[0]:
            return self.bandwidth[0][1]
        if working_set >= sizes[-1]:
            return self.bandwidth[-1][1]
        above = next(i for i, size in enumerate(sizes) if size >= working_set)
        (small, fast), (large, slow) = self.bandwidth[above - 1], self.bandwidth[above]
        share = math.log(working_set / small) / math.log(large / small)
        return fast * (slow / fast) ** share

    @property
    def memory_bandwidth(self) -> float:
        """Bytes per second of main memory: the largest working set's."""
        return self.bandwidth[-1][1]

    @property
    def blas_fraction(self) -> dict[str, float]:
        """Per library, its float32 GEMM over the best float32 arithmetic; about 0.5 or less tells of a slow code path."""
        reached = self.methods.get("float32", {})
        return {name: rate / self.flops["float32"] for name, rate in reached.items() if name != "fma"}

    def as_dict(self) -> dict[str, Any]:
        """The peaks as JSON values."""
        return asdict(self) | {"blas_fraction": self.blas_fraction}


@dataclass(frozen=True)
class Limit:
    """The least time the machine allows, and which resource sets it: "memory" or "compute"."""

    seconds: float
    bound: str

    def fraction(self, measured_s: float) -> float:
        """Fraction of the limit that a measured time reaches."""
        return self.seconds / measured_s


def limit(flops: float, moved_bytes: float, bandwidth: float, arithmetic: float) -> Limit:
    """Least time for this work at these bytes and FLOPs per second.

    >>> limit(flops=1e9, moved_bytes=1e9, bandwidth=1e10, arithmetic=1e12)
    Limit(seconds=0.1, bound='memory')
    """
    memory_s, compute_s = moved_bytes / bandwidth, flops / arithmetic
    return Limit(memory_s, "memory") if memory_s >= compute_s else Limit(compute_s, "compute")
