"""The table of bad input: every row by its id, in this process and without a worker."""

from __future__ import annotations

import io
import os
import shutil
import struct
import sys
import zlib
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from sdcli import machine
from sdcli.plan.baselines import remember_baseline
from sdcli.settings import cache_dir
from sdcli.units import GIB, MIB
from tests.cli.conftest import Command, Outcome, shell

HUGE = "x" * 1000


@pytest.fixture(autouse=True)
def nothing_left(own_home: None) -> Iterator[None]:
    """No refusal writes, changes or deletes a file."""
    kept = Path("kept.png")
    kept.write_bytes(b"a picture of yesterday")
    before = _files()
    yield
    assert _files() == before


BASELINE = 200 * MIB


@pytest.fixture(autouse=True)
def a_run_before(own_home: None) -> None:
    """What the program weighs by itself is known from an earlier run: no worker need be asked."""
    remember_baseline("cpu", BASELINE)


def _files() -> dict[Path, bytes | None]:
    files = [path for path in Path().rglob("*") if not path.is_dir() and "allowed" not in path.parts]
    return {path: path.read_bytes() if path.is_file() and os.access(path, os.R_OK) else None for path in files}


@contextmanager
def without_privileges() -> Iterator[None]:
    """For root, who may read and write everything: be nobody inside."""
    root = os.geteuid() == 0
    os.environ["XDG_CONFIG_HOME"] = "config"  # where nobody may look; own_home puts it back
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


