"""Measured collectives within a node against the flow programs of `simulator/training/programs.py`.

Per library and device generation: the part of a link's bandwidth that is reached, a link's latency, and two protocols (seconds
to start, share of the bandwidth); fitted on every second size of an operation and device count, scored on the others. Run as
`python -m llmlab.harness.validation.collectives DIR`, DIR as `LLMLAB_DATA` names it.
"""

from __future__ import annotations

import csv
import gzip
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

NODES = {
    "a100": {"devices": 8, "bytes_per_s": 300e9, "latency_s": 0.7e-6, "efficiency": 0.624},
    "h100": {"devices": 8, "bytes_per_s": 450e9, "latency_s": 0.7e-6, "efficiency": 0.65},
    "h200": {"devices": 8, "bytes_per_s": 450e9, "latency_s": 0.7e-6, "efficiency": 0.68},
}
"""Links of a node as NCCL reaches them, from the fit."""
TABLES = {"a100": "a100_sxm_nccl2.27.3", "h100": "h100_sxm_nccl2.29.2", "h200": "h200_sxm_nccl2.29.2"}
PROTOCOLS = {"a100": "nccl-ampere", "h100": "nccl-hopper", "h200": "nccl-hopper"}
NAMES = {"alltoall": "all_to_all"}
IN_SWITCH = 4e6
"""Bytes from which an all-reduce of eight Hopper devices is summed in the switch (NVLS), which is not modelled."""


class Measured(NamedTuple):
    """One measured collective."""

    device: str
    collective: str
    ranks: int
    size: float
    seconds: float


def read_measured(folder: Path, device: str) -> list[Measured]:
    """Half-precision collectives of a device; sizes in the tables are elements."""
    path = folder / "operators" / f"{TABLES[device]}_nccl_perf.csv.gz"
    with gzip.open(path, "rt") as lines:
        return [
            Measured(
                device,
                NAMES.get(row["op_name"], row["op_name"]),
                int(row["num_gpus"]),
                2.0 * float(row["message_size"]),
                1e-3 * float(next(value for name, value in row.items() if name.startswith("latency"))),
            )
            for row in csv.DictReader(lines)
            if row["nccl_dtype"] == "half"
        ]


def predicted(rows: Sequence[Measured]) -> np.ndarray:
    """Seconds of the quickest algorithm and protocol of each row."""
    from llmlab.simulator.training.programs import candidates
    from llmlab.simulator.training.topology import topology_of

    nodes = {device: topology_of({"nodes": 1, "node": node}) for device, node in NODES.items()}
    return np.array(
        [candidates(nodes[row.device], row.collective, range(row.ranks), row.size, PROTOCOLS[row.device])[0][0] for row in rows]
    )


def in_switch(row: Measured) -> bool:
    """Whether the library sums in the switch, so that the row is left out."""
    return row.device != "a100" and row.collective == "all_reduce" and row.ranks == 8 and row.size > IN_SWITCH


def errors(folder: Path) -> list[dict[str, Any]]:
    """Mean absolute error per device, operation and device count; `held_out` of the sizes that were not fitted."""
    found = []
    for device in TABLES:
        rows = [row for row in read_measured(folder, device) if not in_switch(row)]
        off = np.abs(predicted(rows) / np.array([row.seconds for row in rows]) - 1.0)
        for collective, ranks in sorted({(row.collective, row.ranks) for row in rows}):
            mine = [place for place, row in enumerate(rows) if (row.collective, row.ranks) == (collective, ranks)]
            mine.sort(key=lambda place: rows[place].size)
            found.append(
                {
                    "device": device,
                    "collective": collective,
                    "ranks": ranks,
                    "n": len(mine),
                    "mean_abs_error": float(off[mine].mean()),
                    "held_out": float(off[mine[1::2]].mean()),
                }
            )
    return found


def main(arguments: Sequence[str]) -> int:
    """Print the errors."""
    for row in errors(Path(arguments[0])):
        print(f"{row['device']} {row['collective']:15s} {row['ranks']}  {row['mean_abs_error']:.3f} {row['held_out']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
