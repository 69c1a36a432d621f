"""The page is whole in itself, says why a section is missing, and opens without a complaint."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llmlab.reports.page import SECTIONS, number, page, percent, seconds
from tests.reports.report_example import example

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class _Checked(HTMLParser):
    """Every element closes in order, and ids are unique."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                self.references.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def _checked(html: str) -> _Checked:
    parser = _Checked()
    parser.feed(html)
    parser.close()
    assert not parser.open
    return parser


def test_the_page_parses_and_its_ids_are_unique() -> None:
    parser = _checked(page(example()))
    assert len(parser.ids) == len(set(parser.ids))
    inner = [reference[1:] for reference in parser.references if reference.startswith("#")]
    assert set(inner) <= set(parser.ids)


def test_the_parser_notices_a_broken_page() -> None:
    with pytest.raises(AssertionError):
        _checked("<p><b>crossed</p></b>")


def test_nothing_outside_is_referenced() -> None:
    html = page(example())
    assert all(reference.startswith(("#", "data:")) for reference in _checked(html).references)
    assert not re.search(r"https?://|@import|url\((?!#)|<script", html)


def test_every_figure_takes_the_colours_of_the_page() -> None:
    html = page(example())
    assert html.count("<svg") == 8
    assert "var(--series-1)" in html
    assert "#0102" not in html


def test_the_same_tables_give_the_same_bytes() -> None:
    assert page(example()) == page(example())


@pytest.mark.parametrize("name", SECTIONS)
def test_a_missing_section_says_why(name: str) -> None:
    report = example()
    report["sections"][name] = {"missing": "LLMLAB_DATA is not set & so <nothing> was read"}
    html = page(report)
    assert "LLMLAB_DATA is not set &amp; so &lt;nothing&gt; was read" in html
    _checked(html)


def test_a_section_nobody_made_is_said_to_be_missing() -> None:
    report = example()
    del report["sections"]["plan"]
    assert "Not shown: was not asked for" in page(report)


def test_text_from_tables_is_escaped() -> None:
    report = example()
    report["sections"]["plan"]["command"] = "vllm serve <script>alert(1)</script>"
    assert "<script" not in page(report)


def test_numbers_read_well() -> None:
    assert [number(x) for x in (0.0, 7, 1234, 0.00012, 98.64, None, True)] == ["0", "7", "1,230", "0.00012", "98.6", "–", "yes"]
    assert percent(None) == "–"
    assert seconds(0.0) == "0 ns"


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_opens_it_without_a_complaint(tmp_path: Path, width: int) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs a Chromium")
    file = tmp_path / "report.html"
    file.write_text(page(example()))
    complaints: list[str] = []
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        view = browser.new_page(viewport={"width": width, "height": 900})
        view.on("console", lambda message: complaints.append(message.text))
        view.on("pageerror", lambda error: complaints.append(str(error)))
        view.on(
            "request",
            lambda request: complaints.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
        )
        view.goto(file.as_uri())
        overflow = view.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        pictures = view.evaluate("[...document.querySelectorAll('svg.figure')].map(s => s.getBoundingClientRect().width)")
        cut_off = view.evaluate(
            "[...document.querySelectorAll('.scroll, .caption')].filter(box => box.getBoundingClientRect().right > innerWidth)"
            ".map(box => box.textContent)"
        )
        browser.close()
    assert complaints == []
    assert cut_off == [], "a table scrolls inside its own box, and its caption stays in view"
    assert overflow <= 0
    assert min(pictures) > 250
