"""What txt2img and img2img share: from the options to a task, from the task to files and a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcli import __version__, machine
from sdcli.cli.progress import MakingLine, ProgressLines
from sdcli.cli.say import hand_out, say
from sdcli.cli.types import SEED_END
from sdcli.domain import DeviceName, Request
from sdcli.errors import BadRequest, SdcliError
from sdcli.host.report import report
from sdcli.host.run import RunRecord, Task, make_synthetic, run_task
from sdcli.images.metadata import Provenance
from sdcli.memory.disks import model_in_memory
from sdcli.memory.limit import decide_ceiling
from sdcli.messages import PictureDone
from sdcli.models.folder import Model
from sdcli.models.reference import DEMO, resolve_model

if TYPE_CHECKING:
    from sdcli.images.write import Destination

NO_MODEL = (
    "no --model given: this is the built-in demo, emoji on plain backgrounds; for Stable Diffusion 1.5 (2.1 GB):"
    " hf download stable-diffusion-v1-5/stable-diffusion-v1-5 --local-dir sd15 --exclude 'safety_checker/*'"
    " --include '*.json' --include '*.txt' --include '*.fp16.safetensors', then --model sd15"
)


def find_model(ref: str | None, *, quiet: bool, debug: bool) -> Model:
    """The checked model: the built-in one if none is given; a synthetic one is made first if it is not there yet."""
    if ref is None:
        ref = DEMO
        if not quiet:
            say(NO_MODEL)

    def make(name: str, folder: Path) -> None:
        make_synthetic(name, folder, MakingLine(f"synthetic:{name}", quiet), debug)

    return resolve_model(ref, make)


def build_request(model: Model, options: dict[str, Any], **special: Any) -> Request:
    """The request, with nothing left undecided. Raises BadRequest for what the model or a seed cannot do."""
    known = model.scheduler.config.get("num_train_timesteps", 1000)
    if options["steps"] > known:
        raise BadRequest(f"--steps {options['steps']} is more than the {known} the model knows: give fewer")
    count = options.get("count", 1)
    if options["seed"] + count > SEED_END:
        raise BadRequest(f"--seed {options['seed']} leaves no room for {count} pictures: give a smaller seed")
    sides = {"width": options["width"] or model.native_size, "height": options["height"] or model.native_size}
    fields: dict[str, Any] = {
        "prompt": options["prompt"],
        "negative": options["negative"],
        "steps": options["steps"],
        "guidance": options["guidance"],
        "seed": options["seed"],
        "count": count,
        **sides,
        **special,
    }
    return Request(**fields)


def build_task(model: Model, request: Request, options: dict[str, Any], pixels: bytes = b"") -> Task:
    """Device, type and ceiling decided, each said with its reason."""
    device = machine.choose_device(options["device"])
    name: DeviceName = "cuda" if device.value == "cuda" else "mps" if device.value == "mps" else "cpu"
    dtype, why = machine.choose_dtype(name, options["dtype"])
    if name == "cpu" and dtype == "fp16":
        say("warning: fp16 arithmetic on a CPU can be hundreds of times slower than bf16 or fp32")
    ceiling = decide_ceiling(options["mem_limit"], name)
    if ceiling.warning:
        say(f"warning: {ceiling.warning}")
    if model_in_memory(model):
        say(
            "warning: the model lies on a RAM disk: all of it is counted as memory by the system, beside the ceiling;"
            " a folder on a disk takes none"
        )
    if options["verbose"]:
        say(f"device: {name}, {device.reason}; {dtype}: {why}; ceiling: {ceiling.reason}")
    return Task(model, request, name, dtype, ceiling, pixels, options["debug"])


def draw(task: Task, destination: Destination, options: dict[str, Any], init_sha256: str | None = None) -> None:
    """Run the task; every picture is on disk, and its path handed out, before the next one is decoded."""
    from sdcli.images.encode import encode_picture

    request, as_json = task.request, options["as_json"]
    destination.require_room(request.count, request.width, request.height)
    record = RunRecord(task)
    progress = ProgressLines(record, task.ceiling, quiet=options["quiet"], verbose=options["verbose"])

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
        if path is not None and not as_json:
            progress.clear()
            hand_out(path)
        return path

    try:
        run_task(task, record, save, progress)
    except SdcliError:
        progress.clear()
        if options["debug"] and record.traceback:
            say(record.traceback)
        raise
    if as_json:
        hand_out(json.dumps(report(record)))
    if not options["quiet"]:
        say(progress.summary())


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
        dtype=task.dtype,
        sdcli_version=__version__,
        torch_version=record.torch_version,
    )
