"""Figures as inline SVG: drawn once, coloured by the page's style sheet so that they follow light and dark mode.

Every function takes plain rows and returns a string that can be put into HTML as it is. Text stays text (no glyph outlines,
no fonts fetched), identifiers are made unique per figure, and the same rows give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

INK, MUTED, RULE, PAPER = "#010203", "#010204", "#010205", "#010206"
SERIES = ("#010211", "#010212", "#010213", "#010214", "#010215", "#010216")
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper"} | {
    color: f"--series-{i}" for i, color in enumerate(SERIES, start=1)
}
MARKERS = ("o", "s", "^", "D", "v", "P")

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "llmlab",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "savefig.transparent": True,
    "path.simplify": True,
}


def inline_svg(figure: Any, name: str, label: str) -> str:
    """Serialise a Matplotlib figure for embedding: no prolog, page colours, unique identifiers, a text alternative."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(
            buffer,
            format="svg",
            bbox_inches="tight",
            pad_inches=0.04,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'xlink:href="#', 'href="#', svg)
    svg = re.sub(r'\sxmlns(:xlink)?="[^"]*"|\sversion="[^"]*"', "", svg)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    svg = re.sub(r"font:\s*([\d.]+)px[^;\"]*", r"font: \1px var(--sans)", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{_escaped(label)}" class="figure"', 1).strip()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def _axes(width: float = 4.6, height: float = 3.5) -> tuple[Any, Any]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _plain(value: float, _position: object = None) -> str:
    """Tick labels people read: 0.1, 20, 3k."""
    if value >= 1000:
        return f"{value / 1000:g}k"
    return f"{value:g}"


def predicted_measured(
    groups: Mapping[str, Sequence[tuple[float, float]]], *, name: str, title: str, unit: str, band: float = 0.1
) -> str:
    """Predicted against measured on equal logarithmic axes, one colour per group, with a band of +-`band` around equality.

    Args:
        groups: label -> (measured, predicted) pairs, all above zero.
        name: prefix of the identifiers in the SVG.
        unit: unit of both axes.
    """
    import matplotlib
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    values = [value for pairs in groups.values() for pair in pairs for value in pair]
    low, high = min(values) / 1.25, max(values) * 1.25
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(4.3, 3.9)
        axes.fill_between(
            [low, high],
            [low * (1 - band), high * (1 - band)],
            [low * (1 + band), high * (1 + band)],
            color=RULE,
            lw=0,
            alpha=0.6,
        )
        axes.plot([low, high], [low, high], color=MUTED, lw=0.8)
        for i, (label, pairs) in enumerate(groups.items()):
            axes.plot(
                [measured for measured, _ in pairs],
                [predicted for _, predicted in pairs],
                MARKERS[i % len(MARKERS)],
                ms=3.4,
                mew=0,
                alpha=0.65,
                color=SERIES[i % len(SERIES)],
                label=label,
            )
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.set_xlabel(f"measured, {unit}")
        axes.set_ylabel(f"predicted, {unit}")
        axes.set_title(title)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0,) if high > 100 * low else (1.0, 2.0, 5.0), numticks=8))
            axis.set_major_formatter(FuncFormatter(_plain))
            axis.set_minor_formatter(NullFormatter())
        if len(groups) > 1 or next(iter(groups), ""):
            axes.legend(loc="upper left", handletextpad=0.1, borderpad=0)
        return inline_svg(figure, name, f"{title}: predicted against measured, {unit}")


