"""A second Python in another environment that times library peers when asked, one after the other with our own process.

Math libraries decide once, when they are loaded, which code they run. To see a library as shipped and without its vendor
check in one table, a child process with the changed environment lives as long as the benchmark. It is asked for one
implementation of one case at a time, right after the same implementation was timed here, and is idle otherwise. Requests and
answers are one JSON object per line: nothing is unpickled, and every record is checked like one read from a file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

from llmlab.harness.machine import Machine, describe
from llmlab.harness.timing.results import Record, parse
from llmlab.harness.timing.unlocked import is_handicapped, unlocked_environment, why_not

COMMAND = (sys.executable, "-m", "llmlab.harness.timing.peer_process")


class PeerProcess:
    """Our side of a child process that times libraries without their vendor check; started when first needed.

    Attributes:
        why_not: why no library is timed so, empty where they are. Known once the child was needed.
        needed: whether this machine's libraries have anything to gain.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        environment: Callable[[Machine, Path], Mapping[str, str]] = unlocked_environment,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.machine, self.command, self.environment = machine, command, environment
        self.needed, self.why_not = is_handicapped(machine), why_not(machine)
        self.code_paths: Mapping[str, str] = {}
        self._child: subprocess.Popen[str] | None = None
        self._said: Path | None = None
        self._held = ExitStack()

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def differs(self, library: str) -> bool:
        """True where this library runs other code in the child than here; starts the child."""
        return self._alive() and self.code_paths.get(library, "") != self.machine.code_paths.get(library, "")

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request, wait for its answer; {"error": why} when the child cannot answer. A dead child is started again."""
        if not self._alive():
            return {"error": self.why_not}
        assert self._child is not None
        try:
            requests = _open(self._child.stdin)
            requests.write(json.dumps(request) + "\n")
            requests.flush()
            return self._answer(self._child)
        except (OSError, ValueError) as error:
            why = self._last_words() or str(error)
            self.close()
            return {"error": f"the unlocked process ended: {why}"}

    def bench(self, request: Mapping[str, Any]) -> Record | str:
        """Have one implementation checked and timed: its record, or why there is none."""
        answer = self.ask({"do": "bench", **request})
        if "record" not in answer:
            return str(answer.get("error") or "the unlocked process gave no record")
        return parse(answer["record"], "answer of the unlocked process")

    def rest(self) -> None:
        """Let it forget the case and give back its memory; a process that is not there has none."""
        if self._child is not None:
            self.ask({"do": "rest"})

    def products(self, quick: bool) -> list[Record]:
        """The matrix products that its libraries reach, as records of peaks."""
        answer = self.ask({"do": "products", "quick": quick})
        return [parse(row, "answer of the unlocked process") for row in answer.get("records", ())]

    def close(self) -> None:
        """End the child, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            with suppress(OSError):  # a line that it never read
                _open(child.stdin).close()
            try:
                child.wait(2.0)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            _open(child.stdout).close()
        self._held.close()
        self._said = None

    def _alive(self) -> bool:
        if self.why_not:
            return False
        if self._child is None:
            self._start()
        return not self.why_not

    def _start(self) -> None:
        folder = Path(self._held.enter_context(tempfile.TemporaryDirectory()))
        self._said = folder / "stderr"
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        try:
            environment = self.environment(self.machine, folder)
            with self._said.open("wb") as stderr:
                self._child = subprocess.Popen(self.command, env=dict(environment), stderr=stderr, text=True, **pipes)
            self.code_paths = dict(self._answer(self._child)["code_paths"])
        except (OSError, ValueError, KeyError) as error:
            why = self._last_words() or str(error)
            self.close()
            self.why_not = f"the process with unlocked libraries does not start: {why}"

    def _answer(self, child: subprocess.Popen[str]) -> dict[str, Any]:
        line = _open(child.stdout).readline()
        if not line:
            raise ValueError(f"exit code {child.wait()}")
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise ValueError(f"it answered {line.strip()[:80]}")
        return answer

    def _last_words(self) -> str:
        """The last line the child wrote to its standard error."""
        if self._said is None or not self._said.is_file():
            return ""
        lines = self._said.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].strip()[:200] if lines else ""


def _open(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None  # both are pipes
    return pipe


def answers(requests: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The child's side: a greeting with its code paths, then one answer per request."""
    from llmlab.harness.timing.measure import warm_allocator

    yield {"code_paths": dict(describe().code_paths)}
    with warm_allocator():
        for line in requests:
            request = json.loads(line)
            try:
                yield _DOING[request["do"]](request)
            except Exception as error:  # the next request may be fine
                yield {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error) else ''}"}


def _bench(request: Mapping[str, Any]) -> dict[str, Any]:
    from llmlab.harness.timing import bench
    from llmlab.reference.catalog import load

    case = (load(request["component"]), request["shape"], request["dtype"])
    (found,) = bench.bench_case(
        *case, backends=request["backends"], effort=bench.Effort(**request["effort"]), only=request["implementation"]
    )
    if isinstance(found, bench.Skipped):
        return {"error": found.why}
    return {"record": found.as_dict()}


def _rest(request: Mapping[str, Any]) -> dict[str, Any]:
    from llmlab.harness.timing import bench

    bench.forget_case()
    return {}


def _products(request: Mapping[str, Any]) -> dict[str, Any]:
    from llmlab.harness.timing.peaks import measure_peaks, products_plan

    return {"records": [one.as_dict() for one in measure_peaks(describe(), "cpu", products_plan, quick=request["quick"])]}


_DOING = {"bench": _bench, "rest": _rest, "products": _products}


def serve() -> None:
    """Answer requests from standard input until it ends; whatever libraries print goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends our parent, and that ends us
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        for answer in answers(sys.stdin):
            out.write(json.dumps(answer, allow_nan=False) + "\n")
            out.flush()


if __name__ == "__main__":
    serve()
