"""What steers a picture besides its words: samplers and schedules, as far as a command line comes to a task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sdcli.models.samplers import SAMPLERS, SCHEDULES
from tests.cli.conftest import Asked, Command

Ask = Callable[..., Asked]


@pytest.mark.parametrize(
    ("options", "sampler", "schedule"),
    [
        ([], None, None),
        (["--sampler", "DPM++ 2M Karras"], "DPM++ 2M", "karras"),
        (["--sampler", "dpmpp_2m", "--schedule", "karras"], "DPM++ 2M", "karras"),
        (["--sampler", "dpmpp_2m_karras", "--schedule", "normal"], "DPM++ 2M", None),
        (["--schedule", "sgm_uniform"], None, "trailing"),
    ],
)
def test_sampler_and_schedule_come_to_a_request(
    asked: Ask, tiny: Path, options: list[str], sampler: str | None, schedule: str | None
) -> None:
    request = asked("txt2img", "a", "-m", tiny, *options).task.request
    assert (request.sampler, request.schedule) == (sampler, schedule)


def test_a_sampler_may_come_from_the_environment(asked: Ask, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDCLI_SAMPLER", "Euler a")
    assert asked("txt2img", "a", "-m", tiny).task.request.sampler == "Euler a"


def test_a_schedule_that_has_no_effect_is_told(sdcli: Command, tiny: Path) -> None:
    outcome = sdcli("plan", "a", "-m", tiny, "--schedule", "karras", "--mem-limit", "100MiB")
    assert "warning: --schedule karras has no effect: DDIM goes by its own\n" in outcome.err


def test_samplers_are_listed_with_all_their_names(sdcli: Command) -> None:
    table = sdcli("samplers")
    report = json.loads(sdcli("samplers", "--json").out)
    assert (table.code, table.err, report["schema"]) == (0, "", "sdcli.samplers/1")
    assert [one["name"] for one in report["samplers"]] == [one.name for one in SAMPLERS]
    assert [one["name"] for one in report["schedules"]] == [one.name for one in SCHEDULES]
    names = {name for one in (*SAMPLERS, *SCHEDULES) for name in (one.name, *one.aliases)}
    assert all(name in table.out for name in names)
