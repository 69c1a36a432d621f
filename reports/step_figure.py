"""The picture of a whole training step: a row per stage of a replica, a colour per kind of work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmlab.reports.picture import IDLE, INK, MUTED, write_picture
from llmlab.reports.pipeline_figure import COLOURS
from llmlab.simulator.training.step_timeline import NAMES, StepTimeline

MOST_ROWS = 32
KINDS = {kind: shades[0] for kind, shades in COLOURS.items()} | {"C": "#c9716b", "D": "#8b7cc8", "O": "#7f8894", "S": "#c8cdd4"}


def step_figure(timeline: StepTimeline) -> Any:
    """Return a Matplotlib figure; hand-overs show as what separates a stage's work from the next one's."""
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    plan = timeline.step.plan
    replicas = plan.dp if timeline.replicas_differ else 1
    rows = [(replica, stage) for replica in range(replicas) for stage in range(plan.pp)][:MOST_ROWS]
    number = {row: place for place, row in enumerate(rows)}
    unit, name = (1e9, "s") if timeline.makespan_ns >= 1e10 else (1e6, "ms")
    figure = Figure(figsize=(13.0, 0.32 * len(rows) + 1.3), layout="constrained")
    axes = figure.subplots()
    for row in range(len(rows)):
        axes.broken_barh([(0, timeline.makespan_ns / unit)], (row - 0.42, 0.84), facecolors=IDLE, lw=0)
    boxes: dict[str, list[list[tuple[float, float]]]] = {}
    for event in timeline.events():
        place = number.get((event.replica, event.stage))
        if place is None or event.kind not in KINDS:
            continue
        left, right = event.start_ns / unit, event.end_ns / unit
        low, high = place - 0.42, place + 0.42
        boxes.setdefault(event.kind, []).append([(left, low), (right, low), (right, high), (left, high)])
    many = sum(map(len, boxes.values())) > 1500
    for kind, shapes in boxes.items():
        axes.add_collection(PolyCollection(shapes, facecolors=KINDS[kind], edgecolors="white", linewidths=0.1 if many else 0.5))
    axes.set(xlim=(0, timeline.makespan_ns / unit), ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)))
    axes.set_yticklabels([f"replica {replica}, stage {stage}" if replicas > 1 else f"stage {stage}" for replica, stage in rows])
    wide = plan.tp * plan.cp
    drawn = replicas * plan.pp
    shown = f"first {len(rows)} of {drawn} stages" if drawn > len(rows) else f"all {len(rows)} stages"
    shown += f" of one of {plan.dp} equal replicas" if replicas < plan.dp else ""
    each = f", {wide} ranks each" if wide > 1 else ""
    axes.set_title(
        f"one step on {plan.gpus} devices: {timeline.makespan_ns / 1e9:.4g} s ({shown}{each})",
        loc="left",
        fontsize=9.5,
        color=INK,
    )
    axes.set_xlabel(f"time, {name}", fontsize=8, color=MUTED)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(labelsize=7.5, colors=MUTED, length=0)
    figure.legend(
        handles=[Patch(color=KINDS[kind], label=NAMES[kind]) for kind in KINDS if kind in boxes],
        loc="outside upper right",
        ncols=len(boxes),
        frameon=False,
        fontsize=8,
    )
    return figure


def save_step(timeline: StepTimeline, path: str | Path) -> Path:
    """Draw the figure into a file.

    Raises:
        InputError: a file name that no picture has.
    """
    return write_picture(lambda: step_figure(timeline), path)