USAGE = {
    "P5 prompt": (["cat \udcff"], "argument 4 is not valid UTF-8"),
    "P5 negative": (["a", "-n", "cat \udcff"], "argument 6 is not valid UTF-8"),
    "P5 output": (["a", "-o", "\udcff.png"], "not valid UTF-8"),
    "P5 surrogate pair half": (["\ud83e"], "not valid UTF-8"),
    "P12 a prompt of 2 MB": (["x" * 2_000_000], "2000000 bytes: give at most 65536"),
    "P12 a negative prompt of 64 KiB in two-byte letters": (["a", "-n", "é" * 40_000], "80000 bytes"),
    "no prompt": ([], "no prompt: give PROMPT"),
    "two prompts": (["a", "--prompt-file", "kept.png"], "two prompts"),
    "two prompts, one an option": (["a", "-p", "b"], "two prompts: give PROMPT, --prompt or --prompt-file"),
    "two prompts, one empty": (["", "--prompt", ""], "two prompts"),
    "two prompts, no argument": (["-p", "b", "--prompt-file", "kept.png"], "two prompts"),
    "a prompt with a dash": (["-fox"], "put -- before it, as in sdcli txt2img -- '-fox'"),
    "a prompt with two dashes": (["--fox"], "put -- before it, as in sdcli txt2img -- '--fox'"),
    "a prompt with a dash and a digit": (["-1girl", "-s", "2"], "put -- before it, as in sdcli txt2img -- '-1girl'"),
    "a prompt that begins as an option": (["-sunny day"], "put -- before it, as in sdcli txt2img -- '-sunny day'"),
    "a prompt that an option would take": (["-old fox"], "put -- before it, as in sdcli txt2img -- '-old fox'"),
    "a prompt that flags begin": (["-very nice fox"], "put -- before it"),
    "a prompt with a dash and an equals sign": (["-a fox, 1+1=2"], "put -- before it"),
    "a negative prompt with a dash is none of it": (["a", "-n", "-ugly fox", "-s", "0"], "0 is not from 1"),
    "an unknown option before a prompt": (["--samplr", "euler"], "No such option '--samplr'"),
    "options after two dashes": (["--", "-fox", "-s"], "one argument too many, '-s'"),
    "a prompt without quotes": (["a", "red", "fox"], "'red': put the whole prompt in quotes"),
    "an option that is none": (["a", "--samplr", "euler"], "No such option '--samplr'"),
    "a sampler that is none": (["a", "--sampler", "eulr"], "no sampler 'eulr': the nearest is Euler; sdcli samplers"),
    "a sampler without a name": (["a", "--sampler", ""], "no sampler '': sdcli samplers lists all"),
    "a schedule that is none": (["a", "--schedule", "karas"], "no schedule 'karas': the nearest is karras"),
    "more steps than a sampler can do": (["a", "--sampler", "lcm", "-s", "51"], "more than the 50 the model knows"),
    "an option without its value": (["a", "--steps"], "requires an argument"),
    "a value for a flag": (["a", "--force=yes"], "does not take a value"),
    "S1 zero": (["a", "-W", "0"], "0 is not from 64 to 8192"),
    "S1 negative": (["a", "-H", "-512"], "-512 is not from 64 to 8192"),
    "S2": (["a", "-W", "513"], "513 is not a multiple of 8: give 512 or 520"),
    "S3": (["a", "-W", "8", "-H", "8"], "8 is not from 64 to 8192"),
    "S4": (["a", "-W", "100000", "-H", "100000"], "100000 is not from 64 to 8192"),
    "S4 beyond any integer": (["a", "-W", "9" * 5000], "is not a whole number"),
    "S6 --size": (["a", "--size", "513x512"], "513 is not a multiple of 8: give 512 or 520"),
    "S6 --size, the height": (["a", "--size", "512x8200"], "8200 is not from 64 to 8192"),
    "S6 --size with one side": (["a", "--size", "512"], "'512' is not a size: give width and height, as in 768x512"),
    "S6 --size with three": (["a", "--size", "64x64x64"], "is not a size"),
    "S6 --size with spaces": (["a", "--size", "64 x 64"], "is not a size"),
    "S6 --size with signs": (["a", "--size", "-64x64"], "is not a size"),
    "S6 --size in words": (["a", "--size", "large"], "is not a size"),
    "S6 --size empty": (["a", "--size", ""], "'' is not a size"),
    "two sizes": (["a", "--size", "64x64", "-W", "64"], "two sizes: give --size or --width, not both"),
    "two sizes, by the height": (["a", "-H", "72", "--size", "64x64"], "two sizes: give --size or --height, not both"),
    "S6 float": (["a", "-W", "1e3"], "'1e3' is not a whole number"),
    "S6 hex": (["a", "-H", "0x200"], "'0x200' is not a whole number"),
    "S6 decimal": (["a", "-W", "512.0"], "'512.0' is not a whole number"),
    "S6 word": (["a", "-W", "abc"], "'abc' is not a whole number"),
    "S6 empty": (["a", "-W", ""], "'' is not a whole number"),
    "S6 underscore": (["a", "-W", "5_12"], "'5_12' is not a whole number"),
    "S6 digits that are not ASCII": (["a", "-W", "\uff15\uff11\uff12"], "is not a whole number"),
    "N1 zero": (["a", "-s", "0"], "0 is not from 1 to 1000"),
    "N1 negative": (["a", "-s", "-1"], "-1 is not from 1 to 1000"),
    "N3": (["a", "--steps", "1000000000"], "is not from 1 to 1000"),
    "N5": (["a", "-g", "nan"], "'nan' is not a number from 0 up"),
    "N6 underscores": (["a", "-g", "1_0"], "'1_0' is not a number"),
    "N6 infinity": (["a", "-g", "inf"], "'inf' is not a number"),
    "N6 overflow": (["a", "-g", "1e400"], "'1e400' is not a number"),
    "N6 negative": (["a", "-g", "-1"], "'-1' is not a number"),
    "N6 empty": (["a", "-g", ""], "'' is not a number"),
    "N9": (["a", "--seed", "-2"], "'-2' is not a seed: give 0 to 18446744073709551615, or random"),
    "N11 2^64": (["a", "--seed", str(2**64)], "is not a seed"),
    "N11 fraction": (["a", "--seed", "1.5"], "is not a seed"),
    "N11 empty": (["a", "--seed", ""], "'' is not a seed"),
    "N11 another word": (["a", "--seed", "Random"], "is not a seed"),
    "N11 no room to count": (["a", "--seed", str(2**64 - 1), "-b", "2"], "leaves no room for 2 pictures"),
    "N12 zero": (["a", "-b", "0"], "0 is not from 1 to 1000"),
    "N12 negative": (["a", "-b", "-1"], "-1 is not from 1 to 1000"),
    "N12 a million": (["a", "-b", "1000000"], "is not from 1 to 1000"),
    "M2": (["a", "--mem-limit", "2048"], "'2048' has no unit: write 2048MiB or 2048GiB"),
    "M3 zero": (["a", "--mem-limit", "0"], "has no unit"),
    "M3 zero GiB": (["a", "--mem-limit", "0GiB"], "is zero"),
    "M3 negative": (["a", "--mem-limit", "-1G"], "is not a size"),
    "M3 nan": (["a", "--mem-limit", "nan"], "is not a size"),
    "M3 inf": (["a", "--mem-limit", "inf"], "is not a size"),
    "M3 exponent": (["a", "--mem-limit", "1e99T"], "is not a size"),
    "M3 word": (["a", "--mem-limit", "abc"], "is not a size: write 2GiB"),
    "M3 empty": (["a", "--mem-limit", ""], "'' is not a size"),
    "M3 Auto": (["a", "--mem-limit", "AUTO"], "is not a size"),
    "an unknown profile": (["a", "--profile", "iphone-99"], "no such profile: 'iphone-99'; nearest to it: iphone-"),
    "an unknown way": (["a", "--on-limit", "pray"], "'pray' is not one of 'degrade', 'kill'"),
    "E6 unknown": (["a", "--device", "gpu"], "'gpu' is not one of 'auto', 'mps', 'cuda', 'cpu'"),
    "E6 mps": (["a", "--device", "mps"], "'mps' is not available here: there is cpu"),
    "E6 cuda": (["a", "--device", "cuda"], "'cuda' is not available here: there is cpu"),
    "E6 dtype": (["a", "--dtype", "fp8"], "'fp8' is not one of 'auto', 'fp32', 'fp16', 'bf16'"),
    "no threads": (["a", "--threads", "0"], "0 is not from 1 to"),
    "more threads than there are": (["a", "--threads", str((os.cpu_count() or 1) + 1)], f"to {os.cpu_count() or 1}"),
    "O4 unknown suffix": (["a", "-o", "fox.xyz"], "'fox.xyz' must end in .png, .jpg or .webp"),
    "O4 no suffix": (["a", "-o", "fox"], "'fox' must end in"),
    "O4 a GIF": (["a", "-o", "fox.gif"], "must end in"),
    "O4 empty": (["a", "-o", ""], "'' is not a file or folder"),
    "O4 an address": (["a", "-o", "https://example.org/fox.png"], "is not a file or folder"),
    "O4 a line break": (["a", "-o", "two\nlines.png"], r"'two\nlines.png' has a control character"),
    "O4 a control character in the folder's name": (["a", "-o", "\x1b[2J/"], "has a control character"),
    "O4 a device": (["a", "-o", os.devnull], "must end in"),
    "O4 a dot": (["a", "-o", "fox.png."], "must end in"),
    "O4 a space": (["a", "-o", "fox.png "], "must end in"),
    "O4 a suffix alone": (["a", "-o", ".png"], "must end in"),
    "O8 two products": (["a", "-o", "-", "--json"], "both want stdout"),
    "O8 two pictures": (["a", "-o", "-", "-b", "2"], "stdout takes one picture, not 2"),
    "a model without a name": (["a", "-m", ""], "is no model's name"),
    "a model on the net": (["a", "-m", "https://example.org/sd"], "is an address"),
    "a synthetic model that is none": (["a", "-m", "synthetic:sd99"], "there is synthetic:klein, synthetic:sd15"),
    "P7 what turns the line round is escaped": (["a", "--seed", "\u202e1"], r"'\u202e1' is not a seed"),
    "P7 what moves the cursor is escaped": (["a", "-o", "\x1b[2J\r\n.x"], r"'\x1b[2J\r\n.x' must end in"),
    "P7 also in what click says": (["a", "--device", "\x1b[2J"], "x1b[2J"),
}
"""Arguments after `txt2img`, and words of the message. All are decided before any work."""


