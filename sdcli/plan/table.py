"""The table of weights: which of them stay in memory, which stream, how each is laid out. Made once, by the host."""

from __future__ import annotations

from sdcli.domain import DTYPE_BYTES, DtypeName
from sdcli.plan.counts import StageCount
from sdcli.uses import WeightRow, WeightUse


def table_of(
    count: StageCount, dtype: DtypeName, resident_bytes: int = 0, layout: StageCount | None = None, samples: int = 1
) -> tuple[WeightRow, ...]:
    """A row for each weight of a stage, in the order of use.

    The matrices that stay are at most `resident_bytes` in the arithmetic's type: those of the smallest maps first,
    since arithmetic hides least of their reading. `layout` is a count at the size that weights are laid out for.
    """
    sees = {(use.part, use.name): use.sees for use in (layout or count).weights}
    left, staying = resident_bytes, set()
    for use in sorted(matrices(count), key=lambda use: use.places):
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


def matrices(count: StageCount) -> list[WeightUse]:
    """The weights that may stream, in the order of use."""
    return [use for use in count.weights if use.use == "matrix"]
