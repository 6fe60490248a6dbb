"""Any picture that PNG, JPEG or WebP can hold, as opaque RGB.

Refuses to know where it came from. Two of Pillow's own conversions are wrong for us and done here: it
clips 16-bit grey to white, and it uncovers whatever colour lies under transparent pixels.
"""

from __future__ import annotations

import re

from PIL import Image, ImageColor

from sdcli.errors import BadRequest, echo
from sdcli.images.profile import PLAIN, Profile

Colour = tuple[int, int, int]

BACKGROUND: Colour = (255, 255, 255)
BLACK: Colour = (0, 0, 0)


def to_rgb(image: Image.Image, background: Colour = BACKGROUND, profile: Profile = PLAIN) -> Image.Image:
    """`image` in mode RGB and of its own size, its colours by its `profile`: 16-bit grey by its high bytes, what is
    transparent on the `background`."""
    if image.mode.startswith("I"):
        return _from_16_bit_grey(image, background, profile)
    if not image.has_transparency_data:
        return profile.applied(image if image.mode in ("RGB", "L", "CMYK") else _plain(image))
    key = image.info.get("transparency")
    # The pixels of a 16-bit RGB file come as their high bytes, its transparent colour does not.
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        image.info["transparency"] = tuple(value >> 8 for value in key)
    whole = image.convert("RGBA")
    colours = image.getchannel("L") if image.mode == "LA" else whole.convert(colours_of(image))
    return _on_background(profile.applied(colours), whole.getchannel("A"), background)


def colours_of(image: Image.Image) -> str:
    """The mode that its colours are in, RGB, L or CMYK, whatever it has besides."""
    if image.mode in ("1", "L", "LA") or image.mode.startswith("I"):
        return "L"
    return "CMYK" if image.mode == "CMYK" else "RGB"


def _plain(image: Image.Image) -> Image.Image:
    return image.convert(colours_of(image))


def alpha_of(image: Image.Image) -> Image.Image | None:
    """How opaque each pixel is, 0 to 255; None for a picture that has no transparency. Call it after `to_rgb`."""
    if image.mode.startswith("I"):
        key = image.info.get("transparency")
        wide = image.convert("I") if isinstance(key, int) else None
        return wide and wide.point([0 if value == key else 255 for value in range(2**16)], "L")
    return image.convert("RGBA").getchannel("A") if image.has_transparency_data else None


def _from_16_bit_grey(image: Image.Image, background: Colour, profile: Profile) -> Image.Image:
    """The high byte of every pixel, where Pillow's own conversion clips all above 255 to white."""
    wide = image.convert("I")
    grey = profile.applied(wide.point([value >> 8 for value in range(2**16)], "L"))
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return grey
    return _on_background(grey, wide.point([0 if value == key else 255 for value in range(2**16)], "L"), background)


def _on_background(image: Image.Image, alpha: Image.Image, background: Colour) -> Image.Image:
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(image, mask=alpha)
    return canvas


def colour_named(name: str) -> Colour:
    """A colour by its name in CSS, or as #rrggbb. Raises BadRequest for what is none."""
    plain = name.strip().lower()
    if re.fullmatch(r"#[0-9a-f]{3}|#[0-9a-f]{6}|[a-z]{3,20}", plain):
        try:
            red, green, blue, *_ = ImageColor.getrgb(plain)
        except ValueError:
            pass
        else:
            return red, green, blue
    raise BadRequest(f"{echo(name)} is no colour: give a name, as in white, or #rrggbb")
