"""Pictures that the model is to go by: read, made small enough, and put beside the request."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sdcli.app.asked import Note, Tell
from sdcli.app.record import Task
from sdcli.errors import BadRequest, echo
from sdcli.families.registry import family_of

AREA, SIDE_LEAST = 1024 * 1024, 64
"""Pixels of such a picture at most, and along a side at least."""


def with_references(task: Task, files: Sequence[str], tell: Tell = lambda note: None) -> Task:
    """The task with these pictures. Raises BadRequest where its model takes none or fewer, and for one too small."""
    if not files:
        return task
    from sdcli.images import read  # here, because Pillow takes a third of the time that --help takes

    geometry = family_of(task.model).geometry(task.model)
    if not geometry.references:
        raise BadRequest(f"--ref {echo(files[0])}: this model goes by no pictures; leave it out, or give FLUX.2 klein")
    if len(files) > geometry.references:
        raise BadRequest(f"{len(files)} times --ref: this model goes by {geometry.references} pictures at most")
    read_all = [read.read_sized(Path(file), lambda own: _size(own, geometry.latent_factor)) for file in files]
    for file, image in zip(files, read_all, strict=True):
        if min(image.width, image.height) < SIDE_LEAST:
            raise BadRequest(f"--ref {echo(file)} has fewer than {SIDE_LEAST} pixels along a side: give a larger one")
        for note in image.notes:
            tell(Note(note, "warning"))
    request = replace(task.request, references=tuple((image.width, image.height) for image in read_all))
    return replace(task, request=request, references=b"".join(image.pixels for image in read_all))


def _size(own: tuple[int, int], multiple: int) -> tuple[int, int]:
    """As diffusers' pipelines do: at most AREA pixels, and what is over a multiple is cut off."""
    width, height = own
    if width * height > AREA:
        scale = math.sqrt(AREA / (width * height))
        width, height = int(width * scale), int(height * scale)
    return max(multiple, width // multiple * multiple), max(multiple, height // multiple * multiple)


def digests_of_references(task: Task) -> list[str]:
    """The sha256 of the pixels of each of these pictures."""
    found, at = list[str](), 0
    for width, height in task.request.references:
        begin, at = at, at + height * width * 3
        found.append(hashlib.sha256(task.references[begin:at]).hexdigest())
    return found
