"""What the trainer's pieces take on this machine while two processes compute at once, as they do in a run.

Two processes on two cores share caches, memory and clock rate, so nothing here is timed alone: both ranks time the same things
at the same time. Pieces are a stage's F, I, W and B with collectives left out; each collective and a hand-over by its bytes;
the optimizer's update by its elements; and plain matrix products, from which an efficiency curve is fitted. Everything is timed
in rounds that are spread over the calibration, so that rounds differ as steps of a run will.

Units: seconds, bytes, elements.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from llmlab.harness.runtime.trainer import build_part, first_weights
from llmlab.harness.runtime.trainer_model import Groups, Tape, Weight
from llmlab.harness.runtime.trainer_shards import Bucket, CountedPeers, Meter
from llmlab.kernels.parallel import _world
from llmlab.reference.models._config import ModelConfig
from llmlab.simulator.training.plan import ParallelPlan

RANKS = 2
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter")
MESSAGE_BYTES = tuple(2**power for power in (10, 14, 17, 20, 22))
UPDATE_ELEMENTS = tuple(2**power for power in (12, 16, 19, 21))
KINDS = ("F", "I", "W", "B")


@dataclass(frozen=True)
class Piece:
    """A part of a model that each rank times: the whole, its half of a cut one, or (`depth` 2) a stage each."""

    name: str
    config: ModelConfig
    plan: ParallelPlan
    depth: int = 1


@dataclass(frozen=True)
class Round:
    """One round on one rank.

    Attributes:
        pieces: name -> seconds of each kind of action, the median of the round.
        collectives: (what, bytes on this rank before it) -> seconds.
        hand_over: bytes -> seconds from one rank to the other.
        updates: elements -> seconds of zeroing, summing alone and updating.
        products: (m, n, k) -> seconds of out[m, n].
    """

    pieces: Mapping[str, Mapping[str, float]]
    collectives: Mapping[tuple[str, int], float]
    hand_over: Mapping[int, float]
    updates: Mapping[int, float]
    products: Mapping[tuple[int, int, int], float]


class _Silent(CountedPeers):
    """Two ranks of which one is here: collectives give tensors of the right shape and send nothing."""

    def __init__(self) -> None:
        super().__init__("", Meter())
        self.size = 2

    def all_reduce(self, part: Tensor) -> Tensor:
        """The part itself."""
        return part.detach().clone()

    def all_gather(self, part: Tensor, dim: int = 0) -> Tensor:
        """The part twice."""
        return torch.cat([part.detach()] * 2, dim)

    def reduce_scatter(self, part: Tensor, dim: int = 0) -> Tensor:
        """Its first half."""
        return part.detach().chunk(2, dim)[0].clone()


def calibrate_ranks(
    pieces: Sequence[Piece], products: Sequence[tuple[int, int, int]], *, piece_s: float, seed: int = 0
) -> list[Round]:
    """Time everything once on two ranks at once; return what each rank found."""
    settings = {"pieces": list(pieces), "products": list(products), "piece_s": piece_s, "seed": seed}
    return _world.run(time_rank, [settings] * RANKS)


def time_rank(pieces: Sequence[Piece], products: Sequence[tuple[int, int, int]], piece_s: float, seed: int) -> Round:
    """One round on one rank, beside the other's."""
    meter = Meter()
    peers = CountedPeers("dp", meter, dist.group.WORLD)
    return Round(
        {piece.name: _piece(piece, piece_s, seed) for piece in pieces},
        {(what, size): _collective(peers, what, size) for what in COLLECTIVES for size in MESSAGE_BYTES},
        {size: _hand_over(peers, size) for size in MESSAGE_BYTES},
        {size: _update(size) for size in UPDATE_ELEMENTS},
        {shape: _product(*shape) for shape in products},
    )


