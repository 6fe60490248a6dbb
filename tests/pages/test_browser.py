"""The page in a browser, if one is installed: at a phone's and at a desktop's width, light and dark."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdcli.pages.page import page
from sdcli.pages.palette import COLOURS
from tests.pages.browser import Tab, chromium, installed
from tests.pages.reports import ABOUT, bench, report, two_models, wide

pytestmark = [
    pytest.mark.skipif(installed() is None, reason="no Chromium on PATH"),
    pytest.mark.skipif(sys.platform == "win32", reason="pipes of Unix"),
]

SHOWN = """[...document.querySelectorAll('svg')].map(svg => svg.getBoundingClientRect()).filter(box => box.width)
    .map(box => [box.width, box.height])"""

OUTSIDE = """[...document.querySelectorAll('svg')].flatMap(svg => [...svg.querySelectorAll('text')])
    .map(text => [text.textContent, text.getBoundingClientRect()]).filter(([_, box]) => box.width)
    .filter(([_, box]) => box.left < 0 || box.right > document.documentElement.clientWidth).map(([words]) => words)"""

OVER_EACH_OTHER = """[...document.querySelectorAll('svg')].flatMap(svg => {
    const texts = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()])
    return texts.flatMap(([one, a], at) => texts.slice(at + 1).filter(([_, b]) => a.width && b.width
        && Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
        && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3).map(([other, _]) => `${one} / ${other}`))
})"""

SMALLEST = """Math.min(...[...document.querySelectorAll('svg text')].filter(t => t.getBoundingClientRect().width)
    .map(t => parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a))"""


CUT = """[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth)
    .map(box => `${box.scrollWidth} of ${box.clientWidth}`)"""

SHOWN_IN_STAGES = """[...document.querySelectorAll('table')].flatMap(table => [...table.rows].slice(0, 2))
    .map(row => row.innerText.replace(/\\s+/g, ' '))"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    program = installed()
    assert program is not None
    with chromium(program, tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    runs = {
        "one": [report()],
        "far": [report(9999, device="cpu")],
        "bench": bench(),
        "models": two_models(),
        "long": wide(),
    }
    for name, reports in runs.items():
        (folder / f"{name}.html").write_text(page(reports, ABOUT), "utf-8")
    return {name: folder / f"{name}.html" for name in runs}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize(("name", "charts"), [("one", 2), ("far", 2), ("bench", 7), ("models", 8)])
@pytest.mark.every(4)
def test_a_page_is_drawn_whole(
    tab: Tab, pages: dict[str, Path], name: str, charts: int, width: int, scheme: str
) -> None:
    tab.open(pages[name], width, scheme)
    assert tab.said == [], "nothing in the console"
    assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == []
    shown = tab.ask(SHOWN)
    assert len(shown) == charts, "one of each chart's two shapes"
    assert all(across > 0.8 * min(width, 900) and up > 80 for across, up in shown)
    assert tab.ask("document.documentElement.scrollWidth") <= width, "nothing to scroll sideways"
    assert tab.ask(OUTSIDE) == [] and tab.ask(OVER_EACH_OTHER) == []
    assert tab.ask(SMALLEST) > 10, "pixels of a text"
    paper = COLOURS["paper"][scheme == "dark"]
    expected = "rgb({}, {}, {})".format(*(int(paper[at : at + 2], 16) for at in (1, 3, 5)))
    assert tab.ask("getComputedStyle(document.body).backgroundColor") == expected
    ink = "getComputedStyle(document.querySelector('svg.wide path[style*=\"var(--denoise)\"]')).stroke"
    denoise = COLOURS["denoise"][scheme == "dark"]
    assert tab.ask(ink) == "rgb({}, {}, {})".format(*(int(denoise[at : at + 2], 16) for at in (1, 3, 5)))


@pytest.mark.parametrize("width", [320, 360, 390])
@pytest.mark.parametrize("name", ["one", "bench", "models", "long"])
def test_no_column_of_a_table_is_cut_on_a_phone(tab: Tab, pages: dict[str, Path], name: str, width: int) -> None:
    tab.open(pages[name], width, "light")
    assert tab.ask(CUT) == []


def test_on_a_phone_loading_and_running_are_in_one_column(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["long"], 360, "light")
    head, first = tab.ask(SHOWN_IN_STAGES)
    assert (
        head == "stage load + run predicted peak" and first == "encode_references 123 s + 4568 s 10 804 MiB 10 752 MiB"
    )
    tab.open(pages["long"], 1280, "light")
    head, first = tab.ask(SHOWN_IN_STAGES)
    assert head.startswith("stage load run predicted peak") and first.startswith("encode_references 123 s 4568 s ")
