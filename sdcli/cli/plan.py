"""sdcli plan PROMPT: what a run would take, and why; nothing is loaded."""

from __future__ import annotations

import json
from typing import Any

import click

from sdcli.app.forecast import Forecast, forecast, forecast_report
from sdcli.app.reading import Reads
from sdcli.app.tasks import prepare
from sdcli.cli.command import Command
from sdcli.cli.editing import init_options
from sdcli.cli.lines import jobs
from sdcli.cli.options import drawing_options
from sdcli.cli.parsed import Params, asked_of, voice_of
from sdcli.cli.progress import pace, sizes
from sdcli.cli.say import hand_out
from sdcli.plan.remainders import WORDS
from sdcli.settings import Profile, read_profile
from sdcli.units import format_pace, format_size

INIT = init_options("The picture that img2img would edit.", "As for img2img.", required=False)


@click.command(cls=Command)
@drawing_options(INIT)
def command(**params: Any) -> None:
    """Say whether a picture fits under the ceiling, how, and why; load no weights.

    Takes the options of txt2img, and with --init those of img2img. The run that follows takes the same plan. Exit
    code 4 when it does not fit, as the run's would be.
    """
    for job in jobs(params, voice_of(params)):
        _plan(job)


def _plan(params: Params) -> None:
    voice = voice_of(params)
    posed = None if params["profile"] is None else read_profile(params["profile"])
    task = prepare(asked_of(params), voice.tell, voice.debug, posed)
    result = forecast(task, posed)
    if params["as_json"]:
        hand_out(json.dumps(forecast_report(task, result)))
    else:
        for line in table(result):
            hand_out(line)
    if result.refusal is not None:
        raise result.refusal


def table(result: Forecast) -> list[str]:
    """A forecast for people; nothing where there is no plan."""
    planned, limit = result.planned, result.task.ceiling.limit_bytes
    if planned is None:
        return []
    task, request, plan = result.task, result.task.request, planned.plan
    under = f" of {format_size(limit)}" if limit is not None else ", no ceiling"
    known = "measured here" if result.baseline_measured else "typical; a first run measures it"
    in_all = "" if result.seconds is None else f", {format_pace(result.seconds.picture_s)} in all"
    posed = result.posed
    known, where = (known, task.device) if posed is None else ("typical", posed.name)
    return [
        f"{task.model.ref} on {where} in {task.dtype}, {sizes(request)}",
        f"fits: predicted peak {format_size(planned.peak_bytes)}{under}; the least is"
        f" {format_size(result.smallest_limit_bytes)}",
        "",
        "predicted peaks",
        f"  {'before anything is loaded':<26} {format_size(result.baseline_bytes):>9}  ({known})",
        *(f"  {need.name:<26} {format_size(need.peak_bytes):>9}" for need in planned.needs),
        f"  libraries and heap: {WORDS[result.remainder_from]}",
        "",
        f"plan: denoiser {plan.residency}, guidance {plan.guidance}, {pace(planned)}{in_all}",
        *(f"  {reason}" for reason in plan.reasons),
        *(_reading(result.reads) if posed is None else _elsewhere(result, posed)),
    ]


def _elsewhere(result: Forecast, posed: Profile) -> list[str]:
    """How long it takes on another machine, what bounds it, and whose figures these are."""
    seconds, reads, told = result.seconds, result.reads, posed.machine
    disk = f"{format_size(int(told.disk_bytes))} a second"
    lines = []
    if reads is not None and reads.disk_s is not None:
        kept = "what is left of its memory keeps them" if reads.stays_cached else "more than it can keep in memory"
        step = format_size(reads.step_bytes)
        lines = [f"a step reads {step} of weights: {format_pace(reads.disk_s)} at its disk's {disk}; {kept}"]
    if seconds is not None:
        step, picture = format_pace(seconds.step_s), format_pace(seconds.picture_s)
        lines.append(f"a step takes {step}, bound by the {seconds.bound}; in all it takes {picture}")
    limit = result.task.ceiling.limit_bytes
    if limit is not None:
        lines.append(f"ceiling: {format_size(limit)}, {result.task.ceiling.reason}")
    return [
        *(f"  {line}" for line in lines),
        f"  speed: {told.flops / 1e9:.0f} GFLOP/s of {told.processor}",
        f"    {told.speed_from}",
        "  memory: counted as if this machine's CPU drew in that type; never measured there",
    ]


def _reading(reads: Reads | None) -> list[str]:
    """What a step reads, and what bounds it."""
    if reads is None:
        return []
    what = f"  a step reads {format_size(reads.step_bytes)} of weights"
    if reads.disk_s is None or reads.bytes_a_second is None:
        return [f"{what}; how fast this disk is was not measured"]
    speed = f"{format_size(int(reads.bytes_a_second))} a second"
    longer = {"disk": "longer than the arithmetic", "arithmetic": "hidden behind the arithmetic"}[reads.bound or "disk"]
    return [f"{what}: {format_pace(reads.disk_s)} at this disk's {speed}, {longer}; none where they stay in the cache"]
