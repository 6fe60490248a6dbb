"""sdcli plan PROMPT: what a run would take, and why; nothing is loaded."""

from __future__ import annotations

import json
from typing import Any

import click

from sdcli.app.forecast import Forecast, forecast, forecast_report
from sdcli.cli import types
from sdcli.cli.draw import build_request, build_task, find_model, read_init, warn_of_negative
from sdcli.cli.options import STRENGTH_DEFAULT, Command, drawing_options, init_option, require_prompt
from sdcli.cli.say import hand_out
from sdcli.units import format_pace, format_size

INIT = (
    init_option("The picture that img2img would edit."),
    click.option(
        "--strength", type=types.FiniteNumber(0, 1), default=STRENGTH_DEFAULT, show_default=True, help="As for img2img."
    ),
)


@click.command(cls=Command)
@drawing_options(INIT)
def command(
    prompt: str | None,
    prompt_option: str | None,
    prompt_file: str | None,
    init: str | None,
    strength: float,
    **chosen: Any,
) -> None:
    """Say whether a picture fits under the ceiling, how, and why; load no weights.

    Takes the options of txt2img, and with --init those of img2img. The run that follows takes the same plan. Exit
    code 4 when it does not fit, as the run's would be.
    """
    chosen["prompt"] = require_prompt(prompt, prompt_option, prompt_file)
    special: dict[str, Any] = {}
    if init is not None:
        image = read_init(init, chosen)
        special = {"width": image.width, "height": image.height, "strength": strength}
    model = find_model(chosen["model"], quiet=chosen["quiet"], debug=chosen["debug"])
    request = build_request(model, chosen, **special)
    warn_of_negative(request, quiet=chosen["quiet"])
    task = build_task(model, request, chosen)
    result = forecast(task)
    if chosen["as_json"]:
        hand_out(json.dumps(forecast_report(task, result)))
    elif result.planned is not None:
        for line in _table(result):
            hand_out(line)
    if result.refusal is not None:
        raise result.refusal


def _table(result: Forecast) -> list[str]:
    planned, limit = result.planned, result.task.ceiling.limit_bytes
    if planned is None:
        return []
    task, request, plan = result.task, result.task.request, planned.plan
    under = f" of {format_size(limit)}" if limit is not None else ", no ceiling"
    known = "measured here" if result.baseline_measured else "typical; a first run measures it"
    return [
        f"{task.model.ref} on {task.device} in {task.dtype}, {request.width}x{request.height}",
        f"fits: predicted peak {format_size(planned.peak_bytes)}{under}; the least is"
        f" {format_size(result.smallest_limit_bytes)}",
        "",
        "predicted peaks",
        f"  {'before anything is loaded':<26} {format_size(result.baseline_bytes):>9}  ({known})",
        *(f"  {need.name:<26} {format_size(need.peak_bytes):>9}" for need in planned.needs),
        "",
        f"plan: denoiser {plan.residency}, guidance {plan.guidance}, {format_pace(planned.step_s)} a step",
        *(f"  {reason}" for reason in plan.reasons),
    ]
