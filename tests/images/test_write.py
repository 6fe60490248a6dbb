"""Rows O1 to O6, C1, I20, P6, P7 and P12: where pictures go, what is in them, and that none is lost."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from sd_parsers import ParserManager

from sdcli.errors import BadRequest, SdcliError
from sdcli.images import atomic
from sdcli.images.encode import EXIF_TEXT_CAP
from sdcli.images.metadata import Provenance, parameters_text, provenance_json
from sdcli.images.naming import invented_names
from sdcli.images.read import read_init
from sdcli.images.write import SUFFIXES, Destination, encode_picture, plan_output
from sdcli.settings import cache_dir

WIDTH, HEIGHT = 16, 8
PIXELS = bytes(index * 7 % 256 for index in range(WIDTH * HEIGHT * 3))
PARAMETERS_EXIF, COMMENT, DESCRIPTION = 0x8769, 0x9286, 0x010E


@pytest.fixture
def elsewhere(own_home: None) -> Path:
    """Where rescued pictures end up. The tests themselves run in an empty folder."""
    return cache_dir() / "rescued"


def encode(provenance: Provenance, suffix: str, *, edited: bool = False, keep_text: bool = True) -> bytes:
    return encode_picture(PIXELS, WIDTH, HEIGHT, suffix, provenance, edited=edited, keep_text=keep_text)


def reopen(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def plan(output: str | None, count: int = 1, *, force: bool = False) -> Destination:
    destination = plan_output(output, count, force=force)
    destination.require_room(count, WIDTH, HEIGHT)
    return destination


def comment_of(image: Image.Image) -> str:
    comment = image.getexif().get_ifd(PARAMETERS_EXIF)[COMMENT]
    assert comment.startswith(b"UNICODE\0")
    return comment[8:].decode("utf-16-be")


def fail_with(code: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


# What is in the file


def test_png_carries_pixels_text_and_mark(provenance: Provenance) -> None:
    data = encode(provenance, ".png")
    image = reopen(data)
    assert (image.format, image.mode, image.size, image.tobytes()) == ("PNG", "RGB", (WIDTH, HEIGHT), PIXELS)
    assert image.text["parameters"] == parameters_text(provenance)
    assert image.text["sdcli"] == provenance_json(provenance)
    assert b"digitalsourcetype/trainedAlgorithmicMedia" in image.info["xmp"]
    assert b"tEXtparameters\0a red cat" in data
    assert b"iTXtsdcli\0\0\0\0\0{" in data
    assert b"iTXtXML:com.adobe.xmp\0\0\0\0\0<?xpacket" in data


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
def test_exif_carries_text_and_mark(provenance: Provenance, suffix: str) -> None:
    image = reopen(encode(dataclasses.replace(provenance, prompt="cafe\u0301 \U0001f600"), suffix, edited=True))
    assert image.format == ("WEBP" if suffix == ".webp" else "JPEG")
    assert comment_of(image).startswith("cafe\u0301 \U0001f600\nNegative prompt: blurry\nSteps: 20")
    assert json.loads(image.getexif()[DESCRIPTION])["prompt"] == "cafe\u0301 \U0001f600"
    assert b"digitalsourcetype/compositeWithTrainedAlgorithmicMedia" in image.info["xmp"]


def test_webp_keeps_every_pixel(provenance: Provenance) -> None:
    assert reopen(encode(provenance, ".webp")).convert("RGB").tobytes() == PIXELS


def test_jpeg_is_close(provenance: Provenance) -> None:
    flat = encode_picture(bytes((200, 40, 40)) * 64, 8, 8, ".jpg", provenance, edited=False, keep_text=True)
    assert all(abs(is_ - was) < 5 for is_, was in zip(reopen(flat).getpixel((3, 3)), (200, 40, 40), strict=True))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("edited", [False, True])
def test_without_text_only_the_mark_stays(provenance: Provenance, suffix: str, edited: bool) -> None:
    data = encode(provenance, suffix, edited=edited, keep_text=False)
    for secret in ("red cat", "blurry", "EulerDiscrete", "demo", "sdcli"):
        assert secret.encode() not in data
        assert secret.encode("utf-16-be") not in data
    image = reopen(data)
    assert b"rainedAlgorithmicMedia" in image.info["xmp"]
    assert not image.getexif()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "prompt",
    [
        "\U0001f469\u200d\U0001f680 ZWJ",
        "e\u0301 combining",
        "\u05e9\u05dc\u05d5\u05dd \u202egnp",
        "na\u00efve",
        "two\nlines",
        "",
    ],
)
def test_any_prompt_round_trips(provenance: Provenance, suffix: str, prompt: str) -> None:
    changed = dataclasses.replace(provenance, prompt=prompt)
    image = reopen(encode(changed, suffix))
    png = suffix == ".png"
    assert (image.text["parameters"] if png else comment_of(image)) == parameters_text(changed)
    assert json.loads(image.text["sdcli"] if png else image.getexif()[DESCRIPTION])["prompt"] == prompt


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("prompt", ["nul\0here", "lone \ud800 surrogate"])
def test_no_prompt_loses_the_picture(provenance: Provenance, suffix: str, prompt: str) -> None:
    assert reopen(encode(dataclasses.replace(provenance, prompt=prompt), suffix)).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("field", ["prompt", "negative", "model"])
@pytest.mark.parametrize("character", ["a", "\u6c34", "\U0001f600"])
def test_two_megabytes_of_text_are_capped(provenance: Provenance, suffix: str, field: str, character: str) -> None:
    text = character * (2_000_000 // len(character.encode()))
    data = encode(dataclasses.replace(provenance, **{field: text}), suffix)
    image = reopen(data)
    parameters = image.text["parameters"] if suffix == ".png" else comment_of(image)
    assert image.size == (WIDTH, HEIGHT)
    if suffix == ".png":
        assert 500_000 < len(parameters.encode()) < 2**20
        assert "sdcli" not in image.text
    else:
        assert 30_000 < len(parameters.encode("utf-16-be")) <= EXIF_TEXT_CAP
        assert DESCRIPTION not in image.getexif()
    if field != "model":
        assert "…\n" in parameters
        assert parameters.endswith("RNG: CPU, Version: sdcli 0.1.0")


def test_a_long_prompt_that_fits_is_whole(provenance: Provenance) -> None:
    """64 KiB is what a prompt file may hold; a PNG takes all of it."""
    changed = dataclasses.replace(provenance, prompt="word " * 13_107)
    image = reopen(encode(changed, ".png"))
    assert image.text["parameters"] == parameters_text(changed)
    assert json.loads(image.text["sdcli"])["prompt"] == changed.prompt
    assert "Seed: 42" in comment_of(reopen(encode(changed, ".jpg")))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_other_tools_read_it(provenance: Provenance, suffix: str) -> None:
    changed = dataclasses.replace(provenance, prompt="a red cat, \U0001f600", seed=2**64 - 1)
    path = Path(f"cat{suffix}")
    path.write_bytes(encode(changed, suffix))
    found = ParserManager().parse(path)
    assert found is not None
    assert found.generator.value == "AUTOMATIC1111"
    sampler = found.samplers[0]
    assert [prompt.value for prompt in sampler.prompts] == ["a red cat, \U0001f600"]
    assert [prompt.value for prompt in sampler.negative_prompts] == ["blurry"]
    assert sampler.name == "EulerDiscreteScheduler"
    assert sampler.parameters["seed"] == str(2**64 - 1)
    assert sampler.parameters["steps"] == "20"
    assert sampler.parameters["cfg_scale"] == "7.5"
    assert (sampler.model.name, sampler.model.hash) == ("demo", "0123456789")


def test_pixels_of_another_size_are_a_mistake_of_ours(provenance: Provenance) -> None:
    with pytest.raises(ValueError, match="not enough image data"):
        encode_picture(PIXELS[:-1], WIDTH, HEIGHT, ".png", provenance, edited=False, keep_text=True)


# Where it goes


def test_by_default_into_outputs() -> None:
    destination = plan(None)
    assert not Path("outputs").exists()  # a run that is refused leaves nothing behind
    assert destination.suffix == ".png"
    path = destination.save(b"data", 0, 42, "A Red Cat!")
    assert path == os.path.join("outputs", "a-red-cat-42.png")
    assert Path(path).read_bytes() == b"data"


def test_outputs_that_is_a_file() -> None:
    Path("outputs").write_bytes(b"mine")
    with pytest.raises(SdcliError, match="'outputs' is not a folder"):
        plan(None)
    assert Path("outputs").read_bytes() == b"mine"


@pytest.mark.parametrize("output", ["pictures", "pictures/", "./pictures/", "pictures.png", "pictures.png/"])
def test_a_folder_that_exists(output: str) -> None:
    Path(output).mkdir()
    assert plan(output).save(b"x", 0, 1, "cat") == os.path.join(output, "cat-1.png")
    assert os.listdir(output) == ["cat-1.png"]


@pytest.mark.parametrize("output", ["cat.png", "./cat.JPG", "new.folder/cat.jpeg", "cat.v2.webp"])
def test_a_file(output: str) -> None:
    Path("new.folder").mkdir()
    destination = plan(output)
    assert not os.path.exists(output)
    assert destination.suffix == os.path.splitext(output)[1].lower()
    assert destination.save(b"data", 0, 1, "cat") == output
    assert Path(output).read_bytes() == b"data"


def test_an_absolute_file_stays_absolute(tmp_path: Path) -> None:
    assert plan(str(tmp_path / "cat.png")).save(b"", 0, 1, "") == str(tmp_path / "cat.png")


def test_several_pictures_of_one_name_are_numbered() -> None:
    destination = plan("cat.png", 3)
    assert [destination.save(bytes([image]), image, 7, "") for image in range(3)] == [
        "cat-1.png",
        "cat-2.png",
        "cat-3.png",
    ]
    assert Path("cat-3.png").read_bytes() == b"\2"
    with pytest.raises(SdcliError, match=r"'cat-1\.png' exists already"):
        plan("cat.png", 2)
    plan("cat.png", 1)


def test_stdout_takes_one(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert plan("-").save(b"\x89PNG\r\n", 0, 1, "cat") is None
    assert capfdbinary.readouterr().out == b"\x89PNG\r\n"
    with pytest.raises(BadRequest, match="one picture, not 2"):
        plan("-", 2)
    assert os.listdir(".") == []


def test_a_closed_pipe_is_left_to_the_caller(elsewhere: Path) -> None:
    code = (
        "import sys\n"
        "from sdcli.images.write import plan_output\n"
        "try: plan_output('-', 1, force=False).save(bytes(2**20), 0, 1, '')\n"
        "except BrokenPipeError: print('pipe', end='', file=sys.stderr, flush=True)\n"
        "import os; os._exit(0)\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    try:
        finished = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(writer)
    assert finished.stderr == b"pipe"
    assert not elsewhere.exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_stdout_is_rescued(elsewhere: Path) -> None:
    code = (
        "import os, sys\n"
        "from sdcli.errors import SdcliError\n"
        "from sdcli.images.write import plan_output\n"
        "try: plan_output('-', 1, force=False).save(b'data', 0, 1, 'cat')\n"
        "except SdcliError as error: sys.stderr.write(str(error))\n"
        "sys.stderr.flush(); os._exit(0)\n"
    )
    with open("/dev/full", "wb") as full:
        finished = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, timeout=60)
    kept = elsewhere / "cat-1.png"
    assert finished.stderr.decode() == (
        f"cannot write stdout: No space left on device; the picture was kept as '{kept}'"
    )
    assert kept.read_bytes() == b"data"


# O4 and other outputs that cannot be meant


@pytest.mark.parametrize("output", ["cat.xyz", "cat", "cat.", ".png", "dir/cat", "cat.png.bak", "cat.tiff"])
def test_an_unknown_suffix_names_the_known(output: str) -> None:
    with pytest.raises(BadRequest, match=r"\.png, \.jpg or \.webp"):
        plan(output)


@pytest.mark.parametrize("output", ["", "a\0b.png", "http://example.invalid/cat.png", "file:///tmp/cat.png", "s3://b/"])
def test_an_impossible_output(output: str) -> None:
    with pytest.raises(BadRequest):
        plan(output)


def test_a_side_that_the_format_cannot_hold() -> None:
    with pytest.raises(BadRequest, match=r"\.webp holds 16383"):
        plan_output("cat.webp", 1, force=False).require_room(1, 16384, 8)
    plan_output("cat.png", 1, force=False).require_room(1, 16384, 8)


# O1: folders that do not do


@pytest.mark.parametrize("output", ["missing/", "missing/cat.png", "~/cat.png", "a/b/c/cat.png"])
def test_a_missing_folder(output: str) -> None:
    with pytest.raises(SdcliError, match="is missing: create it") as caught:
        plan(output)
    assert caught.value.exit_code == 1
    assert os.listdir(".") == []


@pytest.mark.parametrize("output", ["file/", "file/cat.png", "file/deeper/cat.png"])
def test_a_folder_that_is_a_file(output: str) -> None:
    Path("file").write_bytes(b"mine")
    with pytest.raises(SdcliError, match="is not a folder") as caught:
        plan(output)
    assert caught.value.exit_code == 1
    assert Path("file").read_bytes() == b"mine"


PLAN_AND_TELL = (
    "import sys\n"
    "from sdcli.errors import SdcliError\n"
    "from sdcli.images.write import plan_output\n"
    "try: plan_output(sys.argv[1], 1, force=False)\n"
    "except SdcliError as error: print(error.exit_code, error)\n"
)


@pytest.mark.parametrize("name", ["", "cat.png"])
def test_a_folder_without_permission(
    open_folder: Path, run_powerless: Callable[..., subprocess.CompletedProcess[str]], name: str
) -> None:
    open_folder.chmod(0o555)
    finished = run_powerless(PLAN_AND_TELL, f"{open_folder}/{name}")
    assert finished.stdout.startswith("1 cannot write to the folder ")
    assert finished.stdout.endswith(": Permission denied\n")
    assert finished.stderr == ""
    assert os.listdir(open_folder) == []


def test_a_folder_that_cannot_be_entered(
    open_folder: Path, run_powerless: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (open_folder / "inner").mkdir()
    open_folder.chmod(0o700)
    if os.geteuid() != 0:
        open_folder.chmod(0)
    finished = run_powerless(PLAN_AND_TELL, open_folder / "inner" / "cat.png")
    open_folder.chmod(0o700)
    assert finished.stdout.endswith(": Permission denied\n")
    assert finished.stdout.startswith("1 ")


def test_a_name_that_is_too_long() -> None:
    with pytest.raises(SdcliError, match="File name too long"):
        plan("c" * 300 + ".png")
    with pytest.raises(SdcliError, match="File name too long"):
        plan("c" * 250 + ".png", 1000)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root on Linux only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_read_only_mount(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(SdcliError, match=r"cannot write to the folder .*: Read-only file system"):
        plan(f"{small_disk}/cat.png")


def test_a_disk_with_too_little_room(small_disk: Path) -> None:
    plan_output(f"{small_disk}/", 1, force=False).require_room(1, 512, 512)
    with pytest.raises(SdcliError, match=r"too little room in .*: 2 MiB needed, 2 MiB free") as caught:
        plan_output(f"{small_disk}/", 2, force=False).require_room(2, 512, 512)
    assert caught.value.exit_code == 1
    with pytest.raises(SdcliError, match=r"3\.93 GiB needed"):
        plan_output(f"{small_disk}/cat.png", 1000, force=False).require_room(1000, 512, 2744)
    assert os.listdir(small_disk) == []


# O2: nothing is overwritten


def test_an_existing_file_stays(elsewhere: Path) -> None:
    Path("cat.png").write_bytes(b"mine")
    with pytest.raises(SdcliError, match=r"'cat\.png' exists already: choose another name or give --force") as caught:
        plan("cat.png")
    assert caught.value.exit_code == 1
    assert Path("cat.png").read_bytes() == b"mine"
    assert plan("cat.png", force=True).save(b"new", 0, 1, "") == "cat.png"
    assert Path("cat.png").read_bytes() == b"new"
    assert os.listdir(".") == ["cat.png"]


def test_a_dangling_link_counts_as_existing() -> None:
    os.symlink("nowhere", "cat.png")
    with pytest.raises(SdcliError, match="exists already"):
        plan("cat.png")


def test_force_replaces_a_link_and_not_what_it_points_to() -> None:
    Path("original.png").write_bytes(b"of somebody")
    Path("latest.png").symlink_to("original.png")
    with pytest.raises(SdcliError, match="exists already"):
        plan_output("latest.png", 1, force=False)
    assert plan_output("latest.png", 1, force=True).save(b"new", 0, 7, "a cat") == "latest.png"
    assert Path("original.png").read_bytes() == b"of somebody"
    assert not Path("latest.png").is_symlink() and Path("latest.png").read_bytes() == b"new"


def test_every_name_of_several_pictures_is_tried_first() -> None:
    with pytest.raises(SdcliError, match="File name too long"):
        plan_output("x" * 250 + ".png", 10, force=False)


@pytest.mark.parametrize(
    "output", ["a\nb.png", "a\rb.png", "a\x1b[2Jb.png", "a\x7fb.png", "a\x85b.png", "a\u2028b.png", "a\n/b.png", "\n/"]
)
def test_a_path_that_is_no_line_is_refused(output: str) -> None:
    with pytest.raises(BadRequest, match="control character"):
        plan_output(output, 1, force=False)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_force_replaces_files_only() -> None:
    os.mkfifo("pipe.png")
    with pytest.raises(SdcliError, match="not a file that can be replaced"):
        plan("pipe.png", force=True)


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_stays_and_ours_is_rescued(
    links: bool, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", fail_with(errno.EPERM))
    destination = plan("cat.png")
    Path("cat.png").write_bytes(b"theirs")
    with pytest.raises(SdcliError) as caught:
        destination.save(b"ours", 0, 42, "red cat")
    kept = elsewhere / "red-cat-42.png"
    assert str(caught.value) == (
        f"cannot write 'cat.png': a file of that name is there; the picture was kept as '{kept}'"
    )
    assert caught.value.exit_code == 1
    assert Path("cat.png").read_bytes() == b"theirs"
    assert kept.read_bytes() == b"ours"
    assert os.listdir(".") == ["cat.png"]


@pytest.mark.parametrize("force", [False, True])
def test_pictures_in_a_folder_never_replace_one_another(force: bool) -> None:
    paths = [plan(None, force=force).save(bytes([number]), 0, 42, "cat") for number in range(3)]
    assert [os.path.basename(str(path)) for path in paths] == ["cat-42.png", "cat-42-2.png", "cat-42-3.png"]
    assert [Path(str(path)).read_bytes() for path in paths] == [b"\0", b"\1", b"\2"]


def test_the_init_image_is_replaced_only_by_force_and_whole(provenance: Provenance) -> None:
    """Row I20: the same file in and out."""
    Path("cat.png").write_bytes(encode(provenance, ".png"))
    before = Path("cat.png").read_bytes()
    init = read_init(Path("cat.png"), None, None)
    with pytest.raises(SdcliError, match="exists already"):
        plan("cat.png")
    destination = plan("cat.png", force=True)
    assert Path("cat.png").read_bytes() == before
    data = encode_picture(init.pixels, init.width, init.height, ".png", provenance, edited=True, keep_text=True)
    destination.save(data, 0, 1, "")
    assert Path("cat.png").read_bytes() == data
    assert os.listdir(".") == ["cat.png"]


@pytest.mark.skipif(os.name == "nt", reason="no umask here")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("links", [True, False])
def test_files_follow_the_umask(mask: int, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:
        monkeypatch.setattr(os, "link", fail_with(errno.ENOTSUP))
    before = os.umask(mask)
    try:
        plan("cat.png").save(b"", 0, 1, "")
        path = plan("./").save(b"", 0, 1, "dog")
    finally:
        os.umask(before)
    assert {Path(name).stat().st_mode & 0o777 for name in ("cat.png", str(path))} == {0o666 & ~mask}


# O5: the disk fails while writing


@pytest.mark.parametrize("output", ["cat.png", "./"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_failed_sync_leaves_nothing_and_loses_nothing(
    output: str, code: int, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = plan(output)
    real, failures = os.fsync, iter([code])

    def sync_badly_once(descriptor: int) -> None:
        for failure in failures:
            raise OSError(failure, os.strerror(failure))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync_badly_once)
    with pytest.raises(SdcliError) as caught:
        destination.save(b"data", 0, 9, "red cat")
    assert str(caught.value) == (
        f"cannot write '{output}': {os.strerror(code)}; the picture was kept as '{elsewhere / 'red-cat-9.png'}'"
    )
    assert os.listdir(".") == []
    assert os.listdir(elsewhere) == ["red-cat-9.png"]
    assert (elsewhere / "red-cat-9.png").read_bytes() == b"data"


def test_a_disk_that_fills_up_mid_write(small_disk: Path, elsewhere: Path) -> None:
    destination = plan(f"{small_disk}/cat.jpg")
    (small_disk / "hog").write_bytes(bytes(1_500_000))
    data = os.urandom(1_000_000)
    with pytest.raises(SdcliError, match="No space left on device; the picture was kept as"):
        destination.save(data, 0, 9, "red cat")
    assert os.listdir(small_disk) == ["hog"]
    assert (elsewhere / "red-cat-9.jpg").read_bytes() == data


def test_a_forced_replacement_that_fails_keeps_the_old(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("cat.png").write_bytes(b"old")
    destination = plan("cat.png", force=True)
    monkeypatch.setattr(os, "replace", fail_with(errno.EIO))
    with pytest.raises(SdcliError, match="Input/output error; the picture was kept"):
        destination.save(b"new", 0, 1, "cat")
    assert Path("cat.png").read_bytes() == b"old"
    assert os.listdir(".") == ["cat.png"]
    assert os.listdir(elsewhere) == ["cat-1.png"]


def test_a_folder_that_vanishes(elsewhere: Path) -> None:
    Path("pictures").mkdir()
    destination = plan("pictures", 2)
    shutil.rmtree("pictures")
    for image in range(2):
        with pytest.raises(
            SdcliError, match="cannot write 'pictures': No such file or directory; the picture was kept"
        ):
            destination.save(b"data", image, 5, "cat")
    assert sorted(os.listdir(elsewhere)) == ["cat-5-2.png", "cat-5.png"]


def test_when_the_rescue_fails_too(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    destination = plan("cat.png")
    monkeypatch.setattr(os, "fsync", fail_with(errno.ENOSPC))
    with pytest.raises(SdcliError) as caught:
        destination.save(b"data", 0, 9, "red cat")
    assert str(caught.value) == "cannot write 'cat.png': No space left on device; nor can the cache keep it"
    assert os.listdir(".") == []
    assert os.listdir(elsewhere) == []


def test_when_there_is_no_place_to_rescue_to(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere.parent.write_bytes(b"a file, not a folder")
    destination = plan("cat.png")
    Path("cat.png").write_bytes(b"theirs")
    with pytest.raises(SdcliError, match=r"cannot write 'cat\.png': .*; nor can the cache keep it"):
        destination.save(b"data", 0, 9, "")


@pytest.mark.parametrize("code", ["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EMLINK", "EXDEV", "EACCES"])
def test_a_file_system_without_links_and_syncs_of_folders_keeps_every_file(
    code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """exFAT, SMB, and what FUSE makes of others."""
    real = os.fsync

    def sync_files_alone(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "link", fail_with(getattr(errno, code)))
    monkeypatch.setattr(os, "fsync", sync_files_alone)
    monkeypatch.setattr(os, "chmod", fail_with(errno.EPERM))
    monkeypatch.delattr(os, "O_DIRECTORY", raising=False)
    Path("cat.png").write_bytes(b"theirs")
    with pytest.raises(FileExistsError):
        atomic.place(".", ["cat.png"], b"ours")
    assert atomic.place(".", ["cat.png", "dog.png"], b"ours") == os.path.join(".", "dog.png")
    assert atomic.place(".", ["cow.png"], b"first") and atomic.place(".", ["cow.png"], b"second", replace=True)
    found = {name: Path(name).read_bytes() for name in os.listdir(".")}
    assert found == {"cat.png": b"theirs", "dog.png": b"ours", "cow.png": b"second"}


def test_a_rename_that_crosses_devices_loses_nothing(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an overlay or a bind mount may say of a name in the very same folder."""
    Path("cat.png").write_bytes(b"theirs")
    destination = plan("cat.png", force=True)
    real, folder = os.replace, os.getcwd()

    def not_here(source: str, target: str) -> None:
        if os.path.dirname(os.path.abspath(target)) == folder:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real(source, target)

    monkeypatch.setattr(os, "replace", not_here)
    with pytest.raises(SdcliError, match="the picture was kept as"):
        destination.save(b"ours", 0, 42, "red cat")
    assert Path("cat.png").read_bytes() == b"theirs" and os.listdir(".") == ["cat.png"]
    assert [path.read_bytes() for path in elsewhere.iterdir()] == [b"ours"]