def _piece(piece: Piece, budget_s: float, seed: int) -> dict[str, float]:
    """Median seconds of each action of this rank's part."""
    plan, config = piece.plan, piece.config
    tp: CountedPeers = _Silent() if plan.tp > 1 else CountedPeers("", Meter())
    alone = CountedPeers("", Meter())
    groups = Groups(tp, alone, alone, alone, alone, plan.sequence_parallel)
    number = dist.get_rank() if piece.depth > 1 else 0
    one = replace(plan, zero_stage=0)
    part = build_part(config, one, number, piece.depth, first_weights(config, seed), groups)
    rng = torch.Generator().manual_seed(seed)
    shape = (plan.microbatch, plan.sequence)
    ids_BT, target_BT = (torch.randint(config.vocab_size, shape, generator=rng) for _ in range(2))
    rows = plan.microbatch * plan.sequence // (plan.tp if plan.sequence_parallel else 1)
    x_PD, dy_PD = (torch.randn(rows, config.hidden_size, generator=rng) for _ in range(2))
    last = number == piece.depth - 1
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}

    def forward() -> tuple[Tensor, Tape]:
        tape = Tape()
        out = part.layers.forward(x_PD.detach().requires_grad_() if number else ids_BT, tape)
        return (part.layers.loss(out, target_BT, tape) if last else out), tape

    def backward(out: Tensor) -> None:
        torch.autograd.backward(out, None if last else dy_PD)

    dist.barrier()
    started, turn = time.perf_counter(), 0
    while turn < 5 or time.perf_counter() - started < budget_s:
        marks = [time.perf_counter()]
        out, tape = forward()
        marks.append(time.perf_counter())
        backward(out)
        if turn % 2:
            part.play(tape)
            marks.append(time.perf_counter())
        else:
            marks.append(time.perf_counter())
            part.play(tape)
            marks.append(time.perf_counter())
        kinds = ("F", "B") if turn % 2 else ("F", "I", "W")
        if turn > 1:
            for kind, start, end in zip(kinds, marks, marks[1:]):
                times[kind].append(end - start)
        turn += 1
    return {kind: float(np.median(values)) for kind, values in times.items()}


def _timed(call: Callable[[], Any], budget_s: float = 0.02) -> float:
    """Median seconds of a call both ranks make equally often."""
    call()
    times: list[float] = []
    for _ in range(3):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    count = torch.tensor(int(min(25.0, budget_s / max(1e-6, float(np.median(times))))))
    dist.broadcast(count, 0)
    for _ in range(int(count)):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def _collective(peers: CountedPeers, what: str, size: int) -> float:
    part = torch.zeros(size // 4)
    return _timed(lambda: getattr(peers, what)(part))


def _hand_over(peers: CountedPeers, size: int) -> float:
    """Half of a round trip."""
    part, other, first = torch.zeros(size // 4), 1 - peers.rank, peers.rank == 0

    def there_and_back() -> None:
        work: Any = dist.isend(part, other) if first else None
        came = torch.empty_like(part)
        dist.recv(came, other)
        if not first:
            work = dist.isend(part, other)
        work.wait()

    return _timed(there_and_back) / 2


def _update(size: int) -> float:
    """Room for gradients, and a step of the optimizer."""
    alone = CountedPeers("", Meter())
    groups = Groups(alone, alone, alone, alone, alone)
    bucket = Bucket([Weight("one", torch.zeros(size), groups)], alone, alone, 0, "adam")

    def one_step() -> None:
        bucket.forget()
        bucket.open()
        bucket.update(1e-3)

    return _timed(one_step)


def _product(m: int, n: int, k: int) -> float:
    x, weight = torch.randn(m, k), torch.randn(n, k)
    return _timed(lambda: F.linear(x, weight), budget_s=0.01)


class Curve:
    """Seconds by size between measured ones, interpolated in the logarithms; beyond the largest in proportion."""

    def __init__(self, points: Mapping[int, float]) -> None:
        self.sizes = np.log([float(size) for size in sorted(points)])
        self.seconds = np.log([points[size] for size in sorted(points)])

    def __call__(self, size: float) -> float:
        """Seconds of this size.

        >>> curve = Curve({1: 1.0, 4: 2.0, 16: 8.0})
        >>> round(curve(8), 6), round(curve(32), 6), curve(0.5), curve(0)
        (4.0, 16.0, 1.0, 0.0)
        """
        if size <= 0:
            return 0.0
        place = float(np.log(size))
        beyond = max(0.0, place - float(self.sizes[-1]))
        return float(np.exp(np.interp(place, self.sizes, self.seconds) + beyond))
