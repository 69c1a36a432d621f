"""The picture of a step's memory: what a rank holds over time, part on part, under the device's limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmlab.reports.picture import INK, MUTED, write_picture
from llmlab.simulator.training.memory_over_time import RankSeries

COLOURS = {
    "weights": "#4f8fd9",
    "gradients": "#8fbcec",
    "optimizer": "#35a7a0",
    "buffers": "#bbe4e1",
    "margin": "#d5d9df",
    "logits": "#e0b252",
    "activations": "#5cab6d",
}
"""From the bottom up: what stands first, what comes and goes on top."""


def memory_figure(series: RankSeries, hbm_bytes: float, title: str) -> Any:
    """Return a Matplotlib figure of one rank."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 3.8), layout="constrained")
    axes = figure.subplots()
    seconds = [when / 1e9 for when in series.when_ns]
    shown = [name for name in COLOURS if series.parts[name].any()]
    levels = [series.parts[name] / 1e9 for name in shown]
    fullest = int(series.total_bytes.argmax())
    labels = [f"{name}  {level[fullest]:.3g}" for name, level in zip(shown, levels)]
    axes.stackplot(seconds, *levels, labels=labels, colors=[COLOURS[name] for name in shown], step="post", lw=0)
    axes.axhline(hbm_bytes / 1e9, color=INK, lw=1.0, ls="--")
    note = f"device: {hbm_bytes / 1e9:.3g} GB"
    axes.annotate(note, (seconds[-1], hbm_bytes / 1e9), ha="right", va="bottom", color=MUTED, fontsize=8)
    peak = f"{series.total_bytes[fullest] / 1e9:.3g} GB at most, {seconds[fullest]:.3g} s into the step"
    axes.set_title(f"{title}: {peak}", loc="left", fontsize=9.5, color=INK)
    axes.set(xlim=(0, seconds[-1] or 1.0), ylim=(0, None))
    axes.set_xlabel("time, s", fontsize=8, color=MUTED)
    axes.set_ylabel("GB on the fullest rank", fontsize=8, color=MUTED)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=MUTED)
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, reverse=True, fontsize=8, title="GB then", title_fontsize=8
    )
    return figure


def save_memory(series: RankSeries, hbm_bytes: float, title: str, path: str | Path) -> Path:
    """Draw into a .png, .svg or .pdf.

    Raises:
        InputError: another ending.
    """
    return write_picture(lambda: memory_figure(series, hbm_bytes, title), path)
