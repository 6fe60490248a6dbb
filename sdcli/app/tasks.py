"""From what was asked for to a task with nothing left undecided. What was decided, and why, is told."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcli import machine
from sdcli.app.asked import MASK_BLUR, SEED_END, STRENGTH, Asked, Note, Tell
from sdcli.app.deciding import decided, decided_elsewhere
from sdcli.app.embeddings import embeddings_of, idle
from sdcli.app.enlarging import enlarged
from sdcli.app.loras import has_tags, loras_of, without_tags
from sdcli.app.record import Task
from sdcli.app.references import with_references
from sdcli.domain import Model, Request, Sources
from sdcli.errors import BadRequest, echo
from sdcli.families.prompts import is_marked
from sdcli.families.registry import family_of
from sdcli.families.tiny.parts import TINY
from sdcli.host.making import make_synthetic
from sdcli.models.few_steps import FewSteps, few_steps_of
from sdcli.models.reference import DEMO, resolve_model
from sdcli.models.samplers import OWN, no_effect, sampler_named, schedule_named, scheduler_of, times_in
from sdcli.models.schedulers import adds_noise, possible_steps
from sdcli.models.stamps import stamps_of
from sdcli.models.synthetic import is_outline
from sdcli.settings import Profile
from sdcli.units import format_size

if TYPE_CHECKING:
    from sdcli.images.read import InitImage

NO_MODEL = (
    "no --model given: this is the built-in demo, emoji on plain backgrounds; for Stable Diffusion 1.5 (2.1 GB):"
    " sdcli models pull stable-diffusion-v1-5/stable-diffusion-v1-5,"
    " then --model stable-diffusion-v1-5/stable-diffusion-v1-5"
)

KEYS_SHOWN = 12
"""Keys of a config that were passed over, as far as they are named."""


def prepare(asked: Asked, tell: Tell, debug: bool = False, posed: Profile | None = None) -> Task:
    """The task, to be planned for another machine if one is `posed` as.

    Raises BadRequest for what cannot be meant, SdcliError for files that cannot be used.
    """
    if asked.inpaint_area == "masked" and (asked.width is None or asked.height is None):  # the model knows its size
        model = find_model(asked, tell, debug)
        width, height = family_of(model).geometry(model).native_size
        image = read_init_of(replace(asked, width=asked.width or width, height=asked.height or height), tell)
    else:
        image = read_init_of(asked, tell)
        model = find_model(asked, tell, debug)
        image = _in_whole_patches(asked, model, image)
    task = task_of(asked, model, request_of(asked, model, image, tell), tell, image, debug, posed)
    return with_references(task, asked.references, tell)


def read_init_of(asked: Asked, tell: Tell) -> InitImage | None:
    """The init image, if any, at the size that is asked for; frames that are left out are told."""
    masks = asked.mask is not None or asked.outpaint is not None
    if not masks and (asked.invert_mask or asked.inpaint_area == "masked"):
        option = "--invert-mask" if asked.invert_mask else "--inpaint-area masked"
        raise BadRequest(f"{option} without a mask: give --mask IMAGE, --mask alpha or --outpaint")
    if not masks and asked.mask_blur != MASK_BLUR:
        tell(Note("--mask-blur has no effect without a mask", "warning"))
    if asked.init is None:
        if masks:
            raise BadRequest("a mask without a picture: give --init IMAGE")
        return None
    image = _read_init(asked, asked.init, 1)
    if image.frames > 1:
        tell(Note(f"{echo(asked.init)} has {image.frames} frames: the first one is used", "warning"))
    for note in image.notes:
        tell(Note(note, "warning"))
    return image


def _in_whole_patches(asked: Asked, model: Model, image: InitImage | None) -> InitImage | None:
    """The init image once more, where the model takes no sides in multiples of 8 and not both were asked for."""
    side = family_of(model).geometry(model).side_multiple
    if image is None or asked.init is None or not (image.width % side or image.height % side):
        return image
    return _read_init(asked, asked.init, side)


def _read_init(asked: Asked, init: str, side: int) -> InitImage:
    """The init image, and its mask if any, at the size that is asked for, else one in multiples of `side` and of 8."""
    from sdcli.images import fit, read  # here, because Pillow takes a third of the time that --help takes

    edit = read.Edit(
        fit=asked.fit,
        mask=asked.mask,
        blur=asked.mask_blur,
        invert=asked.invert_mask,
        area=asked.inpaint_area,
        outpaint=asked.outpaint or (0, 0, 0, 0),
        background=asked.background,
    )
    image = read.read_init(Path(init), asked.width, asked.height, edit, math.lcm(side, fit.SIDE_MULTIPLE))
    machine.trim_heap()
    return image


def find_model(asked: Asked, tell: Tell, debug: bool = False) -> Model:
    """The checked model: the built-in one if none is given; of a synthetic one that is not there yet its outline."""
    ref = asked.model
    if ref is None:
        ref = DEMO
        tell(Note(NO_MODEL))

    def make(name: str, folder: Path) -> None:
        make_synthetic(name, folder, lambda _: None, debug, outline=True)

    sources = Sources("", _parts_of(asked, tell), asked.prediction, embeddings_of(asked), loras_of(asked))
    model = resolve_model(ref, make, sources, outline=True)
    if TINY.name in model.parts:
        what = f"pictures come from the tiny autoencoder {echo(model.sources.parts[TINY.name])}: with fewer details"
        tell(Note(what))
    stamps_of(model)  # as its files are now
    if is_outline(model):
        size = format_size(sum(file.size_bytes for part in model.parts.values() for file in part.files))
        tell(Note(f"{model.ref} is not made yet: a picture that fits makes it first, {size} in your cache"))
    for note in model.notes:
        tell(Note(note))
    for file in asked.embeddings:
        words = [
            word for part in model.parts.values() for word in part.words if word.origin.path.name == Path(file).name
        ]
        own = [*dict.fromkeys(word.name for word in words)]
        if idle(own, asked):
            what = f"--embedding {echo(file)} has no effect: neither prompt has its word {' or '.join(map(echo, own))}"
            tell(Note(what, "warning"))
    for lora in model.loras:
        tell(Note(f"LoRA {echo(lora.name)}, {lora.weight:g} of it: {lora.changes} weights are changed", "detail"))
    return model


def _parts_of(asked: Asked, tell: Tell) -> dict[str, str]:
    """Where other parts than the model's own are, the tiny decoder only where it is wanted; empty is where it is pulled
    to."""
    parts = dict(asked.parts)
    if asked.decoder == "tiny":
        parts.setdefault(TINY.name, "")
    elif parts.pop(TINY.name, None) is not None:
        tell(Note("--tiny-decoder has no effect without --decoder tiny", "warning"))
    return parts


def request_of(asked: Asked, model: Model, image: InitImage | None, tell: Tell) -> Request:
    """The request. Raises BadRequest for what the model or a seed cannot do; what has no effect is told."""
    geometry = family_of(model).geometry(model)
    if geometry.edits and image is None:
        raise BadRequest(f"{echo(model.ref)} is {geometry.edits}: give one, as in sdcli img2img PROMPT --init IMAGE")
    _require_told(asked, geometry.told_sizes)
    defaults = geometry.defaults or family_of(model).defaults
    width, height = geometry.native_size if image is None else (image.width, image.height)
    if image is None:
        width = width if asked.width is None else asked.width
        height = height if asked.height is None else asked.height
    few = few_steps_of(model, geometry.takes_guidance)
    if few is not None:
        asked = _with_few(asked, few, tell)
    sampler, schedule = _sampler(asked, model, tell)
    request = Request(
        prompt=without_tags(asked.prompt),
        negative=asked.negative,
        width=width,
        height=height,
        steps=defaults.steps if asked.steps is None else asked.steps,
        guidance=defaults.guidance if asked.guidance is None else asked.guidance,
        seed=asked.seed,
        count=asked.count,
        strength=None if image is None else STRENGTH if asked.strength is None else asked.strength,
        clip_skip=_clip_skip(asked.clip_skip, geometry.text_layers, tell),
        emphasis=asked.emphasis,
        sampler=sampler,
        schedule=schedule,
        guidance_is_input=geometry.takes_guidance,
        masked=image is not None and bool(image.mask),
        canvas=None if image is None or image.canvas is None else (image.canvas.width, image.canvas.height),
        original_size=asked.original_size,
        crop=asked.crop or (0, 0),
        target_size=asked.target_size,
    )
    request = enlarged(asked, model, request, tell)
    for one in request.rounds:
        _require_possible(one, model)
    if not geometry.weighs_words and is_marked(request):
        what = "this model reads sentences: (words:1.3), [a|b], [a:b:0.5] and BREAK are taken as they are written"
        tell(Note(what, "warning"))
    if has_tags(request.negative):
        tell(Note("a <lora:…> in --negative is read as words: LoRAs are asked for in the prompt", "warning"))
    if request.negative.strip() and request.guidance_is_input:
        what = "--negative has no effect with this model: its guidance is an input of the denoiser"
        tell(Note(what, "warning"))
    elif request.negative.strip() and not request.guided:
        what = f"--negative has no effect at --guidance {request.guidance:g}: give more than 1"
        tell(Note(what, "warning"))
    return request


def _require_told(asked: Asked, told: frozenset[str]) -> None:
    """Raise BadRequest for a size that is asked for and that the model's denoiser is not told."""
    for name in ("original_size", "crop", "target_size"):
        if getattr(asked, name) is not None and name not in told:
            option = "--" + name.replace("_", "-")
            raise BadRequest(f"{option}: this model is not told of it, as those of SDXL are; leave it out")


