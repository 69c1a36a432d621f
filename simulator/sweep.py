"""Many independent points, each computed once: on local processes or on a Ray cluster, each stored the moment it is known.

A point is a key and a task; a worker turns (context, task) into something JSON can hold. What was stored is never computed
again, so a sweep that was killed, with -9 or by a power cut, goes on where it stopped: no point is lost, none is there twice.
Results do not depend on the engine, on the number of workers, or on which of them died.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stdout
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import psutil

from llmlab.reference.errors import InputError

ENGINES = ("local", "ray")

Worker = Callable[[Any, Any], Any]
"""(context, task) -> result; a module-level function, so that other processes can find it."""

Progress = Callable[[int, int], None]

DEATHS = 3
"""A task whose worker process dies is tried again; after this many deaths with nothing finished between them, no more."""

AHEAD = 4
"""Tasks handed out per worker: enough to keep each busy, few enough to stop soon."""

APPLICATION_ID = 0x6C6C6D6C
"""Marks the database as a store of points."""


class Store:
    """Results by key in one SQLite file, written ahead of every answer: safe against kill -9 and several writers.

    Raises:
        InputError: the file is something else, or cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.connection = sqlite3.connect(self.path, timeout=60.0, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self.connection.close()
                raise
        except sqlite3.Error as error:
            raise InputError(self.path, "store", self.path.name, f"cannot be used as a store of points: {error}") from None

    def _prepare(self) -> None:
        (identity,) = self.connection.execute("PRAGMA application_id").fetchone()
        (tables,) = self.connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if identity != APPLICATION_ID and (identity or tables):
            raise InputError(self.path, "store", self.path.name, "is a database of something else")
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("PRAGMA synchronous=NORMAL")
        self.connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        self.connection.execute("CREATE TABLE IF NOT EXISTS points (key TEXT PRIMARY KEY, result TEXT NOT NULL) WITHOUT ROWID")

    def known(self, keys: Sequence[str]) -> dict[str, Any]:
        """The stored ones among these keys."""
        found: dict[str, Any] = {}
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            marks = ",".join("?" * len(part))
            rows = self.connection.execute(f"SELECT key, result FROM points WHERE key IN ({marks})", part)
            found |= {key: json.loads(result) for key, result in rows}
        return found

    def put(self, key: str, text: str) -> None:
        """Store one result, given as JSON; a key that is there already keeps its first."""
        self.connection.execute("INSERT OR IGNORE INTO points VALUES (?, ?)", (key, text))

    def __len__(self) -> int:
        return int(self.connection.execute("SELECT count(*) FROM points").fetchone()[0])

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.connection.close()


class Engine(Protocol):
    """Where tasks run."""

    def run(self, worker: Worker, tasks: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        """Yield (key, result) of every task as each is done, in any order."""


class Here:
    """In this process, one after the other."""

    def __init__(self, context: Any) -> None:
        self.context = context

    def run(self, worker: Worker, tasks: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        """Yield (key, result) in order."""
        for key, task in tasks:
            yield key, worker(self.context, task)


_context: Any = None


def _begin(context: str) -> None:
    """Prepare a worker process: read the context; Ctrl-C is the parent's business, and a parent that is gone ends it."""
    global _context
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
    _context = ForkingPickler.loads(Path(context).read_bytes())


def _do(worker: Worker, task: Any) -> Any:
    return worker(_context, task)


class Processes:
    """A pool of processes on this machine; one that dies is replaced and its task done again.

    The context goes to them in a private file. A process is started through a pipe of 64 KiB whose reading end its parent
    holds open too: more than that, written to a process that died at once, would never be read and block for ever.
    """

    def __init__(self, workers: int, context: Any) -> None:
        self.workers = workers
        self.folder = tempfile.TemporaryDirectory(prefix="llmlab-sweep-")
        self.context = Path(self.folder.name, "context")
        self.context.write_bytes(ForkingPickler.dumps(context))
        self.children = set(multiprocessing.active_children())
        self.pool = self._pool()

    def _pool(self) -> ProcessPoolExecutor:
        spawn = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.workers, mp_context=spawn, initializer=_begin, initargs=(str(self.context),))

    def run(self, worker: Worker, tasks: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        """Yield (key, result) as each is done.

        Raises:
            RuntimeError: worker processes keep dying.
        """
        left = dict(tasks)
        deaths = 0
        while left:
            try:
                for key, result in self._round(worker, list(left.items())):
                    del left[key]
                    deaths = 0
                    yield key, result
            except BrokenProcessPool:
                deaths += 1
                if deaths >= DEATHS:
                    raise RuntimeError(f"worker processes died {deaths} times in a row; {len(left)} points are left") from None
                self.pool.shutdown(wait=True)
                self.pool = self._pool()

    def _round(self, worker: Worker, tasks: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        queue, running = deque(tasks), dict[Future[Any], str]()
        while queue or running:
            while queue and len(running) < AHEAD * self.workers:
                key, task = queue.popleft()
                running[self.pool.submit(_do, worker, task)] = key
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(done), done.result()

    def close(self, *, now: bool) -> None:
        """End the processes: when they are idle, or at once."""
        if now:
            for child in multiprocessing.active_children():
                if child not in self.children:
                    child.terminate()
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.folder.cleanup()


_GUARD = """
import json, sys, psutil
started = json.loads(sys.argv[1])
sys.stdin.read()
left = []
for pid, since in started:
    try:
        process = psutil.Process(pid)
        if process.create_time() == since:
            left += [process, *process.children(recursive=True)]
    except psutil.Error:
        pass
for process in psutil.wait_procs(left, timeout=2)[1]:
    try:
        process.kill()
    except psutil.Error:
        pass
"""


def _descendants() -> set[tuple[int, float]]:
    """Number and time of start of every process below this one."""
    return {(child.pid, child.create_time()) for child in psutil.Process().children(recursive=True)}


def _guard(others: set[tuple[int, float]]) -> subprocess.Popen[bytes]:
    """Start a process that ends what Ray left running here once this process is gone, however it went.

    Some of Ray's agents outlive a driver that is killed with -9. The guard sees its standard input close, gives them two
    seconds, and kills those of this process's descendants, known by number and time of start, that are still there; `others`
    were here before Ray and are none of its business.
    """
    started = sorted(_descendants() - others)
    return subprocess.Popen([sys.executable, "-c", _GUARD, json.dumps(started)], stdin=subprocess.PIPE, start_new_session=True)


class OnRay:
    """A Ray cluster: the one `RAY_ADDRESS` names, or a private one on this machine's loopback. Ray repeats lost tasks.

    Raises:
        InputError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, workers: int, context: Any) -> None:
        if importlib.util.find_spec("ray") is None:
            raise InputError("--engine", "engine", "ray", "needs Ray: pip install 'llmlab[cluster]'")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        address = os.environ.get("RAY_ADDRESS")
        if not address:
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # what makes Ray keep to the loopback, on Linux too
        import ray

        self.ray, self.own = ray, not ray.is_initialized()
        self.guard: subprocess.Popen[bytes] | None = None
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.own and address:
            try:
                ray.init(address=address, **quiet)
            except (ConnectionError, OSError, RuntimeError, ValueError) as error:
                why = " ".join(str(error).split())[:160]
                raise InputError("RAY_ADDRESS", "address", address, f"cannot be reached: {why}") from None
        elif self.own:
            others = _descendants()
            ray.init(
                address="local",
                num_cpus=workers,
                include_dashboard=False,
                object_store_memory=256 * 2**20,
                **quiet,
            )
            self.guard = _guard(others)
        self.context = ray.put(context)
        self.workers = max(1, int(ray.cluster_resources().get("CPU", workers)))

    def run(self, worker: Worker, tasks: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        """Yield (key, result) as each is done."""
        ray = self.ray
        remote = ray.remote(num_cpus=1, max_retries=DEATHS)(worker)
        queue, running = deque(tasks), dict[Any, str]()
        try:
            while queue or running:
                while queue and len(running) < AHEAD * self.workers:
                    key, task = queue.popleft()
                    running[remote.remote(self.context, task)] = key
                for done in ray.wait(list(running))[0]:
                    yield running.pop(done), ray.get(done)
        finally:
            for pending in running:
                ray.cancel(pending, force=True)

    def close(self) -> None:
        """Leave the cluster; a private one ends."""
        if self.own:
            self.ray.shutdown()
        if self.guard is not None:
            self.guard.communicate()


@contextmanager
def start_engine(engine: str = "local", *, workers: int = 1, context: Any = None) -> Iterator[Engine]:
    """Start workers that know `context`; they are gone when the block ends.

    Raises:
        InputError: an unknown engine, fewer than one worker, or Ray is missing.
    """
    if engine not in ENGINES:
        raise InputError("--engine", "engine", engine, f"is none of {', '.join(ENGINES)}")
    if workers < 1:
        raise InputError("--workers", "workers", workers, "must be at least 1")
    if engine == "ray":
        with redirect_stdout(sys.stderr):  # Ray reports dead workers on standard output
            cluster = OnRay(workers, context)
            try:
                yield cluster
            finally:
                cluster.close()
    elif workers == 1:
        yield Here(context)
    else:
        pool = Processes(workers, context)
        finished = False
        try:
            yield pool
            finished = True
        finally:
            pool.close(now=not finished)


def sweep(
    tasks: Mapping[str, Any],
    worker: Worker,
    *,
    context: Any = None,
    engine: str | Engine = "local",
    workers: int = 1,
    store: str | Path | Store | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compute every task once and return the results by key, in the order of `tasks`.

    Args:
        tasks: key -> task. A key must say everything its result depends on: what is stored under it is taken as it is.
        worker: module-level function of (context, task); its result passes through JSON.
        context: what all tasks share; sent to each worker once.
        engine: "local" or "ray", or one that was started already (then `context` and `workers` are its own).
        workers: processes, or processors of a private Ray cluster.
        store: SQLite file that keeps each result from the moment it is known; None keeps nothing.
        progress: called with (done, total), stored points included.

    Raises:
        InputError: the store is no store, or the engine cannot be started; and whatever the worker raises.
    """
    if isinstance(store, str | Path):
        with Store(store) as opened:
            return sweep(tasks, worker, context=context, engine=engine, workers=workers, store=opened, progress=progress)
    if isinstance(engine, str):
        with start_engine(engine, workers=workers, context=context) as started:
            return sweep(tasks, worker, engine=started, store=store, progress=progress)
    found = store.known(list(tasks)) if store is not None else {}
    left = [(key, task) for key, task in tasks.items() if key not in found]
    if progress is not None:
        progress(len(found), len(tasks))
    for key, result in engine.run(worker, left):
        text = json.dumps(result)
        if store is not None:
            store.put(key, text)
        found[key] = json.loads(text)
        if progress is not None:
            progress(len(found), len(tasks))
    return {key: found[key] for key in tasks}
