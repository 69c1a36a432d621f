"""The picture of a capacity plan: what it costs to be how fast, where the time goes, and how much more load it carries."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmlab.reports.picture import INK, MUTED, write_picture

GRID, GOOD, BAD = "#e5e7eb", "#15803d", "#b91c1c"
COLORS = ("#0b66c3", "#d97706", "#0f766e", "#7c3aed", "#be185d", "#475569")
MARKERS = {1: "o", 2: "s", 4: "^", 8: "D", 16: "P", 32: "X"}
PARTS = {
    "front end": "#9ca3af",
    "waiting": "#b91c1c",
    "matrix products": "#0b66c3",
    "experts": "#1e40af",
    "output matrix": "#93c5fd",
    "attention of prompts": "#0f766e",
    "attention, reading the KV cache": "#14b8a6",
    "communication": "#d97706",
    "norms and activations": "#a78bfa",
    "sampling": "#c4b5fd",
    "launching kernels": "#78716c",
    "host of the engine": "#44403c",
    "prompts of others in the same step": "#f59e0b",
}
SPACE = {"ttft": "time to first token", "tpot": "time per output token", "itl": "gap between tokens", "e2e": "whole answer"}


def metric_name(metric: str) -> str:
    """Words for `ttft_p99`."""
    name, statistic = metric.split("_", 1)
    shown = {"mean": "mean", "max": "longest"}.get(statistic, f"{statistic[1:]}th percentile")
    return f"{SPACE.get(name, name)}, {shown}"


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> duration(0.05), duration(2.0), duration(0.0004)
    ('50 ms', '2 s', '0.4 ms')
    """
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def cost_front(plan: Mapping[str, Any]) -> Any:
    """Return a Matplotlib figure of `Plan.to_json()`.

    Above, one panel per clause of the objective: price against latency of every option simulated. Below, where the plan was
    explained: where the chosen option's time goes, and its latency as the load grows.
    """
    from matplotlib.figure import Figure

    fronts, why = plan["fronts"], plan.get("why") or {}
    columns = max(2, len(fronts)) if why else max(1, len(fronts))
    figure = Figure(figsize=(6.4 * columns, 9.6 if why else 5.6), layout="constrained", facecolor="white")
    heads = figure.add_gridspec(3 if why else 2, 1, height_ratios=(0.16, 1.15, 1.0) if why else (0.16, 1.0))
    _title(figure.add_subplot(heads[0]), plan, 84 * columns)
    upper = heads[1].subgridspec(1, max(1, len(fronts)))
    gpus = sorted({point["gpu"] for front in fronts for point in [*front["points"], *front.get("hopeless", ())]})
    colors = {gpu: COLORS[i % len(COLORS)] for i, gpu in enumerate(gpus)}
    for place, front in enumerate(fronts):
        _front(figure.add_subplot(upper[place]), front, colors)
    if why:
        lower = heads[2].subgridspec(1, 2, width_ratios=(1.05, 1.0))
        _parts(figure.add_subplot(lower[0]), why)
        _load(figure.add_subplot(lower[1]), why, fronts, plan["chosen"])
    figure.legend(
        handles=_legend(fronts, colors), loc="outside lower center", ncols=6, frameon=False, fontsize=9, labelcolor=INK
    )
    return figure


def _title(axes: Any, plan: Mapping[str, Any], width: int) -> None:
    chosen, searched = plan["chosen"], plan["searched"]
    promise = "; ".join(f"{metric_name(front['metric'])}, within {duration(front['limit'])}" for front in plan["fronts"])
    if chosen is None:
        head = f"{plan['model']}: nothing of at most {plan['max_gpus']} devices keeps the promise"
    else:
        head = f"{plan['model'].rpartition('/')[2]}: {_sizes(chosen)}, ${chosen['usd_per_hour']:,.2f} an hour"
        if chosen["usd_per_million_output_tokens"]:
            head += f", ${chosen['usd_per_million_output_tokens']:.2f} per million output tokens"
    below = f"Load: {plan['workload']}. Promise: {promise}. {searched['considered']:,} deployments considered, "
    below += f"{searched['deployments_simulated']:,} of them simulated."
    axes.axis("off")
    axes.text(0, 1.0, _plain(head), fontsize=14, color=INK, fontweight="bold", va="top", transform=axes.transAxes)
    lines = "\n".join(textwrap.wrap(below, width))
    axes.text(0, 0.42, _plain(lines), fontsize=10, color=MUTED, va="top", transform=axes.transAxes)


def _plain(text: str) -> str:
    """Text in which a dollar is a dollar and starts no formula."""
    return text.replace("$", r"\$")


def _sizes(row: Mapping[str, Any]) -> str:
    devices, replicas = row["gpus"], row["replicas"]
    each = f"{replicas} replicas of " if replicas > 1 else ""
    return f"{devices} {row['gpu'].upper()} ({each}{row['layout']})"


