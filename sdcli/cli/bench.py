"""sdcli bench --mem-limit SIZE: the same job under each ceiling, each in a fresh worker, compared."""

from __future__ import annotations

import itertools
import json
import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from sdcli import settings
from sdcli.app.asked import Asked
from sdcli.app.benching import Ran, bench_report, in_turn, made, run_case, warm_up
from sdcli.app.comparison import Figures, read_bench
from sdcli.app.disturbance import NOTABLE, Neighbours
from sdcli.app.record import Task
from sdcli.app.tasks import find_model, read_init_of, request_of, task_of
from sdcli.cli.bench_options import AGAINST, CASES, EDIT
from sdcli.cli.bench_table import ceiling_of, job_of, table
from sdcli.cli.command import ARGUMENTS, PRECEDENCE, Command
from sdcli.cli.compared import Bounds, compare
from sdcli.cli.options import ADDED, FORCE, JOB, KERNEL_LIMIT, MACHINE, PROMPT, TALK, model_option, options
from sdcli.cli.pages import PAGES, pages_of
from sdcli.cli.parsed import Params, asked_of, voice_of
from sdcli.cli.progress import ProgressLines, making_lines
from sdcli.cli.say import Voice, hand_out, say
from sdcli.domain import Model
from sdcli.errors import BadRequest, Interrupted
from sdcli.families.registry import family_of
from sdcli.host.control_group import group_of_run
from sdcli.locks import Held, lock
from sdcli.models.synthetic import is_outline

if TYPE_CHECKING:
    from sdcli.images.read import InitImage

DEFAULT_MODEL = "synthetic:sd15"
DEFAULT_PROMPT = "a photograph of an astronaut riding a horse"
DEFAULT_STEPS = 4


@click.command(cls=Command)
@options(CASES, PROMPT, model_option(DEFAULT_MODEL, several=True), ADDED, JOB, EDIT, KERNEL_LIMIT, MACHINE, AGAINST)
@click.option("--json", "as_json", is_flag=True, help="A JSON report on stdout instead of a table.")
@click.option(
    "--warmup/--no-warmup",
    default=True,
    show_default=True,
    help="Run one step first, unmeasured: it fills the page cache.",
)
@options(PAGES, FORCE, TALK)
def command(as_json: bool, warmup: bool, repeat: int, **params: Any) -> None:
    """Run one job under several memory ceilings and compare.

    Each ceiling gets a fresh worker. The tables say what was predicted, what was measured, in three counts, and what it
    cost in time; the first step of a worker, which compiles kernels, is shown apart. A ceiling that is too small is a
    result, not a failure. Several models and sizes get a table each. Pictures are drawn and thrown away.
    Defaults: synthetic:sd15, 4 steps, seed 0.
    """
    voice, neighbours, bounds = voice_of(params), Neighbours(), Bounds.of(params)
    pages = click.get_current_context().with_resource(pages_of(params, voice))
    old = read_bench(params["against"]) if params["against"] is not None else None
    making = making_lines(voice)
    click.get_current_context().with_resource(_alone(voice))
    cases: list[Task] = []
    for of_one_model in list(_cases(params, voice)):
        ready = made(of_one_model, making)
        _require_group(ready[0])
        if warmup and not is_outline(ready[0].model):
            voice.say("warm-up: one step, not measured")
            warm_up(ready[0])
        cases += ready
    before = neighbours.share()
    _warn_of(before, "before the first run", voice)
    runs: list[Ran] = []
    several = len({job_of(case) for case in cases}) > 1
    for number, case in in_turn(cases, repeat):
        job = f"{job_of(case)}, " if several else ""
        turn = f", run {number} of {repeat}" if repeat > 1 else ""
        limit = "no ceiling" if case.ceiling.limit_bytes is None else ceiling_of(case)
        voice.say(f"{job}under {limit}{turn}:")
        runs.append(_measure(case, number, voice))
        pages.take(runs[-1].record, runs[-1].error, runs[-1].outcome)
        if isinstance(runs[-1].error, Interrupted):
            break
    _hand_out(runs, as_json, before, old, bounds)


def _hand_out(
    runs: list[Ran], as_json: bool, before: float | None, old: dict[str, Figures] | None, bounds: Bounds
) -> None:
    """The product; then what failed is raised, or what became worse than it may."""
    argv = shlex.join(["sdcli", "bench", *click.get_current_context().meta[ARGUMENTS]])
    told = bench_report(runs, argv, before)
    compared = None if old is None else compare(old, told, bounds)
    if as_json:
        hand_out(json.dumps(told if compared is None else told | {"against": compared.lines}))
    else:
        for line in [*table(runs), *([] if compared is None else ["", *compared.lines])]:
            hand_out(line)
    for ran in runs:
        if ran.outcome == "failed" and ran.error is not None:
            raise ran.error
    if compared is not None and compared.trouble is not None:
        raise compared.trouble


