"""From latents to colours by a linear map, for previews: numbers that belong to an autoencoder. No torch.

Those of models that people name are ComfyUI's (comfy/latent_formats.py, `latent_rgb_factors`), where latents are as the
denoiser knows them and colours go from -1 to 1; those of the built-in model were fitted (benchmarks/latent_rgb.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

Colour = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Colours:
    """Red, green and blue that a channel adds, and what is there without any; latents may be patches of so many."""

    channels: tuple[Colour, ...]
    constant: Colour = (0.0, 0.0, 0.0)
    patch: int = 1


SD = Colours(
    ((0.3512, 0.2297, 0.3227), (0.3250, 0.4974, 0.2350), (-0.2829, 0.1762, 0.2721), (-0.2120, -0.2616, -0.7177))
)

SDXL = Colours(
    ((0.3651, 0.4232, 0.4341), (-0.2533, -0.0042, 0.1068), (0.1076, 0.1111, -0.0362), (-0.3165, -0.2492, -0.2188)),
    (0.1084, -0.0175, -0.0011),
)

DEMO = Colours(
    (
        (-0.1759, -0.1614, 0.1925),
        (0.0775, 0.0193, 0.0903),
        (0.1916, 0.1074, -0.1610),
        (0.6322, 0.1416, -0.2102),
        (-0.0137, -0.1339, 0.1452),
        (0.0663, 0.0172, 0.0310),
        (0.1682, -0.2853, -0.4476),
        (0.1382, 0.0064, -0.0896),
    ),
    (0.1783, 0.0475, -0.0773),
)

FLUX = Colours(
    (
        (-0.0346, 0.0244, 0.0681),
        (0.0034, 0.0210, 0.0687),
        (0.0275, -0.0668, -0.0433),
        (-0.0174, 0.0160, 0.0617),
        (0.0859, 0.0721, 0.0329),
        (0.0004, 0.0383, 0.0115),
        (0.0405, 0.0861, 0.0915),
        (-0.0236, -0.0185, -0.0259),
        (-0.0245, 0.0250, 0.1180),
        (0.1008, 0.0755, -0.0421),
        (-0.0515, 0.0201, 0.0011),
        (0.0428, -0.0012, -0.0036),
        (0.0817, 0.0765, 0.0749),
        (-0.1264, -0.0522, -0.1103),
        (-0.0280, -0.0881, -0.0499),
        (-0.1262, -0.0982, -0.0778),
    ),
    (-0.0329, -0.0718, -0.0851),
)
"""Of FLUX.1's autoencoder, which is Z-Image's."""

FLUX2 = Colours(
    (
        (0.0058, 0.0113, 0.0073),
        (0.0495, 0.0443, 0.0836),
        (-0.0099, 0.0096, 0.0644),
        (0.2144, 0.3009, 0.3652),
        (0.0166, -0.0039, -0.0054),
        (0.0157, 0.0103, -0.0160),
        (-0.0398, 0.0902, -0.0235),
        (-0.0052, 0.0095, 0.0109),
        (-0.3527, -0.2712, -0.1666),
        (-0.0301, -0.0356, -0.0180),
        (-0.0107, 0.0078, 0.0013),
        (0.0746, 0.0090, -0.0941),
        (0.0156, 0.0169, 0.0070),
        (-0.0034, -0.0040, -0.0114),
        (0.0032, 0.0181, 0.0080),
        (-0.0939, -0.0008, 0.0186),
        (0.0018, 0.0043, 0.0104),
        (0.0284, 0.0056, -0.0127),
        (-0.0024, -0.0022, -0.0030),
        (0.1207, -0.0026, 0.0065),
        (0.0128, 0.0101, 0.0142),
        (0.0137, -0.0072, -0.0007),
        (0.0095, 0.0092, -0.0059),
        (0.0000, -0.0077, -0.0049),
        (-0.0465, -0.0204, -0.0312),
        (0.0095, 0.0012, -0.0066),
        (0.0290, -0.0034, 0.0025),
        (0.0220, 0.0169, -0.0048),
        (-0.0332, -0.0457, -0.0468),
        (-0.0085, 0.0389, 0.0609),
        (-0.0076, 0.0003, -0.0043),
        (-0.0111, -0.0460, -0.0614),
    ),
    (-0.0329, -0.0718, -0.0851),
    patch=2,
)


def moved(colours: Colours, gains: Sequence[float], offsets: Sequence[float]) -> Colours:
    """For latents that come to those of `colours` by a gain and an offset for each channel."""
    rows = [tuple(gain * one for one in row) for gain, row in zip(gains, colours.channels, strict=True)]
    added = [sum(offsets[index] * row[colour] for index, row in enumerate(colours.channels)) for colour in range(3)]
    red, green, blue = (constant + more for constant, more in zip(colours.constant, added, strict=True))
    return replace(colours, channels=tuple((row[0], row[1], row[2]) for row in rows), constant=(red, green, blue))


def colours_for(channels: int, *known: Colours) -> Colours | None:
    """Of those that are `known`, the map for latents of so many channels, patches taken together."""
    return next((one for one in known if len(one.channels) * one.patch**2 == channels), None)
