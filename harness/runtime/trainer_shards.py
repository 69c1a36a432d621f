"""What data-parallel ranks do with weights that all of them hold: sum gradients, share out state, update, gather again.

A bucket is one flat tensor that the weights of a unit are views of. What ranks share out is, by ZeRO stage (arXiv:1910.02054):
0 nothing, 1 the optimizer's state, 2 gradients too (summed into shares after every microbatch), 3 weights too (whole only while
their unit runs). Collectives are not overlapped with computing. Gradients are sums: the loss is already divided.

`Meter` counts what collectives carry. Bytes sent are those of a ring: (n - 1) / n of what is gathered or scattered, twice that
of an all-reduce, and in an exchange what goes to others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llmlab.harness.runtime.trainer_model import Weight
from llmlab.kernels.parallel._peers_torch import Peers

ALIGNED = 16
"""Elements a view's place is a multiple of: products must not see another alignment than on one process."""

BETA_1, BETA_2, EPSILON, DECAY, MOMENTUM = 0.9, 0.95, 1e-8, 0.1, 0.9
"""AdamW (arXiv:1711.05101) as GPT-3 was trained with (arXiv:2005.14165, appendix B), and momentum of `sgd-momentum`."""


@dataclass
class Meter:
    """Calls, bytes given to collectives, bytes sent, and seconds, by (axis, collective)."""

    calls: dict[tuple[str, str], int] = field(default_factory=dict)
    payload_bytes: dict[tuple[str, str], int] = field(default_factory=dict)
    sent_bytes: dict[tuple[str, str], int] = field(default_factory=dict)
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)

    @contextmanager
    def counted(self, axis: str, what: str, payload: int, sent: int) -> Iterator[None]:
        """Count one collective and the time until it is done on this rank."""
        started = time.perf_counter()
        yield
        key = (axis, what)
        for table, amount in ((self.calls, 1), (self.payload_bytes, payload), (self.sent_bytes, sent)):
            table[key] = table.get(key, 0) + amount
        self.seconds[key] = self.seconds.get(key, 0.0) + time.perf_counter() - started


