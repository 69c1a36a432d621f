"""The picture of a fitted workload: rate, burstiness by window, lengths, reuse of prefixes; trace beside synthetic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmlab.reports.picture import write_picture
from llmlab.simulator.workload.statistics import fano, full_blocks, lru_hit_fraction
from llmlab.simulator.workload.workload import NANOSECONDS, Workload

COLORS = ("#1b6ca8", "#d1495b")


def _rate(workload: Workload, bins: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Minutes and arrivals per second."""
    times = workload.arrival_ns / NANOSECONDS
    counts, edges = np.histogram(times, bins=bins, range=(0, max(float(times[-1]), 1e-9)))
    return edges[:-1] / 60, counts / np.diff(edges)


def workload_figure(pairs: Sequence[tuple[str, Workload]]) -> Any:
    """Return a Matplotlib figure of (name, workload) pairs drawn over each other, the trace first."""
    from matplotlib.figure import Figure

    shared = all(workload.block_hashes for _, workload in pairs)
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    axes = figure.subplots(2, 3)
    windows = np.geomspace(0.5, 300, 14)
    for (name, workload), color in zip(pairs, COLORS):
        if workload.span_s:
            axes[0, 0].step(*_rate(workload), where="post", color=color, label=name, linewidth=1.2)
            axes[0, 1].plot(
                windows, [fano(workload.arrival_ns, w) for w in windows], "o-", color=color, markersize=4, label=name
            )
            gaps = np.sort(np.diff(workload.arrival_ns)) / 1e6
            above = 1.0 - np.arange(1, len(gaps) + 1) / len(gaps)
            axes[0, 2].plot(np.maximum(gaps, 1e-2), np.maximum(above, 0.5 / len(gaps)), color=color, label=name)
        for axis, tokens in ((axes[1, 0], workload.prompt_tokens), (axes[1, 1], workload.output_tokens)):
            axis.plot(np.sort(tokens), np.arange(1, len(tokens) + 1) / len(tokens), color=color, label=name)
        if shared:
            distinct = len(np.unique(np.concatenate(full_blocks(workload))))
            shares = np.geomspace(0.003, 1.0, 9)
            hits = [lru_hit_fraction(workload, max(1, round(share * distinct))) for share in shares]
            axes[1, 2].plot(shares, hits, "o-", color=color, markersize=4, label=name)
        else:
            axes[1, 2].plot(*_sample(workload), ".", color=color, markersize=2, alpha=0.5, label=name)
    titles = (
        (axes[0, 0], "Arrivals per second", "minutes", ""),
        (axes[0, 1], "Arrivals per window: variance / mean", "window, seconds (Poisson: 1 at all)", ""),
        (axes[0, 2], "Gaps longer than", "milliseconds", "share of gaps"),
        (axes[1, 0], "Prompt lengths", "tokens", "share of requests up to"),
        (axes[1, 1], "Answer lengths", "tokens", "share of requests up to"),
        (axes[1, 2], "Prompt blocks found in an LRU cache", "cache size / distinct blocks", "")
        if shared
        else (axes[1, 2], "Prompt and answer", "prompt tokens", "answer tokens"),
    )
    for axis, title, x, y in titles:
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel(x)
        axis.set_ylabel(y)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylim(bottom=0)
    for axis in (axes[0, 1], axes[1, 0], axes[1, 1], axes[1, 2]):
        axis.set_xscale("log")
    if axes[0, 2].lines:
        axes[0, 2].set(xscale="log", yscale="log")
    axes[1, 0].legend(frameon=False, fontsize=8)
    return figure


def _sample(workload: Workload, most: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    step = max(1, len(workload) // most)
    return workload.prompt_tokens[::step], workload.output_tokens[::step]


def save_workload(pairs: Sequence[tuple[str, Workload]], path: str | Path) -> Path:
    """Draw the figure into a file.

    Raises:
        InputError: a file name that no picture has.
    """
    return write_picture(lambda: workload_figure(pairs), path)