def test_a_failed_claim_without_links_leaves_no_reservation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", fail_with(errno.ENOSYS))
    monkeypatch.setattr(os, "replace", fail_with(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        atomic.place(".", ["cat.png"], b"data")
    assert os.listdir(".") == []


def test_an_interruption_leaves_no_temporary(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    destination = plan("cat.png")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        destination.save(b"data", 0, 1, "")
    assert os.listdir(".") == []


# O6: runs that were killed


KILLED_MID_WRITE = (
    "import os, signal, sys\n"
    "from sdcli.images.write import plan_output\n"
    "destination = plan_output('cat.png', 1, force=False)\n"
    "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
    "destination.save(b'half', 0, 1, '')\n"
)


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL here")
def test_a_killed_run_leaves_no_picture_and_is_swept_up_after() -> None:
    assert subprocess.run([sys.executable, "-c", KILLED_MID_WRITE], timeout=60).returncode == -9
    (left,) = os.listdir(".")
    assert left.startswith(".sdcli-")
    plan("cat.png")
    assert os.listdir(".") == [left], "it is too young to be swept"
    os.utime(left, (time.time() - 601,) * 2)
    plan("cat.png")
    assert os.listdir(".") == []


def test_only_stale_temporaries_are_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(timeout=60)
    stay = [f".sdcli-{os.getpid()}-00ff.tmp", ".sdcli-x-00ff.tmp", "sdcli-1-00.tmp", f".sdcli-{ended.pid}-00ff.tmp.png"]
    for name in [*stay, f".sdcli-{ended.pid}-00ff.tmp"]:
        Path(name).write_bytes(b"")
        os.utime(name, (1, 1))
    Path(f".sdcli-{ended.pid}-0001.tmp").mkdir()
    os.utime(f".sdcli-{ended.pid}-0001.tmp", (1, 1))
    plan("./")
    assert sorted(os.listdir(".")) == sorted([*stay, f".sdcli-{ended.pid}-0001.tmp"])


def test_a_sweep_that_fails_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".sdcli-999999999-00ff.tmp").write_bytes(b"")
    os.utime(".sdcli-999999999-00ff.tmp", (1, 1))
    monkeypatch.setattr(os, "scandir", fail_with(errno.EACCES))
    plan("cat.png")
    atomic.sweep("missing")


# C1: several at once


@pytest.mark.parametrize("links", [True, False])
def test_threads_at_once_lose_nothing(links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:
        monkeypatch.setattr(os, "link", fail_with(errno.EOPNOTSUPP))
    destination = plan(None)
    start = threading.Barrier(8)

    def save(number: int) -> str | None:
        start.wait(timeout=30)
        return destination.save(bytes([number]) * 1000, 0, 42, "cat")

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(save, range(8)))
    assert len(set(paths)) == 8
    assert [Path(str(path)).read_bytes() for path in paths] == [bytes([number]) * 1000 for number in range(8)]
    assert sorted(os.listdir("outputs")) == sorted(os.path.basename(str(path)) for path in paths)


def test_processes_at_once_lose_nothing() -> None:
    code = (
        "import sys\n"
        "from sdcli.images.write import plan_output\n"
        "destination = plan_output(None, 10, force=False)\n"
        "sys.stdin.read()\n"
        "for number in range(10):\n"
        "    print(destination.save(f'{sys.argv[1]} {number}'.encode(), number, 42, 'cat'))\n"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in ("first", "second")
    ]
    for run in runs:
        assert run.stdin is not None
        run.stdin.close()
        run.stdin = None
    printed = [run.communicate(timeout=60)[0].splitlines() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert len({*printed[0], *printed[1]}) == 20
    for name, paths in zip(("first", "second"), printed, strict=True):
        assert [Path(path).read_text() for path in paths] == [f"{name} {number}" for number in range(10)]
    assert len(os.listdir("outputs")) == 20


def test_two_runs_with_one_named_file_keep_both(elsewhere: Path) -> None:
    first, second = plan("cat.png"), plan("cat.png")
    assert first.save(b"first", 0, 1, "cat") == "cat.png"
    with pytest.raises(SdcliError, match="the picture was kept as"):
        second.save(b"second", 0, 1, "cat")
    assert Path("cat.png").read_bytes() == b"first"
    assert (elsewhere / "cat-1.png").read_bytes() == b"second"


# Names


@pytest.mark.parametrize(
    ("prompt", "slug"),
    [
        ("A red cat, (masterpiece:1.2)", "a-red-cat-masterpiece-1-2"),
        ("café au lait", "cafe-au-lait"),
        ("\U0001f600 \u6c34", "picture"),
        ("", "picture"),
        ("../../etc/passwd", "etc-passwd"),
        ("\ud800 \0 cat", "cat"),
        ("word " * 20, "word-word-word-word-word-word-word-word"),
        ("a" * 60, "a" * 40),
        ("ten letter " * 1 + "b" * 29 + " end", "ten-letter-" + "b" * 29),
        ("ten letter " + "b" * 30, "ten-letter"),
    ],
)
def test_slugs(prompt: str, slug: str) -> None:
    names = invented_names(prompt, 7, ".png")
    assert [next(names), next(names)] == [f"{slug}-7.png", f"{slug}-7-2.png"]
    assert len(slug) <= 40
