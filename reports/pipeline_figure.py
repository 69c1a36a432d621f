"""The picture of a pipeline that people draw: ranks down, time across, a box per action with its microbatch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmlab.reports.picture import IDLE, INK, MUTED, write_picture
from llmlab.simulator.training.replay import Timeline

COLOURS = {
    "F": ("#4f8fd9", "#8fbcec", "#2f6cb3", "#bcd8f5"),
    "B": ("#5cab6d", "#97cfa3", "#3b8a4e", "#c3e5ca"),
    "I": ("#35a7a0", "#86cfca", "#1f817b", "#bbe4e1"),
    "W": ("#e0b252", "#efd498", "#bd8c25", "#f6e6c4"),
}
"""Per kind, the colour of a rank's first, second, ... stage."""
NAMES = {"F": "forward", "B": "backward", "I": "input gradient", "W": "weight gradient"}
MOST_LABELS = 1500


def pipeline_figure(timelines: Sequence[Timeline]) -> Any:
    """Return a Matplotlib figure: one panel per timeline, all on one scale of time.

    Raises:
        ValueError: there is nothing to draw.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    if not timelines:
        raise ValueError("no timelines to draw")
    longest = max(timeline.makespan_ns for timeline in timelines) or 1
    unit, name = (1e9, "s") if longest >= 1e10 else (1e6, "ms") if longest >= 1e6 else (1e3, "µs")
    heights = [0.34 * timeline.schedule.num_ranks + 0.75 for timeline in timelines]
    figure = Figure(figsize=(13.0, sum(heights) + 0.35), layout="constrained")
    grid = figure.subplots(len(timelines), 2, squeeze=False, width_ratios=[11, 1.5], height_ratios=heights)
    kinds: dict[str, None] = {}
    for (axes, beside), timeline in zip(grid, timelines):
        schedule = timeline.schedule
        own = [[stage for stage, at in enumerate(schedule.rank_of) if at == rank] for rank in range(schedule.num_ranks)]
        many = sum(map(len, timeline.units)) > MOST_LABELS
        for rank in range(schedule.num_ranks):
            axes.broken_barh([(0, timeline.makespan_ns / unit)], (rank - 0.42, 0.84), facecolors=IDLE, lw=0)
        pair_seen: set[tuple[int, int]] = set()
        paired = {(rank, start) for rank, unit_ in _pairs(timeline) for start in unit_}
        for rank, action, start, end in timeline.actions():
            kinds[action.kind] = None
            palette = COLOURS[action.kind]
            colour = palette[own[rank].index(action.stage) % len(palette)]
            top, height = rank - 0.42, 0.84
            if (rank, start) in paired:  # a forward above the backward beside it
                top, height = (rank, 0.42) if (rank, start) in pair_seen else (rank - 0.42, 0.42)
                pair_seen.add((rank, start))
            axes.broken_barh(
                [(start / unit, (end - start) / unit)],
                (top, height),
                facecolors=colour,
                edgecolors="white",
                linewidth=0.15 if many else 0.6,
            )
            width_points = 780 * (end - start) / longest
            size = min(8.0, 1.5 * width_points / (1 + len(str(action.microbatch))) ** 1.2, 11 * height)
            if not many and size >= 3.4:
                axes.text(
                    (start + end) / 2 / unit,
                    top + height / 2,
                    str(action.microbatch),
                    ha="center",
                    va="center_baseline",
                    fontsize=size,
                    color=INK,
                    clip_on=True,
                )
        bubble, steady = 100 * timeline.bubble_fraction, 100 * timeline.steady_bubble_fraction
        note = f"bubble {bubble:.1f} %" + (f" ({steady:.1f} % without a flush between)" if bubble - steady > 0.05 else "")
        axes.set_title(f"{schedule.name}   {note}", loc="left", fontsize=9.5, color=INK)
        axes.set(xlim=(0, longest / unit), ylim=(schedule.num_ranks - 0.5, -0.5), yticks=range(schedule.num_ranks))
        peaks = schedule.peak_activations()
        beside.barh(range(schedule.num_ranks), peaks, height=0.84, color="#c8cdd4")
        for rank, peak in enumerate(peaks):
            beside.text(0, rank, f" {peak:.3g}", va="center_baseline", fontsize=7.5, color=INK)
        most = max(max(other.schedule.peak_activations()) for other in timelines)
        beside.set(ylim=axes.get_ylim(), xlim=(0, 1.05 * most), yticks=[], xticks=[])
        beside.set_title("activations", loc="left", fontsize=8, color=MUTED)
        axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
        for either in (axes, beside):
            either.spines[["top", "right", "left", "bottom"]].set_visible(False)
            either.tick_params(labelsize=7.5, colors=MUTED, length=0)
        axes.set_ylabel("rank", fontsize=8, color=MUTED)
    grid[-1][0].set_xlabel(f"time, {name}", fontsize=8, color=MUTED)
    figure.legend(
        handles=[Patch(color=COLOURS[kind][0], label=NAMES[kind]) for kind in NAMES if kind in kinds],
        loc="outside upper right",
        ncols=4,
        frameon=False,
        fontsize=8,
    )
    return figure


def _pairs(timeline: Timeline) -> list[tuple[int, list[int]]]:
    """Per rank, where a forward starts beside a backward."""
    return [
        (rank, [int(start) for part, start in zip(units, timeline.start_ns[rank]) if len(part) > 1])
        for rank, units in enumerate(timeline.units)
    ]


def save_pipeline(timelines: Sequence[Timeline], path: str | Path) -> Path:
    """Draw the figure into a file.

    Raises:
        InputError: a file name that no picture has.
    """
    return write_picture(lambda: pipeline_figure(timelines), path)
