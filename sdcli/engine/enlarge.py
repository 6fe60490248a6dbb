"""Between two rounds of steps: every picture's latents at the larger size, by themselves or by way of pixels."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sdcli.engine.decode import levels_of
from sdcli.engine.latents import Latents
from sdcli.engine.stage import Clock, blown_up, is_finite, not_finite
from sdcli.engine.work import Work
from sdcli.families.contract import Stage
from sdcli.messages import Message
from sdcli.spool import Spool

LOBES = 3
"""Of the Lanczos window, on each side."""


@dataclass(frozen=True, slots=True)
class Enlarged:
    """Latents, (1, channels, h, w), at the larger size; and the generator's state, if something was drawn from it."""

    latents: torch.Tensor
    generator: torch.Tensor | None = None


class ByLatents(Mapping[int, Enlarged]):
    """Latents enlarged bilinearly, each when it is asked for (A1111's upscaler Latent)."""

    def __init__(self, latents: Latents, work: Work) -> None:
        self._latents, self._size = latents, work.latents_shape[2:]

    def __getitem__(self, image: int) -> Enlarged:
        return Enlarged(F.interpolate(self._latents[image], size=self._size, mode="bilinear"))

    def __iter__(self) -> Iterator[int]:
        return iter(self._latents)

    def __len__(self) -> int:
        return len([*self._latents])


class ByPixels(Mapping[int, Enlarged]):
    """Latents of enlarged pictures: all but the last one's are in a file."""

    def __init__(self, work: Work) -> None:
        self._latents, self._generators = Latents(*work.latents_shape[1:]), Spool()

    def put(self, image: int, latents: torch.Tensor, generator: torch.Generator) -> None:
        """One picture's."""
        self._latents[image] = latents
        self._generators[image] = generator.get_state().numpy().tobytes()

    def __getitem__(self, image: int) -> Enlarged:
        state = torch.frombuffer(bytearray(self._generators[image]), dtype=torch.uint8)
        return Enlarged(self._latents[image], state)

    def __iter__(self) -> Iterator[int]:
        return iter(self._latents)

    def __len__(self) -> int:
        return len(self._generators)


def to_pixels(work: Work, stage: Stage, latents: Latents, larger: Work) -> Generator[Message, None, Spool]:
    """Yields events; returns the pictures as 8-bit RGB of the larger size, all but the last one in a file."""
    clock, pictures, request = Clock(stage.name, work.device), Spool(), larger.request
    yield clock.began()
    with getattr(work.network, stage.function)(work.model, work.request, work.borrow(stage)) as run:
        yield clock.loaded()
        for image in sorted(latents):
            pixels = run(latents[image])
            if not is_finite(pixels):
                damaged = not_finite(stage.name, work.dtype, f"{stage.title}'s weights are damaged")
                raise blown_up(latents[image], stage.name) or damaged
            levels = lanczos(levels_of(pixels).float(), request.height, request.width)
            pictures[image] = levels.round_().clamp_(0, 255).to(torch.uint8).contiguous().numpy().tobytes()
            del pixels, levels
            work.device.between_blocks()
    yield clock.ended()
    return pictures


def to_latents(work: Work, stage: Stage, pictures: Spool) -> Generator[Message, None, ByPixels]:
    """Yields events; returns latents of the enlarged pictures, as img2img would begin with them."""
    clock, request, found = Clock(stage.name, work.device), work.request, ByPixels(work)
    yield clock.began()
    with getattr(work.network, stage.function)(work.model, request, work.borrow(stage)) as run:
        yield clock.loaded()
        for image in sorted(pictures):
            levels = torch.frombuffer(bytearray(pictures[image]), dtype=torch.uint8)
            rgb = levels.view(1, request.height, request.width, 3).permute(0, 3, 1, 2).float() / 127.5 - 1
            init = run({"pixels": {"rgb": rgb}})["init"]
            if not all(map(is_finite, init.values())):
                raise not_finite(stage.name, work.dtype, f"{stage.title}'s weights are damaged")
            generator = torch.Generator("cpu").manual_seed(request.seeds[image])
            found.put(image, work.network.start(work.model, init, generator), generator)
            work.device.between_blocks()
    yield clock.ended()
    return found


def lanczos(levels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A picture (h, w, 3) of 0 to 255 at a larger size, by the windowed sinc of three lobes, as Pillow's LANCZOS is.

    Pillow rounds between its two passes, and so does this.
    """
    across = torch.einsum("xw,hwc->hxc", _lanczos_weights(levels.shape[1], width), levels).round_().clamp_(0, 255)
    return torch.einsum("yh,hxc->yxc", _lanczos_weights(levels.shape[0], height), across)


def _lanczos_weights(old: int, new: int) -> torch.Tensor:
    """(new, old): what each old place gives to each new one."""
    centres = (torch.arange(new, dtype=torch.float64) + 0.5) * old / new
    apart = (torch.arange(old, dtype=torch.float64) + 0.5)[None] - centres[:, None]
    scaled = apart / max(1.0, old / new)
    weights = torch.where(scaled.abs() < LOBES, torch.sinc(scaled) * torch.sinc(scaled / LOBES), 0.0)
    return (weights / weights.sum(1, keepdim=True)).float()
