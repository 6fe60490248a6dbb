"""Any picture that PNG, JPEG or WebP can hold, as opaque RGB.

Refuses to know where it came from. Two of Pillow's own conversions are wrong for us and done here: it
clips 16-bit grey to white, and it uncovers whatever colour lies under transparent pixels.
"""

from __future__ import annotations

from PIL import Image

BACKGROUND = (255, 255, 255)


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` in mode RGB and of its own size: 16-bit grey by its high bytes, transparency on BACKGROUND."""
    if image.mode.startswith("I"):
        return _from_16_bit_grey(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    key = image.info.get("transparency")
    # The pixels of a 16-bit RGB file come as their high bytes, its transparent colour does not.
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        image.info["transparency"] = tuple(value >> 8 for value in key)
    whole = image.convert("RGBA")
    return _on_background(whole.convert("RGB"), whole.getchannel("A"))


def alpha_of(image: Image.Image) -> Image.Image | None:
    """How opaque each pixel is, 0 to 255; None for a picture that has no transparency. Call it after `to_rgb`."""
    if image.mode.startswith("I"):
        key = image.info.get("transparency")
        wide = image.convert("I") if isinstance(key, int) else None
        return wide and wide.point([0 if value == key else 255 for value in range(2**16)], "L")
    return image.convert("RGBA").getchannel("A") if image.has_transparency_data else None


def _from_16_bit_grey(image: Image.Image) -> Image.Image:
    """The high byte of every pixel, where Pillow's own conversion clips all above 255 to white."""
    wide = image.convert("I")
    grey = wide.point([value >> 8 for value in range(2**16)], "L").convert("RGB")
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return grey
    return _on_background(grey, wide.point([0 if value == key else 255 for value in range(2**16)], "L"))


def _on_background(image: Image.Image, alpha: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", image.size, BACKGROUND)
    canvas.paste(image, mask=alpha)
    return canvas