def _with_few(asked: Asked, few: FewSteps, tell: Tell) -> Asked:
    """What is asked for, where nothing was said with what a distilled model wants; that is told."""
    wanted = {"steps": few.steps, "guidance": few.guidance, "sampler": few.sampler, "schedule": few.schedule}
    if asked.sampler is not None or few.sampler is None:  # a schedule goes with its sampler
        del wanted["sampler"], wanted["schedule"]
    elif times_in(few.schedule) and asked.steps not in (None, few.steps):
        del wanted["schedule"]
    taken: dict[str, Any] = {
        name: value for name, value in wanted.items() if value is not None and getattr(asked, name) is None
    }
    if taken:
        options = " ".join(
            f"--{name} {value:g}" if name == "guidance" else f"--{name} {value}" for name, value in taken.items()
        )
        tell(Note(f"taken for {few.method}, for {few.why}: {options}"))
    return replace(asked, **taken)


def _sampler(asked: Asked, model: Model, tell: Tell) -> tuple[str | None, str | None]:
    """Sampler and schedule that are asked for, by their own names, as far as they have an effect."""
    sampler, schedule = (None, None) if asked.sampler is None else sampler_named(asked.sampler)
    sampler = None if sampler == OWN else sampler
    schedule = schedule if asked.schedule is None else schedule_named(asked.schedule)
    reason = no_effect(model.parts["scheduler"], sampler, schedule)
    if reason is not None:
        tell(Note(f"--schedule {schedule} has no effect: {reason}", "warning"))
    return sampler, None if reason is not None or schedule == "model" else schedule


