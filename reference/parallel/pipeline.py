"""Pipeline parallelism (GPipe, arXiv:1811.06965): a stack of layers cut into stages, trained in any schedule of `_orders.py`.

Axes: M microbatch, T rows of one, D width, H hidden width, L layer. A layer is a residual block, y = x + tanh(x A) C. A
schedule says only in which order; with a flush, every schedule gives the gradients of the whole batch. Without one (PipeDream,
arXiv:1806.03377) stage s computes with the weights of p - 1 - s updates ago, forward and backward alike, and

    w(t+1) = w(t) - rate * gradient of f(w_0(t - p + 1), ..., w_{p-1}(t))
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.reference.op import Cost, Dims, Procedure
from llmlab.reference.parallel._orders import LOOPED, SCHEDULES, make_schedule
from llmlab.reference.parallel._schedule import Schedule
from llmlab.reference.parallel._traffic import Traffic

Layers = list[tuple[np.ndarray, np.ndarray]]
"""A and C of each layer of one part of the model."""


def forward(x_TD: np.ndarray, layers: Layers) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Run one part; return its output and what its backward needs: input and tanh of each layer."""
    kept = []
    for a_DH, c_HD in layers:
        h_TH = np.tanh(x_TD @ a_DH)
        kept.append((x_TD, h_TH))
        x_TD = x_TD + h_TH @ c_HD
    return x_TD, kept