@pytest.mark.parametrize(("arguments", "words"), USAGE.values(), ids=USAGE)
def test_wrong_usage_is_one_line_and_exit_code_2(
    sdcli: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.setattr(machine, "available_devices", lambda: {"cpu": "always there"})
    model = [] if "-m" in arguments else ["-m", str(tiny)]
    sdcli("txt2img", *model, *arguments).refused(2, words)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([HUGE], id="command"),
        pytest.param(["--" + HUGE], id="option of no command"),
        pytest.param(["txt2img", "a", "--" + HUGE], id="option"),
        pytest.param(["txt2img", "a", HUGE, HUGE], id="arguments"),
        *(
            pytest.param(["txt2img", "a", option, HUGE], id=option)
            for option in ("-W", "-s", "-g", "--seed", "-b", "-o", "--device", "--dtype", "--mem-limit", "--profile")
        ),
        pytest.param(["img2img", "a", "-i", HUGE], id="--init"),
        pytest.param(["img2img", "a", "-i", "kept.png", "--strength", HUGE], id="--strength"),
        pytest.param(["txt2img", "--prompt-file", HUGE], id="--prompt-file"),
        pytest.param(["bench", "--mem-limit", f"1GiB,{HUGE}"], id="bench --mem-limit"),
    ],
)
def test_at_most_200_characters_of_input_are_echoed(sdcli: Command, tiny: Path, arguments: list[str]) -> None:
    outcome = sdcli(*arguments, *(["-m", str(tiny)] if "a" in arguments else []))
    outcome.refused(1 if arguments[1:3] == ["a", "-i"] and len(arguments) == 4 else 2)
    assert 0 < outcome.err.count("x") <= 200


