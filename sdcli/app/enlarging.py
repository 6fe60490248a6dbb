"""--hires: from what was asked for to a second round of steps at a larger size."""

from __future__ import annotations

from dataclasses import replace

from sdcli.app.asked import HIRES_STRENGTH, HIRES_UPSCALER, Asked, Note, Tell
from sdcli.domain import Hires, Model, Request
from sdcli.errors import BadRequest
from sdcli.families.registry import family_of
from sdcli.families.rounds import may_be_enlarged
from sdcli.models.samplers import scheduler_of
from sdcli.models.schedulers import possible_steps

SIDE_MOST, PIXELS_MOST = 8192, 4096 * 4096
"""Pixels along a side of an enlarged picture at most, and of all of it."""


def enlarged(asked: Asked, model: Model, request: Request, tell: Tell) -> Request:
    """The request with its second round, if one is asked for. Raises BadRequest for one that cannot be."""
    strength, steps, upscaler = asked.hires_strength, asked.hires_steps, asked.hires_upscaler
    if asked.hires is None:
        for option, said in {"strength": strength, "steps": steps, "upscaler": upscaler}.items():
            if said is not None:
                tell(Note(f"--hires-{option} has no effect without --hires", "warning"))
        return request
    if request.masked:
        raise BadRequest("--hires does not go with a mask: draw within the mask first, then img2img with --hires")
    if not may_be_enlarged(model, request):
        raise BadRequest("--hires does not go with this model, which was made for inpainting: give another --model")
    width, height = _size(asked.hires, request, family_of(model).geometry(model).side_multiple)
    steps, strength = request.steps if steps is None else steps, HIRES_STRENGTH if strength is None else strength
    request = replace(request, hires=Hires(width, height, steps, strength, upscaler or HIRES_UPSCALER))
    scheduler, of = scheduler_of(model, request), request.rounds[-1].steps
    possible = possible_steps(scheduler.class_name, scheduler.config)
    if of >= possible.stop:
        raise BadRequest(
            f"--hires-steps {steps} at --hires-strength {strength:g} are the last of {of}, more than the"
            f" {possible.stop - 1} that the model knows: give fewer, or more strength"
        )
    return request


def _size(asked: float | tuple[int, int], request: Request, multiple: int) -> tuple[int, int]:
    """Width and height: those that are asked for, or so many times the first ones, to the nearest that can be drawn."""
    if isinstance(asked, tuple):
        width, height = asked
        for side in asked:
            if side % multiple:
                below = side - side % multiple
                raise BadRequest(
                    f"--hires {width}x{height}: {side} is not a multiple of {multiple}, which this model needs:"
                    f" give {below or multiple} or {below + multiple}"
                )
    else:
        width, height = (round(side * asked / multiple) * multiple for side in (request.width, request.height))
    if width < request.width or height < request.height or (width, height) == (request.width, request.height):
        raise BadRequest(
            f"--hires makes it {width}x{height}, not larger than {request.width}x{request.height}: give more"
        )
    if max(width, height) > SIDE_MOST or width * height > PIXELS_MOST:
        wide = f"sides have at most {SIDE_MOST} pixels"
        most = wide if max(width, height) > SIDE_MOST else f"it may have {PIXELS_MOST / 10**6:.1f} megapixels"
        raise BadRequest(f"--hires makes it {width}x{height}, which is too large: {most}")
    return width, height
