"""sdcli bench --mem-limit SIZE: the same job under each ceiling, each in a fresh worker, compared."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import click
from filelock import FileLock, Timeout

from sdcli import machine, settings
from sdcli.app.asked import Asked
from sdcli.app.making import with_weights
from sdcli.app.record import RunRecord, Task
from sdcli.app.report import report
from sdcli.app.run import run_task
from sdcli.app.tasks import find_model, request_of, task_of
from sdcli.cli import types
from sdcli.cli.command import Command
from sdcli.cli.options import ADDED, FORCE, JOB, MACHINE, PROMPT, TALK, model_option, options
from sdcli.cli.pages import PAGES, pages_of
from sdcli.cli.parsed import Params, asked_of, voice_of
from sdcli.cli.progress import ProgressLines, making_lines
from sdcli.cli.say import Voice, hand_out, say
from sdcli.errors import CeilingCrossed, Interrupted, SdcliError, WillNotFit
from sdcli.models.samplers import scheduler_of
from sdcli.models.schedulers import possible_steps
from sdcli.models.synthetic import is_outline
from sdcli.units import MIB, format_size

DEFAULT_MODEL = "synthetic:sd15"
DEFAULT_PROMPT = "a photograph of an astronaut riding a horse"
DEFAULT_STEPS = 4

HEADER = (
    "ceiling",
    "outcome",
    "predicted",
    "peak",
    "denoiser",
    "load s",
    "first step",
    "s/step (spread)",
    "decode s",
    "total s",
)


class Limits(types.Limit):
    """Sizes, separated by commas."""

    name = "size[,size…]"
    envvar_list_splitter = ","

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return tuple(super(Limits, self).convert(part, param, ctx) for part in str(value).split(","))


@click.command(cls=Command)
@click.option(
    "--mem-limit",
    "limits",
    type=Limits(),
    multiple=True,
    envvar="SDCLI_MEM_LIMIT",
    help="Ceilings, repeated or with commas.  [default: auto]",
)
@options(PROMPT, model_option(DEFAULT_MODEL), ADDED, JOB, MACHINE)
@click.option("--json", "as_json", is_flag=True, help="A JSON report on stdout instead of a table.")
@click.option(
    "--warmup/--no-warmup",
    default=True,
    show_default=True,
    help="Run one step first, unmeasured: it fills the page cache.",
)
@options(PAGES, FORCE, TALK)
def command(limits: tuple[tuple[str, ...], ...], as_json: bool, warmup: bool, **params: Any) -> None:
    """Run one job under several memory ceilings and compare.

    Each ceiling gets a fresh worker. The table says what was predicted, what was measured and what it cost in
    time; the first step of a worker, which compiles kernels, is shown apart. A ceiling that is too small is a
    result, not a failure. Pictures are drawn and thrown away. Defaults: synthetic:sd15, 4 steps, seed 0.
    """
    asked, voice = _asked(params), voice_of(params)
    pages = click.get_current_context().with_resource(pages_of(params, voice))
    model = find_model(asked, voice.tell, voice.debug)
    click.get_current_context().with_resource(_alone(voice))
    request = request_of(asked, model, None, voice.tell)
    ceilings = [limit for group in limits for limit in group] or ["auto"]
    tasks = [
        task_of(replace(asked, mem_limit=limit), model, request, voice.tell, debug=voice.debug) for limit in ceilings
    ]
    tasks = _with_weights(tasks, voice)
    if warmup and not is_outline(tasks[0].model):
        _warm_up(tasks[0], voice)
    runs: list[tuple[RunRecord, str]] = []
    failure: SdcliError | Interrupted | None = None
    for task in tasks:
        record, outcome, error = _measure(task, voice)
        runs.append((record, outcome))
        pages.take(record, error, outcome)
        failure = failure or error
        if isinstance(error, Interrupted):
            break
    if as_json:
        about = {
            "schema": "sdcli.bench/1",
            "machine": _machine(),
            "runs": [{**report(r, with_series=True), "outcome": o} for r, o in runs],
        }
        hand_out(json.dumps(about))
    else:
        for line in _table(runs):
            hand_out(line)
    if failure is not None:
        raise failure


def _asked(params: Params) -> Asked:
    """What is asked for, with this command's own defaults."""
    ways = (params["prompt"], params["prompt_option"], params["prompt_file"])
    prompt = {"prompt": DEFAULT_PROMPT} if all(way is None for way in ways) else {}
    source = click.get_current_context().get_parameter_source
    defaults = {"steps": DEFAULT_STEPS, "seed": 0}
    unsaid = {name: value for name, value in defaults.items() if source(name) is click.core.ParameterSource.DEFAULT}
    asked = asked_of({**params, **prompt, **unsaid})
    model = DEFAULT_MODEL if asked.model is None else asked.model
    return replace(asked, model=model, no_cache=True, on_limit="kill")  # what was kept, or degraded, is not measured