def test_a_missing_model_is_exit_code_3(sdcli: Command) -> None:
    sdcli("txt2img", "a", "-m", "nowhere/sd").refused(3, "no model 'nowhere/sd' on this disk")


def test_an_unknown_command_is_wrong_usage(sdcli: Command) -> None:
    sdcli("txt3img", "a").refused(2, "No such command 'txt3img'")


# P: prompts from files


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"\0", "NUL byte", id="P4 NUL"),
        pytest.param(b"a cat\0a dog", "NUL byte", id="P4 NUL inside"),
        pytest.param(b"cat \xff", "not valid UTF-8", id="P5 Latin-1"),
        pytest.param("cat".encode("utf-16-le"), "NUL byte", id="P5 UTF-16 without its mark"),
        pytest.param(b"\xff\xfec", "not valid UTF-8", id="P5 half of UTF-16"),
        pytest.param("cat".encode("utf-32"), "NUL byte", id="P5 UTF-32"),
        pytest.param(b"\xed\xa0\x80", "not valid UTF-8", id="P5 surrogate"),
        pytest.param(b"x" * 65537, "longer than a prompt may be: 65536 bytes", id="P3 one byte too many"),
    ],
)
@pytest.mark.parametrize("stdin", [False, True], ids=["file", "stdin"])
def test_a_prompt_file_that_is_no_text_is_wrong_usage(
    sdcli: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, words: str, stdin: bool
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    allowed = Path("allowed")
    allowed.mkdir()
    (allowed / "prompt.txt").write_bytes(content)
    sdcli("txt2img", "--prompt-file", "-" if stdin else allowed / "prompt.txt", "-m", tiny).refused(2, words)


def test_p3_a_prompt_file_of_100_mb_is_not_read_to_its_end(
    sdcli: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.BytesIO(bytes(100_000_000))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
    sdcli("txt2img", "--prompt-file", "-", "-m", tiny).refused(2, "65536 bytes")
    assert stream.tell() <= 65537


def test_a_pipe_that_nobody_writes_to_is_wrong_usage(
    sdcli: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdcli.cli.prompt_types.WRITER_PATIENCE_S", 0.2)
    os.mkfifo("pipe")
    outcome = sdcli("txt2img", "--prompt-file", "pipe", "-m", tiny)
    os.unlink("pipe")
    outcome.refused(2, "'pipe' is a pipe that nobody writes to")


@pytest.mark.parametrize("device", ["/dev/zero", os.devnull, "/dev/random"])
def test_a_device_is_no_prompt_file(sdcli: Command, tiny: Path, device: str) -> None:
    sdcli("txt2img", "--prompt-file", device, "-m", tiny).refused(2, "it is neither a file nor a pipe")


@pytest.mark.parametrize(
    "name", ["missing.txt", "nul\0.txt", "x" * 300, "", ".", "~/prompt.txt", "kept.png/prompt.txt"]
)
def test_a_prompt_file_that_cannot_be_read_is_wrong_usage(sdcli: Command, tiny: Path, name: str) -> None:
    sdcli("txt2img", "--prompt-file", name, "-m", tiny).refused(2, "cannot read ")


# S, M: what will not fit


def test_s5_a_wide_picture_is_refused_before_any_work(sdcli: Command, tiny: Path) -> None:
    outcome = sdcli("txt2img", "a", "-m", tiny, "-W", "8192", "-H", "512", "--mem-limit", "400MiB", "-q")
    outcome.refused(4, "needs", "at 8192x512", "the ceiling is 400 MiB", "-W ")


@pytest.mark.parametrize("limit", ["1KiB", "100MiB", "0.12GiB"])
@pytest.mark.parametrize("known", [True, False], ids=["known", "first run"])
def test_m5_a_ceiling_below_the_interpreter_and_torch_names_them(
    sdcli: Command, tiny: Path, limit: str, known: bool
) -> None:
    if not known:
        (cache_dir() / "baseline.json").unlink()
    outcome = sdcli("txt2img", "a", "-m", tiny, "--mem-limit", limit, "-q")
    outcome.refused(4, f"Python and torch alone take {'200 MiB' if known else ''}", "give --mem-limit ")


def test_m6_a_ceiling_below_what_a_stage_needs_names_stage_need_and_what_would_do(sdcli: Command, tiny: Path) -> None:
    outcome = sdcli("txt2img", "a", "-m", tiny, "--mem-limit", "210MiB", "-q")
    outcome.refused(
        4, "will not fit: the stage ", " needs ", " MiB at 64x64", "the ceiling is 210 MiB", "give --mem-limit "
    )


def test_m6_img2img_is_refused_as_well(sdcli: Command, tiny: Path) -> None:
    Path("allowed").mkdir()
    Image.new("RGB", (64, 64)).save("allowed/init.png")
    sdcli("img2img", "a", "-i", "allowed/init.png", "-m", tiny, "--mem-limit", "100MiB", "-q").refused(4)


def test_more_steps_than_the_model_knows_is_wrong_usage(sdcli: Command, tiny: Path) -> None:
    model = Path("allowed") / "model"
    shutil.copytree(tiny, model)
    config = model / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"num_train_timesteps": 1000', '"num_train_timesteps": 10'))
    sdcli("txt2img", "a", "-m", model, "--steps", "11").refused(2, "--steps 11 is more than the 10 the model knows")


# O: where pictures go


@pytest.mark.parametrize(
    ("output", "words"),
    [
        pytest.param("missing/fox.png", "the folder 'missing' is missing", id="O1 folder missing"),
        pytest.param("missing/", "the folder 'missing/' is missing", id="O1 folder missing, with a slash"),
        pytest.param("kept.png/fox.png", "is not a folder", id="O1 folder is a file"),
        pytest.param("kept.png/", "is not a folder", id="O1 folder is a file, with a slash"),
        pytest.param("kept.png", "'kept.png' exists already: choose another name or give --force", id="O2"),
        pytest.param("dangling.png", "'dangling.png' exists already", id="O2 dangling link"),
        pytest.param("x" * 300 + ".png", "cannot write", id="O1 name too long"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    sdcli: Command, tiny: Path, output: str, words: str
) -> None:
    os.symlink("nowhere", "dangling.png")
    try:
        sdcli("txt2img", "a", "-m", tiny, "-o", output).refused(1, words)
    finally:
        os.unlink("dangling.png")


def test_o2_each_of_several_pictures_needs_a_free_name(sdcli: Command, tiny: Path) -> None:
    Path("allowed").mkdir()
    (Path("allowed") / "fox-2.png").write_bytes(b"")
    outcome = sdcli("txt2img", "a", "-m", tiny, "-b", "3", "-o", "allowed/fox.png")
    outcome.refused(1, "'allowed/fox-2.png' exists already")


def test_o2_force_replaces_files_and_nothing_else(sdcli: Command, tiny: Path) -> None:
    os.mkfifo("pipe.png")
    outcome = sdcli("txt2img", "a", "-m", tiny, "-o", "pipe.png", "--force")
    os.unlink("pipe.png")
    outcome.refused(1, "'pipe.png' is not a file that can be replaced")


@pytest.mark.parametrize("mode", [0o555, 0o000], ids=["O1 read-only", "O1 no permission"])
def test_a_folder_without_permission_is_refused_before_any_work(sdcli: Command, tiny: Path, mode: int) -> None:
    folder = Path("locked")
    folder.mkdir()
    folder.chmod(mode)
    with without_privileges():
        outcome = sdcli("txt2img", "a", "-m", tiny, "-o", "locked/fox.png")
    folder.chmod(0o700)
    outcome.refused(1, "'locked", "Permission denied")


def test_n12_many_pictures_need_room_on_the_disk(sdcli: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(GIB, GIB, 0))
    sdcli("txt2img", "a", "-m", tiny, "-b", "1000", "-o", "./").refused(1, "too little room in './'", "0 KiB free")


def test_o4_a_webp_too_wide_for_the_format_is_wrong_usage(
    sdcli: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdcli.images.write.LONGEST_SIDE", {".webp": 1024})
    outcome = sdcli("txt2img", "a", "-m", tiny, "-W", "2048", "-o", "fox.webp", "--mem-limit", "none")
    outcome.refused(2, ".webp holds 1024 pixels a side at most: name a .png")


# I, N8: img2img


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with these sides in its header and no pixels to speak of."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b""
    for name, data in ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        body += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return b"\x89PNG\r\n\x1a\n" + body


def whole_png() -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((256, 256), 50).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def saved(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"", "is empty", id="I3"),
        pytest.param(whole_png()[:-20000], "cannot decode", id="I4 cut"),
        pytest.param(whole_png()[:40], "damaged PNG", id="I4 header only"),
        pytest.param(
            b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG: PNG, JPEG and WebP are supported", id="I10 SVG"
        ),
        pytest.param(b"<!doctype html><title>404</title>", "HTML: PNG, JPEG and WebP are supported", id="I10 HTML"),
        pytest.param(b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC: PNG, JPEG and WebP are supported", id="I10 HEIC"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n", "EPS: PNG, JPEG and WebP are supported", id="I11 EPS"),
        pytest.param(saved("TIFF"), "TIFF: PNG, JPEG and WebP are supported", id="I11 TIFF"),
        pytest.param(saved("GIF"), "GIF: PNG, JPEG and WebP are supported", id="I11 GIF"),
        pytest.param(b"\x7fELF\x02\x01\x01\0", "of no known type", id="I10 unknown"),
        pytest.param(png(20000, 20000), "is too large", id="I13 20000"),
        pytest.param(png(100000, 100000), "is too large", id="I13 100000"),
        pytest.param(png(2**31 - 1, 2**31 - 1), "is too large", id="I13 2^31-1"),
        pytest.param(png(10000, 10000), "scale it down to 16 megapixels at most", id="I14"),
        pytest.param(
            png(64, 64, (b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000)))), "cannot decode", id="I15 text bomb"
        ),
    ],
)
def test_an_init_image_that_cannot_be_used_is_a_failure(sdcli: Command, tiny: Path, content: bytes, words: str) -> None:
    Path("allowed").mkdir()
    (Path("allowed") / "init.png").write_bytes(content)
    sdcli("img2img", "a", "-i", "allowed/init.png", "-m", tiny).refused(1, "'allowed/init.png'", words)


@pytest.mark.parametrize(
    ("init", "words"),
    [
        pytest.param("missing.png", "no such file: 'missing.png'", id="I1 missing"),
        pytest.param(".", "is a folder", id="I1 folder"),
        pytest.param("", "is a folder", id="I1 empty"),
        pytest.param("~/no such init.png", "/no such init.png'", id="I1 home"),
        pytest.param("~nobody-of-that-name/a.png", "no such file: '~nobody-of-that-name/a.png'", id="I1 nobody's home"),
        pytest.param("-", "no such file: '-'", id="I1 stdin"),
        pytest.param("/dev/stdin", "is not a regular file", id="I1 /dev/stdin"),
        pytest.param(os.devnull, "is not a regular file", id="I1 device"),
        pytest.param("http://example.org/a.png", "is a URL: download the picture", id="I18 http"),
        pytest.param("file:///etc/passwd", "is a URL", id="I18 file"),
    ],
)
def test_an_init_image_that_is_no_file_is_wrong_usage(sdcli: Command, tiny: Path, init: str, words: str) -> None:
    sdcli("img2img", "a", "-i", init, "-m", tiny).refused(2, words)


def test_i1_an_init_image_is_required(sdcli: Command, tiny: Path) -> None:
    sdcli("img2img", "a", "-m", tiny).refused(2, "Missing option '-i' / '--init'")


def test_i2_an_init_image_without_permission_is_a_failure(sdcli: Command, tiny: Path) -> None:
    init, folder = Path("secret.png"), Path("allowed")
    init.write_bytes(png(64, 64))
    init.chmod(0)
    folder.mkdir()
    folder.chmod(0o777)
    with without_privileges():
        outcome = sdcli("img2img", "a", "-i", "secret.png", "-m", tiny, "-o", "allowed/")
    init.unlink()
    outcome.refused(1, "cannot read 'secret.png': Permission denied")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["img2img", "a", "-i", "secret/file.png"], id="I2 a folder"),
        pytest.param(["img2img", "a", "-i", "secret.png"], id="I2 a file"),
        pytest.param(["plan", "a", "-i", "secret.png"], id="I2 plan"),
        pytest.param(["txt2img", "--prompt-file", "secret.png"], id="a prompt file"),
        pytest.param(["txt2img", "--prompt-file", "secret/file"], id="a prompt file in a folder"),
        pytest.param(["txt2img", "a", "-o", "secret/file.png"], id="O1"),
        pytest.param(["txt2img", "a", "-m", "secret/model"], id="D16"),
    ],
)
def test_what_this_user_may_not_read_is_a_failure_and_no_wrong_usage(work: Path, arguments: list[str]) -> None:
    """Of a process whose real user lacks the right: access(2) asks for that one."""
    (work / "secret.png").write_bytes(png(64, 64))
    (work / "secret.png").chmod(0)
    (work / "secret").mkdir(mode=0o700)
    work.chmod(0o777)
    driver = (
        "import difflib, os, sys, PIL.PngImagePlugin, sdcli.cli.img2img, sdcli.cli.txt2img, sdcli.cli.plan\n"
        "import sdcli.images.read, sdcli.images.write\n"
        "from sdcli.cli.main import run\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "sys.exit(run(sys.argv[1:]))"
    )
    done = shell(work, *arguments, program=[sys.executable, "-P", "-c", driver])
    (work / "secret.png").unlink()
    Outcome(done.returncode, done.stdout.decode(), done.stderr.decode()).refused(1, "'secret", "Permission denied")


