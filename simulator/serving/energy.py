"""Power of a device by what it does, as a share of its power limit. Units: watts, joules, seconds.

States: off (nothing), idle (the device's idle power, weights loaded or loading), decode-bound (reading weights and cache) and
prefill-bound (computing). Between the two, a step draws in proportion to how far it is towards the number of rows at which a
matrix product computes as long as it loads its weights.

The two shares were read off 14,112 matrix products measured on an H200 (limit 700 W): those at more than 80 % of the memory
bandwidth and less than a tenth of the arithmetic drew 495 W on average, those at 60-80 % of the arithmetic 643 W. That is
not a measurement of serving, nor of other devices: energy from it is an estimate, and results say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.cost.step import StepCost
from llmlab.simulator.hardware.device import Device

DECODE_SHARE = 495 / 700
PREFILL_SHARE = 643 / 700
BASIS = "estimate: power limit times shares of matrix products measured on an H200 (decode-bound 0.71, prefill-bound 0.92)"


@dataclass(frozen=True)
class Power:
    """Watts of one device.

    Attributes:
        idle_w: nothing running.
        decode_w: a step that only reads memory.
        prefill_w: a step that only computes.
        balance_rows: rows from which a step computes.
    """

    idle_w: float
    decode_w: float
    prefill_w: float
    balance_rows: float

    @classmethod
    def of(cls, device: Device, balance_rows: float) -> Power:
        """From the device's sheet; all zero where it states no power."""
        return cls(
            device.idle_power_w,
            max(device.idle_power_w, DECODE_SHARE * device.power_w),
            max(device.idle_power_w, PREFILL_SHARE * device.power_w),
            max(1.0, balance_rows),
        )

    def computing(self, new_tokens: int) -> float:
        """How far a step is from reading (0) towards computing (1)."""
        return min(1.0, new_tokens / self.balance_rows)

    def watts(self, new_tokens: int) -> float:
        """Power of one device during a step with this many rows."""
        return self.decode_w + (self.prefill_w - self.decode_w) * self.computing(new_tokens)

    def mean_busy_w(self, steps: Sequence[tuple[BatchShape, int]]) -> float:
        """Mean over steps, weighted by their time; the decode-bound power where there are none."""
        total = sum(duration_ns for _, duration_ns in steps)
        if not total:
            return self.decode_w
        return sum(self.watts(shape.new_tokens) * duration_ns for shape, duration_ns in steps) / total


def balance_rows(cost: StepCost) -> float:
    """Rows at which a large matrix product takes as long to compute as its weights to load."""
    limits = cost.profile.limits(cost.weight_dtype)
    return limits.flops_per_s * limits.operand_bytes / (2.0 * limits.bytes_per_s)
