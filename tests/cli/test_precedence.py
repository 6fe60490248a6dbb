"""Where a setting comes from: option, then environment, then config file, then profile, then code."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdcli import machine
from sdcli.app.record import Task
from sdcli.errors import CeilingCrossed, Interrupted, NotFinite
from sdcli.units import GIB, MIB
from tests.cli.conftest import Asked, Command

Ask = Callable[..., Asked]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The user's config file; its folder is there."""
    path = tmp_path / "config" / "sdcli" / "config.toml"
    path.parent.mkdir(parents=True)
    return path


SETTINGS: dict[str, tuple[Callable[[Task], Any], list[tuple[str, Any]]]] = {
    "steps": (lambda task: task.request.steps, [("3", 3), ("4", 4), ("5", 5), ("", 20)]),
    "guidance": (lambda task: task.request.guidance, [("0", 0.0), ("1.5", 1.5), ("3e0", 3.0), ("", 7.5)]),
    "negative": (lambda task: task.request.negative, [("", ""), ("blurred", "blurred"), ("odd", "odd"), ("", "")]),
    "width": (lambda task: task.request.width, [("72", 72), ("80", 80), ("88", 88), ("", 64)]),
    "height": (lambda task: task.request.height, [("8192", 8192), ("80", 80), ("88", 88), ("", 64)]),
    "seed": (lambda task: task.request.seed, [("0", 0), (str(2**64 - 1), 2**64 - 1), ("5", 5), ("5", 5)]),
    "count": (lambda task: task.request.count, [("2", 2), ("1000", 1000), ("4", 4), ("", 1)]),
    "dtype": (lambda task: task.dtype, [("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "fp16"), ("", "bf16")]),
    "threads": (lambda task: task.threads, [("1", 1), ("1", 1), ("1", 1), ("", None)]),
    "mem-limit": (
        lambda task: task.ceiling.limit_bytes,
        [("none", None), ("2GB", 2 * 10**9), ("2.5GiB", 5 * GIB // 2), ("", 64 * GIB * 2 // 5 + GIB * 2 // 5)],
    ),
}
"""An option, what it becomes, and (given, expected) for option, environment and config file, then code's own."""


@pytest.mark.parametrize("name", SETTINGS)
def test_option_then_environment_then_config_file_then_code(
    asked: Ask, tiny: Path, config: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(machine, "cpu_has_bf16", lambda: True)
    got, (option, environment, file, code) = SETTINGS[name]
    seed = [] if name == "seed" else ["--seed", "5"]
    plain = ["txt2img", "a", "-m", str(tiny), *seed]
    if name != "seed":
        assert got(asked(*plain).task) == code[1]
    config.write_text(f"{name} = {json.dumps(file[0])}\n")
    assert got(asked(*plain).task) == file[1]
    monkeypatch.setenv("SDCLI_" + name.upper().replace("-", "_"), environment[0])
    assert got(asked(*plain).task) == environment[1]
    assert got(asked(*plain, f"--{name}", option[0]).task) == option[1]


def test_plain_toml_values_do_as_well_as_text(asked: Ask, tiny: Path, config: Path) -> None:
    model = json.dumps(str(tiny))
    config.write_text(
        f"steps = 2\nguidance = 2\nseed = 18446744073709551615\nforce = true\nno-metadata = true\nmodel = {model}\n"
    )
    found = asked("txt2img", "a")
    assert (found.task.request.steps, found.task.request.guidance, found.task.request.seed) == (2, 2.0, 2**64 - 1)
    assert found.destination.force and not found.wanted.keep_text and found.task.model.ref == str(tiny)


def test_model_output_and_flags_can_come_from_the_environment(
    asked: Ask, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("pictures").mkdir()
    for name, value in {"MODEL": str(tiny), "OUTPUT": "pictures", "FORCE": "1", "JSON": "true"}.items():
        monkeypatch.setenv(f"SDCLI_{name}", value)
    found = asked("txt2img", "a")
    assert found.task.model.ref == str(tiny) and found.destination.folder == "pictures"
    assert found.destination.force and found.as_json
    assert asked("txt2img", "a", "-o", "fox.png").destination.names == ("fox.png",)


@pytest.mark.parametrize("given", ["~/home model", "~/./home model"])
def test_a_tilde_is_the_home_folder_wherever_a_place_is_named(
    asked: Ask, tiny: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "home model").symlink_to(tiny)
    (tmp_path / "pictures").mkdir()
    place = given.replace("~", str(tmp_path))
    assert asked("txt2img", "a", "-m", given).task.model.ref == place
    assert asked("txt2img", "a", f"--model={given}").task.model.ref == place
    config.write_text(f'model = "{given}"\noutput = "~/pictures"\n')
    found = asked("txt2img", "a")
    assert (found.task.model.ref, found.destination.folder) == (place, str(tmp_path / "pictures"))
    config.unlink()
    monkeypatch.setenv("SDCLI_MODEL", given)
    monkeypatch.setenv("SDCLI_OUTPUT", "~/pictures/fox.png")
    found = asked("txt2img", "a")
    assert (found.task.model.ref, found.destination.names) == (place, ("fox.png",))
    assert found.destination.folder == str(tmp_path / "pictures")
    assert asked("txt2img", "a", "-o", "~fox.png").destination.names == ("~fox.png",)
    Image.new("RGB", (64, 64)).save(tmp_path / "init.png")
    (tmp_path / "prompt.txt").write_text("a fox")
    edit = asked("img2img", "--prompt-file", "~/prompt.txt", "-i", "~/init.png").task
    assert edit.request.prompt == "a fox" and edit.pixels


def test_a_relative_place_in_the_config_file_is_one_in_the_working_folder(asked: Ask, tiny: Path, config: Path) -> None:
    Path("mine").symlink_to(tiny)
    Path("pictures").mkdir()
    config.write_text('model = "mine"\noutput = "pictures"\n')
    found = asked("txt2img", "a")
    assert (found.task.model.ref, found.destination.folder) == ("mine", "pictures")


@pytest.mark.parametrize(
    ("option", "environment", "file", "size"),
    [
        ("--size 72x80", "", "", (72, 80)),
        ("--size 72X80", "", "", (72, 80)),
        ("", "SIZE=72x80", "", (72, 80)),
        ("", "", "size=72x80", (72, 80)),
        ("--size 72x80", "SIZE=88x96", "size=104x112", (72, 80)),
        ("", "SIZE=88x96", "size=104x112", (88, 96)),
        ("-W 72", "SIZE=88x96", "", (72, 96)),
        ("-H 72", "", "size=104x112", (104, 72)),
        ("-W 72 -H 72", "SIZE=88x96", "size=104x112", (72, 72)),
        ("--size 72x80", "WIDTH=88", "height=104", (72, 80)),
        ("", "SIZE=72x80", "width=88 height=104", (72, 80)),
        ("", "WIDTH=88", "size=104x112", (88, 112)),
    ],
)
def test_one_size_for_both_sides_has_the_weight_of_where_it_stands(
    asked: Ask, tiny: Path, config: Path, monkeypatch: pytest.MonkeyPatch,
    option: str, environment: str, file: str, size: tuple[int, int],
) -> None:  # fmt: skip
    config.write_text("".join(f'{key} = "{value}"\n' for key, value in (one.split("=") for one in file.split())))
    for name, value in (one.split("=") for one in environment.split()):
        monkeypatch.setenv(f"SDCLI_{name}", value)
    request = asked("txt2img", "a", "-m", tiny, *option.split()).task.request
    assert (request.width, request.height) == size


def test_two_sizes_of_one_weight_are_refused(
    sdcli: Command, tiny: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text('size = "72x80"\nwidth = 72\n')
    sdcli("txt2img", "a", "-m", tiny).refused(2, "two sizes")
    config.write_text("")
    for name, value in {"SIZE": "72x80", "HEIGHT": "80"}.items():
        monkeypatch.setenv(f"SDCLI_{name}", value)
    sdcli("txt2img", "a", "-m", tiny).refused(2, "two sizes")


def test_other_programs_names_do_as_well(asked: Ask, tiny: Path, config: Path) -> None:
    Image.new("RGB", (64, 64)).save("init.png")
    names = ["--negative-prompt", "ugly", "--cfg-scale", "3", "--batch-count=2", "--init-img", "init.png"]
    request = asked("img2img", "-p", "a fox", "-m", tiny, *names).task.request
    assert (request.prompt, request.negative, request.guidance, request.count) == ("a fox", "ugly", 3.0, 2)
    config.write_text('negative-prompt = "odd"\ncfg_scale = 4\nbatch-count = 3\n')
    request = asked("txt2img", "--prompt=-fox", "-m", tiny).task.request
    assert (request.prompt, request.negative, request.guidance, request.count) == ("-fox", "odd", 4.0, 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-n", "ugly", "-g", "1"], "warning: --negative has no effect at --guidance 1: give more than 1"),
        (["-n", "ugly", "-g", "0"], "warning: --negative has no effect at --guidance 0: give more than 1"),
        (["-n", "ugly", "-g", "1.01"], None),
        (["-n", " ", "-g", "1"], None),
        (["-g", "1"], None),
        (["-n", "ugly", "-g", "1", "-q"], None),
    ],
)
@pytest.mark.parametrize("command", ["txt2img", "img2img", "plan", "bench"])
def test_a_negative_prompt_without_effect_is_said_once(
    sdcli: Command, asked: Ask, tiny: Path, monkeypatch: pytest.MonkeyPatch, command: str, options: list[str],
    said: str | None,
) -> None:  # fmt: skip
    monkeypatch.setattr("sdcli.app.benching.run_task", lambda *_: None)
    Image.new("RGB", (64, 64)).save("init.png")
    init = ["-i", "init.png"] if command == "img2img" else []
    several = ["--mem-limit", "1GiB,2GiB"] if command == "bench" else []
    outcome = sdcli(command, "a", "-m", tiny, "--dtype", "fp32", *init, *several, *options)
    assert outcome.code == 0
    assert [line for line in outcome.err.splitlines() if "warning" in line] == ([said] if said else [])


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("command", ["img2img", "plan"])
def test_the_other_frames_of_an_animation_are_said_to_be_left_out(
    sdcli: Command, asked: Ask, tiny: Path, kind: str, command: str
) -> None:
    frames = [Image.new("RGB", (64, 64), (shade, 0, 0)) for shade in (0, 100, 200)]
    frames[0].save("init.img", kind, save_all=True, append_images=frames[1:])
    said = "warning: 'init.img' has 3 frames: the first one is used\n"
    assert sdcli(command, "a", "-i", "init.img", "-m", tiny).err == said
    assert sdcli(command, "a", "-i", "init.img", "-m", tiny, "-q").err == ""
    frames[0].save("init.img", kind, save_all=True)
    assert sdcli(command, "a", "-i", "init.img", "-m", tiny).err == ""


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ('stpes = "20"', 2, "unknown setting 'stpes'"),
        ('prompt = "a fox"', 2, "unknown setting 'prompt'"),
        ('size = "512"', 2, "'512' is not a size"),
        ("size = 512", 2, "'512' is not a size"),
        ("size = [512, 512]", 2, "the setting size of the config file"),
        ("steps = 0", 2, "0 is not from 1 to 1000"),
        ("steps = 7.5", 2, "'7.5' is not a whole number"),
        ("steps = true", 2, "'True' is not a whole number"),
        ("guidance = nan", 2, "'nan' is not a number"),
        ("guidance = true", 2, "'True' is not a number"),
        ("no-cache = 1.5", 2, "the setting no_cache of the config file is '1.5': give true or false"),
        ("no-cache = inf", 2, "the setting no_cache of the config file is 'inf': give true or false"),
        ('negative = ["a", "b"]', 2, "the setting negative of the config file is '['a', 'b']': give a plain value"),
        ("output = {folder = 1}", 2, "the setting output of the config file"),
        ("model = 2024-01-01", 2, "the setting model of the config file"),
        ("mem-limit = 2048", 2, "'2048' has no unit"),
        ('mem-limit = ["1GiB", "2GiB"]', 2, "the setting mem_limit of the config file"),
        ('device = "gpu"', 2, "'gpu' is not one of"),
        ('profile = "iphone"', 2, "no such profile: 'iphone'"),
        ("steps = ", 1, "cannot read the config file"),
    ],
)
def test_a_config_file_that_is_wrong_is_said_in_one_line(
    sdcli: Command, tiny: Path, config: Path, line: str, code: int, words: str
) -> None:
    config.write_text(line + "\n")
    sdcli("txt2img", "a", "-m", tiny).refused(code, words)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("STEPS", "0", "0 is not from 1 to 1000"),
        ("SEED", "-2", "'-2' is not a seed"),
        ("NEGATIVE", "caf\udce9", "not valid UTF-8"),
        ("FORCE", "maybe", "is not a valid boolean"),
        ("MEM_LIMIT", "2048", "has no unit"),
        ("DEVICE", "x" * 1000, "is not one of"),
    ],
)
def test_a_wrong_environment_is_wrong_usage(
    sdcli: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(f"SDCLI_{name}", value)
    sdcli("txt2img", "a", "-m", tiny).refused(2, words)


def test_an_empty_environment_variable_is_none(asked: Ask, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STEPS", "MEM_LIMIT", "WIDTH", "PROFILE", "FORCE"):
        monkeypatch.setenv(f"SDCLI_{name}", "")
    found = asked("txt2img", "a", "-m", tiny)
    assert found.task.request.steps == 20 and not found.destination.force


# Profiles

IPHONE = int(2.8 * GIB) // 1024 * 1024


def limit_of(found: Asked) -> int | None:
    return found.task.ceiling.limit_bytes


def test_a_profile_is_above_code_and_below_all_else(
    asked: Ask, tiny: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_iphone = ["txt2img", "a", "-m", str(tiny), "--profile", "iphone-6gb"]
    assert limit_of(asked(*as_iphone)) == IPHONE
    config.write_text('mem-limit = "1GiB"\n')
    assert limit_of(asked(*as_iphone)) == GIB
    monkeypatch.setenv("SDCLI_MEM_LIMIT", "3GiB")
    assert limit_of(asked(*as_iphone)) == 3 * GIB
    assert limit_of(asked(*as_iphone, "--mem-limit", "none")) is None
    assert limit_of(asked(*as_iphone, "--mem-limit", "auto")) == machine.iphone_share_bytes(64 * GIB)


def test_a_profile_can_come_from_config_file_or_environment(
    asked: Ask, tiny: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text('profile = "iphone-6gb"\n')
    assert limit_of(asked("txt2img", "a", "-m", tiny)) == IPHONE
    monkeypatch.setenv("SDCLI_PROFILE", "iphone-4gb")
    assert limit_of(asked("txt2img", "a", "-m", tiny)) == 2 * GIB
    assert limit_of(asked("txt2img", "a", "-m", tiny, "--profile", "iphone-6gb")) == IPHONE


def test_m7_a_profile_larger_than_the_machine_is_held_to_the_machine(
    asked: Ask, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "physical_memory_bytes", lambda: GIB)
    assert limit_of(asked("txt2img", "a", "-m", tiny, "--profile", "iphone-4gb")) == GIB


# What a row of the table asks for that is no refusal


@pytest.mark.parametrize(
    ("given", "limit_bytes"),
    [("2GiB", 2 * GIB), ("2G", 2 * 10**9), ("2GB", 2 * 10**9), ("2048MiB", 2 * GIB), ("0.5 GiB", GIB // 2)],
    ids=lambda given: f"M1 {given}",
)
def test_m1_a_ceiling_is_read_as_documented_and_said_in_bytes(
    asked: Ask, tiny: Path, capfd: pytest.CaptureFixture[str], given: str, limit_bytes: int
) -> None:
    assert limit_of(asked("txt2img", "a", "-m", tiny, "--mem-limit", given)) == limit_bytes
    ceiling = asked("txt2img", "a", "-m", tiny, "--mem-limit", given, "-v").task.ceiling
    assert ceiling.reason == f"asked for: {limit_bytes} bytes" and ceiling.warning is None


def test_m7_a_ceiling_above_the_machine_or_its_container_is_warned_of(
    sdcli: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "physical_memory_bytes", lambda: 64 * GIB)
    monkeypatch.setattr(machine, "container_limit_bytes", lambda: 100 * MIB)
    outcome = sdcli("txt2img", "a", "-m", tiny, "--mem-limit", "2GiB")
    warning, error = outcome.err.splitlines()
    assert warning == "warning: the ceiling of 2.00 GiB is more than the container has: 100 MiB is used"
    assert outcome.code == 4 and error.startswith("Error: will not fit: ") and "the ceiling is 100 MiB" in error


def test_fp16_on_a_cpu_is_warned_of(sdcli: Command, tiny: Path) -> None:
    outcome = sdcli("txt2img", "a", "-m", tiny, "--device", "cpu", "--dtype", "fp16", "--mem-limit", "100MiB")
    assert "warning: fp16 arithmetic on a CPU" in outcome.err.splitlines()[0]


@pytest.mark.parametrize("prompt", ["", "   ", "\t"], ids=["P1 empty", "P1 spaces", "P1 tab"])
def test_p1_an_empty_prompt_is_taken(asked: Ask, tiny: Path, prompt: str) -> None:
    assert asked("txt2img", prompt, "-m", tiny).task.request.prompt == prompt


def test_a_prompt_file_gives_its_text_without_the_last_line_end(asked: Ask, tiny: Path) -> None:
    for content in ("two\nlines", "two\nlines\n", "two\nlines\r\n"):
        Path("prompt.txt").write_text(content, "utf-8", newline="")
        found = asked("txt2img", "--prompt-file", "prompt.txt", "-m", tiny)
        assert found.task.request.prompt == "two\nlines"
    Path("prompt.txt").write_text("é" * 32768, "utf-8")
    assert len(asked("txt2img", "--prompt-file", "prompt.txt", "-m", tiny).task.request.prompt) == 32768


MARK = "\ufeff"


@pytest.mark.parametrize(
    "content",
    [
        (MARK + "ein Fuchs ü").encode(),
        (MARK + "ein Fuchs ü\r\n").encode(),
        (MARK + "ein Fuchs ü").encode("utf-16-le"),
        (MARK + "ein Fuchs ü\r\n").encode("utf-16-be"),
    ],
)
def test_a_byte_order_mark_is_no_part_of_the_prompt(
    asked: Ask, tiny: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    Path("prompt.txt").write_bytes(content)
    assert asked("txt2img", "--prompt-file", "prompt.txt", "-m", tiny).task.request.prompt == "ein Fuchs ü"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert asked("txt2img", "--prompt-file", "-", "-m", tiny).task.request.prompt == "ein Fuchs ü"


def test_a_byte_order_mark_in_an_argument_is_no_part_of_it(
    asked: Ask, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked("txt2img", MARK + "a fox", "-n", MARK + "ugly", "-m", tiny).task.request
    assert (request.prompt, request.negative) == ("a fox", "ugly")
    monkeypatch.setenv("SDCLI_NEGATIVE", MARK + "odd")
    request = asked("txt2img", "-p", f"a {MARK}fox", "-m", tiny).task.request  # inside it is the user's
    assert (request.prompt, request.negative) == (f"a {MARK}fox", "odd")


@pytest.mark.parametrize("writing", ["at once", "late", "slowly", "and gone"])
def test_a_prompt_may_come_through_a_pipe(asked: Ask, tiny: Path, writing: str) -> None:
    os.mkfifo("pipe")

    def write() -> None:
        time.sleep(0.2 if writing == "late" else 0)
        with open("pipe", "wb") as pipe:
            for part in (b"a red ", b"fox\n"):
                time.sleep(0.3 if writing == "slowly" else 0)
                pipe.write(part)
                pipe.flush()

    writer = threading.Thread(target=write)
    held = os.open("pipe", os.O_RDWR) if writing == "and gone" else None  # keeps what is in the pipe
    writer.start()
    if held is not None:
        writer.join()
        threading.Timer(0.3, os.close, [held]).start()
    found = asked("txt2img", "--prompt-file", "pipe", "-m", tiny)
    writer.join()
    assert found.task.request.prompt == "a red fox"


def test_a_prompt_that_looks_like_an_option_follows_two_dashes(asked: Ask, tiny: Path) -> None:
    assert asked("txt2img", "-m", tiny, "--", "--steps").task.request.prompt == "--steps"


def test_n2_n8_s3_the_least_that_is_allowed_is_taken(asked: Ask, tiny: Path) -> None:
    request = asked("txt2img", "a", "-m", tiny, "-s", "1", "-W", "64", "-H", "64", "-g", "0").task.request
    assert (request.steps, request.width, request.height, request.guidance) == (1, 64, 64, 0.0)
    Image.new("RGB", (64, 64)).save("init.png")
    for strength in (0.0, 1.0):
        edit = asked("img2img", "a", "-i", "init.png", "-m", tiny, "--strength", str(strength)).task.request
        assert edit.strength == strength


def test_a_random_seed_differs_every_time_and_leaves_room_to_count(asked: Ask, tiny: Path) -> None:
    seeds = {
        asked("txt2img", "a", "-m", tiny, "-b", "1000", *more).task.request.seed
        for more in ([], [], ["--seed", "random"], ["--seed", "-1"], ["--seed=-1"])
    }
    assert len(seeds) == 5 and all(0 <= seed < 2**64 - 1000 for seed in seeds)


@pytest.mark.parametrize(
    ("own", "options", "size"),
    [
        ((100, 64), [], (104, 64)),
        ((640, 480), [], (640, 480)),
        ((2000, 1000), [], (1024, 512)),
        ((640, 480), ["-W", "320"], (320, 240)),
        ((640, 480), ["-H", "240"], (320, 240)),
        ((640, 480), ["-W", "64", "-H", "128"], (64, 128)),
    ],
)
def test_img2img_takes_the_size_of_the_init_image_unless_told(
    asked: Ask, tiny: Path, own: tuple[int, int], options: list[str], size: tuple[int, int]
) -> None:
    Image.new("RGB", own, (200, 10, 10)).save("init.png")
    task = asked("img2img", "a", "-i", "init.png", "-m", tiny, *options).task
    assert (task.request.width, task.request.height) == size and task.request.strength == 0.6
    assert task.pixels == bytes((200, 10, 10)) * (size[0] * size[1])


def test_several_pictures_to_a_file_are_numbered(asked: Ask, tiny: Path) -> None:
    found = asked("txt2img", "a", "-m", tiny, "-b", "3", "-o", "fox.png", "--seed", "9")
    assert found.destination.names == ("fox-1.png", "fox-2.png", "fox-3.png")
    assert list(found.task.request.seeds) == [9, 10, 11]


def test_e6_auto_says_why_it_took_the_cpu(sdcli: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_devices", lambda: {"cpu": "always there"})
    outcome = sdcli("txt2img", "a", "-m", tiny, "-v", "--mem-limit", "100MiB")
    assert "device: cpu, no GPU that torch could use; " in outcome.err
    assert "ceiling: asked for: 104857600 bytes" in outcome.err


# bench


@pytest.mark.parametrize(
    ("options", "environment", "config_line", "limits"),
    [
        (["--mem-limit", "1GiB,2 GiB", "--mem-limit", "none"], "", "", [GIB, 2 * GIB, None]),
        ([], "1GiB,2 GiB", "", [GIB, 2 * GIB]),
        ([], "", 'mem-limit = "1GiB"', [GIB]),
        ([], "", 'mem-limit = "1GiB,3GiB"', [GIB, 3 * GIB]),
        ([], "", 'mem-limit = ["1GiB", "3GiB"]', [GIB, 3 * GIB]),
        (["--mem-limit", "none"], "1GiB", 'mem-limit = "2GiB"', [None]),
        ([], "4GiB", 'mem-limit = "2GiB"', [4 * GIB]),
        ([], "", "", [machine.iphone_share_bytes(64 * GIB)]),
    ],
)
def test_bench_takes_ceilings_from_options_environment_or_config_file(
    sdcli: Command,
    tiny: Path,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    environment: str,
    config_line: str,
    limits: list[int | None],
) -> None:
    tasks: list[Task] = []
    monkeypatch.setattr("sdcli.app.benching.run_task", lambda task, *_: tasks.append(task))
    monkeypatch.setattr(machine, "physical_memory_bytes", lambda: 64 * GIB)
    monkeypatch.setattr(machine, "container_limit_bytes", lambda: None)
    monkeypatch.setenv("SDCLI_MEM_LIMIT", environment)
    config.write_text(config_line)
    outcome = sdcli("bench", "-m", tiny, *options)
    assert outcome.code == 0, outcome.err
    warm_up, *measured = tasks
    assert [task.ceiling.limit_bytes for task in measured] == limits
    assert (warm_up.request.steps, warm_up.ceiling.limit_bytes) == (1, None)
    assert {(task.request.steps, task.request.seed) for task in measured} == {(4, 0)}
    _, *rows, caption = outcome.out.splitlines()
    assert len(rows) == len(limits) and caption.startswith("sizes in MiB")


def test_a_ceiling_that_is_crossed_is_a_result_of_bench_and_not_its_failure(
    sdcli: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cross(task: Task, *_: object) -> None:
        if task.ceiling.limit_bytes == GIB:
            raise CeilingCrossed("the ceiling of 1.00 GiB was crossed")

    monkeypatch.setattr("sdcli.app.benching.run_task", cross)
    outcome = sdcli("bench", "-m", tiny, "--mem-limit", "1GiB,none", "--json", "-q")
    assert (outcome.code, outcome.err) == (0, "the ceiling of 1.00 GiB was crossed\n")
    assert [one["outcome"] for one in json.loads(outcome.out)["runs"]] == ["killed", "ok"]
    table = sdcli("bench", "-m", tiny, "--mem-limit", "1GiB,none", "-q").out.splitlines()
    assert [line.split()[:3] for line in table[1:-1]] == [["1.00", "GiB", "killed"], ["none", "ok", "-"]]


def test_any_other_failure_is_a_row_of_bench_and_its_exit_code(
    sdcli: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(task: Task, *_: object) -> None:
        if task.ceiling.limit_bytes == GIB:
            raise NotFinite("NaN or infinity came out of the stage decode")

    monkeypatch.setattr("sdcli.app.benching.run_task", fail)
    outcome = sdcli("bench", "-m", tiny, "--mem-limit", "none,1GiB,2GiB", "--json", "-q")
    assert (outcome.code, outcome.err) == (5, "Error: NaN or infinity came out of the stage decode\n")
    assert [one["outcome"] for one in json.loads(outcome.out)["runs"]] == ["ok", "failed", "ok"]


def test_an_interrupted_bench_shows_the_rows_that_it_has(
    sdcli: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(task: Task, *_: object) -> None:
        if task.ceiling.limit_bytes == GIB:
            raise Interrupted(2)

    monkeypatch.setattr("sdcli.app.benching.run_task", interrupt)
    outcome = sdcli("bench", "-m", tiny, "--mem-limit", "none,1GiB,2GiB", "-q")
    assert (outcome.code, outcome.err) == (130, "Error: interrupted\n")
    assert [line.split()[-10 if "GiB" not in line else 2] for line in outcome.out.splitlines()[1:-1]] == [
        "none",
        "failed",
    ]
