"""How fast the serving simulator is: steps of the schedulers per second, memory, and the time until the first run is done.

Each case runs in a process of its own, so that its peak of memory is its own and what was compiled is loaded as a user would.
`cold` cases start with an empty Numba cache. Lengths are like those of ShareGPT chats: log-normal, 220 and 200 tokens on
average.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        path: loop of the simulator.
        rate_per_s: arrivals of all replicas together.
        cold: nothing was compiled before.
    """

    path: str
    requests: int
    replicas: int
    rate_per_s: float
    cold: bool = False

    @property
    def name(self) -> str:
        """What is shown."""
        return f"{self.path}, {self.requests:,} requests, {self.replicas} replicas" + (", nothing compiled yet" * self.cold)


QUICK = (Case("simpy", 8192, 8, 100.0), Case("compiled", 8192, 8, 100.0))
CASES = (
    *QUICK,
    Case("compiled", 8192, 8, 100.0, cold=True),
    Case("compiled", 250_000, 64, 1000.0),
    Case("compiled", 500_000, 64, 1000.0),
    Case("compiled", 1_000_000, 64, 1000.0),
)


def peak_rss_bytes() -> int:
    """Most memory this program has had. `ru_maxrss` also knows what the parent held before it started this one."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # no Linux
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def measure(case: Case) -> dict[str, Any]:
    """Run a case in this process: Llama-3.1-8B on H100s, twice, the second time with everything loaded."""
    began = time.perf_counter()
    import numpy as np

    from llmlab.simulator.serving.deployment import Deployment
    from llmlab.simulator.serving.simulate import simulate
    from llmlab.simulator.workload import synthetic
    from llmlab.simulator.workload.workload import Workload

    rng, count = np.random.default_rng(0), case.requests
    workload = Workload(
        synthetic.poisson(count, case.rate_per_s, rng),
        synthetic.lognormal(count, 220, 1.5, rng, high=4000),
        synthetic.lognormal(count, 200, 1.1, rng, high=2000),
    )
    deployment = Deployment("meta-llama/Llama-3.1-8B", "h100", replicas=case.replicas)
    path: Any = case.path
    simulate(deployment, workload.first(20), path=path)
    start_s = time.perf_counter() - began
    before, before_cpu = time.perf_counter(), time.process_time()
    result = simulate(deployment, workload, path=path)
    seconds, cpu_s = time.perf_counter() - before, time.process_time() - before_cpu
    found = result.metrics()
    return {
        "case": case.name,
        **asdict(case),
        "start_s": start_s,
        "seconds": seconds,
        "cpu_s": cpu_s,
        "iterations": found["iterations"],
        "iterations_per_s": found["iterations"] / seconds,
        "iterations_per_cpu_s": found["iterations"] / cpu_s,
        "requests_per_s": count / seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        "ttft_p99_s": found["ttft_s"]["p99"],
        "tpot_p99_s": found["tpot_s"]["p99"],
    }


def measure_apart(case: Case) -> dict[str, Any]:
    """Run a case in a process of its own.

    Raises:
        RuntimeError: it failed.
    """
    with tempfile.TemporaryDirectory() as empty:
        environment: Mapping[str, str] = {**os.environ, **({"NUMBA_CACHE_DIR": empty} if case.cold else {})}
        command = [sys.executable, "-m", "llmlab.harness.timing.simulator", json.dumps(asdict(case))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{case.name}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run(*, quick: bool = False, progress: Callable[[str, int, int], None] | None = None) -> list[dict[str, Any]]:
    """Measure all cases, or the two short ones."""
    cases = QUICK if quick else CASES
    rows = []
    for number, case in enumerate(cases):
        if progress is not None:
            progress(case.name, number, len(cases))
        rows.append(measure_apart(case))
    return rows


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The columns people read."""
    return [
        {
            "case": row["case"],
            "steps": row["iterations"],
            "seconds": row["seconds"],
            "steps/s": row["iterations_per_s"],
            "steps/s of processor time": row["iterations_per_cpu_s"],
            "peak memory, GB": row["peak_rss_bytes"] / 1e9,
            "from start to ready, s": row["start_s"],
        }
        for row in rows
    ]


if __name__ == "__main__":
    print(json.dumps(measure(Case(**json.loads(sys.argv[1])))))
