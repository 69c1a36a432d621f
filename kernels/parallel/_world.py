"""A few real processes that run the same function, one rank each, over torch.distributed.

Starting a process that imports torch takes seconds, so the processes stay: the first `run` starts them, later ones reuse them,
and they end with the interpreter. A run of n ranks uses the first n processes, which form a fresh default group whenever n
changes; inside the function everything of torch.distributed works as in a program of exactly n ranks.

Tensors on GPUs travel by nccl where every process has a GPU of its own, those on the CPU by gloo. A function that fails, or
takes longer than `TIMEOUT_SECONDS`, ends the processes, so that no rank waits in a collective; the next run starts new ones.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

MAX_RANKS = 4
TIMEOUT_SECONDS = 120.0


def run(function: Callable[..., Any], arguments: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Call `function(**arguments[rank])` on as many ranks as there are arguments; return what each rank returns.

    The function must be importable by its name (defined at the top of a module); arguments and results travel between
    processes, so give NumPy arrays rather than tensors.

    Raises:
        ValueError: no rank, or more than MAX_RANKS.
        RuntimeError: a rank failed or did not answer in time; the message holds its traceback.
    """
    if not 1 <= len(arguments) <= MAX_RANKS:
        raise ValueError(f"{len(arguments)} ranks: from 1 to {MAX_RANKS} run here")
    global _world
    with _one_at_a_time:
        if _world is None:
            _world = World()
            atexit.register(close)
        try:
            return _world.run(function, arguments)
        except BaseException:
            close()
            raise


def close() -> None:
    """End the processes, if there are any."""
    global _world
    if _world is not None:
        _world.close()
        _world = None


class World:
    """`MAX_RANKS` processes, each at the other end of a pipe."""

    def __init__(self) -> None:
        # A fork server imports torch once for all of them; where there is none, each process imports it.
        method = "spawn" if sys.platform in ("win32", "darwin") else "forkserver"
        context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(["torch", "torch.distributed.fsdp", "torch.distributed.optim"])
        self.folder = tempfile.TemporaryDirectory(prefix="llmlab-world-")
        self.num_ranks = self.groups = 0
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(MAX_RANKS):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, theirs, self.folder.name), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], arguments: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Send every rank its arguments and wait for all answers, or for the first failure."""
        num_ranks = len(arguments)
        if num_ranks != self.num_ranks:
            self.num_ranks, self.groups = num_ranks, self.groups + 1
        meeting_place = f"{self.folder.name}/group-{self.groups}"
        for pipe, one in zip(self.pipes, arguments):
            pipe.send((function, num_ranks, meeting_place, dict(one)))
        answers: dict[int, Any] = {}
        while len(answers) < num_ranks:
            waiting = [rank for rank in range(num_ranks) if rank not in answers]
            ready = wait([self.pipes[rank] for rank in waiting], timeout=TIMEOUT_SECONDS)
            if not ready:
                raise RuntimeError(f"{function.__name__}: ranks {waiting} gave no answer in time")
            for rank in [rank for rank in waiting if self.pipes[rank] in ready]:
                try:
                    failure, answers[rank] = self.pipes[rank].recv()
                except EOFError:
                    raise RuntimeError(f"{function.__name__}: the process of rank {rank} ended") from None
                if failure:
                    raise RuntimeError(f"{function.__name__}: rank {rank} failed\n{failure}")
        return [answers[rank] for rank in range(num_ranks)]

    def close(self) -> None:
        """End every process and remove their files."""
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.terminate()
            process.join()
        self.folder.cleanup()


_world: World | None = None
_one_at_a_time = threading.Lock()


def _serve(rank: int, pipe: Connection, folder: str) -> None:
    """Answer calls until the pipe closes; the group is renewed when the number of ranks changes."""
    if "lo" in (name for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are here, whatever this host's name resolves to
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    backend = "gloo"
    if torch.cuda.device_count() >= MAX_RANKS:
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(rank)
    joined = ""
    while True:
        try:
            function, num_ranks, meeting_place, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            if joined != meeting_place:
                if joined:
                    dist.destroy_process_group()
                dist.init_process_group(
                    backend,
                    init_method=f"file://{meeting_place}",
                    rank=rank,
                    world_size=num_ranks,
                    timeout=timedelta(seconds=TIMEOUT_SECONDS),
                )
                joined = meeting_place
            pipe.send(("", function(**arguments)))
        except Exception:
            pipe.send((traceback.format_exc(), None))
