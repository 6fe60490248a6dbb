"""What steers a picture besides its words: samplers and schedules, as far as a command line comes to a task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sdcli.app.record import RunRecord, Wanted
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
        (["--sampler", "model"], None, None),
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


@pytest.fixture
def jobs(sdcli: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Asked]]:
    """What a command line with several jobs came to, just before work would begin."""

    def run(*argv: str | Path) -> list[Asked]:
        taken: list[Asked] = []

        def take(record: RunRecord, wanted: Wanted, as_json: bool, *_: object) -> None:
            taken.append(Asked(record.task, wanted, as_json))

        monkeypatch.setattr("sdcli.cli.draw.carry_out", take)
        outcome = sdcli(*argv)
        assert outcome.code == 0, outcome.err
        return taken

    return run


LINES = """\ufeff# foxes
a red fox

  a blue fox, it's -s small   --seed 7 --size 512x768 --steps 3
\t# none
--prompt "a fox -- with dashes" --negative 'ugly, grey' --sampler "DPM++ 2M Karras"
--seed 9 --prompt-file other.txt
"""


def test_prompts_of_a_file_are_a_job_each(jobs: Callable[..., list[Asked]], tiny: Path) -> None:
    Path("foxes.txt").write_text(LINES, "utf-8")
    Path("other.txt").write_text("another fox\n")
    found = jobs("txt2img", "--prompts", "foxes.txt", "-m", tiny, "-b", "2", "-W", "64", "--seed", "5", "--json")
    requests = [one.task.request for one in found]
    assert [request.prompt for request in requests] == [
        "a red fox",
        "a blue fox, it's -s small",
        "a fox -- with dashes",
        "another fox",
    ]
    assert [list(request.seeds) for request in requests] == [[5, 6], [7, 8], [5, 6], [9, 10]]
    assert [(request.width, request.height) for request in requests] == [(64, 64), (512, 768), (64, 64), (64, 64)]
    assert [request.steps for request in requests] == [20, 3, 20, 20]
    assert (requests[2].negative, requests[2].sampler, requests[0].negative) == ("ugly, grey", "DPM++ 2M", "")
    assert all(one.as_json for one in found)


def test_a_line_ends_where_an_editor_ends_it(jobs: Callable[..., list[Asked]], tiny: Path) -> None:
    Path("foxes.txt").write_bytes("a\u2028fox\r\na\x85cat\ra\x0bdog\n".encode())
    found = jobs("txt2img", "--prompts", "foxes.txt", "-m", tiny)
    assert [one.task.request.prompt for one in found] == ["a\u2028fox", "a\x85cat", "a\x0bdog"]


def test_each_prompt_has_a_random_seed_of_its_own(jobs: Callable[..., list[Asked]], tiny: Path) -> None:
    Path("foxes.txt").write_text("a\nb\nc --seed random\n")
    for options in ([], ["--seed", "random"]):
        found = jobs("txt2img", "--prompts", "foxes.txt", "-m", tiny, *options)
        assert len({one.task.request.seed for one in found}) == 3


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("a fox --sed 7", [], "line 1 of --prompts: No such option"),
        ("# x\n\na fox --seed x", [], "line 3 of --prompts: "),
        ("a fox\na fox --steps 0", [], "line 2 of --prompts: "),
        ("a fox --negative 'ugly", [], "line 1 of --prompts: No closing quotation; put quotes in pairs"),
        ("a fox --prompt b", [], "line 1 of --prompts: two prompts"),
        ("--seed 7", [], "line 1 of --prompts: no prompt: write it first"),
        ("a fox --size 64x64 -W 64", [], "line 1 of --prompts: two sizes"),
        ("a --size 64x64", ["-H", "72", "--size", "64x64"], "two sizes"),
        ("a fox", ["a cat"], "two prompts"),
        ("a\nb", ["-o", "fox.png"], "'fox.png' is one place for 2 prompts: give a folder"),
        ("a\nb", ["-o", "-"], "'-' is one place for 2 prompts"),
        ("", [], "'foxes.txt' has no prompts"),
        ("# a\n \n", [], "'foxes.txt' has no prompts"),
        ("x" * 70_000, [], "the text has 70000 bytes"),
        ("x\n" * 600_000, [], "is longer than a list of prompts may be: 1048576 bytes"),
        ("a\0b", [], "line 1 of --prompts: "),
        ("a fox --negative", [], "line 1 of --prompts: Option '--negative' requires an argument"),
        ("a fox --seed", [], "line 1 of --prompts: Option '--seed' requires an argument"),
        ("a fox --steps 2 --help", [], "line 1 of --prompts: --help is none of a line's options"),
        ("a fox --prompts other.txt", [], "line 1 of --prompts: --prompts is none of a line's options"),
    ],
)
def test_a_line_that_cannot_be_meant_is_named_before_anything_is_drawn(
    sdcli: Command, tiny: Path, text: str, options: list[str], said: str
) -> None:
    Path("foxes.txt").write_text(text)
    sdcli("txt2img", "--prompts", "foxes.txt", "-m", tiny, *options).refused(2, said)


def test_lines_of_img2img_and_plan(jobs: Callable[..., list[Asked]], tiny: Path, sdcli: Command) -> None:
    Image.new("RGB", (64, 64)).save("init.png")
    Path("foxes.txt").write_text("a --strength 0.3\nb\n")
    found = jobs("img2img", "--prompts", "foxes.txt", "-m", tiny, "-i", "init.png")
    assert [one.task.request.strength for one in found] == [0.3, 0.6]
