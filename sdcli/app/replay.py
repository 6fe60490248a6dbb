"""From what a picture says of itself to options that draw it again, and what is not known of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcli.app.asked import Note, Tell
from sdcli.app.loras import without_tags
from sdcli.app.on_disk import refs_on_disk
from sdcli.app.pictures import digests
from sdcli.app.record import Task
from sdcli.app.references import digests_of_references
from sdcli.errors import BadRequest, echo, printable
from sdcli.models.header import data_sha256
from sdcli.models.samplers import OWN, sampler_named, schedule_named
from sdcli.models.schedulers import FLOW_SCHEDULERS, SCHEDULERS

if TYPE_CHECKING:
    from sdcli.images.told import Told

INFO_SCHEMA = "sdcli.told/1"

WRITERS = {"sdcli": "sdcli", "a1111": "A1111, or a program that writes as it does", "comfyui": "ComfyUI"}

_PLAIN = ("prompt", "negative", "steps", "guidance", "seed", "width", "height", "model", "dtype")
_PERHAPS = (
    "clip_skip",
    "prediction",
    "strength",
    "schedule",
    "fit",
    "mask_blur",
    "invert_mask",
    "inpaint_area",
    "original_size",
    "crop",
    "target_size",
    "decoder",
    "background",
)
_ABOUT = {
    "schema",
    "sampler",
    "emphasis",
    "parts",
    "embeddings",
    "loras",
    "model_sha256",
    "model_digest",
    "init_sha256",
    "embedding_sha256",
    "reference_sha256",
    "mask",
    "mask_sha256",
    "mask_padding",
    "outpaint",
    "hires",
    "receipt",
}
_ABOUT |= {"device", "sdcli_version", "torch_version", *_PLAIN, *_PERHAPS}


@dataclass(slots=True)
class Replay:
    """Options by name, as texts or lists of them; and lines about what is not known."""

    options: dict[str, Any] = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)
    """Each with the name of the option that would do in place of what is not known, if any."""

    def note(self, what: str, option: str = "") -> None:
        """Add a line."""
        self.notes.append((option, what))


def replay_of(told: Told, given: Collection[str] = ()) -> Replay:
    """What draws the picture again, as far as it says so. Raises BadRequest for a record that lacks what is not `given`
    as an option."""
    found = _of_ours(told.record, given) if told.writer == "sdcli" else _of_others(told)
    found.options.setdefault("count", "1")
    return found


def _of_ours(record: Mapping[str, Any], given: Collection[str]) -> Replay:
    """Of our own JSON (images/metadata.py)."""
    found = Replay({name: str(record[name]) for name in _PLAIN if isinstance(record.get(name), str | int | float)})
    lacking = [name for name in _PLAIN if name not in found.options and name not in given]
    if lacking:
        how = "it as an option" if len(lacking) == 1 else "these as options"
        raise BadRequest(f"the picture's record lacks {', '.join(lacking)}: it was changed; give {how}")
    found.options |= {name: str(record[name]) for name in _PERHAPS if record.get(name) is not None}
    found.options["prompt"] = without_tags(found.options.get("prompt", ""))
    # before there was a choice, brackets were words
    found.options["emphasis"] = str(record.get("emphasis", "none"))
    sampler = str(record.get("sampler"))
    if sampler in {**SCHEDULERS, **FLOW_SCHEDULERS}:
        found.options["sampler"] = OWN
    else:
        _take_sampler(found, sampler)
    parts, loras = record.get("parts"), record.get("loras")
    if isinstance(parts, dict):
        found.options |= {f"part {name}": str(path) for name, path in parts.items()}
    embeddings = record.get("embeddings")
    found.options["embeddings"] = [str(path) for path in embeddings] if isinstance(embeddings, list) else []
    told_of = [one for one in loras if isinstance(one, dict)] if isinstance(loras, list) else []
    found.options["loras"] = [] if "loras" in given else [_lora(one) for one in told_of]
    _take_edit(found, record)
    _take_hires(found, record)
    for key in record:
        if key not in _ABOUT:
            found.note(f"{printable(key)[:40]} is not known here")
    return found


def _take_edit(found: Replay, record: Mapping[str, Any]) -> None:
    """What of an init image changed. Margins that were drawn come to its size again."""
    if record.get("mask") == "alpha":
        found.options["mask"] = "alpha"
    margins = record.get("outpaint")
    if not isinstance(margins, list) or len(margins) != 4 or not all(isinstance(one, int) for one in margins):
        return
    found.options["outpaint"] = ",".join(map(str, margins))
    if record.get("inpaint_area") == "whole":
        for name, both in (("width", margins[::2]), ("height", margins[1::2])):
            side = found.options.get(name, "")
            found.options[name] = str(int(side) - sum(both)) if side.isdecimal() else side


def _take_hires(found: Replay, record: Mapping[str, Any]) -> None:
    """The second round of steps."""
    hires = record.get("hires")
    if not isinstance(hires, dict):
        return
    found.options["hires"] = f"{hires.get('width')}x{hires.get('height')}"
    for name in ("steps", "strength", "upscaler"):
        if name in hires:
            found.options[f"hires_{name}"] = str(hires[name])


def _take_their_hires(found: Replay) -> None:
    """A1111's: the strength is that of its second round, and of its upscalers the one that is nearest is taken."""
    options = found.options
    if "hires" not in options:
        return
    sides = options["hires"].lower().split("x")
    if "0" in sides or options.get("hires_steps") == "0":
        options.pop("hires_steps", None)
    if "0" in sides:
        options.pop("hires_upscaler", None)
        found.note(
            f"it was enlarged to {echo(options.pop('hires'))}, a side of which is not told: give --hires", "hires"
        )
        return
    if "strength" in options:
        options["hires_strength"] = options.pop("strength")
    upscaler = options.pop("hires_upscaler", "Latent")
    options["hires_upscaler"] = "latent" if upscaler.startswith("Latent") else "lanczos"
    if upscaler not in ("Latent", "Lanczos"):
        found.note(f"its upscaler {echo(upscaler)} is not here: {options['hires_upscaler']} is taken", "hires_upscaler")