def test_i20_the_init_image_is_not_overwritten_without_force(sdcli: Command, tiny: Path) -> None:
    outcome = sdcli("img2img", "a", "-i", "kept.png", "-o", "kept.png", "-m", tiny)
    outcome.refused(1, "'kept.png' exists already")


@pytest.mark.parametrize("strength", ["1.01", "-0.01", "nan", "inf", "", "half"], ids=lambda text: f"N8 {text}")
def test_a_strength_outside_0_to_1_is_wrong_usage(sdcli: Command, tiny: Path, strength: str) -> None:
    outcome = sdcli("img2img", "a", "-i", "kept.png", "-m", tiny, "--strength", strength)
    outcome.refused(2, f"'{strength}' is not a number from 0 to 1")


# bench


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ("", "'' is not a size"),
        ("1GiB,", "'' is not a size"),
        ("1GiB,2048", "'2048' has no unit"),
        ("1GiB;2GiB", "is not a size"),
        ("none,0GiB", "is zero"),
    ],
)
def test_bench_refuses_a_list_with_one_wrong_ceiling(sdcli: Command, tiny: Path, limits: str, words: str) -> None:
    sdcli("bench", "-m", tiny, "--mem-limit", limits).refused(2, words)


def test_bench_has_no_output_option(sdcli: Command, tiny: Path) -> None:
    sdcli("bench", "-m", tiny, "-o", "fox.png").refused(2, "No such option '-o'")
