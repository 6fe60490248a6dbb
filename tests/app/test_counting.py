"""One worker counts for all: it is started when it is needed, goes on, and is replaced where it died."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sdcli.app.counting import Counting
from sdcli.app.counts import Uncounted
from sdcli.app.forecast import forecast_of
from sdcli.app.means import Prospect
from sdcli.errors import SdcliError
from sdcli.host import worker
from tests.host.conftest import task


@pytest.fixture(autouse=True)
def counts_at_hand() -> None:
    """In place of the one that has: here nothing has been counted yet."""


def lack_of(prospect: Prospect) -> Uncounted:
    with pytest.raises(Uncounted) as caught:
        forecast_of(prospect)
    return caught.value


def test_a_real_worker_answers_one_question_after_another(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes: list[object] = []
    popen = subprocess.Popen

    def counted(*args: object, **more: object) -> object:
        processes.append(popen(*args, **more))  # type: ignore[call-overload]
        return processes[-1]

    monkeypatch.setattr(worker.subprocess, "Popen", counted)
    prospect = Prospect(task(tiny, 2**31))
    with Counting() as counting:
        assert processes == []
        while True:
            try:
                found = forecast_of(prospect, offers=False)
                break
            except Uncounted as lack:
                counting.count(prospect, lack)
        folder = Path("outline")
        folder.mkdir()
        counting.outline("sd15", folder)
    assert len(processes) == 1 and (folder / "manifest.json").is_file()
    assert found.planned is not None and found.seconds is not None and found.smallest_limit_bytes < 2**31


def test_a_worker_that_dies_is_an_error_and_the_next_question_gets_another(
    tiny: Path, script: Callable[[str], None]
) -> None:
    script("say(Ready('cpu', '2.13'))\nhear()\nsys.exit(3)")
    prospect = Prospect(task(tiny, 2**31))
    with Counting() as counting:
        for _ in range(2):
            with pytest.raises(SdcliError, match="the worker ended with code 3"):
                counting.count(prospect, lack_of(prospect))
