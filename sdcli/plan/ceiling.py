"""The ceiling: what the user asked for, held against what the machine and its container have."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sdcli import machine
from sdcli.settings import Profile
from sdcli.units import KIB, MIB, format_limit, format_size, parse_size


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The ceiling in bytes, or None for none; why it is that; and what a person should be warned of."""

    limit_bytes: int | None
    reason: str
    warning: str | None = None
    kernel_limit_bytes: int | None = None
    """Of the control group that the worker is to have for itself, if it is to have one."""


KERNEL_BYTES = 32 * MIB
"""A container's limit covers what a footprint has not: page tables, stacks, the pages of files that are in use."""


def kernel_share_bytes(ceiling: Ceiling) -> int:
    """What must stay free under this ceiling, because the kernel's own limit is not far above it."""
    limit_bytes, (container, _) = ceiling.limit_bytes, _container(ceiling.kernel_limit_bytes)
    return 0 if container is None or limit_bytes is None else max(0, KERNEL_BYTES - max(0, container - limit_bytes))


def options_for(ceiling_bytes: int, limit_bytes: int, kernel_limit_bytes: int | None = None) -> str:
    """The options that raise a ceiling of `limit_bytes` to so many bytes.

    In a control group of its own, whose limit holds the ceiling down, that limit is raised, or both are.
    """
    mem_limit = f"--mem-limit {format_limit(ceiling_bytes)}"
    if kernel_limit_bytes is None or ceiling_bytes + KERNEL_BYTES <= kernel_limit_bytes:
        return mem_limit
    if kernel_limit_bytes <= limit_bytes:
        return f"--kernel-limit {format_limit(ceiling_bytes)}"
    return f"{mem_limit} and --kernel-limit {format_limit(ceiling_bytes + KERNEL_BYTES)}"


def _container(kernel_limit_bytes: int | None) -> tuple[int | None, str]:
    """The tighter one of the limits that the kernel keeps, and whose it is."""
    container = machine.container_limit_bytes()
    if kernel_limit_bytes is None or (container is not None and container <= kernel_limit_bytes):
        return container, "the container"
    return kernel_limit_bytes, "the control group"


def decide_ceiling(text: str, device: str, kernel_limit: str | None = None) -> Ceiling:
    """The ceiling for `auto`, `none` or a size. Raises BadRequest for anything else.

    On CUDA it covers the GPU's memory, elsewhere the footprint of the process tree. `kernel_limit` is the size of a
    control group that the worker is to have for itself: the ceiling is no more than that, unless it is `none`.
    """
    kernel_limit_bytes = None if kernel_limit is None else parse_size(kernel_limit)
    return replace(_decide(text, device, kernel_limit_bytes), kernel_limit_bytes=kernel_limit_bytes)


def _decide(text: str, device: str, kernel_limit_bytes: int | None) -> Ceiling:
    if text == "none":
        return Ceiling(None, "none asked for: footprint is measured, not limited")
    if device == "cuda":
        has, owner, container, holder = machine.gpu_memory_bytes() or 0, "the GPU", None, ""
    else:
        has, owner = machine.physical_memory_bytes(), "this machine"
        container, holder = _container(kernel_limit_bytes)
    if text == "auto":
        share = machine.iphone_share_bytes(has)
        if container is not None and container < share:
            return Ceiling(container, f"{holder}'s limit of {format_size(container)}")
        return Ceiling(share, f"an app's share, as on iOS, of the {format_size(has)} of {owner}")
    asked = parse_size(text)
    least = min(has, container) if container is not None else has
    return _within(asked, least, owner if least == has else holder)


def ceiling_elsewhere(text: str, posed: Profile) -> Ceiling:
    """The same on the machine of a profile, which `auto` and the profile's own size, in whole KiB, mean there."""
    if text == "none":
        return Ceiling(None, "none asked for: footprint is measured, not limited")
    has, asked = posed.machine.memory_bytes, posed.limit_bytes if text == "auto" else parse_size(text)
    if asked // KIB == posed.limit_bytes // KIB:
        return Ceiling(asked, posed.limit_from)
    return _within(asked, has, posed.name)


def _within(asked: int, least: int, whose: str) -> Ceiling:
    """A size that was asked for, and no more than there is."""
    if asked > least:
        warning = f"the ceiling of {format_size(asked)} is more than {whose} has: {format_size(least)} is used"
        return Ceiling(least, f"all that {whose} has", warning)
    return Ceiling(asked, f"asked for: {asked} bytes")