@contextmanager
def _alone(voice: Voice) -> Iterator[None]:
    """Both of two benches at once are told of each other: the later one as it begins, the other when it ends.

    Whoever opens the file of the lock leaves the time on it. Without a cache to lock in nobody is told.
    """
    path = settings.cache_dir() / "bench.lock"
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        mine = path.stat().st_mtime_ns
    except Timeout:
        with suppress(OSError):
            os.utime(path)
        voice.warn("another sdcli bench is running: the figures of both are disturbed")
        yield
        return
    except (OSError, NotImplementedError):  # the latter is filelock's where a file system has no locks
        yield
        return
    try:
        yield
        with suppress(OSError):  # the cache may have been deleted
            if path.stat().st_mtime_ns != mine:
                voice.warn("another sdcli bench ran at the same time: the figures of both are disturbed")
    finally:
        lock.release()


def _with_weights(tasks: list[Task], voice: Voice) -> list[Task]:
    """The same with a model that is made now if it is not there, and if any of them fits."""
    for task in tasks:
        with suppress(WillNotFit):
            model = with_weights(task, making_lines(voice)).model
            return [replace(task, model=model) for task in tasks]
    return tasks


def _warm_up(task: Task, voice: Voice) -> None:
    """One step without a ceiling, so that every measured run finds the files in the page cache."""
    voice.say("warm-up: one step, not measured")
    scheduler = scheduler_of(task.model, task.request)
    fewest = possible_steps(scheduler.class_name, scheduler.config).start
    short = replace(task, request=replace(task.request, steps=fewest), ceiling=replace(task.ceiling, limit_bytes=None))
    run_task(short, RunRecord(short), None, lambda *_: None)


def _measure(task: Task, voice: Voice) -> tuple[RunRecord, str, SdcliError | Interrupted | None]:
    """One run, its outcome, and what made it fail: the rows that are there are not lost to that."""
    limit, record = task.ceiling.limit_bytes, RunRecord(task)
    voice.say(f"under {format_size(limit) if limit is not None else 'no ceiling'}:")
    show = ProgressLines(record, task.ceiling, quiet=voice.quiet, verbose=voice.verbose)
    try:
        run_task(with_weights(task, making_lines(voice)), record, None, show)
    except WillNotFit as error:
        say(str(error))
        return record, "will_not_fit", None
    except CeilingCrossed as error:
        show.clear()
        say(str(error))
        return record, "killed", None
    except (SdcliError, Interrupted) as error:
        show.clear()
        return record, "failed", error
    return record, "ok", None


def _machine() -> dict[str, Any]:
    """What a reader needs to compare the figures with others'."""
    return {
        "cpu": machine.cpu_name(),
        "cores": os.cpu_count(),
        "physical_memory_bytes": machine.physical_memory_bytes(),
        "container_limit_bytes": machine.container_limit_bytes(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _table(runs: list[tuple[RunRecord, str]]) -> list[str]:
    rows = [HEADER, *(_row(record, outcome) for record, outcome in runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(record: RunRecord, outcome: str) -> tuple[str, ...]:
    limit, planned = record.task.ceiling.limit_bytes, record.planned
    times = [step.seconds for step in record.steps]
    rest = times[1:] or times
    spread = f"{statistics.median(rest):.2f} ({min(rest):.2f}-{max(rest):.2f})" if rest else "-"
    stages = {stage.name: stage for stage in record.stages}
    decode = stages.get("decode")
    return (
        format_size(limit) if limit is not None else "none",
        outcome,
        f"{planned.peak_bytes / MIB:.0f} MiB" if planned else "-",
        f"{record.peak_bytes / MIB:.0f} MiB" if record.peak_bytes else "-",
        planned.plan.residency if planned else "-",
        f"{sum(stage.load_s for stage in record.stages):.1f}",
        f"{times[0]:.2f}" if times else "-",
        spread,
        f"{decode.run_s:.1f}" if decode and outcome == "ok" else "-",
        f"{record.total_s:.1f}",
    )
