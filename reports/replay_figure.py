"""The picture of replayed runs: distributions and single requests, measured against simulated, one row per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmlab.reports.picture import INK, write_picture

MUTED, BAND = "#8a9099", "#e6e9ed"
MEASURED, SIMULATED = "#475569", "#0b66c3"
MOST_RUNS = 8
LONGEST_NAME = 52
NAMES = {"ttft": "time to first token", "e2e": "whole request"}


def replay_figure(replays: Sequence[Mapping[str, Any]]) -> Any:
    """Return a Matplotlib figure of `validate_files(...)["replays"]`, evenly chosen where there are many.

    Raises:
        ValueError: there is nothing to draw.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if not replays:
        raise ValueError("no replayed runs to draw")
    step = -(-len(replays) // MOST_RUNS)
    chosen = replays[::step]
    figure = Figure(figsize=(13.2, 2.9 * len(chosen)), layout="constrained")
    grid = figure.subplots(len(chosen), 4, squeeze=False)
    seconds = FuncFormatter(lambda value, _: f"{value / 1000:g}")
    for row, replay in zip(grid, chosen):
        curves = replay["curves"]
        name = curves["row_id"].partition("/")[2]
        name = name if len(name) <= LONGEST_NAME else "..." + name[-LONGEST_NAME:]
        for place, metric in enumerate(("ttft", "e2e")):
            drawn, scatter = row[place], row[2 + place]
            data = curves[metric]
            levels = [i / (len(data["measured"]) - 1) for i in range(len(data["measured"]))]
            drawn.plot(data["measured"], levels, color=MEASURED, lw=2.4, label="measured")
            drawn.plot(data["simulated"], levels, color=SIMULATED, lw=1.4, ls=(0, (4, 1.5)), label="simulated")
            drawn.set(ylim=(0, 1), xlabel=f"{NAMES[metric]}, s", ylabel="part of requests")
            positive = [value for pair in data["pairs"] for value in pair if value > 0]
            low, high = min(positive) / 1.2, max(positive) * 1.2
            scatter.fill_between([low, high], [0.9 * low, 0.9 * high], [1.1 * low, 1.1 * high], color=BAND, lw=0)
            scatter.plot([low, high], [low, high], color=MUTED, lw=0.8)
            scatter.plot(
                [pair[0] for pair in data["pairs"]],
                [pair[1] for pair in data["pairs"]],
                "o",
                ms=3.2,
                mew=0,
                alpha=0.55,
                color=SIMULATED,
            )
            scatter.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), box_aspect=1)
            scatter.set(xlabel=f"measured {NAMES[metric]}, s", ylabel="simulated, s")
            rank = replay[f"{metric}_rank_correlation"]
            note = f"median error {100 * replay[f'{metric}_median_abs_error']:.1f} %"
            scatter.set_title(note + ("" if rank is None else f", rank {rank:.2f}"), fontsize=8.5, color=MUTED, loc="left")
            wide = max(data["measured"]) > 20 * max(min(data["measured"]), 1e-3)
            if wide:
                drawn.set_xscale("log")
            for axis in (*((drawn.xaxis,) if wide else ()), scatter.xaxis, scatter.yaxis):
                axis.set_major_locator(LogLocator(subs=(1.0,) if high > 60 * low else (1.0, 2.0, 5.0), numticks=9))
                axis.set_minor_formatter(NullFormatter())
            for axis in (drawn.xaxis, scatter.xaxis, scatter.yaxis):
                axis.set_major_formatter(seconds)
        row[0].set_title(f"{name} ({replay['requests']} requests)", fontsize=9.5, color=INK, loc="left")
        row[0].legend(frameon=False, fontsize=8, loc="lower right")
        for axes in row:
            axes.tick_params(labelsize=8, colors=MUTED)
            axes.xaxis.label.set_size(8.5)
            axes.yaxis.label.set_size(8.5)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color=BAND, lw=0.6)
            axes.set_axisbelow(True)
    return figure


def save_replays(replays: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Draw the figure into a file.

    Raises:
        InputError: a file name that no picture has.
    """
    return write_picture(lambda: replay_figure(replays), path)
