"""The picture of a capacity plan: price against latency, one panel per clause of the objective."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmlab.reference.files import write_atomic

INK, MUTED = "#1f2328", "#8a9099"
COLORS = ("#0b66c3", "#c2410c", "#15803d", "#7c3aed", "#a16207", "#be185d", "#0f766e", "#475569")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def cost_front(plan: Mapping[str, Any]) -> Any:
    """Return a Matplotlib figure of `Plan.to_json()`: filled where the objective is kept, ringed the answer."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    fronts = plan["fronts"]
    figure = Figure(figsize=(0.4 + 4.6 * len(fronts), 4.4), layout="constrained")
    groups = sorted({point["group"] for front in fronts for point in front["points"]})
    for place, front in enumerate(fronts, start=1):
        axes = figure.add_subplot(1, len(fronts), place)
        for number, group in enumerate(groups):
            for keeps in (False, True):
                drawn = [point for point in front["points"] if point["group"] == group and point["keeps"] is keeps]
                color = COLORS[number % len(COLORS)]
                axes.plot(
                    [point["x"] for point in drawn],
                    [point["y"] for point in drawn],
                    MARKERS[number % len(MARKERS)],
                    color=color,
                    mfc=color if keeps else "none",
                    ms=6,
                    label=group if keeps else None,
                )
        edge = [point for point in front["points"] if point["front"]]
        axes.step([point["x"] for point in edge], [point["y"] for point in edge], where="post", color=MUTED, lw=1, zorder=1)
        for point in front["points"]:
            if point["chosen"]:
                axes.plot([point["x"]], [point["y"]], "o", ms=14, mfc="none", mec=INK, mew=1.4)
        axes.axhline(front["limit"], color=MUTED, lw=1, ls=(0, (4, 3)))
        axes.annotate(
            "promised",
            (1, front["limit"]),
            xycoords=("axes fraction", "data"),
            xytext=(-3, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=MUTED,
        )
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=9))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(left=0)
        axes.set_xlabel(front["x"])
        axes.set_ylabel(front["y"])
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e5e7eb", lw=0.7)
        axes.set_axisbelow(True)
    chosen = next((point["label"] for front in fronts for point in front["points"] if point["chosen"]), "")
    ringed = f"; ringed: {chosen}, the cheapest" if chosen else ""
    figure.suptitle(
        f"{plan['model']}, {plan['workload']}: every option on the busiest stretch\n"
        f"filled: keeps the whole objective; line: cost and latency front{ringed}",
        fontsize=10,
        color=INK,
    )
    figure.legend(
        loc="outside lower center", ncols=min(4, max(1, len(groups))), frameon=False, fontsize=9, handles=_handles(groups)
    )
    return figure


def _handles(groups: list[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], ls="", marker=MARKERS[i % len(MARKERS)], color=COLORS[i % len(COLORS)], label=group)
        for i, group in enumerate(groups)
    ]


def save_cost_front(plan: Mapping[str, Any], path: str | Path) -> Path:
    """Draw the plan into an SVG or PNG file, named by its ending; equal plans give equal bytes."""
    import matplotlib

    path = Path(path)
    whole = io.BytesIO()
    kind = path.suffix.removeprefix(".")
    with matplotlib.rc_context({"svg.hashsalt": "llmlab", "svg.fonttype": "none"}):
        cost_front(plan).savefig(whole, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return write_atomic(path, whole.getvalue())
