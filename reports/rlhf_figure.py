"""The picture of reinforcement learning on pools of devices: a row per pool, a colour per phase."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmlab.reports.picture import IDLE, INK, MUTED, write_picture
from llmlab.simulator.training.rlhf import RlhfRun

COLOURS = {
    "write": "#4f8fd9",
    "score": "#e0b252",
    "train": "#5cab6d",
    "reshard": "#c9716b",
    "fetch weights": "#c9716b",
    "load state": "#8b7cc8",
}


def rlhf_figure(run: RlhfRun) -> Any:
    """Return a Matplotlib figure of the timeline; every box carries the number of its step."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    pools = list(dict.fromkeys(span.pool for span in run.spans))
    end = max(span.end_s for span in run.spans)
    figure = Figure(figsize=(11.0, 0.7 * len(pools) + 1.2), layout="constrained")
    axes = figure.subplots()
    for row in range(len(pools)):
        axes.broken_barh([(0, end)], (row - 0.4, 0.8), facecolors=IDLE, lw=0)
    for span in run.spans:
        row, width = pools.index(span.pool), span.end_s - span.start_s
        axes.broken_barh([(span.start_s, width)], (row - 0.4, 0.8), facecolors=COLOURS[span.phase], edgecolors="white", lw=0.6)
        if width > 0.02 * end:
            axes.text(span.start_s + width / 2, row, str(span.step), ha="center", va="center_baseline", fontsize=8, color=INK)
    busy = run.pool_busy()
    axes.set(ylim=(len(pools) - 0.5, -0.5), xlim=(0, end), yticks=range(len(pools)))
    axes.set_yticklabels([f"{pool}\n{busy[pool]:.0%} busy" for pool in pools])
    how = run.setting.placement + (f", staleness {run.setting.staleness}" if run.setting.placement == "separate" else "")
    axes.set_title(f"{how}: {run.step_s:.3g} s a step", loc="left", fontsize=9.5, color=INK)
    axes.set_xlabel("time, s", fontsize=8, color=MUTED)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=MUTED, length=0)
    shares = run.to_json()["phase_share"]
    figure.legend(
        handles=[Patch(color=COLOURS[phase], label=f"{phase} {share:.1%}") for phase, share in shares.items()],
        loc="outside upper right",
        ncols=len(shares),
        frameon=False,
        fontsize=8,
    )
    return figure


def save_rlhf(run: RlhfRun, path: str | Path) -> Path:
    """Draw the figure into a file.

    Raises:
        InputError: a file name that no picture has.
    """
    return write_picture(lambda: rlhf_figure(run), path)