def require_given(told: Told, given: Mapping[str, Any]) -> None:
    """Raise BadRequest where pictures that this one was drawn from are not `given`: it does not hold them."""
    record = told.record
    lacking = []
    if given["init"] is None and record.get("init_sha256") is not None:
        lacking.append("that as --init")
    if given["mask"] is None and record.get("mask") == "picture":
        lacking.append("its mask as --mask")
    references = record.get("reference_sha256")
    if isinstance(references, list) and references and not given["references"]:
        lacking.append("what it went by as --ref" + f", {len(references)} times" * (len(references) > 1))
    if lacking:
        raise BadRequest(f"the picture was drawn from another one, which it does not hold: give {', '.join(lacking)}")


def _lora(one: Mapping[str, Any]) -> str:
    """A LoRA as the option takes it, by its file."""
    file = one.get("file")
    if not isinstance(file, str):
        raise BadRequest(f"the picture names the LoRA {echo(one.get('name'))} and not its file: give --lora")
    return f"{file}:{one.get('weight', 1)}"


def _of_others(told: Told) -> Replay:
    found = Replay(dict(told.values))
    size = found.options.pop("size", "").partition("x")
    if all(size):
        found.options |= {"width": size[0], "height": size[2]}
    else:
        found.note("its size is not known: the file's is taken", "width")
        found.options |= {"width": str(told.width), "height": str(told.height)}
    schedule = found.options.pop("schedule", None)
    if "sampler" in found.options:
        _take_sampler(found, found.options.pop("sampler"))
    if schedule is not None:
        try:
            found.options["schedule"] = schedule_named(schedule)
        except BadRequest:
            found.note(f"its schedule {echo(schedule)} is not known: the model's own is taken", "schedule")
    found.options["emphasis"] = "comfy" if told.writer == "comfyui" else "a1111"
    _take_model(found)
    _take_their_hires(found)
    if "strength" in found.options:
        found.note("it was drawn from another picture: give that as --init, or it is drawn from words", "init")
    if told.unknown:
        names = ", ".join(printable(key)[:40] for key in list(told.unknown)[:12])
        found.note(f"not honoured: {names}{' and more' if len(told.unknown) > 12 else ''}")
    found.note("other programs draw noise in other ways: expect another picture of the same kind")
    return found


