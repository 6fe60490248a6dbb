"""On which device, in which type and under which ceiling a task is to run: decided, and told."""

from __future__ import annotations

from sdcli import machine
from sdcli.app.asked import Asked, Note, Tell
from sdcli.domain import DeviceName, DtypeName, Model
from sdcli.models.disks import model_in_memory
from sdcli.plan.ceiling import Ceiling, ceiling_elsewhere, decide_ceiling
from sdcli.settings import Profile


def decided(asked: Asked, model: Model, tell: Tell) -> tuple[DeviceName, DtypeName, Ceiling]:
    """On this machine."""
    device = machine.choose_device(asked.device)
    name: DeviceName = "cuda" if device.value == "cuda" else "mps" if device.value == "mps" else "cpu"
    dtype, why = machine.choose_dtype(name, asked.dtype)
    if name == "cpu" and dtype == "fp16":
        tell(Note("fp16 arithmetic on a CPU can be hundreds of times slower than bf16 or fp32", "warning"))
    ceiling = decide_ceiling(asked.mem_limit, name, asked.kernel_limit)
    if ceiling.warning:
        tell(Note(ceiling.warning, "warning"))
    if model_in_memory(model):
        what = "the model lies on a RAM disk: the system counts all of it as memory, beside the ceiling"
        tell(Note(f"{what}; a folder on a disk takes none", "warning"))
    tell(Note(f"device: {name}, {device.reason}; {dtype}: {why}; ceiling: {ceiling.reason}", "detail"))
    return name, dtype, ceiling


def decided_elsewhere(asked: Asked, posed: Profile, tell: Tell) -> tuple[DeviceName, DtypeName, Ceiling]:
    """On the machine of a profile, whose memory is counted as if this one's CPU drew in its type."""
    if asked.device != "auto":
        what = f"--device {asked.device} has no effect: {posed.name} computes with {posed.machine.processor}"
        tell(Note(what, "warning"))
    if asked.kernel_limit is not None:
        tell(Note(f"--kernel-limit has no effect: {posed.name} is another machine", "warning"))
    named = posed.machine.dtype if asked.dtype == "auto" else asked.dtype
    dtype, _ = machine.choose_dtype("cpu", named)
    ceiling = ceiling_elsewhere(asked.mem_limit, posed)
    if ceiling.warning:
        tell(Note(ceiling.warning, "warning"))
    return "cpu", dtype, ceiling