def _clip_skip(asked: int | None, layers: range, tell: Tell) -> int | None:
    """The text encoder's layer, counted from its last one, as far as the model has a choice."""
    if asked is not None and asked >= layers.stop and layers:
        raise BadRequest(f"--clip-skip {asked} leaves no layer of the text encoder: give at most {layers.stop - 1}")
    if asked is not None and asked < layers.start:
        tell(Note(f"--clip-skip {asked} has no effect: this model's own is {layers.start}", "warning"))
    elif asked is not None and not layers:
        tell(Note("--clip-skip has no effect with this model", "warning"))
    return asked if asked is not None and asked in layers and asked != layers.start else None


def task_of(
    asked: Asked,
    model: Model,
    request: Request,
    tell: Tell,
    image: InitImage | None = None,
    debug: bool = False,
    posed: Profile | None = None,
) -> Task:
    """Device, type and ceiling decided, each told with its reason."""
    name, dtype, ceiling = decided(asked, model, tell) if posed is None else decided_elsewhere(asked, posed, tell)
    for part in model.parts.values():
        if part.passed_over:
            keys = ", ".join(map(echo, part.passed_over[:KEYS_SHOWN]))
            more = f" and {len(part.passed_over) - KEYS_SHOWN} more" if len(part.passed_over) > KEYS_SHOWN else ""
            tell(Note(f"{part.name}/{part.config_file.name}: {keys}{more} not known here: passed over", "detail"))
    every = asked.preview_every
    if every and family_of(model).geometry(model).colours is None:
        tell(Note("--preview has no effect with this model: nobody knows the colours of its latents", "warning"))
        every = 0
    task = Task(
        model,
        request,
        name,
        dtype,
        ceiling,
        debug=debug,
        written=asked.prompt,
        keeps=not asked.no_cache,
        prepares=not asked.no_prepare,
        preview_every=every,
        on_limit=asked.on_limit,
        threads=asked.threads,
    )
    if image is None:
        return task
    return replace(task, pixels=image.pixels, mask=image.mask, canvas=image.canvas, edit=image.edit)


def _require_possible(request: Request, model: Model) -> None:
    steps, scheduler = request.steps, scheduler_of(model, request)
    possible = possible_steps(scheduler.class_name, scheduler.config)
    if steps >= possible.stop:
        raise BadRequest(f"--steps {steps} is more than the {possible.stop - 1} the model knows: give fewer")
    if steps < possible.start:
        least = f"{possible.start} Runge-Kutta steps"
        raise BadRequest(f"--steps {steps} is too few: the model's scheduler begins with {least}; give as many or more")
    times = times_in(request.schedule)
    if times and (len(times) != steps or times[0] >= scheduler.config.get("num_train_timesteps", 1000)):
        known = scheduler.config.get("num_train_timesteps", 1000)
        raise BadRequest(
            f"--schedule {echo(request.schedule)} has {len(times)} times: give --steps as many, and times below {known}"
        )
    if request.strength is not None and request.strength > 0 and not adds_noise(scheduler.class_name):
        raise BadRequest(f"the model's {scheduler.class_name} cannot begin from a picture: use txt2img, or another one")
    if request.seed + request.count > SEED_END:
        raise BadRequest(f"--seed {request.seed} leaves no room for {request.count} pictures: give a smaller seed")
    factor = family_of(model).geometry(model).side_multiple
    for side, pixels in (("width", request.width), ("height", request.height)):
        if pixels % factor:
            below = pixels - pixels % factor
            raise BadRequest(
                f"--{side} {pixels} is not a multiple of {factor}, which this model needs:"
                f" give {below or factor} or {below + factor}"
            )
