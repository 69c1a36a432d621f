"""One self-contained HTML page from the tables the other commands produce. Nothing is computed here but layout.

The report is a dictionary: `title`, `made`, `headlines` and `sections`. A section that could not be made holds
`{"missing": reason}` instead of its tables, and the page says the reason in its place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from llmlab.reference.files import write_atomic
from llmlab.reports import figures

TEMPLATES = Path(__file__).resolve().parent / "templates"


def number(value: Any, digits: int = 3) -> str:
    """A number as people read it: three significant digits, thousands set apart, a dash for nothing.

    >>> number(12345.6), number(0.012345), number(None), number(98.0)
    ('12,300', '0.0123', '–', '98')
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) and abs(value) < 10**digits:
        return str(value)
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10 ** (digits - 1) else f"{rounded:,g}"


def percent(value: Any, digits: int = 1) -> str:
    """A fraction as percent.

    >>> percent(0.0834), percent(-0.5, 0)
    ('8.3 %', '−50 %')
    """
    return "–" if value is None else f"{100 * value:.{digits}f} %".replace("-", "−")


def seconds(value: Any) -> str:
    """A duration in the unit that suits it.

    >>> seconds(0.00123), seconds(3.2e-6), seconds(95)
    ('1.23 ms', '3.2 µs', '95 s')
    """
    if value is None:
        return "–"
    for limit, factor, unit in ((1.0, 1.0, "s"), (1e-3, 1e3, "ms"), (1e-6, 1e6, "µs")):
        if value >= limit:
            return f"{number(value * factor)} {unit}"
    return f"{number(value * 1e9)} ns"


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "seconds": seconds}
    return environment


def _pairs(rows: Sequence[Mapping[str, Any]], group: str) -> dict[str, list[tuple[float, float]]]:
    grouped: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        grouped.setdefault(str(row[group]), []).append((row["measured"], row["predicted"]))
    return grouped


def _figures(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """The pictures of each section that has the rows for them."""
    drawn: dict[str, list[str]] = {}
    if rows := sections["components"].get("fractions"):
        drawn["components"] = [figures.fractions(rows, name="speed", title="Share of the machine's limit reached")]
    if rows := sections["calibration"].get("points"):
        drawn["calibration"] = [
            figures.predicted_measured(
                _pairs(rows, "operator"), name="fit", title="Operators on this machine, held out", unit="ms"
            )
        ]
    for metric in sections["here"].get("pictures", ()):
        drawn.setdefault("here", []).append(
            figures.intervals(metric["rows"], name=f"here-{metric['metric']}", title=metric["title"], unit=metric["unit"])
        )
    for metric in sections["published"].get("pictures", ()):
        drawn.setdefault("published", []).append(
            figures.predicted_measured(
                _pairs(metric["rows"], "group"),
                name=f"published-{metric['metric']}",
                title=metric["title"],
                unit=metric["unit"],
            )
        )
    for metric in sections["training"].get("pictures", ()):
        drawn.setdefault("training", []).append(
            figures.predicted_measured(
                _pairs(metric["rows"], "group"),
                name=f"training-{metric['metric']}",
                title=metric["title"],
                unit=metric["unit"],
            )
        )
    for front in sections["plan"].get("fronts", ()):
        drawn.setdefault("plan", []).append(
            figures.front(
                front["points"], name=f"front-{front['metric']}", title=front["title"], x=front["x"], y=front["y"],
                limit=front["limit"],
            )
        )  # fmt: skip
    return drawn


SECTIONS = ("machine", "components", "calibration", "here", "published", "ratios", "training", "speed", "plan")


def page(report: Mapping[str, Any]) -> str:
    """Render a report as one HTML document without outside references.

    Args:
        report: `title`, `made`, `wall_s`, `headlines` (a list of {value, label, detail}) and `sections`, which maps each name
            in `SECTIONS` to its tables or to {"missing": reason}. `harness.full_run` documents the tables.
    """
    sections = {name: report["sections"].get(name, {"missing": "was not asked for"}) for name in SECTIONS}
    return (
        _environment()
        .get_template("report.html.j2")
        .render(report=report, sections=sections, figures=_figures(sections), style=(TEMPLATES / "style.css").read_text())
    )


def write_page(report: Mapping[str, Any], path: str | Path) -> Path:
    """Write the page and, beside it, everything on it as JSON; both whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(path)
    data = path.with_suffix(".json")
    html = page({**report, "data_file": data.name})
    write_atomic(data, json.dumps({**report, "data_file": data.name}, indent=1, allow_nan=False, default=str) + "\n")
    return write_atomic(path, html)
