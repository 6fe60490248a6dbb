"""What a picture says about how it was made: A1111's text, our own JSON, and the mark that it is generated.

Builds text and nothing else: refuses to know files, formats and limits of size.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SCHEMA = "sdcli.image/1"
HASH_CHARACTERS = 10
"""Of the model's sha256, as A1111 shows it."""

LORA_CHARACTERS = 12
"""The same of a LoRA's, and of a file of textual inversion."""

_AREAS = {"whole": "Whole picture", "masked": "Only masked"}
"""As A1111 calls them."""

_UPSCALERS = {"latent": "Latent", "lanczos": "Lanczos"}
"""Likewise."""

_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_XMP = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    Iptc4xmpExt:DigitalSourceType="{source_type}"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Everything that the same picture needs again. `strength` and `init_sha256` are None for txt2img.

    `sampler` is the scheduler's class name, `model` the reference as it was given, with other `parts` than its own by
    their names, `model_digest` that of its configs and weights' headers, `seed` this picture's own.
    """

    prompt: str
    negative: str
    steps: int
    sampler: str
    guidance: float
    seed: int
    width: int
    height: int
    model: str
    model_sha256: str | None
    model_digest: str
    parts: Mapping[str, str]
    embeddings: Sequence[str]
    prediction: str | None
    clip_skip: int | None
    strength: float | None
    device: str
    dtype: str
    sdcli_version: str
    torch_version: str
    init_sha256: str | None
    loras: list[dict[str, Any]] = field(default_factory=list)
    """What changed the model: `name`, `weight`, the `sha256` of its tensors, and its `file`."""
    embedding_sha256: Mapping[str, str] = field(default_factory=dict)
    """That of each file of `embeddings`, by the name that it has without its suffix."""
    schedule: str | None = None
    """Of noise levels; None is the model's own."""
    emphasis: str = "a1111"
    """Whose way weights of words went."""
    reference_sha256: list[str] = field(default_factory=list)
    """Of the pixels of each picture to go by."""
    fit: str | None = None
    """How an init image came to its size."""
    mask: str | None = None
    """`alpha`, where what was transparent in the init image changed, or `picture`; None where margins alone did."""
    mask_sha256: str | None = None
    mask_blur: int | None = None
    """Pixels, where there is a mask."""
    inpaint_area: str | None = None
    """`masked` where no more than that and so many pixels around it was drawn, at `width` and `height`; or `whole`."""
    mask_padding: int | None = None
    invert_mask: bool | None = None
    outpaint: list[int] | None = None
    """Margins that were drawn, left, above, right and below. With a `whole` picture they are part of its size."""
    original_size: str | None = None
    """Width and height, as in 640x480, that the denoiser was told besides the picture's own."""
    crop: str | None = None
    """X,Y of what it was told was cut off."""
    target_size: str | None = None
    background: str | None = None
    """What transparency of the init image was laid on, as #rrggbb; None is white."""
    hires: dict[str, Any] | None = None
    """The second round of steps: `width` and `height`, `steps`, `strength` and `upscaler`."""
    decoder: str | None = None
    """`tiny`, where that and not the model's own made the picture; it is among the `parts`."""
    receipt: dict[str, Any] | None = None
    """What it took, if that is to be told: ceiling and peaks in bytes, `plan`, and `seconds` until it was drawn."""


def parameters_text(p: Provenance) -> str:
    """The text that A1111 writes and other tools read: prompt, negative prompt, one line of settings.

    The format has no escapes within a prompt: one that itself holds a line of settings can be read wrongly.
    `provenance_json` has no such trouble.
    """
    settings: dict[str, str | None] = {
        "Steps": str(p.steps),
        "Sampler": p.sampler,
        "Schedule type": p.schedule and p.schedule.capitalize(),
        "CFG scale": _number(p.guidance),
        "Seed": str(p.seed),
        "Size": f"{p.width}x{p.height}",
        "Model hash": p.model_sha256[:HASH_CHARACTERS] if p.model_sha256 else None,
        "Model": p.model,
        "Clip skip": None if p.clip_skip is None else str(p.clip_skip),
        "Lora hashes": ", ".join(f"{one['name']}: {one['sha256'][:LORA_CHARACTERS]}" for one in p.loras) or None,
        "TI hashes": ", ".join(f"{name}: {sha256[:LORA_CHARACTERS]}" for name, sha256 in p.embedding_sha256.items())
        or None,
        "Denoising strength": None if p.strength is None else _number(p.strength),
        **_hires(p),
        "Mask blur": None if p.mask_blur is None else str(p.mask_blur),
        "Inpaint area": None if p.inpaint_area is None else _AREAS[p.inpaint_area],
        "Masked area padding": None if p.mask_padding is None else str(p.mask_padding),
        # The noise is drawn on the CPU whatever the device.
        "RNG": "CPU",
        "Version": f"sdcli {p.sdcli_version}",
    }
    lines = [p.prompt]
    if p.negative:
        lines.append(f"Negative prompt: {p.negative}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in settings.items() if value is not None))
    return _storable("\n".join(lines))


def _hires(p: Provenance) -> dict[str, str]:
    """As A1111 has it, whose strength is the second round's: of img2img the first one's has that name."""
    if p.hires is None:
        return {}
    width, height = p.hires["width"], p.hires["height"]
    times = width / p.width
    by_factor = round(p.height * times) == height
    named = {
        "Hires upscale": _number(times) if by_factor else None,
        "Hires resize": None if by_factor else f"{width}x{height}",
        "Hires steps": str(p.hires["steps"]),
        "Hires upscaler": _UPSCALERS[p.hires["upscaler"]],
    }
    strength = _number(p.hires["strength"])
    named["Denoising strength" if p.strength is None else "Hires denoising strength"] = strength
    return {name: value for name, value in named.items() if value is not None}


def provenance_json(p: Provenance, *, ascii_only: bool = False) -> str:
    """One JSON object: `schema`, then the fields of Provenance by their names and in their order.

    With `ascii_only` other characters are escaped; the object is the same.
    """
    table = {key: _storable(value) if isinstance(value, str) else value for key, value in dataclasses.asdict(p).items()}
    return json.dumps({"schema": SCHEMA, **table}, ensure_ascii=ascii_only)


def xmp_packet(edited: bool) -> str:
    """XMP with IPTC's DigitalSourceType: made by a model, or `edited` by one from a given picture."""
    kind = "compositeWithTrainedAlgorithmicMedia" if edited else "trainedAlgorithmicMedia"
    return _XMP.format(source_type=_SOURCE_TYPE + kind)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",:\n\r") else value


def _storable(text: str) -> str:
    """`text` without what no text chunk can hold, NUL and lone surrogates: the picture must not be lost to them."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
