"""How a row's devices are shared out: tensor, expert and data parallel degrees, replicas, prefill and decode workers.

Published tables write the same thing in several ways, and some of them count devices twice. What is meant is settled here, so
that everything behind sees groups of `devices` with three degrees each.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from llmlab.harness.validation.resolve import Unsimulated
from llmlab.harness.validation.rows import MeasuredRow

NODE = 8
"""Devices of a worker that spreads over a whole node, where only the total of a pool is stated."""

BUSY_REQUESTS = 8
"""Requests per decoding device from which a pool of unstated workers is taken as one that shares its experts."""


@dataclass(frozen=True)
class Layout:
    """Equal groups of devices that each hold the whole model.

    Attributes:
        devices: of one group, the degree over which weights are split.
        experts: groups of devices within it that the experts are dealt to.
        requests: groups of devices within it that each attend for a part of the requests.
        replicas: how many groups.
    """

    devices: int
    experts: int = 1
    requests: int = 1
    replicas: int = 1


@dataclass(frozen=True)
class Shared:
    """The layout of a row; `prefill` is set where prompts are computed by workers of their own."""

    whole: Layout
    prefill: Layout | None = None

    @property
    def devices(self) -> int:
        """All devices, those of prefill included."""
        pools = (self.whole, *((self.prefill,) if self.prefill else ()))
        return sum(pool.devices * pool.replicas for pool in pools)


_POOL = r"{letter}([\d.]+|None)x\(tp([\d.]+),dp([\d.]+),ep([\d.]+),bs[^)]*\)"


def shared_out(row: MeasuredRow, *, moe: bool, least: int = 1) -> Shared:
    """The degrees of parallelism a row means.

    Args:
        row: what was published.
        moe: whether the model has experts.
        least: devices that hold the weights at all; no worker of unstated size is smaller.

    Raises:
        Unsimulated: they are not stated, or contradict the number of devices.
    """
    if pools := _pools(row, moe, least):
        return pools
    devices, tensor = row.count("n_gpus"), row.count("tp")
    data, experts = row.count("dp") or 1, _experts(row)
    if found := re.fullmatch(r"dp-attention (\d+)", row.unread.get("tp", "")):
        tensor = data = int(found.group(1))
    elif row.unread:
        column, cell = next(iter(row.unread.items()))
        raise Unsimulated(f"{column}={cell}")
    if (row.count("pp") or 1) > 1:
        raise Unsimulated("pipeline parallelism")
    if tensor is None:
        if devices != 1:
            raise Unsimulated("tensor parallelism not stated")
        tensor = 1
    devices = devices or tensor * data
    if "inferencemax" in row.text("other_config"):
        devices, tensor, data, experts = _counted_once(row, devices, tensor, data, experts)
    if not moe:
        experts = 1
    if tensor == devices and data > 1 and devices % data == 0:  # groups of requests within one replica
        return Shared(Layout(devices, _dealt(experts, devices), data))
    if devices == tensor * data and data > 1 and moe and experts > 1:
        return Shared(Layout(devices, _dealt(experts, devices), data))
    if devices % tensor:
        raise Unsimulated(f"{devices} devices for tensor parallelism {tensor}")
    if devices != tensor * data:
        raise Unsimulated(f"{devices} devices for tensor parallelism {tensor} and {data} replicas")
    if tensor > NODE and moe and experts == 1:  # many nodes: nobody splits one matrix over them
        return Shared(Layout(tensor, tensor, tensor))
    return Shared(Layout(tensor, _dealt(experts, tensor), 1, data))


def _experts(row: MeasuredRow) -> int:
    text = row.text("ep").lower()
    if text in ("true", "yes"):
        return (row.count("tp") or 1) * (row.count("dp") or 1) if row.count("tp") != row.count("dp") else row.count("tp") or 1
    try:
        return max(1, int(float(text))) if text and text not in ("false", "no") else 1
    except ValueError:
        raise Unsimulated(f"ep={text}") from None


def _dealt(experts: int, devices: int) -> int:
    """The degree of expert parallelism within so many devices: what is stated, or what of it divides them."""
    return math.gcd(min(experts, devices), devices)


def _counted_once(row: MeasuredRow, devices: int, tensor: int, data: int, experts: int) -> tuple[int, int, int, int]:
    """InferenceX rows with expert parallelism over E devices are listed a second time as E x E of them.

    The listed columns are then the product of the degrees (`tp` = 64, `ep` = 8, `moe_tp` = 8 of eight devices): their times
    per token are those of the rows on E devices, to the last digit where both are in a table.
    """
    found = re.search(r"moe_tp=([\d.]+)", row.text("other_config"))
    across = round(float(found.group(1))) if found else 0
    if experts > 1 and across == experts and experts * across == devices:
        return experts, experts, experts if tensor == 1 else 1, experts
    if tensor > 1 and data == tensor and experts == devices == tensor * data:
        return tensor, tensor, 1, tensor
    return devices, tensor, data, experts


def _pools(row: MeasuredRow, moe: bool, least: int) -> Shared | None:
    """Prefill and decode workers as \"P2.0x(tp4.0,dp1.0,ep4.0,bs1.0) D1.0x(...)\" or \"1P3D\" says."""
    text = row.text("n_instances")
    if not text:
        return None
    if found := re.fullmatch(r"(\d+)P(\d+)D", text):
        tensor = row.count("tp")
        if tensor is None:
            raise Unsimulated("tensor parallelism not stated")
        return Shared(Layout(tensor, 1, 1, int(found.group(2))), Layout(tensor, 1, 1, int(found.group(1))))
    pools: list[tuple[str, int, int, int]] = []
    for letter in "PD":
        if (found := re.search(_POOL.format(letter=letter), text)) is None:
            if re.fullmatch(r"\d+(?:\.0)?", text):  # plain copies
                copies = int(float(text))
                tensor = row.count("tp") or 1
                return Shared(Layout(tensor, _dealt(_experts(row) if moe else 1, tensor), 1, copies))
            raise Unsimulated(f"n_instances={text}")
        workers, split, data, experts = (found.group(i + 1) for i in range(4))
        pools.append((workers, round(float(split)), round(float(data)), round(float(experts))))
    clients = row.stated.get("concurrency", 0.0)
    per_device = clients / max(1, pools[1][1])
    prefill, decode = (_pool(*pool, moe, least, per_device if number else 0.0) for number, pool in enumerate(pools))
    return Shared(decode, prefill)


def _pool(workers: str, tensor: int, data: int, experts: int, moe: bool, least: int, load: float) -> Layout:
    """One pool; where the number of workers is not stated, `tensor` counts all devices of the pool.

    Small pools are one worker, and so are those whose experts are dealt to all of it. Larger ones are workers of one node each
    or, where many requests decode on every device, one worker that deals experts and requests to all of them.
    """
    if workers != "None":
        devices = tensor * data
        if devices < least:
            raise Unsimulated(f"a worker of {devices} devices cannot hold the weights")
        return Layout(devices, _dealt(experts, devices) if moe else 1, data, round(float(workers)))
    tensor = max(tensor, least)
    node = max(NODE, least)
    if tensor <= node or tensor % node or experts == tensor:
        spread = moe and (load >= BUSY_REQUESTS or tensor > 2 * NODE)
        return Layout(tensor, tensor if moe and (experts > 1 or spread) else 1, tensor if spread else 1)
    if moe and load >= BUSY_REQUESTS:
        return Layout(tensor, tensor, tensor)
    return Layout(node, node if moe and experts > 1 else 1, 1, tensor // node)
