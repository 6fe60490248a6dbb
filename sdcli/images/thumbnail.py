"""A picture made small, as a JPEG of some kilobytes."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

SIDE = 320
"""Pixels of the longer side, at most."""


def thumbnail(path: Path) -> bytes | None:
    """Of a picture that we have written; None if it cannot be read any more."""
    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    small.thumbnail((SIDE, SIDE))
    written = io.BytesIO()
    small.save(written, "JPEG", quality=82)
    return written.getvalue()