def backward_input(
    dy_TD: np.ndarray, layers: Layers, kept: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Gradient of the input, and per layer what the gradients of the weights need: those of y and of x A."""
    for_weights: list[tuple[np.ndarray, np.ndarray]] = []
    for (a_DH, c_HD), (_, h_TH) in zip(reversed(layers), reversed(kept)):
        dz_TH = (dy_TD @ c_HD.T) * (1 - h_TH**2)
        for_weights.insert(0, (dy_TD, dz_TH))
        dy_TD = dy_TD + dz_TH @ a_DH.T
    return dy_TD, for_weights


def backward_weight(kept: list[tuple[np.ndarray, np.ndarray]], for_weights: list[tuple[np.ndarray, np.ndarray]]) -> Layers:
    """Gradients of A and C of each layer."""
    return [(x_TD.T @ dz_TH, h_TH.T @ dy_TD) for (x_TD, h_TH), (dy_TD, dz_TH) in zip(kept, for_weights)]


def run_schedule(
    schedule: Schedule, parts: list[Layers], x_MTD: np.ndarray, target_MTD: np.ndarray, *, rate: float, traffic: Traffic
) -> tuple[list[float], list[Layers], list[int]]:
    """Do every action of a schedule; return the losses, the gradients of each part, and the most weight versions a rank held.

    The loss of a microbatch is half the mean square of output - target; the gradient is that of the mean over microbatches, or,
    without a flush, the sum of what was subtracted at `rate`, divided by it.
    """
    count = schedule.num_microbatches
    scale = 1 / count if schedule.flush else 1.0
    weights = {stage: parts[schedule.part_of(stage)] for stage in range(schedule.num_stages)}
    gradients = {stage: _zeros(weights[stage]) for stage in weights}
    kept, stashed, for_weights = {}, {}, {}
    arrived: dict[tuple[str, int, int], np.ndarray] = {}  # what came from a neighbour and is not used yet
    losses, versions = [0.0] * count, [1] * schedule.num_ranks
    for rank, (kind, stage, microbatch) in schedule.in_order():
        key, part = (stage, microbatch), schedule.part_of(stage)
        if kind == "F":
            stashed[key] = weights[stage]
            held = {id(own) for (other, _), own in stashed.items() if other == stage}
            versions[rank] = max(versions[rank], len(held))
            x_TD = arrived.pop(("F", *key)) if part else x_MTD[microbatch]
            y_TD, kept[key] = forward(x_TD, weights[stage])
            if part < schedule.depth - 1:
                arrived["F", stage + 1, microbatch] = traffic.send(y_TD, rank, schedule.rank_of[stage + 1])
            else:
                error_TD = y_TD - target_MTD[microbatch]
                losses[microbatch] = float(0.5 * np.mean(error_TD**2))
                arrived["B", *key] = error_TD * (scale / error_TD.size)
        if kind in "BI":
            dx_TD, for_weights[key] = backward_input(arrived.pop(("B", *key)), stashed.pop(key), kept[key])
            if part:
                arrived["B", stage - 1, microbatch] = traffic.send(dx_TD, rank, schedule.rank_of[stage - 1])
        if kind in "BW":
            change = backward_weight(kept.pop(key), for_weights.pop(key))
            gradients[stage] = _plus(gradients[stage], change, 1.0)
            if not schedule.flush:
                weights[stage] = _plus(weights[stage], change, -rate)
    for stage in range(schedule.depth, schedule.num_stages):  # the second copy of the model sends its gradients to the first
        part, rank = schedule.part_of(stage), schedule.rank_of[stage]
        own = [tuple(traffic.send(array, rank, schedule.rank_of[part]) for array in layer) for layer in gradients[stage]]
        gradients[part] = _plus(gradients[part], own, 1.0)
    return losses, [gradients[part] for part in range(schedule.depth)], versions


def _zeros(layers: Layers) -> Layers:
    return [(np.zeros_like(a), np.zeros_like(c)) for a, c in layers]


def _plus(layers: Layers, change: Any, times: float) -> Layers:
    return [(a + times * da, c + times * dc) for (a, c), (da, dc) in zip(layers, change)]


def pipeline(
    *,
    schedule: str,
    num_ranks: int,
    virtual: int,
    x_MTD: np.ndarray,
    target_MTD: np.ndarray,
    a_LDH: np.ndarray,
    c_LHD: np.ndarray,
    rate: float = 0.1,
) -> dict[str, Any]:
    """Train one step of a stack of L layers on M microbatches; return losses, gradients and what was sent.

    The layers are spread evenly over the virtual stages. `messages` and `sent_bytes` count activations and their gradients (and
    the gradients of a second copy of the model, where the schedule has one).

    Raises:
        ValueError: a schedule that does not exist or does not take these sizes, or layers that its stages do not divide.

    >>> one = np.ones((2, 1, 1)); model = dict(a_LDH=np.zeros((2, 1, 1)), c_LHD=np.ones((2, 1, 1)))
    >>> step = pipeline(schedule="1f1b", num_ranks=2, virtual=1, x_MTD=3 * one, target_MTD=one, **model)
    >>> step["losses"], step["da_LDH"].ravel(), step["messages"]
    ([2.0, 2.0], array([6., 6.]), 4)
    """
    plan = make_schedule(schedule, num_ranks, len(x_MTD), virtual)
    L = len(a_LDH)
    if L % plan.depth:
        raise ValueError(f"{L} layers do not divide into {plan.depth} stages of {schedule} on {num_ranks} ranks")
    each = L // plan.depth
    layers = list(zip(a_LDH, c_LHD))
    parts = [layers[part * each : (part + 1) * each] for part in range(plan.depth)]
    traffic = Traffic()
    losses, gradients, versions = run_schedule(plan, parts, x_MTD, target_MTD, rate=rate, traffic=traffic)
    flat = [layer for part in gradients for layer in part]
    return {
        "losses": losses,
        "da_LDH": np.stack([da for da, _ in flat]),
        "dc_LHD": np.stack([dc for _, dc in flat]),
        "messages": traffic.total_messages,
        "sent_bytes": traffic.total_bytes,
        "versions": versions,
    }


def same_step(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Whether losses and gradients agree to rounding: sums are taken in another order by each schedule."""

    def close(one: Any, other: Any) -> bool:
        one, other = np.asarray(one), np.asarray(other)
        size = max(1.0, float(np.abs(one).max(initial=0.0)))
        return one.shape == other.shape and float(np.abs(one - other).max(initial=0.0)) <= 256 * np.finfo(one.dtype).eps * size

    return all(close(left[name], right[name]) for name in ("losses", "da_LDH", "dc_LHD"))


def pipeline_examples(rng: np.random.Generator) -> dict[str, Any]:
    """Draw a schedule, sizes it takes, and a small model."""
    schedule = str(rng.choice(list(SCHEDULES)))
    even = schedule in ("dualpipe", "chimera")
    num_ranks = int(rng.choice([2, 4])) if even else int(rng.integers(1, 5))
    virtual = int(rng.integers(2, 4)) if schedule in LOOPED else 1
    if schedule in ("interleaved", "chimera"):
        M = num_ranks * int(rng.integers(1, 4))
    elif schedule.startswith("dualpipe"):
        M = 2 * num_ranks + 2 * int(rng.integers(0, 3))
    else:
        M = int(rng.integers(1, 10))
    depth = make_schedule(schedule, num_ranks, M, virtual).depth
    T, D, H, L = int(rng.integers(1, 4)), int(rng.integers(1, 6)), int(rng.integers(1, 6)), depth * int(rng.integers(1, 3))
    return {
        "schedule": schedule,
        "num_ranks": num_ranks,
        "virtual": virtual,
        "x_MTD": rng.standard_normal((M, T, D)),
        "target_MTD": rng.standard_normal((M, T, D)),
        "a_LDH": rng.standard_normal((L, D, H)) * D**-0.5,
        "c_LHD": rng.standard_normal((L, H, D)) * H**-0.5,
    }


def pipeline_cost(d: Dims) -> Cost:
    """One step of a straight pipeline of P ranks: three passes of two products; elements are those sent and received.

    Every boundary between ranks carries an activation down and its gradient up for each of M microbatches.
    """
    sent = 2 * (d["P"] - 1) * d["M"] * d["T"] * d["D"]
    return Cost(flops=12 * d["M"] * d["T"] * d["D"] * d["H"] * d["L"], elements_read=sent, elements_written=sent)


PIPELINE = Procedure(
    reference=pipeline, examples=pipeline_examples, paper="arXiv:1811.06965", same=same_step, cost=pipeline_cost
)
