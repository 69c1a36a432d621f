"""The picture of flows on links: who sends when, and how full the busiest links are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from llmlab.reports.picture import IDLE, INK, MUTED, write_picture
from llmlab.simulator.training.programs import NetworkRun

GROUPS = ("#4f8fd9", "#5cab6d", "#e0b252", "#35a7a0", "#c9716b", "#8b7cc8", "#7f8894", "#b58a5a")
MOST_RANKS, MOST_LINKS, SLICES = 32, 16, 400


def network_figure(result: NetworkRun, title: str) -> Any:
    """Return a Matplotlib figure: a row per sending device coloured by group, below it the busiest links' utilization."""
    from matplotlib.figure import Figure

    span = max((flow.end_ns for flow in result.sent), default=1)
    unit, name = (1e9, "s") if span >= 1e10 else (1e6, "ms") if span >= 1e6 else (1e3, "µs")
    senders = sorted({flow.source for flow in result.sent})
    shown = senders[:MOST_RANKS]
    busiest = result.busiest_links(MOST_LINKS)
    heights = [0.16 * len(shown) + 0.5, 0.2 * len(busiest) + 0.5]
    figure = Figure(figsize=(11.0, sum(heights) + 1.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    for row, device in enumerate(shown):
        above.broken_barh([(0, span / unit)], (row - 0.42, 0.84), facecolors=IDLE, lw=0)
        bars: dict[tuple[int, int], tuple[int, int]] = {}
        for flow in result.sent:
            if flow.source == device:
                start, end = bars.get((flow.program, flow.phase), (flow.start_ns, flow.end_ns))
                bars[flow.program, flow.phase] = min(start, flow.start_ns), max(end, flow.end_ns)
        for (program, _), (start, end) in sorted(bars.items()):
            colour = GROUPS[program % len(GROUPS)]
            above.broken_barh(
                [(start / unit, (end - start) / unit)], (row - 0.42, 0.84), facecolors=colour, edgecolors="white", lw=0.2
            )
    above.set(ylim=(len(shown) - 0.5, -0.5), yticks=range(len(shown)), yticklabels=[f"gpu {device}" for device in shown])
    more = f", first {len(shown)} of {len(senders)} senders" if len(senders) > len(shown) else ""
    above.set_title(f"{title}{more}; a colour per group", loc="left", fontsize=9.5, color=INK)
    if busiest and result.rates:
        below.imshow(
            _utilization(result, [entry["link"] for entry in busiest], span),
            aspect="auto",
            extent=(0, span / unit, len(busiest) - 0.5, -0.5),
            cmap="Blues",
            vmin=0.0,
            vmax=1.0,
            interpolation="nearest",
        )
        labels = [f"{entry['link'].replace('>', ' → ')}  {entry['busy']:.0%}" for entry in busiest]
        below.set(yticks=range(len(busiest)), yticklabels=labels)
    below.set_title("busiest links: part of the bandwidth in use (mean beside the name)", loc="left", fontsize=8.5, color=MUTED)
    for axes in (above, below):
        axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
        axes.tick_params(labelsize=7, colors=MUTED, length=0)
    below.set_xlabel(f"time, {name}", fontsize=8, color=MUTED)
    return figure


def _utilization(result: NetworkRun, names: list[str], span: int) -> np.ndarray:
    """Row per link, column per slice of time: the rate at the slice's middle over the bandwidth."""
    number = {">".join(edge): place for place, edge in enumerate(result.topology.edges)}
    links = [number[name] for name in names]
    times = np.array([when for when, _ in result.rates])
    middle = (np.arange(SLICES) + 0.5) * span / SLICES
    at = np.clip(np.searchsorted(times, middle, side="right") - 1, 0, None)
    rates = np.array([rate[links] for _, rate in result.rates]) / result.topology.bytes_per_s[links]
    return np.asarray(rates[at].T)


def save_network(result: NetworkRun, title: str, path: str | Path) -> Path:
    """Draw the figure into a file.

    Raises:
        InputError: a file name that no picture has.
    """
    return write_picture(lambda: network_figure(result, title), path)
