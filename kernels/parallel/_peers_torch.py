"""Ranks for twins over torch.distributed: gloo process groups, one thread per rank, and collectives autograd goes through.

A rank's program takes a `Peers` per axis of its mesh; in a program of one process per rank the same object wraps
`torch.distributed.group.WORLD` or what `new_group` returned. Backwards of a CPU graph runs in the thread that asks for it, so
collectives inside it meet their peers as they do across processes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(seconds=100)


class Peers:
    """Collectives of one group; every method returns new tensors."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group, self.rank, self.size = group, group.rank(), group.size()

    def all_reduce(self, part: Tensor) -> Tensor:
        """Sum over ranks."""
        total = part.detach().contiguous().clone()
        if self.size > 1:
            self.group.allreduce([total]).wait()
        return total

    def all_gather(self, part: Tensor, dim: int = 0) -> Tensor:
        """Parts side by side."""
        part = part.detach().contiguous()
        if self.size == 1:
            return part.clone()
        parts = [torch.empty_like(part) for _ in range(self.size)]
        self.group.allgather([parts], [part]).wait()
        return torch.cat(parts, dim)

    def reduce_scatter(self, part: Tensor, dim: int = 0) -> Tensor:
        """This rank's piece of the sum."""
        pieces = [piece.contiguous() for piece in part.detach().chunk(self.size, dim)]
        if self.size == 1:
            return pieces[0].clone()
        mine = torch.empty_like(pieces[0])
        self.group.reduce_scatter([mine], [pieces]).wait()
        return mine

    def broadcast(self, part: Tensor, root: int) -> Tensor:
        """The root's tensor; all ranks give one of that shape."""
        held = part.detach().contiguous().clone()
        if self.size > 1:
            options = dist.BroadcastOptions()
            options.rootRank, options.rootTensor = root, 0
            self.group.broadcast([held], options).wait()
        return held

    def reduce(self, part: Tensor, root: int) -> Tensor:
        """The sum on the root; elsewhere nothing that means anything."""
        held = part.detach().contiguous().clone()
        if self.size > 1:
            options = dist.ReduceOptions()
            options.rootRank, options.rootTensor = root, 0
            self.group.reduce([held], options).wait()
        return held

    def all_to_all(self, rows: Tensor, give: Sequence[int], take: Sequence[int]) -> Tensor:
        """Send the first give[0] rows to rank 0, the next to rank 1, ...; return what came, take[i] rows from rank i."""
        rows = rows.detach().contiguous()
        came = rows.new_empty((sum(take), *rows.shape[1:]))
        if self.size == 1:
            return came.copy_(rows)
        self.group.alltoall_base(came, rows, list(take), list(give)).wait()
        return came

    def shift(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Hand every tensor to the next rank of the ring; return those of the rank before."""
        if self.size == 1:
            return [part.clone() for part in parts]
        after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        going = [part.detach().contiguous() for part in parts]
        came = [torch.empty_like(part) for part in going]
        works = [self.group.send([part], after, tag) for tag, part in enumerate(going)]
        works += [self.group.recv([part], before, tag) for tag, part in enumerate(came)]
        for work in works:
            work.wait()
        return came


class Copied(torch.autograd.Function):
    """Identity forwards, all-reduce backwards (Megatron's f)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers) -> Tensor:
        ctx.peers = peers
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.peers.all_reduce(grad), None


class Summed(torch.autograd.Function):
    """All-reduce forwards, identity backwards (Megatron's g)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers) -> Tensor:
        return peers.all_reduce(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class Gathered(torch.autograd.Function):
    """All-gather along `dim` forwards, reduce-scatter backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers, dim: int) -> Tensor:
        ctx.peers, ctx.dim = peers, dim
        return peers.all_gather(x, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.peers.reduce_scatter(grad, ctx.dim), None, None


class Scattered(torch.autograd.Function):
    """Reduce-scatter along `dim` forwards, all-gather backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers, dim: int) -> Tensor:
        ctx.peers, ctx.dim = peers, dim
        return peers.reduce_scatter(x, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.peers.all_gather(grad, ctx.dim), None, None


class Exchanged(torch.autograd.Function):
    """All-to-all of rows forwards, the same exchange the other way backwards."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, peers: Peers, give: list[int], take: list[int]) -> Tensor:
        ctx.peers, ctx.give, ctx.take = peers, give, take
        return peers.all_to_all(rows, give, take)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.peers.all_to_all(grad, ctx.take, ctx.give), None, None, None


def on_mesh(shape: Sequence[int], program: Callable[..., Any]) -> list[Any]:
    """Run `program(*peers)` on every rank of a row-major mesh, one `Peers` per axis; return what each rank returned.

    Raises:
        RuntimeError: a rank failed; the first one's error is its cause.
    """
    world = int(np.prod(shape))
    store = dist.HashStore()
    results: list[Any] = [None] * world
    failures: list[tuple[int, BaseException]] = []

    def rank_main(rank: int) -> None:
        place = np.unravel_index(rank, shape)
        try:
            peers = []
            for axis, size in enumerate(shape):
                line = "/".join(f"{i}:{at}" for i, at in enumerate(place) if i != axis)
                line_store = dist.PrefixStore(f"{axis}|{line}", store)
                peers.append(Peers(dist.ProcessGroupGloo(line_store, int(place[axis]), size, _options())))
            results[rank] = program(*peers)
        except BaseException as error:  # handed to the caller
            failures.append((rank, error))

    threads = [threading.Thread(target=rank_main, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive() and not failures:
            thread.join(0.05)
    if failures:
        rank, error = failures[0]
        raise RuntimeError(f"rank {rank} failed: {error}") from error
    return results


def _options() -> Any:
    """Gloo over the loopback, whatever this host's name resolves to: all ranks are here."""
    options = dist.ProcessGroupGloo._Options()
    options._timeout = TIMEOUT
    options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    return options


def leaf(array: np.ndarray) -> Tensor:
    """A tensor of its own that gathers gradients."""
    return torch.tensor(np.ascontiguousarray(array), requires_grad=True)


def grads(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Gradients as NumPy, zeros where nothing flowed; a tensor called x gives dx."""
    found = {name: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for name, tensor in tensors.items()}
    return {f"d{name}": grad.numpy() for name, grad in found.items()}
