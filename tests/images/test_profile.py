"""Colours by a picture's own profile: converted where they are others than sRGB's, and kept bit for bit where not."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from sdcli.errors import BadRequest
from sdcli.images.flatten import colour_named
from sdcli.images.profile import PROFILE_CAP, profile_of
from sdcli.images.read import ALL_OF_IT, Edit, InitImage, read_init, read_sized

PIXELS = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
PICTURE = Image.fromarray(PIXELS)

D50 = (0.9642, 1.0, 0.8249)


def tag_xyz(*numbers: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(number * 65536) for number in numbers))


def tag_gamma(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def icc(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A profile of a display, version 2 of the format (ICC.1:2001-04)."""
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78), b"cprt": b"text\0\0\0\0x\0", **tags}
    tags[b"wtpt"] = tag_xyz(*D50)
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, tag in tags.items():
        data = tag + bytes(-len(tag) % 4)
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", at + len(body), b"lcms", 0x02400000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H4s4s", 2026, 1, 1, 0, 0, 0, b"acsp", bytes(4)) + bytes(24)
    head += struct.pack(">3i", *(round(number * 65536) for number in D50))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def display(gamma: float, swapped: bool = False) -> bytes:
    """sRGB's primaries, or with red and green exchanged, and a plain gamma."""
    primaries = [(0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7139)]
    if swapped:
        primaries[0], primaries[1] = primaries[1], primaries[0]
    curve = tag_gamma(gamma)
    tags = {name + b"XYZ": tag_xyz(*primary) for name, primary in zip((b"r", b"g", b"b"), primaries, strict=True)}
    return icc(b"RGB ", tags | {name + b"TRC": curve for name in (b"r", b"g", b"b")})


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SWAPPED, LINEAR = display(2.2, swapped=True), display(1.0)
GREY = icc(b"GRAY", {b"kTRC": tag_gamma(1.0)})


def read(folder: Path, picture: Image.Image, kind: str = "PNG", edit: Edit = ALL_OF_IT, **options: Any) -> InitImage:
    path = folder / f"picture.{kind.lower()}"
    picture.save(path, kind, **options)
    return read_init(path, None, None, edit)


def array(image: InitImage) -> np.ndarray:
    return np.frombuffer(image.pixels, np.uint8).reshape(image.height, image.width, 3).astype(int)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_an_srgb_profile_changes_no_bit(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    drawn = read(tmp_path, PICTURE, kind, icc_profile=SRGB, **options)
    assert drawn.pixels == PICTURE.tobytes() and drawn.notes == ()


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 100, "subsampling": 0})]
)
def test_colours_of_another_display_become_srgbs(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    plain = array(read(tmp_path, PICTURE, kind, **options))
    drawn = array(read(tmp_path, PICTURE, kind, icc_profile=SWAPPED, **options))
    apart = np.abs(drawn - plain[..., [1, 0, 2]])
    assert apart.mean() < 3 and np.abs(drawn - plain).mean() > 40


def test_a_linear_picture_is_as_srgb_has_it(tmp_path: Path) -> None:
    drawn = array(read(tmp_path, PICTURE, icc_profile=LINEAR))
    linear = PIXELS / 255
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(drawn - 255 * srgb).max() <= 3


@pytest.mark.parametrize("depth", [8, 16])
def test_grey_by_a_profile_of_grey(tmp_path: Path, depth: int) -> None:  # I6
    ramp = np.tile(np.arange(16, 256, 3, np.uint8)[:64], (64, 1))
    picture = Image.fromarray(ramp if depth == 8 else ramp.astype(np.uint16) * 257)
    drawn = array(read(tmp_path, picture, icc_profile=GREY))
    linear = ramp / 255
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert (np.ptp(drawn, axis=-1) <= 1).all() and np.abs(drawn[..., 0] - 255 * srgb).max() <= 3


def test_a_palette_with_a_transparent_colour_by_its_profile(tmp_path: Path) -> None:  # I8
    picture = Image.new("P", (64, 64), 1)
    picture.putpalette([0, 255, 0, 200, 40, 90])
    picture.paste(0, (0, 0, 64, 32))
    edit = Edit(background=(10, 20, 30))
    drawn = array(read(tmp_path, picture, edit=edit, transparency=0, icc_profile=SWAPPED))
    assert (drawn[:32] == (10, 20, 30)).all(), "the background is no colour of the picture's"
    assert np.abs(drawn[32:] - (40, 200, 90)).max() <= 40 and (np.ptp(drawn[32:].reshape(-1, 3), axis=0) == 0).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_shows_the_background_and_hides_its_colour(tmp_path: Path, mode: str) -> None:
    colour = (250, 0, 0) if mode == "RGBA" else (250,)
    picture = Image.new(mode, (64, 64), (*colour, 0))
    picture.paste((*colour, 255), (0, 0, 64, 32))
    drawn = array(read(tmp_path, picture, edit=Edit(background=(0, 99, 200))))
    assert (drawn[32:] == (0, 99, 200)).all() and (drawn[:32, :, 0] == 250).all()


def test_a_press_s_colours_by_its_profile(tmp_path: Path) -> None:  # I7
    cmyk = press_profile()
    picture = Image.new("CMYK", (64, 64), (0, 255, 255, 0))
    plain = array(read(tmp_path, picture, "JPEG", quality=100))
    drawn = read(tmp_path, picture, "JPEG", quality=100, icc_profile=cmyk)
    assert drawn.notes == ()
    assert np.abs(plain[0, 0] - (255, 0, 0)).max() <= 3 and np.abs(array(drawn)[0, 0] - (128, 128, 128)).max() <= 12


def press_profile() -> bytes:
    """A press that prints the same middle grey, whatever ink it is given: a table with one colour."""
    grid, inks = 2, 4
    corner = struct.pack(">3H", round(53.6 * 652.8), 0x8000, 0x8000)
    table = b"mft2\0\0\0\0" + struct.pack(">4B", inks, 3, grid, 0)
    table += struct.pack(">9i", *(65536 if place % 4 == 0 else 0 for place in range(9)))
    table += struct.pack(">2H", 2, 2) + struct.pack(">2H", 0, 65535) * inks + corner * grid**inks
    table += struct.pack(">2H", 0, 65535) * 3
    made = bytearray(icc(b"CMYK", {b"A2B0": table, b"A2B1": table}))
    made[12:16], made[20:24] = b"prtr", b"Lab "
    return bytes(made)


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        (b"no profile", "is damaged"),
        (SWAPPED[:200], "is damaged"),
        (SWAPPED[:36] + b"nope" + SWAPPED[40:], "is damaged"),
        (GREY, "is of other colours than the picture's"),
        (SWAPPED + bytes(PROFILE_CAP), "has more than 4 MiB"),
    ],
    ids=["words", "cut", "without its mark", "of grey", "huge"],
)
def test_a_profile_that_is_none_is_passed_over_and_that_is_said(tmp_path: Path, profile: bytes, said: str) -> None:
    drawn = read(tmp_path, PICTURE, "PNG", icc_profile=profile)
    (note,) = drawn.notes
    assert said in note and "passed over" in note and drawn.pixels == PICTURE.tobytes()


