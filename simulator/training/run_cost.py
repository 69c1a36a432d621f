"""What a step and a long run cost: days, device hours, US dollars and kilowatt hours.

Power states are those of the serving simulator (`serving/energy.py`): while it computes a device draws its prefill-bound power,
while data moves (collectives, the optimizer's update) its decode-bound power, while it waits (pipeline bubble, host) its idle
power. Hosts draw what their node's sheet states, whatever runs; cooling and switches are not counted. All of it is an estimate.

Units: seconds, joules, watts, US dollars.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from llmlab.reference.errors import InputError
from llmlab.simulator.hardware.device import Device, load_device_sheet, nodes
from llmlab.simulator.serving.energy import BASIS, Power
from llmlab.simulator.training.step import StepPrediction

COMPUTING = ("compute", "recompute")
MOVING = ("tensor", "context", "expert", "data", "optimizer")
WAITING = ("bubble", "constant")


@dataclass(frozen=True)
class StepCost:
    """One step on all devices.

    Attributes:
        device_j: joules of the devices by state: computing, moving, waiting.
        host_j: joules of the hosts; 0 where no sheet states a node of this device.
        usd: at the sheet's price; None where it has none.
    """

    seconds: float
    devices: int
    device_j: dict[str, float]
    host_j: float
    usd: float | None

    @property
    def joules(self) -> float:
        """Devices and hosts together."""
        return sum(self.device_j.values()) + self.host_j

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "kwh_per_step": self.joules / 3.6e6,
            "mean_device_w": sum(self.device_j.values()) / self.seconds / self.devices,
            "host_w_per_device": self.host_j / self.seconds / self.devices,
            "usd_per_step": self.usd,
            "energy_basis": BASIS,
        }


def host_watts_per_device(device: Device) -> float:
    """A device's share of its node's host, 0 where no node of it is known.

    >>> host_watts_per_device(load_device_sheet("h100"))
    325.0
    """
    return next((node.host_power_w / node.devices for node in nodes().values() if node.device == device.name), 0.0)


def step_cost(step: StepPrediction, device: Device | str) -> StepCost:
    """Energy and price of a predicted step."""
    device = load_device_sheet(device) if isinstance(device, str) else device
    power, count = Power.of(device, 1.0), step.plan.gpus
    watts = {"computing": power.prefill_w, "moving": power.decode_w, "waiting": power.idle_w}
    joules = {}
    for state, names in (("computing", COMPUTING), ("moving", MOVING), ("waiting", WAITING)):
        spent = sum(getattr(step.breakdown, f"{name}_s") for name in names)
        joules[state] = watts[state] * spent * count
    price = device.price_usd_per_hour
    usd = price * count * step.seconds / 3600.0 if price else None
    return StepCost(step.seconds, count, joules, host_watts_per_device(device) * step.seconds * count, usd)


def run_cost(step: StepPrediction, device: Device | str, tokens: float, useful: float = 1.0) -> dict[str, Any]:
    """A run over so many tokens; `useful` is the part of the time that becomes progress (`failures.Goodput`).

    Lost time costs and draws as the rest does.

    Raises:
        InputError: no tokens, or fewer than one step has.
    """
    if not (math.isfinite(tokens) and tokens > 0):
        raise InputError("simulate train", "tokens", tokens, "must be a positive finite number")
    if tokens < step.plan.tokens:
        raise InputError("simulate train", "tokens", tokens, f"fewer than the {step.plan.tokens} of one step")
    one, steps = step_cost(step, device), math.ceil(tokens / step.plan.tokens)
    seconds = steps * step.seconds / useful
    return {
        "tokens": float(tokens),
        "steps": steps,
        "days": seconds / 86400.0,
        "gpu_hours": seconds * step.plan.gpus / 3600.0,
        "usd": None if one.usd is None else one.usd * steps / useful,
        "kwh": one.joules * steps / useful / 3.6e6,
        "useful": useful,
        "energy_basis": BASIS,
    }
