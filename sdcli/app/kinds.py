"""Kinds of runs: those of one kind take the same time on one machine, whatever their words and seeds."""

from __future__ import annotations

import hashlib

from sdcli.app.record import Task
from sdcli.domain import Plan
from sdcli.units import MIB

SHARE_BYTES = 64 * MIB
"""Weights that stay in memory differ by less from run to run, as the baseline does."""


def kind_of_run(task: Task, plan: Plan) -> str:
    """Names the kind, by all that a step, or what a picture takes besides steps, may take another time for."""
    request, shares = task.request, plan.resident_bytes // SHARE_BYTES
    picture = (request.width, request.height, request.guided, request.strength, request.masked, request.references)
    way = (plan.residency, shares, plan.guidance, plan.give_back, plan.prepared, plan.fresh_decode, *plan.ways.items())
    model = (task.model.digest, *task.model.parts, *(lora.name for lora in task.model.loras))
    compiles = request.steps_run == 1  # in the only step that there is
    facts = (model, task.device, task.dtype, task.threads, request.sampler, compiles, picture, way)
    return hashlib.sha256(str(facts).encode()).hexdigest()[:16]