@pytest.mark.parametrize("body", [b"x\0\0nothing packed", b"x\0\0" + zlib.compress(bytes(50_000_000)), b"x", b"x\0"])
def test_a_profile_that_cannot_be_unpacked_is_passed_over(tmp_path: Path, body: bytes) -> None:
    file = io.BytesIO()
    PICTURE.save(file, "PNG")
    data, chunk = file.getvalue(), b"iCCP" + body
    made = data[:33] + struct.pack(">I", len(body)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    (tmp_path / "a.png").write_bytes(made)
    drawn = read_init(tmp_path / "a.png", None, None)
    assert len(drawn.notes) == 1 and drawn.pixels == PICTURE.tobytes()


@pytest.mark.parametrize("seed", range(40))
def test_a_flipped_byte_in_a_profile_never_fails(seed: int) -> None:
    chance = np.random.default_rng(seed)
    data = bytearray(SWAPPED)
    for _ in range(3):
        data[int(chance.integers(len(data)))] = int(chance.integers(256))
    profile, _ = profile_of(bytes(data), "RGB")
    assert profile.applied(PICTURE).size == PICTURE.size


def test_pictures_to_go_by_have_theirs_and_masks_have_none(tmp_path: Path) -> None:
    path, mask = tmp_path / "a.png", tmp_path / "mask.png"
    PICTURE.save(path, icc_profile=SWAPPED)
    drawn = array(read_sized(path, lambda own: own))
    assert np.abs(drawn - PIXELS[..., [1, 0, 2]]).mean() < 3
    Image.new("L", (64, 64), 100).save(mask, icc_profile=GREY)  # which would make it lighter than a middle grey
    with pytest.raises(BadRequest, match="has nothing white"):
        read_init(path, None, None, Edit(mask=str(mask)))


@pytest.mark.parametrize(
    ("name", "colour"),
    [
        ("white", (255, 255, 255)),
        ("#0a141e", (10, 20, 30)),
        ("#fff", (255, 255, 255)),
        (" Plum ", (221, 160, 221)),
    ],
)
def test_a_colour_has_a_name_or_three_numbers(name: str, colour: tuple[int, int, int]) -> None:
    assert colour_named(name) == colour


@pytest.mark.parametrize("name", ["", "#12", "#12345g", "rgb(1,2,3)", "#11223344", "whiite", "white" * 100])
def test_what_is_no_colour_is_told(name: str) -> None:
    with pytest.raises(BadRequest, match="is no colour: give a name, as in white, or #rrggbb"):
        colour_named(name)