class CountedPeers(Peers):
    """A group whose collectives are counted; without a group, one rank alone."""

    def __init__(self, axis: str, meter: Meter, group: dist.ProcessGroup | None = None) -> None:
        self.axis, self.meter = axis, meter
        if group is None:
            self.rank, self.size = 0, 1
        else:
            super().__init__(group)

    def all_reduce(self, part: Tensor) -> Tensor:
        """Sum over ranks."""
        if self.size == 1:
            return part.detach().clone()
        with self.meter.counted(self.axis, "all_reduce", part.nbytes, 2 * part.nbytes * (self.size - 1) // self.size):
            return super().all_reduce(part)

    def all_gather(self, part: Tensor, dim: int = 0) -> Tensor:
        """Parts side by side."""
        if self.size == 1:
            return part.detach().clone()
        with self.meter.counted(self.axis, "all_gather", part.nbytes * self.size, part.nbytes * (self.size - 1)):
            return super().all_gather(part, dim)

    def reduce_scatter(self, part: Tensor, dim: int = 0) -> Tensor:
        """This rank's piece of the sum."""
        if self.size == 1:
            return part.detach().clone()
        with self.meter.counted(self.axis, "reduce_scatter", part.nbytes, part.nbytes * (self.size - 1) // self.size):
            return super().reduce_scatter(part, dim)

    def all_to_all(self, rows: Tensor, give: Sequence[int], take: Sequence[int]) -> Tensor:
        """Rows to those they are for."""
        if self.size == 1:
            return rows.detach().clone()
        each = rows.nbytes // max(1, len(rows))
        with self.meter.counted(self.axis, "all_to_all", rows.nbytes, each * (sum(give) - give[self.rank])):
            return super().all_to_all(rows, give, take)


class Bucket:
    """The weights of one unit that the same ranks hold.

    Attributes:
        flat: all weights behind each other; None where they are sharded and not gathered.
        share: this rank's part of them; None where nothing is shared out.
        grad: the gradients behind each other, which the weights' `grad` are views of; None where there are none.
        grad_share: this rank's part of their sum.
        state: of the optimizer, per element of what this rank updates.
    """

    def __init__(self, weights: Sequence[Weight], peers: Peers, tp: Peers, zero_stage: int, optimizer: str) -> None:
        self.weights, self.peers, self.tp = list(weights), peers, tp
        self.stage, self.optimizer = zero_stage if peers.size > 1 else 0, optimizer
        self.places, end = [], 0
        for weight in self.weights:
            self.places.append(end)
            end += -(-weight.shape.numel() // ALIGNED) * ALIGNED
        whole = math.lcm(ALIGNED, peers.size)
        self.dtype = self.weights[0].dtype
        self.flat: Any = torch.zeros(-(-end // whole) * whole, dtype=self.dtype)
        for weight, view in zip(self.weights, self._views(self.flat)):
            view.copy_(weight.value)
        self.size = len(self.flat)
        self.use(self.flat)
        self.share: Any = None
        if self.stage:
            self.share = self._own(self.flat).clone() if self.stage == 3 else self._own(self.flat)
        self.grad: Any = None
        self.grad_share: Any = None
        updated = self.flat if self.share is None else self.share
        self.state = [torch.zeros_like(updated) for _ in range({"adam": 2, "sgd-momentum": 1, "sgd": 0}[optimizer])]
        self.updates = 0
        if self.stage == 3:
            self.release()

    def _views(self, flat: Tensor) -> list[Tensor]:
        return [flat[at : at + weight.shape.numel()].view(weight.shape) for at, weight in zip(self.places, self.weights)]

    def _own(self, flat: Tensor) -> Tensor:
        return flat.chunk(self.peers.size)[self.peers.rank]

    def use(self, flat: Tensor) -> None:
        """Let the weights be views of this tensor."""
        self.flat = flat
        for weight, view in zip(self.weights, self._views(flat)):
            weight.value = view

    def fetch(self) -> None:
        """Make the weights whole."""
        if self.flat is None and self.share is not None:
            self.use(self.peers.all_gather(self.share))

    def release(self) -> None:
        """Keep no more than this rank's share, where weights are shared out."""
        if self.stage == 3:
            self.flat = None
            for weight in self.weights:
                weight.value = None

    def open(self) -> None:
        """Make room for gradients, zeros where there is none yet."""
        if self.grad is None:
            self.grad = torch.zeros(self.size, dtype=self.dtype)
            for weight, view in zip(self.weights, self._views(self.grad)):
                weight.grad = view

    def microbatch_done(self) -> None:
        """Sum the gradients into shares already, where those are shared out."""
        if self.stage < 2 or self.grad is None:
            return
        summed = self._reduced()
        self.grad_share = summed if self.grad_share is None else self.grad_share.add_(summed)
        self._close()

    def _close(self) -> None:
        self.grad = None
        for weight in self.weights:
            weight.grad = None

    def _reduced(self) -> Tensor:
        """Sum what tensor-parallel ranks hold parts of, then this rank's share over the data-parallel ranks."""
        self._sum_partial()
        return self.peers.reduce_scatter(self.grad)

    def _sum_partial(self) -> None:
        for weight in self.weights:
            if weight.partial and weight.grad is not None:
                weight.grad.copy_(self.tp.all_reduce(weight.grad))

    def gathered(self) -> Any:
        """The gradients as they stand before the end of a step: this rank's sum, or its share of all."""
        if self.stage >= 2:
            if self.grad_share is None:
                self.grad_share = torch.zeros(self.size // self.peers.size, dtype=self.dtype)
            return self.grad_share
        self.open()
        return self.grad

    def reduce(self) -> None:
        """Sum the gradients over the data-parallel ranks, as far as that is not done."""
        if self.stage >= 2:
            self.grad_share = self.gathered()
        elif self.stage == 1:
            self.open()
            self.grad_share = self._reduced()
            self._close()
        else:
            self.open()
            self._sum_partial()
            if self.peers.size > 1:
                self.grad.copy_(self.peers.all_reduce(self.grad))

    def update(self, rate: float) -> None:
        """One step of the optimizer on what this rank updates; then every rank gets what it keeps."""
        grad = self.grad if self.share is None else self.grad_share
        values = self.flat if self.share is None else self.share
        self.updates += 1
        step(self.optimizer, values, grad, self.state, self.updates, rate)
        if self.stage in (1, 2):
            self.use(self.peers.all_gather(self.share))
            self.share = self._own(self.flat)

    def forget(self) -> None:
        """Drop the gradients: the next step begins."""
        self._close()
        self.grad_share = None

    def whole_gradients(self) -> list[Tensor]:
        """Summed gradients of all weights, gathered again where they are shared out."""
        flat = self.grad if self.share is None else self.peers.all_gather(self.grad_share)
        return [view.clone() for view in self._views(flat)]

    def whole_values(self) -> list[Tensor]:
        """All weights, gathered where they are shared out."""
        self.fetch()
        values = [view.clone() for view in self._views(self.flat)]
        self.release()
        return values

    @property
    def held_bytes(self) -> dict[str, int]:
        """Bytes this rank keeps between microbatches: weights, gradients, state of the optimizer."""
        whole = self.size * self.dtype.itemsize
        share = whole // self.peers.size
        return {
            "weights": share if self.stage == 3 else whole,
            "gradients": share if self.stage >= 2 else whole,
            "optimizer": sum(one.nbytes for one in self.state),
        }


def step(optimizer: str, values: Tensor, grad: Tensor, state: Sequence[Tensor], number: int, rate: float) -> None:
    """Take step `number` in place. Every product and sum is rounded by itself, so a share goes the way of the whole."""
    if optimizer == "sgd":
        values.sub_(grad * rate)
    elif optimizer == "sgd-momentum":
        state[0].mul_(MOMENTUM).add_(grad)
        values.sub_(state[0] * rate)
    else:
        mean, square = state
        mean.mul_(BETA_1).add_(grad * (1 - BETA_1))
        square.mul_(BETA_2).add_((grad * grad).mul_(1 - BETA_2))
        scale = (square / (1 - BETA_2**number)).sqrt_().add_(EPSILON)
        values.mul_(1 - rate * DECAY).sub_((mean / (1 - BETA_1**number)).div_(scale).mul_(rate))
