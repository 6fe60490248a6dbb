"""Ways of spending memory on a denoise step, by name: the planner chooses among them, and a dry run counts each."""

from __future__ import annotations

from sdcli.units import MIB

SCRATCHES = 16 * MIB, 8 * MIB
"""For attention's scores, where no fused kernel goes without them."""


def way_of_steps(samples: int, scratch_bytes: int) -> str:
    """So many samples at a time, with so much scratch."""
    together = "one sample at a time" if samples == 1 else "all samples at once"
    return f"{together}, {scratch_bytes // MIB} MiB of scratch" if scratch_bytes else together
