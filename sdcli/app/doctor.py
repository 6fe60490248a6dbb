"""All that can be said of this machine: what it is, whether it works, and what fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sdcli import __version__, machine
from sdcli.app.asked import Asked, Tell
from sdcli.app.checkup import (
    Finding,
    Measured,
    State,
    disk_finding,
    folder_findings,
    machine_findings,
    measure,
    measured_findings,
)
from sdcli.app.outlook import Outlook, Row
from sdcli.app.record import Task
from sdcli.app.run import NO_WORKER
from sdcli.app.tasks import prepare
from sdcli.app.troubles import facts, known_troubles
from sdcli.app.versions import Version, versions
from sdcli.errors import SdcliError, WillNotFit, echo
from sdcli.models.reference import DEMO

SCHEMA = "sdcli.doctor/1"

VERSIONS_SAID: Mapping[str, str] = {
    "missing": "is not installed: pip install sdcli brings it",
    "older": "is older than sdcli needs",
    "newer": "is newer than sdcli was tested with: it may have changed what sdcli reaches into",
}


@dataclass(slots=True)
class Diagnosis:
    """What was found, in the order in which it is told. `broken` says what is in the way of drawing, and what to do."""

    task: Task
    findings: list[Finding] = field(default_factory=list)
    versions: list[Version] = field(default_factory=list)
    measured: Measured | None = None
    outlooks: list[Outlook] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def examine(asked: Asked, tell: Tell, debug: bool = False) -> Diagnosis:
    """What can be told without a worker, and without torch. Raises BadRequest for a device that is not here."""
    device = machine.choose_device(asked.device)
    try:
        task = prepare(asked, tell, debug)
    except OSError as error:  # of a system that does not even tell its memory
        for trouble in known_troubles(facts("cpu", "")):
            if trouble.broken:
                raise SdcliError(f"nothing can be drawn here: {trouble.why}: {trouble.remedy}") from error
        raise
    _, why = machine.choose_dtype(task.device, asked.dtype)
    found = Diagnosis(task, [*machine_findings(task, device.reason, why), *folder_findings()], versions())
    for version in found.versions:
        if version.state != "tested":
            what = f"{VERSIONS_SAID[version.state]}, {version.wanted}"
            state: State = "broken" if version.state == "missing" else "note"
            found.findings.append(Finding(version.name, version.installed or "none", what, state))
    for trouble in known_troubles(facts(task.device, task.dtype)):
        state, what = "broken" if trouble.broken else "note", f"{trouble.why}: {trouble.remedy}"
        found.findings.append(Finding("known trouble", trouble.name, what, state))
    found.broken = [_in_a_line(finding) for finding in found.findings if finding.state == "broken"]
    return found


def measure_into(found: Diagnosis) -> list[Finding]:
    """Have a worker test and measure, unless it is known not to start. What that found comes into the diagnosis too."""
    more: list[Finding] = []
    if not found.broken:
        try:
            found.measured = measure(found.task)
            more = list(measured_findings(found.measured))
        except WillNotFit as error:
            more = [Finding("self-test", "not done", str(error), "note")]
        except NO_WORKER as error:
            why = str(error) if isinstance(error, SdcliError) else f"no worker can be started: {echo(error, 160)}"
            more = [Finding("self-test", "failed", why, "broken")]
    more.append(disk_finding())
    found.broken += [_in_a_line(finding) for finding in more if finding.state == "broken"]
    found.findings += more
    return more


def asked_of_doctor(device: str, dtype: str, mem_limit: str) -> Asked:
    """The job that a machine is looked at for."""
    return Asked("", seed=0, model=DEMO, device=device, dtype=dtype, mem_limit=mem_limit)


def _in_a_line(finding: Finding) -> str:
    return f"{finding.name}: {finding.value}, {finding.reason}"


def diagnosis_report(found: Diagnosis) -> dict[str, Any]:
    """The JSON report of `sdcli doctor`."""
    task, measured = found.task, found.measured
    return {
        "schema": SCHEMA,
        "ok": not found.broken,
        "device": task.device,
        "dtype": task.dtype,
        "limit_bytes": task.ceiling.limit_bytes,
        "findings": [asdict(finding) for finding in found.findings],
        "versions": [{**asdict(version), "state": version.state} for version in found.versions],
        "self_test": None
        if measured is None
        else {
            "right": not measured.wrong,
            "differences": measured.differences,
            "allowed": measured.allowed,
            "flops": measured.flops,
            "baseline_bytes": measured.baseline_bytes,
            "memory_bytes_a_second": measured.memory_bytes,
        },
        "outlooks": [_outlook_table(outlook) for outlook in found.outlooks],
        "sdcli_version": __version__,
    }


def _outlook_table(outlook: Outlook) -> dict[str, Any]:
    posed = outlook.posed
    return {
        "profile": posed and posed.name,
        "limit_bytes": outlook.limit_bytes,
        "limit_from": outlook.limit_from,
        "speed_from": posed and posed.machine.speed_from,
        "dtype": outlook.dtype,
        "models": [_row_table(row) for row in outlook.rows],
    }


def _row_table(row: Row) -> dict[str, Any]:
    table = asdict(row)
    return {**table, "seconds": row.seconds and asdict(row.seconds)}
