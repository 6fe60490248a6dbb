"""Reading an older bench as a foreign file, and telling a change from noise."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdcli.app import comparison
from sdcli.app.comparison import changes, figures_of, read_bench
from sdcli.cli.compared import Bounds, compare
from sdcli.errors import SdcliError
from sdcli.units import MIB

CASE = {
    "model": "demo", "width": 256, "height": 256, "steps": 4, "strength": None, "device": "cpu", "dtype": "fp32",
    "limit_bytes": 512 * MIB, "kernel_limit_bytes": None,
}  # fmt: skip
RUN = {
    "case": CASE, "outcome": "ok", "step_s": [3.0, 1.0, 1.1, 1.2], "total_s": 9.0,
    "memory": {"peak_bytes": 400 * MIB, "predicted_peak_bytes": 420 * MIB},
}  # fmt: skip


def bench(*runs: dict[str, Any]) -> dict[str, Any]:
    return {"schema": "sdcli.bench/1", "machine": {}, "runs": list(runs)}


def changed(**fields: Any) -> dict[str, Any]:
    run = copy.deepcopy(RUN)
    for name, value in fields.items():
        where = next((inner for inner in (run["case"], run["memory"]) if name in inner), run)
        where[name] = value
    return run


def test_cases_are_told_apart_and_their_runs_put_together() -> None:
    runs = [RUN, changed(total_s=8.0), changed(limit_bytes=None), changed(outcome="killed")]
    figures = figures_of(bench(*runs))
    first, second = figures
    assert first == "demo, 256x256, 4 steps, cpu in fp32, ceiling 512 MiB" and second.endswith("fp32, no ceiling")
    assert figures[first].total_s == (9.0, 8.0) and figures[first].outcomes == ("killed", "ok")
    assert figures[first].step_s == (1.0, 1.1, 1.2) * 2, "without the first, which compiles kernels"


@pytest.mark.parametrize("key", CASE)
def test_whatever_differs_makes_another_case(key: str) -> None:
    other = {"model": "other", "strength": 0.5, "device": "cuda", "dtype": "bf16"}.get(key, 128)
    assert len(figures_of(bench(RUN, changed(**{key: other})))) == 2


@pytest.mark.parametrize(
    ("was", "now", "what"),
    [
        ({"total_s": 9.0}, {"total_s": 9.1}, []),
        ({"total_s": 9.0}, {"total_s": 9.9}, ["total time 9.00 s -> 9.90 s (+10.0%)"]),
        ({"total_s": 9.0}, {"total_s": 4.5}, ["total time 9.00 s -> 4.50 s (-50.0%)"]),
        ({"peak_bytes": 400 * MIB}, {"peak_bytes": 440 * MIB}, ["peak 400 MiB -> 440 MiB (+10.0%)"]),
        ({"peak_bytes": 400 * MIB}, {"peak_bytes": 401 * MIB}, []),
        ({"predicted_peak_bytes": 400 * MIB}, {"predicted_peak_bytes": 300 * MIB},
         ["predicted peak 400 MiB -> 300 MiB (-25.0%)"]),
        ({"step_s": [9, 1.0, 1.2]}, {"step_s": [9, 1.15, 1.4]}, []),
        ({"step_s": [9, 1.0, 1.2]}, {"step_s": [9, 1.25, 1.45]}, ["time a step 1.10 s -> 1.35 s (+22.7%)"]),
        ({"step_s": [9, *[1.0] * 9, 7.0]}, {"step_s": [9, *[1.1] * 9, 0.1]}, ["time a step 1.00 s -> 1.10 s (+10.0%)"]),
    ],
)  # fmt: skip
def test_what_is_beyond_the_noise_is_a_change(was: dict[str, Any], now: dict[str, Any], what: list[str]) -> None:
    old, new = figures_of(bench(changed(**was))), figures_of(bench(changed(**now)))
    assert [str(change).partition(": ")[2] for change in changes(old, new)] == what


def test_runs_that_did_not_come_through_have_no_figures() -> None:
    killed = figures_of(bench(changed(outcome="killed", step_s=[], total_s=0.1)))
    assert list(changes(figures_of(bench(RUN)), killed)) == []
    told = comparison.other_endings(figures_of(bench(RUN)), killed)
    assert list(map(str, told)) == [f"{next(iter(killed))}: ok -> killed"]


def write(path: Path, told: object) -> str:
    path.write_text(json.dumps(told) if not isinstance(told, str) else told)
    return str(path)


def test_a_report_is_read_from_its_file(tmp_path: Path) -> None:
    path = write(tmp_path / "old.json", bench(RUN))
    (tmp_path / "link.json").symlink_to(path)
    assert read_bench(path) == read_bench(str(tmp_path / "link.json")) == figures_of(bench(RUN))


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ([], "is no report of sdcli.bench/1"),
        ({"schema": "sdcli.bench/2", "runs": []}, "is no report of sdcli.bench/1"),
        ({"schema": "sdcli.bench/1", "runs": {}}, "is no report of sdcli.bench/1"),
        (bench({"outcome": "ok"}), "is damaged, or of an older sdcli ('KeyError"),
        ({**bench(), "runs": ["ok"]}, "is damaged"),
        (bench(changed(width="wide")), "is damaged"),
        (bench(changed(limit_bytes=10**400)), "is damaged"),
        (bench(changed(total_s="soon")), "is damaged"),
        (bench(changed(total_s=float("nan"))), "is damaged"),
        (bench(changed(total_s=-1)), "is damaged"),
        (bench(changed(total_s=True)), "is damaged"),
        (bench(changed(peak_bytes=10**400)), "is damaged"),
        (bench(changed(step_s={"a": 1})), "is damaged"),
        (bench(changed(step_s="12")), "is damaged"),
    ],
)
def test_any_other_file_is_refused_in_one_line(tmp_path: Path, told: object, words: str) -> None:
    path = write(tmp_path / "old.json", told)
    with pytest.raises(SdcliError) as refused:
        read_bench(path)
    assert words in str(refused.value) and str(refused.value).isprintable() and len(str(refused.value)) < 250


def test_words_of_a_foreign_file_are_escaped() -> None:
    (name,) = figures_of(bench(changed(model="a\x1b[2J" + "x" * 500)))
    assert name.isprintable() and len(name) < 150


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "cannot read"),
        (lambda path: path.mkdir(), "cannot read .* 'Is a directory'"),
        (os.mkfifo, "is no file"),
        (lambda path: path.write_bytes(b" " * 2049), "is larger than 2 KiB"),
    ],
)
def test_what_is_no_file_or_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object], words: str
) -> None:
    monkeypatch.setattr(comparison, "OLD_BYTES", 2048)
    make(tmp_path / "old.json")
    with pytest.raises(SdcliError, match=words):
        read_bench(str(tmp_path / "old.json"))


@pytest.mark.parametrize(
    ("was", "now", "worse"),
    [
        (["ok"], ["killed"], True),
        (["ok"], ["refused"], True),
        (["ok"], ["killed", "ok"], True),
        (["killed", "ok"], ["killed"], True),
        (["killed", "ok"], ["ok"], False),
        (["killed"], ["ok"], False),
        (["killed"], ["refused"], False),
    ],
)
def test_an_end_is_worse_where_runs_came_through_before(was: list[str], now: list[str], worse: bool) -> None:
    old, new = (figures_of(bench(*(changed(outcome=one) for one in ends))) for ends in (was, now))
    (ending,) = comparison.other_endings(old, new)
    assert ending.is_worse == worse
    assert (compare(old, bench(*(changed(outcome=one) for one in now)), Bounds(5.0, None)).trouble is not None) == worse
