"""The table of weights: which of them stay in memory, which stream, how each is laid out. Made once, by the host."""

from __future__ import annotations

from sdcli.domain import DTYPE_BYTES, DtypeName
from sdcli.plan.counts import StageCount
from sdcli.uses import WeightRow, WeightUse


def table_of(
    count: StageCount,
    dtype: DtypeName,
    resident_bytes: int = 0,
    layout: StageCount | None = None,
    samples: int = 1,
    slices_stay: bool = False,
) -> tuple[WeightRow, ...]:
    """A row for each weight of a stage, in the order of use.

    The matrices that stay are at most `resident_bytes` in the arithmetic's type: those of the smallest maps first,
    since arithmetic hides least of their reading. `layout` is a count at the size that weights are laid out for; with
    `slices_stay`, weights that are used by the slice may stay, too.
    """
    sees = {(use.part, use.name): use.sees for use in (layout or count).weights}
    left, staying = resident_bytes, set()
    for use in sorted(matrices(count, slices_stay), key=lambda use: use.places):
        nbytes = use.numel * DTYPE_BYTES[dtype]
        if nbytes <= left:
            left -= nbytes
            staying.add(use)
    return tuple(
        WeightRow(
            use.part,
            use.name,
            use.shape,
            use.use,
            (samples, *sees.get((use.part, use.name), use.sees)),
            use in staying or use.use == "vector",
        )
        for use in count.weights
    )


def matrices(count: StageCount, slices_stay: bool = False) -> list[WeightUse]:
    """The weights that may stay in memory or stream, in the order of use."""
    uses = ("matrix", "sliced") if slices_stay else ("matrix",)
    return [use for use in count.weights if use.use in uses]
