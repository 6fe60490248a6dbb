"""Rows I1 to I20 of the bad inputs, and what a good init image becomes."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFile

from sdcli.errors import BadRequest, SdcliError
from sdcli.images import read
from sdcli.images.fit import resized_size
from sdcli.images.flatten import to_rgb
from sdcli.images.profile import PROFILE_CAP
from sdcli.images.read import InitImage, read_init
from sdcli.sniff import detect

SIDE = 64


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG by hand: `rows` has a filter byte at the start of each."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(side: int = SIDE) -> Image.Image:
    return Image.frombytes("RGB", (side, side), bytes((i * i * 31 + i // 7) % 256 for i in range(side * side * 3)))


def read_bytes(folder: Path, data: bytes, name: str = "init.png") -> InitImage:
    path = folder / name
    path.write_bytes(data)
    return read_init(path, None, None)


def read_picture(folder: Path, image: Image.Image, kind: str = "PNG", **options: object) -> InitImage:
    return read_bytes(folder, encoded(image, kind, **options))


def refusal(folder: Path, data: bytes, name: str = "init.png") -> str:
    """The message for a file of `data`: exit code 1, one line, and the file is named."""
    with pytest.raises(SdcliError) as caught:
        read_bytes(folder, data, name)
    assert type(caught.value) is SdcliError
    assert caught.value.exit_code == 1
    message = str(caught.value)
    assert "\n" not in message
    assert name in message
    return message


def pixel(picture: InitImage, x: int = 0, y: int = 0) -> tuple[int, ...]:
    start = (y * picture.width + x) * 3
    return tuple(picture.pixels[start : start + 3])


def test_a_good_picture_of_the_right_size_comes_back_bit_for_bit(tmp_path: Path) -> None:
    image = noise()
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        assert read_picture(tmp_path, image, kind, **options) == InitImage(SIDE, SIDE, image.tobytes())


def test_jpeg_is_read(tmp_path: Path) -> None:
    picture = read_picture(tmp_path, Image.new("RGB", (SIDE, SIDE), (200, 40, 40)), "JPEG", quality=95)
    assert all(abs(is_ - was) <= 4 for is_, was in zip(pixel(picture), (200, 40, 40), strict=True))


# I1: not a file


@pytest.mark.parametrize("name", ["missing.png", "~/missing.png", "file.png/inside.png", "nul\0.png"])
def test_missing_is_a_bad_request(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.png").write_bytes(b"x")
    with pytest.raises(BadRequest, match="no such file"):
        read_init(tmp_path / name, None, None)


def test_unexpanded_tilde_is_not_expanded() -> None:
    with pytest.raises(BadRequest, match="no such file: '~/"):
        read_init(Path("~/.profile"), None, None)


@pytest.mark.parametrize("text", ["", "."])
def test_a_folder_is_a_bad_request(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadRequest, match="is a folder"):
        read_init(Path(text), None, None)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadRequest, match="not a regular file"):
        read_init(tmp_path / "pipe.png", None, None)


def test_a_loop_of_links_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with pytest.raises(SdcliError, match=r"cannot read '.*loop\.png'"):
        read_init(tmp_path / "loop.png", None, None)


# I2: permission


def test_unreadable_names_the_path(
    open_folder: Path, run_powerless: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    path = open_folder / "secret.png"
    path.write_bytes(encoded(noise(), "PNG"))
    path.chmod(0)
    code = (
        "import sys, pathlib\n"
        "from sdcli.errors import SdcliError\n"
        "from sdcli.images.read import read_init\n"
        "try: read_init(pathlib.Path(sys.argv[1]), None, None)\n"
        "except SdcliError as error: print(error.exit_code, error)\n"
    )
    finished = run_powerless(code, path)
    assert finished.stdout == f"1 cannot read '{path}': Permission denied\n"
    assert finished.stderr == ""


# I3, I4: nothing, or half of it


def test_empty_says_empty(tmp_path: Path) -> None:
    assert "is empty" in refusal(tmp_path, b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.99, 0.5, 0.05])
def test_truncated_is_an_error(tmp_path: Path, kind: str, share: float) -> None:
    data = encoded(noise(), kind)
    message = refusal(tmp_path, data[: int(len(data) * share)])
    assert "download it again" in message
    assert "_io." not in message
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_cut_and_every_flip_is_an_error_or_a_picture(tmp_path: Path, kind: str) -> None:
    """A light fuzz: never an exception of another kind, never a warning."""
    data = encoded(noise(8), kind)
    path = tmp_path / "init.png"
    for position in range(0, len(data), max(1, len(data) // 60)):
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        for broken in (data[:position], bytes(damaged)):
            path.write_bytes(broken)
            try:
                assert len(read_init(path, 64, 64).pixels) == 64 * 64 * 3
            except SdcliError as error:
                assert "init.png" in str(error)


# I6: 16-bit grey


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = [0, 255, 256, 40000, 65535, 32768, 511, 512]
    row = b"\0" + struct.pack(">64H", *(values * 8))
    picture = read_bytes(tmp_path, png(64, 64, 16, 0, row * 64))
    assert [pixel(picture, x)[0] for x in range(8)] == [value >> 8 for value in values]
    assert pixel(picture, 3) == (156, 156, 156)


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B"])
def test_every_wide_grey_mode_is_scaled(mode: str) -> None:
    wide = Image.new("I", (2, 1), 40000)
    assert to_rgb(wide.convert(mode)).getpixel((1, 0)) == (156, 156, 156)


def test_16_bit_grey_with_a_transparent_value(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">64H", *([40000, 40001] * 32))
    picture = read_bytes(tmp_path, png(64, 64, 16, 0, row * 64, chunk(b"tRNS", struct.pack(">H", 40000))))
    assert (pixel(picture, 0), pixel(picture, 1)) == ((255, 255, 255), (156, 156, 156))


def test_16_bit_rgb_with_a_transparent_colour(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">192H", *([0x8012, 0x1000, 0, 0x2000, 0x3000, 0x4000] * 32))
    key = chunk(b"tRNS", struct.pack(">3H", 0x8012, 0x1000, 0))
    picture = read_bytes(tmp_path, png(64, 64, 16, 2, row * 64, key))
    assert (pixel(picture, 0), pixel(picture, 1)) == ((255, 255, 255), (0x20, 0x30, 0x40))


# I7: other modes


def test_cmyk_jpeg(tmp_path: Path) -> None:
    picture = read_picture(tmp_path, Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 0)), "JPEG", quality=100)
    red, green, blue = pixel(picture)
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("1", 0, (0, 0, 0)),
        ("L", 77, (77, 77, 77)),
        ("P", 0, None),
        ("LA", (77, 255), (77,) * 3),
    ],
)
def test_other_modes_of_png(tmp_path: Path, mode: str, colour: object, expected: tuple[int, ...] | None) -> None:
    image = Image.new(mode, (SIDE, SIDE), colour)
    if mode == "P":
        image.putpalette([10, 20, 30] * 256)
    assert pixel(read_picture(tmp_path, image)) == (expected or (10, 20, 30))


@pytest.mark.parametrize(("mode", "white"), [("YCbCr", (255, 128, 128)), ("LAB", (255, 128, 128))])
def test_modes_that_only_memory_holds(mode: str, white: tuple[int, ...]) -> None:
    picture = to_rgb(Image.new(mode, (1, 1), white))
    assert picture.mode == "RGB"
    assert min(picture.getpixel((0, 0))) > 245


# I8: transparency


def test_hidden_colours_stay_hidden(tmp_path: Path) -> None:
    clear, half, solid = (255, 0, 0, 0), (0, 0, 0, 128), (0, 0, 255, 255)
    image = Image.new("RGBA", (SIDE, SIDE), clear)
    image.putpixel((1, 0), half)
    image.putpixel((2, 0), solid)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        picture = read_picture(tmp_path, image, kind, **options)
        assert pixel(picture, 0) == (255, 255, 255)
        assert pixel(picture, 1) == (127, 127, 127)
        assert pixel(picture, 2) == (0, 0, 255)


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_palette_with_transparency(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.new("P", (SIDE, SIDE), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    picture = read_picture(tmp_path, image, transparency=transparency)
    assert (pixel(picture, 0), pixel(picture, 1)) == ((255, 255, 255), (0, 0, 255))


@pytest.mark.parametrize(("mode", "colour"), [("L", 9), ("RGB", (9, 8, 7))])
def test_one_transparent_colour(tmp_path: Path, mode: str, colour: object) -> None:
    assert pixel(read_picture(tmp_path, Image.new(mode, (SIDE, SIDE), colour), transparency=colour)) == (255,) * 3


def test_grey_with_alpha(tmp_path: Path) -> None:
    assert pixel(read_picture(tmp_path, Image.new("LA", (SIDE, SIDE), (0, 0)))) == (255, 255, 255)


# I10, I11: other types under a false name

FTYP = b"\0\0\0\x18ftyp"
OTHERS = {
    "SVG": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "HTML": b"\n<!DOCTYPE html><html><body>404</body></html>",
    "XML": b"<?xml version='1.0'?><rss/>",
    "text": b"this is not a picture\n",
    "HEIC": FTYP + b"heic\0\0\0\0mif1heic",
    "AVIF": FTYP + b"avif\0\0\0\0",
    "MP4": FTYP + b"isom\0\0\0\0",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
    "PSD": b"8BPS\0\1" + bytes(20),
    "PDF": b"%PDF-1.7\n",
    "FITS": b"SIMPLE  =                    T",
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    "JPEG XL": b"\xff\x0a" + bytes(8),
    "ICO": b"\0\0\1\0\1\0",
    "ZIP": b"PK\x03\x04",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_types_are_named(tmp_path: Path, kind: str) -> None:
    message = refusal(tmp_path, OTHERS[kind])
    assert f"a file of type {kind}:" in message
    assert "PNG, JPEG and WebP" in message


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "GIF"])
def test_real_pictures_of_other_types_are_refused(tmp_path: Path, kind: str) -> None:
    assert f"a file of type {kind}:" in refusal(tmp_path, encoded(noise(), kind))


def test_unknown_bytes_are_refused(tmp_path: Path) -> None:
    assert "of no known type" in refusal(tmp_path, bytes(range(1, 200)))
    assert detect(b"") is None


def test_a_suffix_means_nothing(tmp_path: Path) -> None:
    image = noise()
    assert read_bytes(tmp_path, encoded(image, "PNG"), "init.tiff").pixels == image.tobytes()


# I13, I14: bombs of size


@pytest.mark.parametrize("side", [20_000, 100_000, 2**31 - 1])
def test_a_huge_header_is_refused_before_decoding(tmp_path: Path, side: int) -> None:
    message = refusal(tmp_path, png(side, side, 8, 2, b"\0"))
    assert f"{side * side} pixels" in message
    assert "16 megapixels" in message


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (4001, 4000), (16_000_001, 1)])
def test_the_own_cap_is_checked_before_decoding(tmp_path: Path, width: int, height: int) -> None:
    message = refusal(tmp_path, png(width, height, 8, 2, b"\0"))
    assert "16 megapixels" in message
    assert str(width) in message or str(width * height) in message


def test_a_picture_at_the_cap_is_read(tmp_path: Path) -> None:
    path = tmp_path / "init.png"
    path.write_bytes(encoded(Image.new("1", (4000, 4000), 1), "PNG"))
    assert read_init(path, 64, 64).pixels == b"\xff" * (64 * 64 * 3)


def test_a_huge_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "BYTE_CAP", 100)
    assert "is larger than" in refusal(tmp_path, encoded(noise(), "PNG"))


# I15: bombs of text


LONG = 3_000_000
UNREAD = {
    "iCCP": (b"iCCP", b"profile\0\0" + zlib.compress(os.urandom(LONG))),
    "iCCP bomb": (b"iCCP", b"profile\0\0" + zlib.compress(bytes(100_000_000))),
    "iCCP that is none": (b"iCCP", b"garbage"),
    "tEXt": (b"tEXt", b"prompt\0" + b"x" * LONG),
    "zTXt": (b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * LONG)),
    "zTXt bomb": (b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000))),
    "iTXt": (b"iTXt", b"parameters\0\0\0\0\0" + b"x" * LONG),
    "iTXt bomb": (b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(100_000_000))),
    "XMP": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"x" * LONG),
    "XMP bomb": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(100_000_000))),
    "EXIF as text": (b"zTXt", b"Raw profile type exif\0\0" + os.urandom(LONG)),
    "a private chunk": (b"caBX", b"x" * LONG),
    "a name that is none": (b"a\0\xff1", b"x"),
}
"""Chunks that a picture is read without, however long, packed or broken."""


@pytest.mark.parametrize(("kind", "body"), UNREAD.values(), ids=UNREAD)
def test_metadata_that_is_not_needed_is_not_read(tmp_path: Path, kind: bytes, body: bytes) -> None:
    plain = encoded(noise(), "PNG")
    for place in (33, len(plain) - 12):  # after the header, before the end
        data = plain[:place] + chunk(kind, body) + plain[place:]
        tracemalloc.start()
        picture = read_bytes(tmp_path, data)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert picture.pixels == noise().tobytes()
        assert peak_bytes < (4 * PROFILE_CAP if kind == b"iCCP" else 1_000_000)


def test_a_bomb_where_the_orientation_may_be_is_an_error(tmp_path: Path) -> None:
    bomb = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(5_000_000)))
    assert "cannot decode" in refusal(tmp_path, png(1, 1, 8, 2, b"\0abc", bomb))


@pytest.mark.parametrize(
    "kind",
    [{"quality": 90, "icc_profile": os.urandom(LONG)}, {"comment": b"x" * 60000}, {"exif": b"Exif\0\0" + b"x" * 60000}],
)
def test_jpeg_with_long_metadata_is_read(tmp_path: Path, kind: dict[str, object]) -> None:
    grey = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))
    assert read_picture(tmp_path, grey, "JPEG", **kind).pixels == grey.tobytes()


@pytest.mark.parametrize("key", ["icc_profile", "exif", "xmp"])
def test_webp_with_long_metadata_is_read(tmp_path: Path, key: str) -> None:
    options = {key: os.urandom(LONG), "lossless": True}
    assert read_picture(tmp_path, noise(), "WEBP", **options).pixels == noise().tobytes()


# Checksums


def chunks_of(data: bytes) -> list[tuple[bytes, int, int]]:
    """Name, start and end of each chunk's data."""
    found, start = [], 8
    while start < len(data):
        end = start + 8 + int.from_bytes(data[start : start + 4])
        found.append((data[start + 4 : start + 8], start + 8, end))
        start = end + 4
    return found


