"""What txt2img and img2img share: from the options to a task, from the task to files and a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcli import __version__, machine
from sdcli.app.record import RunRecord, Task
from sdcli.app.report import report
from sdcli.app.run import make_synthetic, run_task
from sdcli.cli.progress import MakingLine, ProgressLines
from sdcli.cli.say import hand_out, say, warn
from sdcli.cli.types import SEED_END
from sdcli.domain import DeviceName, Request
from sdcli.errors import BadRequest, SdcliError, echo
from sdcli.images.metadata import Provenance
from sdcli.messages import PictureDone
from sdcli.models.disks import model_in_memory
from sdcli.models.folder import Model
from sdcli.models.reference import DEMO, resolve_model
from sdcli.models.schedulers import adds_noise, possible_steps
from sdcli.models.stamps import stamps_of
from sdcli.plan.ceiling import decide_ceiling

if TYPE_CHECKING:
    from sdcli.images.read import InitImage
    from sdcli.images.write import Destination

NO_MODEL = (
    "no --model given: this is the built-in demo, emoji on plain backgrounds; for Stable Diffusion 1.5 (2.1 GB):"
    " hf download stable-diffusion-v1-5/stable-diffusion-v1-5 --local-dir sd15 --exclude 'safety_checker/*'"
    " --include '*.json' --include '*.txt' --include '*.fp16.safetensors', then --model sd15"
)

KEYS_SHOWN = 12
"""Keys of a config that were passed over, as far as they are named."""


def find_model(ref: str | None, *, quiet: bool, debug: bool) -> Model:
    """The checked model: the built-in one if none is given; a synthetic one is made first if it is not there yet."""
    if ref is None:
        ref = DEMO
        if not quiet:
            say(NO_MODEL)

    def make(name: str, folder: Path) -> None:
        make_synthetic(name, folder, MakingLine(f"synthetic:{name}", quiet), debug)

    model = resolve_model(ref, make)
    stamps_of(model)  # as its files are now
    for note in () if quiet else model.notes:
        say(note)
    return model


def build_request(model: Model, options: dict[str, Any], **special: Any) -> Request:
    """The request, with nothing left undecided. Raises BadRequest for what the model or a seed cannot do."""
    steps, scheduler = options["steps"], model.scheduler
    possible = possible_steps(scheduler.class_name, scheduler.config)
    if steps >= possible.stop:
        raise BadRequest(f"--steps {steps} is more than the {possible.stop - 1} the model knows: give fewer")
    if steps < possible.start:
        least = f"{possible.start} Runge-Kutta steps"
        raise BadRequest(f"--steps {steps} is too few: the model's scheduler begins with {least}; give as many or more")
    if special.get("strength") and not adds_noise(scheduler.class_name):
        raise BadRequest(f"the model's {scheduler.class_name} cannot begin from a picture: use txt2img, or another one")
    count = options.get("count", 1)
    if options["seed"] + count > SEED_END:
        raise BadRequest(f"--seed {options['seed']} leaves no room for {count} pictures: give a smaller seed")
    width, height = model.native_size
    sides = {"width": options["width"] or width, "height": options["height"] or height}
    fields: dict[str, Any] = {
        "prompt": options["prompt"],
        "negative": options["negative"],
        "steps": options["steps"],
        "guidance": options["guidance"],
        "seed": options["seed"],
        "count": count,
        "guidance_is_input": model.takes_guidance,
        **sides,
        **special,
    }
    for side in ("width", "height"):
        if fields[side] % model.latent_factor:
            below = fields[side] - fields[side] % model.latent_factor
            raise BadRequest(
                f"--{side} {fields[side]} is not a multiple of {model.latent_factor}, which this model needs:"
                f" give {below or model.latent_factor} or {below + model.latent_factor}"
            )
    return Request(**fields)


def build_task(model: Model, request: Request, options: dict[str, Any], pixels: bytes = b"") -> Task:
    """Device, type and ceiling decided, each said with its reason."""
    device = machine.choose_device(options["device"])
    name: DeviceName = "cuda" if device.value == "cuda" else "mps" if device.value == "mps" else "cpu"
    dtype, why = machine.choose_dtype(name, options["dtype"])
    if name == "cpu" and dtype == "fp16":
        warn("fp16 arithmetic on a CPU can be hundreds of times slower than bf16 or fp32", quiet=options["quiet"])
    ceiling = decide_ceiling(options["mem_limit"], name)
    if ceiling.warning:
        warn(ceiling.warning, quiet=options["quiet"])
    if model_in_memory(model):
        told = "the model lies on a RAM disk: the system counts all of it as memory, beside the ceiling"
        warn(f"{told}; a folder on a disk takes none", quiet=options["quiet"])
    if options["verbose"]:
        say(f"device: {name}, {device.reason}; {dtype}: {why}; ceiling: {ceiling.reason}")
        for part in model.components:
            if part.passed_over:
                keys = ", ".join(map(echo, part.passed_over[:KEYS_SHOWN]))
                more = f" and {len(part.passed_over) - KEYS_SHOWN} more" if len(part.passed_over) > KEYS_SHOWN else ""
                say(f"{part.name}/{part.config_file.name}: {keys}{more} not known here: passed over")
    return Task(model, request, name, dtype, ceiling, pixels, options["debug"])


def read_init(init: str, options: dict[str, Any]) -> InitImage:
    """The init image at the size that is asked for; frames that are left out are said."""
    from sdcli.images import read  # here, because Pillow takes a third of the time that --help takes

    image = read.read_init(Path(init), options["width"], options["height"])
    if image.frames > 1:
        warn(f"{echo(init)} has {image.frames} frames: the first one is used", quiet=options["quiet"])
    return image


def warn_of_negative(request: Request, *, quiet: bool) -> None:
    """Say that the negative prompt has no effect, if so: without guidance, or where the model takes it as an input."""
    if request.negative.strip() and request.guidance_is_input:
        warn("--negative has no effect with this model: its guidance is an input of the denoiser", quiet=quiet)
    elif request.negative.strip() and not request.guided:
        warn(f"--negative has no effect at --guidance {request.guidance:g}: give more than 1", quiet=quiet)


def draw(task: Task, destination: Destination, options: dict[str, Any], init_sha256: str | None = None) -> None:
    """Run the task; every picture is on disk, and its path handed out, before the next one is decoded.

    What ends the run early is raised when the report of what was drawn by then is out.
    """
    from sdcli.images.encode import encode_picture

    request, as_json = task.request, options["as_json"]
    destination.require_room(request.count, request.width, request.height)
    record = RunRecord(task)
    progress = ProgressLines(record, task.ceiling, quiet=options["quiet"], verbose=options["verbose"])
    paths = _Paths(quiet=as_json)

    def save(picture: PictureDone, record: RunRecord) -> str | None:
        data = encode_picture(
            picture.payload,
            picture.width,
            picture.height,
            destination.suffix,
            _provenance(record, picture, init_sha256),
            edited=request.strength is not None,
            keep_text=not options["no_metadata"],
        )
        path = destination.save(data, picture.image, picture.seed, request.prompt)
        if path is not None:
            progress.clear()
            paths.hand_out(path)
        return path

    try:
        run_task(task, record, save, progress)
    except BaseException:
        progress.clear()
        if options["debug"] and record.traceback:
            say(record.traceback)
        if record.pictures and as_json:
            hand_out(json.dumps(report(record)))
        if record.pictures and not options["quiet"]:
            say(f"saved before that: {len(record.pictures)} of {request.count}")
        raise
    if as_json:
        hand_out(json.dumps(report(record)))
    if not options["quiet"]:
        say(progress.summary())
    if paths.failure is not None:
        raise paths.failure


class _Paths:
    """Hands out paths while somebody reads them; `failure` is why nobody does: the pictures are drawn all the same."""

    def __init__(self, quiet: bool) -> None:
        self.failure: OSError | SdcliError | None = None
        self._quiet = quiet

    def hand_out(self, path: str) -> None:
        """One path."""
        if self._quiet or self.failure is not None:
            return
        try:
            hand_out(path)
        except (BrokenPipeError, SdcliError) as error:
            self.failure = error


def _provenance(record: RunRecord, picture: PictureDone, init_sha256: str | None) -> Provenance:
    """Everything needed for the same picture again."""
    task, request = record.task, record.task.request
    return Provenance(
        prompt=request.prompt,
        negative=request.negative,
        steps=request.steps,
        sampler=task.model.scheduler.class_name,
        guidance=request.guidance,
        seed=picture.seed,
        width=picture.width,
        height=picture.height,
        model=task.model.ref,
        model_sha256=task.model.sha256,
        strength=request.strength,
        init_sha256=init_sha256,
        device=task.device,
        dtype=record.denoised_in.get(picture.image, task.dtype),
        sdcli_version=__version__,
        torch_version=record.torch_version,
    )
