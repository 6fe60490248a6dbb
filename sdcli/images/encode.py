"""RGB pixels to the bytes of a PNG, JPEG or WebP file that says how the picture was made.

Refuses to know where the bytes go. The text never makes it fail: the picture has been paid for by then.
What does not fit is left out, the JSON whole and the prompts from their ends.
"""

from __future__ import annotations

import dataclasses
import io

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdcli.images.metadata import Provenance, parameters_text, provenance_json, xmp_packet

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

LONGEST_SIDE = {".png": 2**31 - 1, ".jpg": 65500, ".jpeg": 65500, ".webp": 16383}
"""Pixels along a side that the formats, and libjpeg, can hold."""

PNG_TEXT_CAP = 2**20 - 2**10
"""Bytes of one text; readers, Pillow among them, stop at 1 MiB a chunk."""

EXIF_TEXT_CAP = 65000
"""Bytes of both texts; JPEG's APP1 segment holds 65533 with all else that EXIF needs."""

_EXIF_FOLDER, _USER_COMMENT, _IMAGE_DESCRIPTION = 0x8769, 0x9286, 0x010E
_QUALITY = 95
_FEWEST_KEPT = 16


def encode_picture(
    pixels: bytes, width: int, height: int, suffix: str, provenance: Provenance, *, edited: bool, keep_text: bool
) -> bytes:
    """The bytes of a picture file. `pixels` is RGB, height x width x 3; `suffix` is one of SUFFIXES.

    PNG and WebP keep every pixel as it is; JPEG is of quality 95 with full colour resolution. `keep_text`
    writes A1111's `parameters` and our JSON: as PNG text `parameters` and `sdcli`, or as EXIF UserComment
    and ImageDescription. The XMP mark that the picture is generated (or `edited`) is always there.
    Raises ValueError if the pixels do not fill the size.
    """
    image = Image.frombytes("RGB", (width, height), pixels)
    xmp = xmp_packet(edited)
    written = io.BytesIO()
    if suffix == ".png":
        image.save(written, "PNG", pnginfo=_png_text(xmp, provenance if keep_text else None))
        return written.getvalue()
    exif = _exif(provenance) if keep_text else b""
    if suffix == ".webp":
        image.save(written, "WEBP", lossless=True, exif=exif, xmp=xmp.encode())
    else:
        image.save(written, "JPEG", quality=_QUALITY, subsampling="4:4:4", exif=exif, xmp=xmp.encode())
    return written.getvalue()


def _png_text(xmp: str, provenance: Provenance | None) -> PngInfo:
    # Never compressed: Pillow takes a long text that was for a bomb, and would not open our own picture.
    info = PngInfo()
    if provenance is not None:
        info.add_text("parameters", _fitting_parameters(provenance, PNG_TEXT_CAP, "utf-8"))
        record = provenance_json(provenance)
        if len(record.encode()) <= PNG_TEXT_CAP:
            info.add_itxt("sdcli", record)
    info.add_itxt("XML:com.adobe.xmp", xmp)
    return info


def _exif(provenance: Provenance) -> bytes:
    parameters = _fitting_parameters(provenance, EXIF_TEXT_CAP, "utf-16-be").encode("utf-16-be")
    record = provenance_json(provenance, ascii_only=True)
    exif = Image.Exif()
    if len(parameters) + len(record) <= EXIF_TEXT_CAP:
        exif[_IMAGE_DESCRIPTION] = record
    exif.get_ifd(_EXIF_FOLDER)[_USER_COMMENT] = b"UNICODE\0" + parameters
    return exif.tobytes()


def _fitting_parameters(provenance: Provenance, cap_bytes: int, encoding: str) -> str:
    """The text of the parameters in at most `cap_bytes`; the prompts give way, the settings stay if they can."""
    kept = max(len(provenance.prompt), len(provenance.negative))
    text = parameters_text(provenance)
    while len(text.encode(encoding)) > cap_bytes and kept > _FEWEST_KEPT:
        kept = kept * 3 // 4
        prompt, negative = _cut(provenance.prompt, kept), _cut(provenance.negative, kept)
        text = parameters_text(dataclasses.replace(provenance, prompt=prompt, negative=negative))
    return text.encode(encoding)[: cap_bytes // 2 * 2].decode(encoding, "ignore")


def _cut(text: str, kept: int) -> str:
    return text if len(text) <= kept else text[:kept] + "…"
