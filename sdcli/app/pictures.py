"""Drawn pictures to files, with what they say of themselves."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdcli import __version__
from sdcli.app.hashes import FileHash
from sdcli.app.keeping import Save
from sdcli.app.record import RunRecord, Task, Wanted
from sdcli.app.references import digests_of_references
from sdcli.app.report import report
from sdcli.domain import Lora
from sdcli.families.tiny.parts import TINY
from sdcli.images.metadata import Provenance
from sdcli.messages import PictureDone
from sdcli.models.header import data_sha256


def saving(task: Task, wanted: Wanted) -> Save:
    """What saves the task's pictures as they are wanted, each as it comes."""
    from sdcli.images.encode import encode_picture  # here, because Pillow takes a third of the time that --help takes

    destination, keep_text = wanted.destination, wanted.keep_text
    sha256 = FileHash(task.model)
    init_sha256 = hashlib.sha256(task.pixels).hexdigest() if task.request.strength is not None else None
    loras = [_told(lora) for lora in task.model.loras] if keep_text else []
    embeddings = digests(task.model.sources.embeddings) if keep_text else {}

    def save(picture: PictureDone, record: RunRecord) -> str | None:
        data = encode_picture(
            picture.payload,
            picture.width,
            picture.height,
            destination.suffix,
            replace(
                provenance(record, picture, init_sha256, sha256(), loras, embeddings),
                receipt=receipt(record) if wanted.receipt else None,
            ),
            edited=task.request.strength is not None,
            keep_text=keep_text,
        )
        again = picture.image in record.folder.placing
        return destination.save(data, picture.image, picture.seed, task.request.prompt, again)

    return save


def receipt(record: RunRecord) -> dict[str, Any]:
    """What the run took until now: ceiling and peaks in bytes, its plan in short, seconds."""
    memory = report(record)["memory"]
    plan = record.planned.plan if record.planned else None
    return {
        **{name: value for name, value in memory.items() if name == "limit_bytes" or "peak" in name},
        "plan": None if plan is None else f"{plan.residency}, {plan.guidance}",
        "seconds": round(time.monotonic() - record.began, 2),
    }


def _told(lora: Lora) -> dict[str, Any]:
    return {
        "name": lora.name,
        "weight": lora.weight,
        "sha256": data_sha256(lora.file),
        "file": str(lora.file.path),
    }


def digests(paths: Iterable[str]) -> dict[str, str]:
    """The sha256 of each file, by its name without the suffix: some kilobytes each. None of one that has gone."""
    found = {}
    for path in map(Path, paths):
        with suppress(OSError), path.open("rb") as file:
            found[path.stem] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def provenance(
    record: RunRecord,
    picture: PictureDone,
    init_sha256: str | None,
    model_sha256: str | None,
    loras: list[dict[str, Any]] | None = None,
    embeddings: Mapping[str, str] | None = None,
) -> Provenance:
    """Everything needed for the same picture again."""
    task, request = record.task, record.task.request
    return Provenance(
        prompt=request.prompt if task.written is None else task.written,
        negative=request.negative,
        steps=request.steps,
        sampler=request.sampler or task.model.parts["scheduler"].class_name,
        guidance=request.guidance,
        seed=picture.seed,
        width=request.width,
        height=request.height,
        model=task.model.ref,
        model_sha256=model_sha256,
        model_digest=task.model.digest,
        parts=task.model.sources.parts,
        embeddings=task.model.sources.embeddings,
        prediction=task.model.sources.prediction,
        clip_skip=request.clip_skip,
        strength=request.strength,
        init_sha256=init_sha256,
        device=task.device,
        dtype=record.denoised_in.get(picture.image, task.dtype),
        sdcli_version=__version__,
        torch_version=record.torch_version,
        loras=loras or [],
        embedding_sha256=embeddings or {},
        schedule=request.schedule,
        emphasis=request.emphasis,
        reference_sha256=digests_of_references(task),
        original_size=_joined("x", request.original_size),
        crop=_joined(",", request.crop if any(request.crop) else None),
        target_size=_joined("x", request.target_size),
        hires=None if request.hires is None else dataclasses.asdict(request.hires),
        decoder="tiny" if TINY.name in task.model.parts else None,
        **_editing(task),
    )


def _joined(mark: str, pair: tuple[int, int] | None) -> str | None:
    return None if pair is None else f"{pair[0]}{mark}{pair[1]}"


def _editing(task: Task) -> dict[str, Any]:
    """How the init image came to its size, and what of it was to change."""
    edit = task.edit
    if edit is None or not task.mask:
        return {} if edit is None else {"fit": edit.fit, "background": _colour(edit.background)}
    from sdcli.images.read import ALPHA  # here, because Pillow takes a third of the time that --help takes

    return {
        "fit": edit.fit,
        "background": _colour(edit.background),
        "mask": None if edit.mask is None else "alpha" if edit.mask == ALPHA else "picture",
        "mask_sha256": hashlib.sha256(task.mask).hexdigest(),
        "mask_blur": edit.blur,
        "invert_mask": edit.invert,
        "inpaint_area": edit.area,
        "mask_padding": None if task.canvas is None else task.canvas.padding,
        "outpaint": [*edit.outpaint] if any(edit.outpaint) else None,
    }


def _colour(background: tuple[int, int, int]) -> str | None:
    """As an option takes it; None is white, which nobody need say."""
    return None if background == (255, 255, 255) else "#{:02x}{:02x}{:02x}".format(*background)