def _tidy(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color=GRID, lw=0.8)
    axes.set_axisbelow(True)


def _seconds_axis(axis: Any, low: float, high: float) -> None:
    """A logarithmic axis in milliseconds and seconds."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    wide = high / low > 30
    axis.set_major_locator(
        LogLocator(subs=(1.0,) if high / low > 1000 else (1.0, 2.0, 5.0) if wide else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
    )
    axis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
    axis.set_minor_formatter(NullFormatter())


def _front(axes: Any, front: Mapping[str, Any], colors: Mapping[str, str]) -> None:
    """Price against one clause's latency."""
    limit, points = front["limit"], front["points"]
    values = [point["y"] for point in points if point["y"] > 0] + [limit]
    low, high = min(values) / 1.5, min(max(values), 12 * limit) * 1.25
    _tidy(axes, f"{metric_name(front['metric']).capitalize()}, against price")
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.axhspan(limit, high, color=BAD, alpha=0.05, lw=0)
    axes.axhline(limit, color=BAD, lw=1.2, ls=(0, (5, 3)))
    right = max((point["x"] for point in [*points, *front.get("hopeless", ())]), default=1.0)
    axes.set_xlim(0, right * 1.12)
    axes.annotate(
        f"promised: {duration(limit)}", (0, limit), xycoords=("axes fraction", "data"), xytext=(5, 4),
        textcoords="offset points", ha="left", fontsize=9, color=BAD,
    )  # fmt: skip
    edge = [point for point in points if point["front"]]
    if edge:
        axes.step(
            [*(point["x"] for point in edge), right * 1.12], [*(point["y"] for point in edge), edge[-1]["y"]],
            where="post", color=MUTED, lw=1.4, zorder=2,
        )  # fmt: skip
    for point in points:
        color, whole = colors[point["gpu"]], point["level"] == "whole workload"
        degree = int(point["group"].rsplit("TP", 1)[1])
        axes.plot(
            [point["x"]], [min(point["y"], high / 1.03)], MARKERS.get(degree, "o"),
            ms=8 if whole else 5, zorder=4 if point["keeps"] else 3,
            mfc=color if point["keeps"] else "white", mec=color, mew=1.2, alpha=1.0 if point["keeps"] else 0.65,
        )  # fmt: skip
    for point in front.get("hopeless", ()):
        axes.plot([point["x"]], [high / 1.04], "x", ms=7, mew=1.6, color=colors[point["gpu"]], clip_on=False, zorder=4)
    ringed = [(mark, point) for mark in ("chosen", "runner_up") for point in points if point[mark]]
    lowest = min((point["y"] for _, point in ringed), default=0.0)
    for mark, point in ringed:
        below = point["y"] == lowest and not (len(ringed) == 2 and ringed[0][1]["y"] == ringed[1][1]["y"] and mark != "chosen")
        left, bold = point["x"] > 0.6 * right, mark == "chosen"
        axes.plot([point["x"]], [point["y"]], "o", ms=17, mfc="none", mec=INK, mew=1.8 if bold else 1.0, zorder=5)
        axes.annotate(
            _plain(f"{mark.replace('_', '-')}: {point['label'].upper().replace(' X ', ' x ')}, ${point['x']:,.2f}/h"),
            (point["x"], point["y"]),
            xytext=(-22 if left else 22, -24 if below else 24),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=9.5,
            color=INK,
            fontweight="bold" if bold else "normal",
            bbox={"boxstyle": "round,pad=0.25", "fc": "white", "ec": "none", "alpha": 0.9},
            arrowprops={"arrowstyle": "-", "color": INK, "lw": 0.8},
            zorder=6,
        )
    _seconds_axis(axes.yaxis, low, high)
    axes.set_xlabel("US dollars per hour", color=INK)