def palette_picture() -> bytes:
    image = Image.new("P", (SIDE, SIDE), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    return encoded(image, "PNG", transparency=bytes([0, 255]), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0")


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"])
def test_a_wrong_checksum_is_an_error(tmp_path: Path, name: bytes) -> None:
    data = palette_picture()
    end = next(end for found, _, end in chunks_of(data) if found == name)
    broken = data[:end] + bytes([data[end] ^ 1]) + data[end + 1 :]
    assert f"the checksum of its {name.decode()} chunk is wrong" in refusal(tmp_path, broken)
    assert read_bytes(tmp_path, data).width == SIDE


def test_a_flipped_bit_in_any_of_many_pieces_is_an_error(tmp_path: Path) -> None:
    whole = encoded(noise(256), "PNG")
    pixels = b"".join(whole[start:end] for name, start, end in chunks_of(whole) if name == b"IDAT")
    pieces = [chunk(b"IDAT", pixels[at : at + 5000]) for at in range(0, len(pixels), 5000)]
    data = whole[:33] + b"".join(pieces) + chunk(b"IEND", b"")
    assert read_bytes(tmp_path, data).pixels == noise(256).tobytes()
    for _, start, _ in chunks_of(data)[1:-1]:
        broken = bytearray(data)
        broken[start + 7] ^= 16
        assert "checksum" in refusal(tmp_path, bytes(broken))


def test_a_file_without_its_end_is_an_error_and_what_follows_the_end_is_none_of_it(tmp_path: Path) -> None:
    data = encoded(noise(), "PNG")
    for cut in (1, 4, 11, 12, 13, 16):
        assert "damaged PNG: it ends too early" in refusal(tmp_path, data[:-cut])
    for more in (b"\n", bytes(1000), data):
        assert read_bytes(tmp_path, data + more).pixels == noise().tobytes()


def test_a_length_beyond_the_file_is_an_error(tmp_path: Path) -> None:
    data = bytearray(encoded(noise(), "PNG"))
    for _, start, _ in chunks_of(bytes(data)):
        broken = data[: start - 8] + b"\xff\xff\xff\xff" + data[start - 4 :]
        assert "cannot decode" in refusal(tmp_path, bytes(broken))


def test_millions_of_chunks_are_not_walked_through(tmp_path: Path) -> None:
    data = encoded(noise(), "PNG")
    for many in (chunk(b"teSt", b"") * 300_000, (chunk(b"eXIf", b"") + chunk(b"teSt", b"")) * 2000):
        assert "too many pieces" in refusal(tmp_path, data[:33] + many + data[33:])


# Animations


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_of_an_animation_the_first_frame_is_read_and_all_are_counted(tmp_path: Path, kind: str, frames: int) -> None:
    others = [Image.new("RGB", (SIDE, SIDE), (0, shade, 0)) for shade in range(1, frames)]
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = read_picture(tmp_path, noise(), kind, save_all=True, append_images=others, **options)
    assert (picture.frames, picture.pixels) == (frames, noise().tobytes())


def test_a_picture_beside_the_animation_is_the_one_that_is_read(tmp_path: Path) -> None:
    others = [Image.new("RGB", (SIDE, SIDE), (0, shade, 0)) for shade in (1, 2)]
    picture = read_picture(tmp_path, noise(), save_all=True, append_images=others, default_image=True)
    assert (picture.frames, picture.pixels) == (2, noise().tobytes())


def test_the_second_picture_of_a_camera_is_no_frame(tmp_path: Path) -> None:
    grey = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))
    picture = read_picture(tmp_path, grey, "MPO", save_all=True, append_images=[noise()])
    assert (picture.frames, picture.pixels) == (1, grey.tobytes())