def intervals(rows: Sequence[Mapping[str, Any]], *, name: str, title: str, unit: str) -> str:
    """One line per row: the predicted interval as a bar, the prediction as a tick, the measurement as a dot.

    Args:
        rows: {label, predicted, low, high, measured (or None)}; drawn from top to bottom.
    """
    import matplotlib
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(4.3, 0.75 + 0.24 * len(rows))
        for i, row in enumerate(rows):
            axes.plot([row["low"], row["high"]], [i, i], color=SERIES[0], lw=6, alpha=0.3, solid_capstyle="butt")
            axes.plot([row["predicted"]], [i], "|", color=SERIES[0], ms=9, mew=2)
            if row["measured"] is not None:
                axes.plot([row["measured"]], [i], "o", color=SERIES[1], ms=4.5, mew=0)
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        values = [value for row in rows for value in (row["low"], row["high"], row["measured"]) if value]
        if max(values) > 8 * min(values):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if max(values) < 300 * min(values) else (1.0,), numticks=9))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        axes.set_xlabel(unit)
        axes.set_title(title)
        return inline_svg(figure, name, f"{title}: predicted interval and measurement, {unit}")


def fractions(rows: Sequence[Mapping[str, Any]], *, name: str, title: str) -> str:
    """Horizontal bars of percentages of a limit, one colour per backend.

    Args:
        rows: {label, backend, percent}; drawn from top to bottom.
    """
    import matplotlib

    backends = sorted({row["backend"] for row in rows})
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(4.3, 0.8 + 0.2 * len(rows))
        for backend, color in zip(backends, SERIES):
            drawn = [(i, row["percent"]) for i, row in enumerate(rows) if row["backend"] == backend]
            axes.barh([i for i, _ in drawn], [percent for _, percent in drawn], color=color, height=0.7, label=backend)
        for i, row in enumerate(rows):
            axes.text(row["percent"] + 1, i, f"{row['percent']:.0f}", va="center", fontsize=7.5, color=MUTED)
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_xlim(0, max(100.0, *(row["percent"] * 1.08 for row in rows)))
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.set_xlabel("% of the machine's limit")
        axes.set_title(title)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.55 / (0.8 + 0.2 * len(rows))), ncols=len(backends))
        return inline_svg(figure, name, title)


def front(points: Sequence[Mapping[str, Any]], *, name: str, title: str, x: str, y: str, limit: float | None = None) -> str:
    """Cost against latency: every deployment tried, those that keep the promise filled, the chosen one ringed and named.

    Args:
        points: {x, y, label, keeps (bool), chosen (bool), group}.
        x, y: axis labels.
        limit: the promised latency, drawn as a line.
    """
    import matplotlib
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    groups = sorted({point["group"] for point in points})
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(4.5, 3.5)
        if limit is not None:
            axes.axhline(limit, color=MUTED, lw=0.8, ls=(0, (4, 3)))
            axes.annotate(
                "promised", (1, limit), xycoords=("axes fraction", "data"), xytext=(-2, 2), textcoords="offset points",
                ha="right", va="bottom", fontsize=7.5, color=MUTED,
            )  # fmt: skip
        for i, group in enumerate(groups):
            color, marker = SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]
            for keeps in (False, True):
                drawn = [point for point in points if point["group"] == group and bool(point["keeps"]) is keeps]
                if drawn:
                    axes.plot(
                        [point["x"] for point in drawn],
                        [point["y"] for point in drawn],
                        marker,
                        ms=5,
                        color=color,
                        mfc=color if keeps else "none",
                        mew=1.0,
                        label=f"{group}, {'keeps the promise' if keeps else 'does not'}",
                    )
        for point in points:
            if point["chosen"]:
                axes.plot([point["x"]], [point["y"]], "o", ms=12, mfc="none", mec=INK, mew=1.2)
                axes.annotate(
                    point["label"], (point["x"], point["y"]), xytext=(9, 9), textcoords="offset points", fontsize=8, color=INK
                )
        ys = [point["y"] for point in points] + ([limit] if limit else [])
        if max(ys) > 8 * min(ys) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=8))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.grid()
        axes.set_axisbelow(True)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.set_title(title)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, handletextpad=0.1, columnspacing=1.0)
        return inline_svg(figure, name, f"{title}: {y} against {x}")
