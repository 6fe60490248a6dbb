"""The runs of a bench: cases, which are jobs under ceilings, each run in a worker of its own, over and over."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from sdcli.app.attempt import Hear
from sdcli.app.disturbance import Neighbours
from sdcli.app.making import ShowMaking, with_weights
from sdcli.app.record import RunRecord, Task
from sdcli.app.report import machine_table, report
from sdcli.app.run import run_task
from sdcli.errors import CeilingCrossed, Interrupted, SdcliError, WillNotFit
from sdcli.models.samplers import scheduler_of
from sdcli.models.schedulers import possible_steps

SCHEMA = "sdcli.bench/1"

Outcome = Literal["ok", "will_not_fit", "killed", "failed"]


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of a case, and what ended it early. `repeat` counts from 1."""

    record: RunRecord
    outcome: Outcome
    repeat: int = 1
    error: SdcliError | Interrupted | None = None
    disturbed: float | None = None
    """The share of all cores that others took meanwhile; None is not known."""

    @property
    def task(self) -> Task:
        """What was done."""
        return self.record.task

    @property
    def steady_s(self) -> list[float]:
        """Seconds of its steps but the first, which compiles kernels, unless that is all there is."""
        times = [step.seconds for step in self.record.steps]
        return times[1:] or times


def in_turn(cases: Sequence[Task], repeats: int) -> Iterator[tuple[int, Task]]:
    """Every case so often, each time with another one first: what drifts meets all of them. With the repeat, from 1."""
    for repeat in range(repeats):
        first = repeat % len(cases)
        yield from ((repeat + 1, case) for case in (*cases[first:], *cases[:first]))


def run_case(task: Task, repeat: int, show: Callable[[RunRecord], Hear], making: ShowMaking) -> Ran:
    """One run. Whatever ends it is in what is returned: rows that are there are not lost to that."""
    record, neighbours = RunRecord(task), Neighbours()
    outcome: Outcome = "ok"
    failure: SdcliError | Interrupted | None = None
    try:
        run_task(with_weights(task, making), record, None, show(record))
    except WillNotFit as error:
        outcome, failure = "will_not_fit", error
    except CeilingCrossed as error:
        outcome, failure = "killed", error
    except (SdcliError, Interrupted) as error:
        outcome, failure = "failed", error
    return Ran(record, outcome, repeat, failure, neighbours.share())


def made(cases: Sequence[Task], making: ShowMaking) -> list[Task]:
    """The same cases, all of one model, which is made now if it is not there and if any of them fits."""
    for task in cases:
        with suppress(WillNotFit):
            model = with_weights(task, making).model
            return [replace(task, model=model) for task in cases]
    return list(cases)


def warm_up(task: Task) -> None:
    """As few steps as there may be without a ceiling, so that every measured run finds the files in the page cache."""
    scheduler = scheduler_of(task.model, task.request)
    fewest = possible_steps(scheduler.class_name, scheduler.config).start
    ceiling = replace(task.ceiling, limit_bytes=None, kernel_limit_bytes=None)
    short = replace(task, request=replace(task.request, steps=fewest), ceiling=ceiling)
    run_task(short, RunRecord(short), None, lambda *_: None)


def case_of(task: Task) -> dict[str, Any]:
    """What tells one case from another, also from those of another bench."""
    width, height = task.pictures_size
    return {
        "model": task.model.ref,
        "width": width,
        "height": height,
        "steps": task.request.steps,
        "strength": task.request.strength,
        "device": task.device,
        "dtype": task.dtype,
        "limit_bytes": task.ceiling.limit_bytes,
        "kernel_limit_bytes": task.ceiling.kernel_limit_bytes,
    }


def bench_report(runs: Iterable[Ran], command: str, disturbed_before: float | None) -> dict[str, Any]:
    """What scripts get. Keys and their meaning are the contract's."""
    told = [
        {
            **report(ran.record, with_series=True),
            "outcome": ran.outcome,
            "repeat": ran.repeat,
            "case": case_of(ran.task),
            "step_s": [step.seconds for step in ran.record.steps],
            "disturbed": ran.disturbed,
            "command": command,
        }
        for ran in runs
    ]
    return {"schema": SCHEMA, "machine": {**machine_table(), "disturbed_before": disturbed_before}, "runs": told}


def by_case(runs: Iterable[Ran]) -> list[list[Ran]]:
    """The runs of each case, in the order in which cases came first."""
    cases: list[list[Ran]] = []
    for ran in runs:
        same = next((case for case in cases if case_of(case[0].task) == case_of(ran.task)), None)
        cases.append([ran]) if same is None else same.append(ran)
    return cases


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and most."""
    return statistics.median(values), min(values), max(values)