def _parts(axes: Any, why: Mapping[str, Any]) -> None:
    """One bar each for the time to the first token and per token after it, divided by cause."""
    _tidy(axes, "Where the chosen option's time goes, on average")
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xlim(0, 1)
    axes.set_ylim(-1.75, 1.6)
    axes.set_xticks([])
    axes.set_yticks([])
    drawn: dict[str, str] = {}
    for level, (name, words) in enumerate((("ttft", "first token"), ("tpot", "each token after it"))):
        y, left = 1.0 - 1.15 * level, 0.0
        parts = why["parts"][name]
        total = sum(part["seconds"] for part in parts)
        axes.text(0, y + 0.36, f"{words}: {duration(total)}", fontsize=10, color=INK, fontweight="bold", va="bottom")
        for part in parts:
            color = drawn.setdefault(part["part"], PARTS.get(part["part"], "#d1d5db"))
            axes.barh(y, part["share"], left=left, height=0.55, color=color, edgecolor="white", lw=1)
            if part["share"] > 0.085:
                axes.text(
                    left + part["share"] / 2, y, f"{duration(part['seconds'])}\n{part['share']:.0%}",
                    ha="center", va="center", fontsize=8.5, color="white",
                )  # fmt: skip
            left += part["share"]
    shown = [part for part in drawn if any(p["part"] == part and p["share"] > 0.004 for n in why["parts"].values() for p in n)]
    rows = math.ceil(len(shown) / 2)
    for i, part in enumerate(shown):
        x, y = 0.5 * (i // rows), -0.72 - 0.17 * (i % rows) * min(1.0, 6 / rows)
        axes.plot([x + 0.008], [y], "s", color=drawn[part], ms=8, clip_on=False)
        axes.text(x + 0.03, y, part, fontsize=9, va="center", color=INK)


def _load(axes: Any, why: Mapping[str, Any], fronts: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any]) -> None:
    """Latency over limit as the load grows: at most 1 is promised."""
    _tidy(axes, f"Latency of {chosen['replicas']} x {chosen['layout']} {chosen['gpu'].upper()} as the load grows")
    closed = bool(why["clients"])
    unit = why["clients"] if closed else why["rate_per_s"]
    room = why["headroom"]["factor"]
    styles = ("-", "--", ":", "-.")
    top = 1.5
    for number, front in enumerate(fronts):
        rows = [row for row in why["curve"] if row[front["metric"]] and row["complete"]]
        xs, ys = [row["factor"] * unit for row in rows], [row[front["metric"]] / front["limit"] for row in rows]
        axes.plot(xs, ys, styles[number % 4], marker="o", ms=5, lw=2, color=COLORS[number], label=metric_name(front["metric"]))
        top = max(top, *ys) if ys else top
    top = min(top, 4.0) * 1.08
    axes.axhspan(1, top, color=BAD, alpha=0.05, lw=0)
    axes.axhline(1, color=BAD, lw=1.2, ls=(0, (5, 3)))
    axes.annotate(
        "promised", (0, 1), xycoords=("axes fraction", "data"), xytext=(5, 4), textcoords="offset points", fontsize=9, color=BAD
    )
    axes.axvline(unit, color=INK, lw=1.2)
    axes.annotate(
        f"today: {unit:.3g}",
        (unit, top),
        xytext=(-4, -4),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=9.5,
        color=INK,
    )
    last = max([row["factor"] for row in why["curve"] if row["complete"]] + [1.0, room])
    if room:
        near = room > 0.75 * last
        axes.axvline(unit * room, color=GOOD, lw=1.2)
        axes.annotate(
            f"carries {unit * room:.3g} ({room:.2f} x)",
            (unit * room, 0),
            xytext=(-5 if near else 5, 6),
            textcoords="offset points",
            ha="right" if near else "left",
            fontsize=9.5,
            color=GOOD,
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.9},
        )
    axes.set_ylim(0, top)
    axes.set_xlim(0, unit * last * 1.12)
    axes.set_xlabel("clients" if closed else "requests per second", color=INK)
    axes.set_ylabel("latency / limit", color=INK)
    axes.legend(
        frameon=True, framealpha=0.9, edgecolor="none", fontsize=9, loc="upper left", bbox_to_anchor=(0.0, 0.93), labelcolor=INK
    )


def _legend(fronts: Sequence[Mapping[str, Any]], colors: Mapping[str, str]) -> list[Any]:
    from matplotlib.lines import Line2D

    degrees = sorted({int(point["group"].rsplit("TP", 1)[1]) for front in fronts for point in front["points"]})
    levels = {point["level"] for front in fronts for point in front["points"]}
    handles = [Line2D([], [], ls="", marker="o", ms=9, color=color, label=gpu.upper()) for gpu, color in colors.items()]
    handles += [
        Line2D([], [], ls="", marker=MARKERS.get(degree, "o"), ms=8, mfc="white", mec=INK, label=f"{degree} per replica")
        for degree in degrees
    ]  # fmt: skip
    handles += [
        Line2D([], [], ls="", marker="o", ms=8, color=MUTED, label="keeps the whole promise"),
        Line2D([], [], ls="", marker="o", ms=8, mfc="white", mec=MUTED, label="breaks it"),
    ]
    if "busiest stretch" in levels:
        handles.append(
            Line2D([], [], ls="", marker="o", ms=5, mfc="white", mec=MUTED, label="small: latency on the busiest stretch only")
        )
    if any(front.get("hopeless") for front in fronts):
        handles.append(Line2D([], [], ls="", marker="x", ms=7, mew=1.6, color=MUTED, label="hopeless: given up"))
    return [*handles, Line2D([], [], color=MUTED, lw=1.4, label="nothing is cheaper and faster")]


def save_cost_front(plan: Mapping[str, Any], path: str | Path) -> Path:
    """Draw the plan into a file.

    Raises:
        InputError: a file name that no picture has.
    """
    return write_picture(lambda: cost_front(plan), path)