def _cases(params: Params, voice: Voice) -> Iterator[list[Task]]:
    """What is to be measured, model by model: every size under every ceiling."""
    asked, limits, sizes = _asked(params), _limits(params), _sizes(params)
    for ref in dict.fromkeys(params["model"]) or (DEFAULT_MODEL,):
        model = find_model(replace(asked, model=ref), voice.tell, voice.debug)
        tasks = []
        for size in sizes:
            width, height = (asked.width, asked.height) if size is None else size
            one = replace(asked, model=ref, width=width, height=height)
            image = _init_image(one, model, voice) if params["img2img"] or one.init is not None else None
            request = request_of(one, model, image, voice.tell)
            tasks += [
                task_of(replace(one, mem_limit=limit), model, request, voice.tell, image, voice.debug)
                for limit in limits
            ]
        yield tasks


def _asked(params: Params) -> Asked:
    """What is asked for, with this command's own defaults."""
    ways = (params["prompt"], params["prompt_option"], params["prompt_file"])
    prompt = {"prompt": DEFAULT_PROMPT} if all(way is None for way in ways) else {}
    source = click.get_current_context().get_parameter_source
    defaults = {"steps": DEFAULT_STEPS, "seed": 0}
    unsaid = {name: value for name, value in defaults.items() if source(name) is click.core.ParameterSource.DEFAULT}
    asked = asked_of({**params, **prompt, **unsaid, "model": None})
    strength = params["strength"] if params["img2img"] or asked.init is not None else None
    return replace(asked, strength=strength, no_cache=True, on_limit="kill")  # what was kept is not measured


def _limits(params: Params) -> list[str]:
    """Ceilings by themselves and by profiles, as far as both were said with the same weight; `auto` where none was."""
    source = click.get_current_context().get_parameter_source
    weight = {name: PRECEDENCE.index(source(name) or PRECEDENCE[-1]) for name in ("limits", "profiles")}
    said = {name: list(_flat(params[name])) for name in weight if weight[name] == min(weight.values())}
    of_profiles = [f"{settings.read_profile(name).limit_bytes // 1024}KiB" for name in said.get("profiles", ())]
    return [*said.get("limits", ()), *of_profiles] or ["auto"]


def _sizes(params: Params) -> list[tuple[int, int] | None]:
    sizes = list(dict.fromkeys(_flat(params["sizes"])))
    if sizes and (params["width"] is not None or params["height"] is not None):
        raise BadRequest("two sizes: give --sizes or --size, not both")
    return [*sizes] or [None]


def _flat(groups: Iterable[Iterable[Any]]) -> Iterator[Any]:
    return itertools.chain.from_iterable(groups)


def _init_image(asked: Asked, model: Model, voice: Voice) -> InitImage:
    """The picture to edit, at the size asked for or the model's own: a file's, else one of all colours."""
    from sdcli.images.read import InitImage  # here, because Pillow takes a third of the time that --help takes

    native = family_of(model).geometry(model).native_size
    width, height = asked.width or native[0], asked.height or native[1]
    image = read_init_of(replace(asked, width=width, height=height), voice.tell)
    if image is not None:
        return image
    rows = (bytes((x * 255 // width, y * 255 // height, 128)) for y in range(height) for x in range(width))
    return InitImage(width, height, b"".join(rows))


def _require_group(task: Task) -> None:
    """Raise SdcliError before anything is drawn where the kernel can keep no limit."""
    if task.ceiling.kernel_limit_bytes is not None:
        with group_of_run(task.ceiling.kernel_limit_bytes):
            pass


@contextmanager
def _alone(voice: Voice) -> Iterator[None]:
    """Both of two benches at once are told of each other: the later one as it begins, the other when it ends.

    Whoever opens the file of the lock leaves the time on it. Without a cache to lock in nobody is told.
    """
    path = settings.cache_dir() / "bench.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = lock(path, 0)
        mine = path.stat().st_mtime_ns
    except Held:
        with suppress(OSError):
            os.utime(path)
        voice.warn("another sdcli bench is running: the figures of both are disturbed")
        yield
        return
    except OSError:
        yield
        return
    try:
        yield
        with suppress(OSError):  # the cache may have been deleted
            if path.stat().st_mtime_ns != mine:
                voice.warn("another sdcli bench ran at the same time: the figures of both are disturbed")
    finally:
        held.release()


def _measure(case: Task, number: int, voice: Voice) -> Ran:
    """One run, shown while it goes on; how it ended is said, unless it is raised when all are over."""
    shown: list[ProgressLines] = []

    def show(record: Any) -> ProgressLines:
        shown.append(ProgressLines(record, case.ceiling, quiet=voice.quiet, verbose=voice.verbose))
        return shown[0]

    ran = run_case(case, number, show, making_lines(voice))
    for lines in shown if ran.error is not None else ():
        lines.clear()
    if ran.outcome in ("will_not_fit", "killed"):
        say(str(ran.error))
    _warn_of(ran.disturbed, "meanwhile", voice)
    return ran


def _warn_of(share: float | None, when: str, voice: Voice) -> None:
    if share is not None and share > NOTABLE:
        voice.warn(f"other programs took {share:.0%} of the cores {when}: the figures are disturbed")