def _take_sampler(found: Replay, name: str) -> None:
    """The sampler, and the schedule that its name has with it."""
    try:
        sampler, schedule = sampler_named(name)
    except BadRequest:
        found.note(f"its sampler {echo(name)} is not known: the model's own is taken", "sampler")
        return
    found.options["sampler"] = sampler
    if schedule is not None:
        found.options.setdefault("schedule", schedule)


def _take_model(found: Replay) -> None:
    """The model on this disk by the name that others give it: a file's, without folders and suffix."""
    name = found.options.pop("model", None)
    if name is None:
        found.note("its model is not known", "model")
        return
    wanted = Path(name.replace("\\", "/")).name.removesuffix(".safetensors").removesuffix(".ckpt")
    matching = [ref for ref in refs_on_disk() if Path(ref).name.removesuffix(".safetensors") == wanted]
    if matching:
        found.options["model"] = matching[0]
    else:
        found.note(f"its model {echo(wanted)} is not on this disk: give --model", "model")


def compare(told: Told, task: Task, tell: Tell) -> None:
    """Tell what makes the picture another one than that which says so of itself."""
    record = told.record
    if not record:
        return
    import hashlib

    def differs(key: str, now: object) -> bool:
        return record.get(key) is not None and record.get(key) != now

    if differs("model_digest", task.model.digest):
        tell(Note(f"the model {echo(task.model.ref)} is not the one that drew the picture", "warning"))
    if task.pixels and differs("init_sha256", hashlib.sha256(task.pixels).hexdigest()):
        tell(Note("the init image is not the one that the picture was drawn from", "warning"))
    if task.mask and differs("mask_sha256", hashlib.sha256(task.mask).hexdigest()):
        tell(Note("the mask is not the one that the picture was drawn with", "warning"))
    if task.references and differs("reference_sha256", digests_of_references(task)):
        tell(Note("the pictures to go by are not those that the picture was drawn with", "warning"))
    if differs("device", task.device) or differs("dtype", task.dtype):
        drawn = f"{record.get('device')} in {record.get('dtype')}"
        tell(Note(f"the picture was drawn on {printable(drawn)[:40]}: the same is drawn up to rounding", "warning"))
    was = record.get("embedding_sha256")
    for name, digest in digests(task.model.sources.embeddings).items():
        if isinstance(was, dict) and was.get(name, digest) != digest:
            tell(Note(f"the embedding {echo(name)} is not the one that the picture was drawn with", "warning"))
    for lora in task.model.loras:
        loras = record.get("loras")
        loras = loras if isinstance(loras, list) else []
        told_of = [one for one in loras if isinstance(one, dict) and one.get("name") == lora.name]
        if told_of and told_of[0].get("sha256") not in (None, data_sha256(lora.file)):
            tell(Note(f"the LoRA {echo(lora.name)} is not the one that the picture was drawn with", "warning"))


def info_report(path: str, told: Told) -> dict[str, Any]:
    """The JSON of what a picture says of itself."""
    said = {key: value for key, value in (told.record or told.values).items() if key != "schema"}
    return {
        "schema": INFO_SCHEMA,
        "path": path,
        "format": told.format,
        "width": told.width,
        "height": told.height,
        "writer": told.writer,
        "said": said,
        "unknown": dict(told.unknown),
    }
