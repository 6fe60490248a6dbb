"""Colour profiles: a picture's colours as sRGB has them, by LittleCMS, which Pillow brings (ImageCms).

A profile is written by whoever wrote the picture. One that is damaged, or of other colours than the picture's, is
passed over, and that is said; one that changes no colour by more than rounding leaves every bit as it is.
"""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageChops

from sdcli.units import MIB

PROFILE_CAP = 4 * MIB
"""Bytes of a profile at most: those of printing presses have up to 2 MiB."""

DAMAGED = "its colour profile is damaged"
TOO_LARGE = f"its colour profile has more than {PROFILE_CAP // MIB} MiB"

_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Colours that a profile may be of, as it calls them, and pictures that have them."""

_ROUNDING = 1
"""Of 255, by which an sRGB profile may change a colour: there are a dozen of them, each with its own rounding."""

_LEVELS = (0, 16, 32, 64, 96, 128, 160, 192, 224, 255)


@dataclass(frozen=True, slots=True)
class Profile:
    """What makes sRGB of a picture's colours: of one of `mode`, RGB, L or CMYK. None of one that changes nothing."""

    mode: str = ""
    transform: Any = None

    def applied(self, image: Image.Image) -> Image.Image:
        """The picture in RGB; one of other colours is converted by the plain formulas."""
        if self.transform is None or image.mode != self.mode:
            return image.convert("RGB")
        converted: Image.Image | None = self.transform.apply(image)
        return converted if converted is not None else image.convert("RGB")


PLAIN = Profile()
"""Of a picture that says nothing: it is sRGB."""


def profile_of(data: bytes | None, mode: str) -> tuple[Profile, str | None]:
    """The profile for a picture that is in RGB, L or CMYK as it is converted, and what is to be said of it, if any."""
    if not data:
        return PLAIN, None
    if len(data) > PROFILE_CAP:
        return PLAIN, TOO_LARGE
    from PIL import ImageCms  # here, because few pictures need it

    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        space = _SPACES.get(profile.profile.xcolor_space, "")
        if space != mode:
            return PLAIN, "its colour profile is of other colours than the picture's"
        transform = ImageCms.buildTransform(
            profile,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        changes = _changes(transform, mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError, MemoryError):
        return PLAIN, DAMAGED
    return (Profile(mode, transform) if changes else PLAIN), None


def _changes(transform: Any, mode: str) -> bool:
    """Whether any colour of a grid comes out as another one than by the plain formula."""
    if mode == "CMYK":  # which the plain formula has nothing of a press for
        return True
    colours = list(itertools.product(_LEVELS, repeat=len(mode)))
    grid = Image.frombytes(mode, (len(colours), 1), bytes(itertools.chain.from_iterable(colours)))
    apart = ImageChops.difference(transform.apply(grid), grid.convert("RGB"))
    return max(apart.tobytes()) > _ROUNDING
