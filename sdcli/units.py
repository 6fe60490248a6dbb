"""Sizes as people write them. GiB, MiB and KiB are powers of 1024; GB (or G), MB and KB powers of 1000."""

from __future__ import annotations

import re

from sdcli.errors import BadRequest, echo

KIB, MIB, GIB = 2**10, 2**20, 2**30

_FACTORS = {prefix: (1000**power, 1024**power) for power, prefix in enumerate("KMGT", start=1)}
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)\s*([KMGT])(i?)B?", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Bytes of a size such as `2GiB`, `2800MiB` or `2GB` (10^9).

    Raises BadRequest for a bare number (which unit?), for zero and for anything that is not a size.
    """
    stripped = text.strip()
    match = _SIZE.fullmatch(stripped)
    if match is None:
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", stripped):
            raise BadRequest(f"the size {echo(text)} has no unit: write {stripped[:20]}MiB or {stripped[:20]}GiB")
        raise BadRequest(f"{echo(text)} is not a size: write 2GiB, 2800MiB or 2GB (10^9 bytes)")
    number, prefix, binary = match.groups()
    size_bytes = round(float(number) * _FACTORS[prefix.upper()][bool(binary)])
    if size_bytes <= 0:
        raise BadRequest(f"the size {echo(text)} is zero: give more than that, 2GiB say")
    return size_bytes


def format_size(size_bytes: int) -> str:
    """A size for people: `1.64 GiB`, `437 MiB`, `12 KiB`."""
    if size_bytes >= GIB:
        return f"{size_bytes / GIB:.2f} GiB"
    if size_bytes >= MIB:
        return f"{size_bytes / MIB:.0f} MiB"
    return f"{size_bytes / KIB:.0f} KiB"


def format_limit(size_bytes: int) -> str:
    """A size that the user can pass back to --mem-limit: whole MiB, rounded up."""
    return f"{-(-size_bytes // MIB)}MiB"


def format_duration(seconds: float) -> str:
    """Seconds, minutes or hours, in two figures."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 100:
        return f"{seconds / 60:.{int(seconds < 600)}f} min"
    return f"{seconds:.{0 if seconds >= 10 else 1 if seconds >= 0.995 else 2}f} s"


def format_pace(seconds: float) -> str:
    """About how many seconds, in two figures, as one can know them beforehand."""
    if seconds < 0.1:
        return "less than 0.1 s"
    return f"about {format_duration(seconds)}"
