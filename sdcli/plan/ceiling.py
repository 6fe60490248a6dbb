"""The ceiling: what the user asked for, held against what the machine and its container have."""

from __future__ import annotations

from dataclasses import dataclass

from sdcli import machine
from sdcli.units import MIB, format_size, parse_size


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The ceiling in bytes, or None for none; why it is that; and what a person should be warned of."""

    limit_bytes: int | None
    reason: str
    warning: str | None = None


KERNEL_BYTES = 32 * MIB
"""A container's limit covers what a footprint has not: page tables, stacks, the pages of files that are in use."""


def kernel_share_bytes(limit_bytes: int | None) -> int:
    """What must stay free under this ceiling, because the container's limit is not far above it."""
    container = machine.container_limit_bytes()
    return 0 if container is None or limit_bytes is None else max(0, KERNEL_BYTES - max(0, container - limit_bytes))


def decide_ceiling(text: str, device: str) -> Ceiling:
    """The ceiling for `auto`, `none` or a size. Raises BadRequest for anything else.

    On CUDA it covers the GPU's memory, elsewhere the footprint of the process tree.
    """
    if text == "none":
        return Ceiling(None, "none asked for: footprint is measured, not limited")
    if device == "cuda":
        has, container, owner = machine.gpu_memory_bytes() or 0, None, "the GPU"
    else:
        has, container, owner = machine.physical_memory_bytes(), machine.container_limit_bytes(), "this machine"
    if text == "auto":
        share = machine.iphone_share_bytes(has)
        if container is not None and container < share:
            return Ceiling(container, f"the container's limit of {format_size(container)}")
        return Ceiling(share, f"an app's share, as on iOS, of the {format_size(has)} of {owner}")
    asked = parse_size(text)
    least = min(has, container) if container is not None else has
    if asked > least:
        whose = owner if least == has else "the container"
        warning = f"the ceiling of {format_size(asked)} is more than {whose} has: {format_size(least)} is used"
        return Ceiling(least, f"all that {whose} has", warning)
    return Ceiling(asked, f"asked for: {asked} bytes")