def test_whatever_pillow_raises_becomes_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (ValueError("x\ny\x1b[2J"), SyntaxError("broken"), struct.error(), MemoryError(), RuntimeError("?")):

        def fail(*_: object, failure: Exception = error, **__: object) -> None:
            raise failure

        monkeypatch.setattr(Image, "open", fail)
        message = refusal(tmp_path, encoded(noise(), "PNG"))
        assert "cannot decode" in message
        assert "\x1b" not in message


def test_damaged_exif_is_no_reason_to_refuse_or_to_warn(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    data = encoded(noise(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\x00garbage")
    with pytest.warns(UserWarning, match="Corrupt EXIF data"), Image.open(io.BytesIO(data)) as image:
        image.getexif()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert read_bytes(tmp_path, data).width == SIDE
    assert not recwarn.list


# I18: URLs


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a.png", "https://example.invalid/a.png", "file:///etc/a.png"])
def test_a_url_is_a_bad_request_and_nothing_connects(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("it connected")

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(BadRequest, match="is a URL"):
        read_init(Path(url), None, None)


# Orientation


def test_a_photo_is_turned_upright(tmp_path: Path) -> None:
    """8: the top of the scene is the right side of the file; 6: it is the left side."""
    stored = Image.new("RGB", (128, 64), (0, 0, 0))
    ImageDraw.Draw(stored).rectangle((96, 0, 127, 63), fill=(255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 8
    picture = read_picture(tmp_path, stored, "PNG", exif=exif)
    assert (picture.width, picture.height) == (64, 128)
    assert pixel(picture, 5, 5) == (255, 255, 255)
    assert pixel(picture, 5, 120) == (0, 0, 0)
    exif[0x0112] = 6
    picture = read_picture(tmp_path, stored, "PNG", exif=exif)
    assert pixel(picture, 5, 5) == (0, 0, 0)
    assert pixel(picture, 5, 120) == (255, 255, 255)


def test_size_follows_the_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "init.jpg"
    Image.new("RGB", (256, 128)).save(path, exif=exif)
    picture = read_init(path, 64, None)
    assert (picture.width, picture.height) == (64, 128)


@pytest.mark.parametrize("value", [0, 1, 9, 65535])
def test_an_orientation_that_is_none_turns_nothing(tmp_path: Path, value: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    picture = read_picture(tmp_path, Image.new("RGB", (128, 64)), "PNG", exif=exif)
    assert {picture.width, picture.height} == {128, 64}


@pytest.mark.parametrize(
    "exif", [b"garbage", b"\x80" * 99, b"MM\0*\0\0\0\x08\xff\xff" + b"x" * 50, b"II*\0\xff\xff\xff\xff"]
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_that_is_none_turns_nothing(tmp_path: Path, kind: str, exif: bytes) -> None:
    data = encoded(noise(), kind, exif=b"Exif\0\0" + exif)
    assert read_bytes(tmp_path, data).width == SIDE


def test_the_orientation_may_be_in_a_text(tmp_path: Path) -> None:
    packet = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encoded(Image.new("RGB", (128, 64)), "PNG")
    text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)
    assert read_bytes(tmp_path, data[:33] + text + data[33:]).height == 128
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    profile = b"\nexif\n%8d\n" % len(exif) + exif.hex().encode()
    for raw in (
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
        chunk(b"tEXt", b"Raw profile type exif\0" + profile),
    ):
        assert read_bytes(tmp_path, data[:33] + raw + data[33:]).height == 128


def test_every_mode_can_be_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        picture = read_picture(tmp_path, Image.new(mode, (128, 64)), exif=exif)
        assert (picture.width, picture.height) == (64, 128)


# Sizes


@pytest.mark.parametrize(
    ("own", "width", "height", "expected"),
    [
        ((512, 512), None, None, (512, 512)),
        ((513, 511), None, None, (512, 512)),
        ((516, 515), None, None, (520, 512)),
        ((3, 3), None, None, (64, 64)),
        ((2048, 1024), None, None, (1024, 512)),
        ((4032, 3024), None, None, (1024, 768)),
        ((3024, 4032), None, None, (768, 1024)),
        ((1028, 1028), None, None, (1024, 1024)),
        ((10_000, 1), None, None, (1024, 64)),
        ((512, 512), 256, None, (256, 256)),
        ((1024, 512), 512, None, (512, 256)),
        ((1024, 512), None, 512, (1024, 512)),
        ((1000, 667), 512, None, (512, 344)),
        ((10_000, 1), 512, None, (512, 64)),
        ((123, 456), 512, 768, (512, 768)),
    ],
)
def test_resized_size(own: tuple[int, int], width: int | None, height: int | None, expected: tuple[int, int]) -> None:
    assert resized_size(own, width, height) == expected


@pytest.mark.parametrize(
    ("own", "width", "expected"),
    [
        ((512, 512), None, (512, 512)),
        ((520, 500), None, (528, 496)),
        ((3, 3), None, (64, 64)),
        ((9, 7), 160, (160, 128)),
    ],
)
def test_a_model_may_want_sides_in_larger_multiples(
    own: tuple[int, int], width: int | None, expected: tuple[int, int]
) -> None:
    assert resized_size(own, width, None, multiple=16) == expected


def test_an_odd_ratio_is_covered_and_its_centre_kept(tmp_path: Path) -> None:
    image = Image.new("RGB", (192, 64), (255, 0, 0))
    ImageDraw.Draw(image).rectangle((64, 0, 127, 63), fill=(0, 255, 0))
    path = tmp_path / "wide.png"
    image.save(path)
    picture = read_init(path, 64, 64)
    assert picture.pixels == bytes((0, 255, 0)) * (64 * 64)


def test_a_small_picture_is_scaled_up(tmp_path: Path) -> None:
    assert read_picture(tmp_path, Image.new("RGB", (1, 1), (1, 2, 3))) == InitImage(64, 64, bytes((1, 2, 3)) * 4096)


def test_a_sliver_does_not_become_a_wall(tmp_path: Path) -> None:
    path = tmp_path / "sliver.png"
    Image.new("L", (1, 10_000)).save(path)
    with pytest.raises(BadRequest, match="give --width and --height"):
        read_init(path, 512, None)


def test_the_room_loads_no_torch_and_no_numpy() -> None:
    code = (
        "import sys, sdcli.images.read, sdcli.images.write, sdcli.images.metadata\n"
        "assert not {'torch', 'numpy', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
