"""The table of weights: what stays fits, the smallest maps' first, and rows are in the order of use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sdcli.domain import DTYPE_BYTES, DtypeName
from sdcli.plan.counts import StageCount
from sdcli.plan.table import matrices, table_of
from sdcli.uses import WeightRow, WeightUse
from tests.support import ASTRONAUT, counted

PLACES = [4096, 1024, 64, 64, 256, 1024, 4096]
COUNT = StageCount(
    (
        WeightUse("part", "words", (1000, 8), "table", (1, 1), 0),
        *(WeightUse("part", str(n), (8, 8, 3, 3), "matrix", (places, 1), places) for n, places in enumerate(PLACES)),
        WeightUse("part", "bias", (8,), "vector", (1, 1), 0),
        WeightUse("part", "copy", (8, 8), "copied", (5, 7), 35),
    ),
    {},
)
ONE = 8 * 8 * 9 * 4
"""Bytes of a matrix in fp32."""


def staying(rows: tuple[WeightRow, ...]) -> list[str]:
    return [row.name for row in rows if row.stays and row.use == "matrix"]


@pytest.mark.parametrize(
    ("resident_bytes", "names"),
    [
        (0, []),
        (ONE - 1, []),
        (ONE, ["2"]),
        (2 * ONE, ["2", "3"]),
        (4 * ONE - 1, ["2", "3", "4"]),
        (5 * ONE, ["1", "2", "3", "4", "5"]),
        (7 * ONE, list("0123456")),
        (2**60, list("0123456")),
    ],
)
def test_the_matrices_of_the_smallest_maps_stay_first(resident_bytes: int, names: list[str]) -> None:
    assert staying(table_of(COUNT, "fp32", resident_bytes)) == names
    assert staying(table_of(COUNT, "bf16", resident_bytes // 2)) == names


def test_a_matrix_that_is_too_large_leaves_room_for_others() -> None:
    large = replace(COUNT.weights[3], name="large", shape=(64, 64, 3, 3), places=1)
    rows = table_of(StageCount((large, *COUNT.weights), {}), "fp32", 2 * ONE)
    assert staying(rows) == ["2", "3"]


def test_vectors_always_stay_and_tables_and_copies_never() -> None:
    for resident_bytes in (0, 2**60):
        rows = {row.name: row for row in table_of(COUNT, "fp32", resident_bytes)}
        assert rows["bias"].stays and not rows["words"].stays and not rows["copy"].stays
    assert [use.name for use in matrices(COUNT)] == list("0123456")


def test_rows_are_in_the_order_of_use_and_laid_out_for_what_the_layout_s_layers_see() -> None:
    layout = StageCount(tuple(replace(use, sees=(3, 9)) for use in COUNT.weights[:4]), {})
    rows = table_of(COUNT, "fp32", 3 * ONE, layout, samples=2)
    assert [row.name for row in rows] == [use.name for use in COUNT.weights]
    assert [(row.part, row.shape, row.use) for row in rows] == [(u.part, u.shape, u.use) for u in COUNT.weights]
    assert [row.sees for row in rows[:4]] == [(2, 3, 9)] * 4
    assert [row.sees for row in rows[4:]] == [(2, *use.sees) for use in COUNT.weights[4:]], "not seen there"
    assert staying(rows) == staying(table_of(COUNT, "fp32", 3 * ONE)), "where it is laid out for does not matter"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("resident_bytes", [0, 4096, 123_456, 777_777, 2**40])
def test_a_counted_model_never_has_more_staying_than_is_allowed(
    tiny: Path, resident_bytes: int, dtype: DtypeName
) -> None:
    count = counted(tiny, ASTRONAUT, dtype)["denoise"]
    rows, uses = table_of(count, dtype, resident_bytes), {use.name: use for use in matrices(count)}
    sizes = {name: use.numel * DTYPE_BYTES[dtype] for name, use in uses.items()}
    stays = staying(rows)
    left = resident_bytes - sum(sizes[name] for name in stays)
    going = [name for name in uses if name not in stays]
    assert left >= 0 and all(sizes[name] > left for name in going), "room was left that another would have fitted in"
    for name in going:  # all of smaller maps stay, unless they are too large for what was left of the room
        before = sum(sizes[other] for other in stays if uses[other].places <= uses[name].places)
        assert before + sizes[name] > resident_bytes
    assert [row.name for row in rows] == [use.name for use in count.weights]
