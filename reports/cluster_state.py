"""The picture of a fleet over time: requests queued and running, KV cache in use, replicas by state, power."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from llmlab.reports.picture import write_picture
from llmlab.simulator.serving.over_time import OverTime, over_time
from llmlab.simulator.serving.simulate import SimulationResult
from llmlab.simulator.serving.simulate_fleet import FleetResult

COLORS = ("#1b6ca8", "#d1495b", "#3c8d53", "#8a5fb0", "#c98a1b", "#5a5a5a")


def _line(axis: Any, series: OverTime, values: np.ndarray, **style: Any) -> None:
    """A staircase over the bins."""
    axis.stairs(values, series.edges_s, baseline=None, **style)


def state_figure(result: SimulationResult) -> Any:
    """Return a Matplotlib figure of one run of a fleet.

    Raises:
        TypeError: the run is not one of `simulate_fleet`.
    """
    if not isinstance(result, FleetResult):
        raise TypeError(f"a {type(result).__name__} holds no states: use simulate_fleet(..., record='states')")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    series = over_time(result)
    figure = Figure(figsize=(10, 8.6), layout="constrained")
    requests, cache, replicas, power = figure.subplots(4, 1, sharex=True)
    _line(requests, series, series.queued, color="#222222", label="waiting for the first step", linewidth=1.1)
    for number, name in enumerate(series.pools):
        color = COLORS[number % len(COLORS)]
        said = name if len(series.pools) > 1 else ""
        _line(requests, series, series.running[number], color=color, label=f"running {said}".strip(), linewidth=1.3)
        _line(cache, series, 100 * series.kv_fraction[number], color=color, label=said or "in use", linewidth=1.3)
        _line(replicas, series, series.serving[number], color=color, label=f"serving {said}".strip(), linewidth=1.6)
        for values, what, style in (
            (series.starting[number], "starting", ":"),
            (series.warm[number], "warm", "--"),
            (series.down[number], "down", "-."),
        ):
            if values.any():
                _line(replicas, series, values, color=color, linestyle=style, label=f"{what} {said}".strip(), linewidth=1.1)
        _line(power, series, series.watts[number] / 1e3, color=color, label=said or "all devices", linewidth=1.3)
    if len(series.pools) > 1:
        _line(power, series, series.watts.sum(axis=0) / 1e3, color="#222222", label="all", linewidth=0.9)
    for axis, title in (
        (requests, "requests"),
        (cache, "KV cache in use, %"),
        (replicas, "replicas"),
        (power, "power, kW (estimate)"),
    ):
        axis.set_ylabel(title)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    replicas.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    power.set_xlabel("seconds since the start")
    requests.set_xlim(0, float(series.edges_s[-1]))
    placed = " + ".join(
        f"{pool.replicas} x {pool.devices // pool.replicas} {site.profile.device.name}"
        for site in result.sites
        for pool in (site.deployment,)
    )
    figure.suptitle(f"{result.site.model.name} on {placed}: {result.workload.name}", fontsize=11)
    return figure


def save_state(result: SimulationResult, path: str | Path) -> Path:
    """Draw the figure into a file.

    Raises:
        TypeError: the run is not one of `simulate_fleet`.
        InputError: a file name that no picture has.
    """
    return write_picture(lambda: state_figure(result), path)
