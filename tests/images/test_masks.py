"""Masks of init images: what changes, and that everything else stays as it is, bit for bit."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageDraw

from sdcli.errors import BadRequest, SdcliError
from sdcli.images.masks import PADDING
from sdcli.images.read import Edit, InitImage, read_init

RED = (255, 0, 0)


def photo(width: int = 128, height: int = 96, mode: str = "RGB") -> Image.Image:
    """A picture of which no two places are alike."""
    across, down = Image.linear_gradient("L").rotate(90).resize((width, height)), Image.radial_gradient("L")
    bands = [across, down.resize((width, height)), ImageChops.invert(across)]
    return Image.merge("RGB", bands).convert(mode)


def spot(size: tuple[int, int] = (128, 96), box: tuple[int, int, int, int] = (40, 30, 60, 50)) -> Image.Image:
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    return mask


def save(folder: Path, name: str, image: Image.Image) -> str:
    image.save(folder / name)
    return str(folder / name)


def edited(
    folder: Path,
    edit: Edit,
    image: Image.Image | None = None,
    mask: Image.Image | None = None,
    size: tuple[int | None, int | None] = (None, None),
) -> InitImage:
    """What a picture and its mask come to."""
    save(folder, "init.png", image or photo())
    if mask is not None:
        save(folder, "mask.png", mask)
    return read_init(folder / "init.png", *size, edit)


def masked(folder: Path, **more: object) -> Edit:
    return Edit(mask=str(folder / "mask.png"), **more)  # type: ignore[arg-type]


def finished(image: InitImage) -> Image.Image:
    """As if all that is drawn were red."""
    assert image.canvas is not None
    drawn = bytes(RED) * (image.width * image.height)
    whole = image.canvas.with_drawn(drawn, image.width, image.height)
    return Image.frombytes("RGB", (image.canvas.width, image.canvas.height), whole)


def test_white_changes_and_all_else_keeps_its_bits(tmp_path: Path) -> None:
    image = edited(tmp_path, masked(tmp_path), mask=spot())
    assert image.mask == spot().tobytes() and image.pixels == photo().tobytes()
    expected = photo()
    expected.paste(RED, (40, 30, 60, 50))
    assert finished(image).tobytes() == expected.tobytes()


def test_an_inverted_mask_changes_what_is_black(tmp_path: Path) -> None:
    image = edited(tmp_path, masked(tmp_path, invert=True), mask=spot())
    expected = Image.new("RGB", (128, 96), RED)
    expected.paste(photo().crop((40, 30, 60, 50)), (40, 30))
    assert finished(image).tobytes() == expected.tobytes()


@pytest.mark.parametrize("radius", [1, 4, 16])
def test_a_blur_blends_and_has_an_end(tmp_path: Path, radius: int) -> None:
    sharp = spot((256, 256), (100, 100, 156, 156))
    image = edited(tmp_path, masked(tmp_path, blur=radius), photo(256, 256), sharp)
    assert image.canvas is not None and image.mask == sharp.tobytes()
    share = Image.frombytes("L", (256, 256), image.canvas.share)
    levels = [share.getpixel((x, 128)) for x in range(256)]
    assert levels[100 - 4 * radius] == 0 and levels[:128] == sorted(levels[:128])
    assert 64 <= levels[99] <= levels[100] <= 192
    whole, before = finished(image), photo(256, 256)
    kept = [at for at, level in enumerate(levels) if level == 0]
    assert [whole.getpixel((x, 128)) for x in kept] == [before.getpixel((x, 128)) for x in kept]


def test_what_is_transparent_changes(tmp_path: Path) -> None:
    image = photo()
    image.putalpha(ImageChops.invert(spot()))
    assert edited(tmp_path, Edit(mask="alpha"), image).mask == spot().tobytes()
    assert edited(tmp_path, Edit(mask="alpha", invert=True), image).mask == ImageChops.invert(spot()).tobytes()
    palette = Image.new("P", (64, 64), 0)
    palette.paste(1, (0, 0, 8, 64))
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.save(tmp_path / "init.png", transparency=1)
    found = read_init(tmp_path / "init.png", None, None, Edit(mask="alpha"))
    assert found.mask == spot((64, 64), (0, 0, 8, 64)).tobytes()
    with pytest.raises(BadRequest, match="has no transparency"):
        edited(tmp_path, Edit(mask="alpha"))
    with pytest.raises(BadRequest, match="nothing of the init image is transparent"):
        edited(tmp_path, Edit(mask="alpha"), photo(mode="RGBA"))


@pytest.mark.parametrize("under", ["black", "white"])
def test_what_is_transparent_in_a_mask_is_not_white(tmp_path: Path, under: str) -> None:
    """As painted on a layer of its own, whatever colour an editor leaves where nothing is."""
    layer = Image.new("RGB", (128, 96), under)
    layer.paste("white", (40, 30, 60, 50))
    layer.putalpha(spot())
    assert edited(tmp_path, masked(tmp_path), mask=layer).mask == spot().tobytes()


def test_greys_are_black_or_white_and_a_smaller_mask_grows(tmp_path: Path) -> None:
    grey = spot().point([100] * 128 + [140] * 128)
    assert edited(tmp_path, masked(tmp_path), mask=grey).mask == spot().tobytes()
    small = spot((64, 48), (20, 15, 30, 25))
    assert edited(tmp_path, masked(tmp_path), mask=small).mask == spot().tobytes()
    assert edited(tmp_path, masked(tmp_path), mask=small.convert("1")).mask == spot().tobytes()
    assert edited(tmp_path, masked(tmp_path), mask=small.convert("RGBA")).mask == spot().tobytes()


def test_masks_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="96x96 pixels and the init image 128x96: give one of the same shape"):
        edited(tmp_path, masked(tmp_path), mask=spot((96, 96)))
    with pytest.raises(BadRequest, match="nothing white"):
        edited(tmp_path, masked(tmp_path), mask=Image.new("L", (128, 96)))
    with pytest.raises(BadRequest, match=r"no such file: 'nowhere\.png'"):
        edited(tmp_path, Edit(mask="nowhere.png"))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    with pytest.raises(SdcliError, match=r"broken\.png"):
        edited(tmp_path, Edit(mask=str(tmp_path / "broken.png")))


def test_an_all_white_mask_changes_everything(tmp_path: Path) -> None:
    image = edited(tmp_path, masked(tmp_path), mask=Image.new("L", (128, 96), 255))
    assert set(image.mask) == {255} and set(finished(image).tobytes()[::3]) == {255}


def test_of_an_animated_mask_the_first_frame_is_taken_and_that_is_said(tmp_path: Path) -> None:
    frames = [spot(), spot(box=(0, 0, 20, 20))]
    frames[0].save(tmp_path / "mask.webp", save_all=True, append_images=frames[1:], lossless=True)
    image = edited(tmp_path, Edit(mask=str(tmp_path / "mask.webp")))
    assert Image.frombytes("L", (128, 96), image.mask).getbbox() == (40, 30, 60, 50)
    assert [note.partition("' ")[2] for note in image.notes] == ["has 2 frames: the first one is the mask"]


def test_a_mask_that_is_no_picture_is_refused_as_an_init_image_is(tmp_path: Path) -> None:
    for name, said in (("http://example.com/mask.png", "is a URL"), (str(tmp_path), "is a folder")):
        with pytest.raises(BadRequest, match=said):
            edited(tmp_path, Edit(mask=name))
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "bomb.png").write_bytes(bomb + struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND")))
    (tmp_path / "empty.png").write_bytes(b"")
    for name, said in (("bomb.png", "too large"), ("empty.png", "is empty")):
        with pytest.raises(SdcliError, match=said):
            edited(tmp_path, Edit(mask=str(tmp_path / name)))


def test_margins_are_drawn_and_begin_with_the_outermost_pixels(tmp_path: Path) -> None:
    image = edited(tmp_path, Edit(outpaint=(8, 16, 24, 32)))
    assert (image.width, image.height) == (128 + 32, 96 + 48)
    assert image.mask == ImageChops.invert(spot((160, 144), (8, 16, 136, 112))).tobytes()
    pixels, before = Image.frombytes("RGB", (160, 144), image.pixels), photo()
    assert pixels.crop((8, 16, 136, 112)).tobytes() == before.tobytes()
    assert pixels.getpixel((0, 0)) == before.getpixel((0, 0))
    assert pixels.getpixel((159, 60)) == before.getpixel((127, 44))
    assert pixels.getpixel((50, 143)) == before.getpixel((42, 95))
    assert finished(image).crop((8, 16, 136, 112)).tobytes() == before.tobytes()
    with pytest.raises(BadRequest, match="both sides must be multiples of 8"):
        edited(tmp_path, Edit(outpaint=(0, 0, 12, 0)))
    with pytest.raises(BadRequest, match="too large"):
        edited(tmp_path, Edit(outpaint=(8000, 8000, 8000, 8000)))


def test_a_mask_and_margins_are_both_drawn(tmp_path: Path) -> None:
    image = edited(tmp_path, masked(tmp_path, outpaint=(0, 0, 32, 0)), mask=spot())
    expected = spot((160, 96))
    expected.paste(255, (128, 0, 160, 96))
    assert image.mask == expected.tobytes()


def test_the_masked_part_alone_is_drawn_large_and_put_back(tmp_path: Path) -> None:
    before, mask = photo(1000, 700), spot((1000, 700), (600, 300, 640, 330))
    image = edited(tmp_path, masked(tmp_path, area="masked"), before, mask, (512, 512))
    assert (image.width, image.height) == (512, 512)
    assert image.canvas is not None and (image.canvas.width, image.canvas.height) == (1000, 700)
    left, top, right, bottom = image.canvas.box
    assert (left, right) == (600 - PADDING, 640 + PADDING) and bottom - top == right - left
    assert top <= 300 - PADDING and bottom >= 330 + PADDING
    expected = before.copy()
    expected.paste(RED, (600, 300, 640, 330))
    assert finished(image).tobytes() == expected.tobytes()
    inside = Image.frombytes("L", (512, 512), image.mask).getbbox()
    scale = 512 / (right - left)
    assert inside is not None and abs(inside[0] - PADDING * scale) <= scale and abs(inside[2] - 72 * scale) <= scale


@pytest.mark.parametrize("box", [(0, 0, 5, 5), (995, 690, 1000, 700), (0, 0, 1000, 700), (0, 340, 1000, 350)])
@pytest.mark.parametrize("size", [(512, 512), (256, 768), (768, 256)])
def test_the_box_stays_in_the_picture_and_has_all_that_changes(
    tmp_path: Path, box: tuple[int, int, int, int], size: tuple[int, int]
) -> None:
    image = edited(tmp_path, masked(tmp_path, area="masked"), photo(1000, 700), spot((1000, 700), box), size)
    assert image.canvas is not None
    left, top, right, bottom = image.canvas.box
    assert 0 <= left <= box[0] and 0 <= top <= box[1] and box[2] <= right <= 1000 and box[3] <= bottom <= 700
    expected = photo(1000, 700)
    expected.paste(RED, box)
    assert finished(image).tobytes() == expected.tobytes()


def test_ways_to_fit(tmp_path: Path) -> None:
    before = photo(128, 64)
    crop = edited(tmp_path, Edit(), before, size=(64, 64))
    assert crop.pixels == before.crop((32, 0, 96, 64)).tobytes()
    pad = Image.frombytes("RGB", (128, 128), edited(tmp_path, Edit(fit="pad"), before, size=(128, 128)).pixels)
    assert pad.crop((0, 32, 128, 96)).tobytes() == before.tobytes()
    assert pad.getpixel((5, 0)) == before.getpixel((5, 0)) and pad.getpixel((90, 127)) == before.getpixel((90, 63))
    stretch = edited(tmp_path, Edit(fit="stretch"), before, size=(64, 64))
    assert stretch.pixels == before.resize((64, 64), Image.Resampling.LANCZOS).tobytes()
    assert edited(tmp_path, Edit(fit="exact"), before).pixels == before.tobytes()
    with pytest.raises(BadRequest, match="has 128x64 pixels, not 64x64"):
        edited(tmp_path, Edit(fit="exact"), before, size=(64, 64))
    with pytest.raises(BadRequest, match="has 130x64 pixels, not 128x64"):
        edited(tmp_path, Edit(fit="exact"), photo(130, 64))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_the_mask_goes_where_its_picture_goes(tmp_path: Path, fit: str) -> None:
    shown = Image.merge("RGB", [spot()] * 3)
    image = edited(tmp_path, masked(tmp_path, fit=fit), shown, spot(), (192, 64))
    grey = Image.frombytes("RGB", (192, 64), image.pixels).convert("L")
    ours, theirs = Image.frombytes("L", grey.size, image.mask).getbbox(), grey.point([0] * 128 + [255] * 128).getbbox()
    assert ours is not None and theirs is not None
    assert all(abs(one - other) <= 1 for one, other in zip(ours, theirs, strict=True))
