"""What a dry run of a model's network found out: bytes that are alive, operations, and how each weight is used.

Plain values, made by the worker (engine/count.py) and kept by the host. No torch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdcli.uses import WeightUse


@dataclass(frozen=True, slots=True)
class WayCount:
    """One way of going about a stage: the most bytes alive at once besides weights, operations, and how many kernels
    of different shapes run."""

    live_bytes: int
    heap_bytes: int
    """Of them in the heap, where what is freed leaves gaps; large allocations are mappings of their own."""
    flops: float
    kernels: int


@dataclass(frozen=True, slots=True)
class StageCount:
    """A stage: its weights in the order of use, and its ways by name."""

    weights: tuple[WeightUse, ...]
    ways: Mapping[str, WayCount]


MOST = 1e30
"""Of anything that is counted: far above what a computer can do."""

Counts = Mapping[str, StageCount]
"""By the name of the stage."""


def counts_to_json(counts: Counts) -> str:
    """As text that travels and can be kept."""
    plain = {
        stage: {
            "weights": [[use.part, use.name, use.shape, use.use, use.sees, use.places] for use in count.weights],
            "ways": {way: dataclasses.astuple(one) for way, one in count.ways.items()},
        }
        for stage, count in counts.items()
    }
    return json.dumps(plain, separators=(",", ":"))


def counts_from_json(text: str | bytes) -> Counts:
    """Undo `counts_to_json`. Raises ValueError, TypeError, LookupError or AttributeError for anything else."""
    plain: dict[str, Any] = json.loads(text)
    return {
        stage: StageCount(
            tuple(
                WeightUse(
                    str(part),
                    str(name),
                    tuple(map(_whole, shape)),
                    use,
                    (_whole(sees[0]), _whole(sees[1])),
                    _whole(places),
                )
                for part, name, shape, use, sees, places in count["weights"]
            ),
            {
                way: WayCount(_whole(live), _whole(heap), _counted(flops), _whole(kernels))
                for way, (live, heap, flops, kernels) in count["ways"].items()
            },
        )
        for stage, count in plain.items()
    }


def _counted(plain: object) -> float:
    if isinstance(plain, (int, float)) and not isinstance(plain, bool) and 0 <= plain < MOST:
        return plain
    raise ValueError("not what is counted")


def _whole(plain: object) -> int:
    return int(_counted(plain))
