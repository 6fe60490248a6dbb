"""The page without a browser: self-contained, small, escaped, and with every figure of the report."""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from PIL import Image

from sdcli.pages.drawing import Flags, apart
from sdcli.pages.page import page, plot
from sdcli.pages.palette import COLOURS, by_role, role_of
from sdcli.pages.runs import format_mib, format_s, runs_of
from sdcli.units import MIB
from tests.pages.reports import ABOUT, bench, report, two_models

HOSTILE = '<script>alert(1)</script> & "quotes" \' {{ 7 * 7 }} \u202e עברית \ud800 \0 $x$'


class Reader(HTMLParser):
    """Tags with their attributes, and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module", params=["one", "bench"])
def read(request: pytest.FixtureRequest) -> Reader:
    """A page of one run, and one of many."""
    return Reader(page([report()] if request.param == "one" else bench(), ABOUT))


def test_a_page_loads_nothing_and_runs_nothing(read: Reader) -> None:
    links = [value for _, attrs in read.tags for name, value in attrs.items() if name in {"src", "href", "xlink:href"}]
    assert links and all(link and link.startswith(("#", "data:image/")) for link in links)
    assert {"script", "link", "iframe", "object", "embed", "base"}.isdisjoint(tag for tag, _ in read.tags)
    assert not [name for _, attrs in read.tags for name in attrs if name.startswith("on")]
    (policy,) = [a["content"] for _, a in read.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and policy.startswith("default-src 'none';")
    styles = "".join(attrs["style"] or "" for _, attrs in read.tags if "style" in attrs) + read.text
    assert "http" not in styles and "@import" not in styles and not re.search(r"url\((?!#)", styles)


def test_its_ids_are_of_one_element_each_and_all_that_are_referred_to_are_there(read: Reader) -> None:
    assert len(read.ids) == len(set(read.ids))
    named = {
        found
        for _, attrs in read.tags
        for value in attrs.values()
        if value
        for found in re.findall(r"^#(.+)|url\(#(.+?)\)", value)
    }
    assert {one or other for one, other in named} <= set(read.ids)


@pytest.mark.full
def test_a_page_of_many_runs_is_small() -> None:
    many = [one for _ in range(8) for one in bench()]
    assert len(page(many, ABOUT).encode()) < 1_500_000


def figures(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for one in value.values():
            yield from figures(one)
    elif isinstance(value, list):
        for one in value:
            yield from figures(one)
    elif isinstance(value, int | float):
        yield value


def test_every_figure_of_the_report_is_on_its_page() -> None:
    table = report()
    told = Reader(page([table], ABOUT)).text
    table["memory"].pop("series")
    table.pop("thumbnails")
    found = list(figures(table))
    assert len(found) > 25 and [figure for figure in found if json.dumps(figure) not in told] == []
    for stage in table["stages"]:
        assert all(format_mib(stage[name]) in told for name in ("peak_bytes", "predicted_peak_bytes"))
        assert all(format_s(stage[name]) in told for name in ("load_s", "run_s"))
    for text in (*ABOUT["machine"].values(), ABOUT["command"], ABOUT["made"], "an event", "270 MiB stay in memory"):
        assert text in told


@pytest.mark.parametrize("where", ["prompt", "error", "model", "event", "command", "stage"])
def test_what_others_wrote_stands_there_as_text(where: str) -> None:
    table, about = report(), dict(ABOUT)
    match where:
        case "prompt" | "error":
            table[where] = HOSTILE
        case "model":
            table["model"]["ref"] = HOSTILE
        case "event":
            table["events"][0]["what"] = HOSTILE
        case "command":
            about["command"] = HOSTILE
        case "stage":
            table["stages"][0]["name"] = HOSTILE
    text = page([table, table] if where == "model" else [table], about)
    read = Reader(text.encode("utf-8", "replace").decode())
    assert "script" not in {tag for tag, _ in read.tags} and "alert(1)" in read.text
    assert "{{ 7 * 7 }}" in read.text and html.escape("<script>alert(1)</script>") in text
    assert "\u202e" not in read.text or where not in {"model", "stage"}, "nor turns what stands beside it around"
    assert plot([table]) is not None


def test_a_run_that_measured_nothing_has_a_page_and_no_plot() -> None:
    unfit = bench()[4]
    read = Reader(page([unfit], ABOUT))
    assert "will not fit" in read.text and "svg" not in {tag for tag, _ in read.tags}
    assert plot([unfit]) is None


@pytest.mark.full
def test_runs_of_several_models_are_named_by_them() -> None:
    read = Reader(page(two_models(), ABOUT))
    assert all(read.text.count(f"Ceiling 1 GiB, {ref} · 512") == 1 for ref in ("synthetic:sd15", "synthetic:sdxl"))
    assert "Ceiling 600 MiB done" in " ".join(Reader(page(bench(), ABOUT)).text.split())


def test_other_counts_of_memory_stand_beside_the_footprint_where_there_are_any() -> None:
    table = report()
    assert "resident 2" not in Reader(page([table], ABOUT)).text
    table["memory"] |= {"peak_rss_bytes": 2048 * MIB, "cgroup_peak_bytes": None}
    told = Reader(page([table], ABOUT)).text.replace("\N{NO-BREAK SPACE}", " ")
    assert "resident 2 048 MiB" in told and "control group" not in told


def test_what_ended_a_run_is_on_its_page() -> None:
    told = Reader(page(bench(), ABOUT)).text
    assert "the ceiling of 450 MiB was crossed" in told and "crossed the ceiling" in told


@pytest.mark.parametrize("runs", [[report()], [report(None)], [report(99999)], [report(device="cuda")], bench()])
def test_the_main_chart_is_a_picture_of_more_than_paper(runs: list[dict[str, Any]]) -> None:
    drawn = plot(runs)
    assert drawn is not None and len(drawn) < 200_000
    with Image.open(io.BytesIO(drawn)) as picture:
        assert picture.format == "PNG" and picture.width > 1800
        colours = picture.convert("RGB").getcolors(2**20)
    assert colours is not None and len(colours) > 20
    shown = {"#{:02x}{:02x}{:02x}".format(*colour) for _, colour in colours}
    assert {COLOURS["paper"][0], COLOURS["denoise"][0]} <= shown
    over_all = len(runs) == 1 and runs[0]["device"] == "cpu" and runs[0]["memory"]["limit_bytes"] is not None
    assert (COLOURS["ceiling"][0] in shown) == over_all


def test_the_ceiling_is_drawn_to_scale_where_it_is_near() -> None:
    near, far, without, cuda = runs_of([report(), report(4096), report(None), report(device="cuda")])
    assert near.near_limit_bytes == 600 * MIB
    assert far.near_limit_bytes is without.near_limit_bytes is cuda.near_limit_bytes is None
    assert "ceiling 4\N{NO-BREAK SPACE}GiB ↑".replace("\N{NO-BREAK SPACE}", " ") in page([report(4096)], ABOUT)


def test_the_colours_of_both_schemes_and_of_stages_can_be_told_apart() -> None:
    """Relative luminance by WCAG 2: text has 4.5:1 over paper; stages that follow one another differ in lightness."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        lower, higher = sorted((luminance(one), luminance(other)))
        return (higher + 0.05) / (lower + 0.05)

    for scheme in (0, 1):
        paper = COLOURS["paper"][scheme]
        assert all(contrast(COLOURS[role][scheme], paper) > 4.5 for role in ("ink", "soft", "ceiling", "words"))
        assert all(contrast(both[scheme], paper) > 3 for role, both in COLOURS.items() if role not in {"paper", "rule"})
        stages = [COLOURS[role][scheme] for role in ("start", "words", "denoise", "decode")]
        assert all(contrast(one, other) > 1.2 for one, other in pairwise(stages))
    assert len({colour for both in COLOURS.values() for colour in both}) == 2 * len(COLOURS)
    assert by_role(f"fill: {COLOURS['ink'][0]}") == "fill: var(--ink)"
    assert [role_of(name) for name in ("denoise", "denoise_2", "enlarge")] == ["denoise", "denoise", "other"]


def test_labels_keep_apart() -> None:
    assert apart([3.0, 2.95, 1.0], 0.2) == [3.0, 2.8, 1.0]
    flags = Flags(2)
    assert flags.place(0.5, 1.5, 0.4) == 0
    assert flags.place(0.3, 1.0, 0.2) == 1, "above the first"
    assert flags.place(1.0, 2.0) == 1 and flags.place(0.1, 0.45) is None, "the stem of the first is in the way"
