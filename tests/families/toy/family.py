"""A family of models that nobody else has: proof that a family is one folder, or as here one file, and nothing besides.

A latent transformer (Vaswani et al. 2017; patches as in Peebles and Xie 2022) that goes by the bytes of the prompt and
by the size of the picture. Latents are patches of 8 x 8 pixels, by a matrix there and another one back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdcli.domain import Model, Request
from sdcli.families.contract import SCHEDULER, Defaults, Geometry, Part, Settings, Stage
from sdcli.families.registry import register
from sdcli.families.rules import is_size, setting

PATCH, CHANNELS = 8, 12


@dataclass(frozen=True)
class Sizes(Settings):
    """All that a part may be told."""

    width: int = setting(64, is_size)
    layers: int = setting(2, is_size)


class Toy:
    """The family."""

    name, network, extras = "toy", "tests.families.toy.network", ()
    pipelines: tuple[str, ...] = ("ToyPipeline",)
    index_extras: Mapping[str, object] = {}
    parts = (
        SCHEDULER,
        *(
            Part(name, classes=frozenset({name}), default_class=name, schema=Sizes, stem="weights", tells=True)
            for name in ("words", "painter", "patches")
        ),
    )
    defaults = Defaults(steps=4, guidance=3.0)

    def stages(self, model: Model, request: Request) -> tuple[Stage, ...]:
        words = Stage("read_words", "once", ("words",), "the reader")
        init = Stage("cut_patches", "once", ("patches",), "the patches")
        steps = Stage("paint", "steps", ("painter",), "the painter")
        pictures = Stage("put_together", "pictures", ("patches",), "the patches")
        return (words, *([init] if request.strength is not None else []), steps, pictures)

    def geometry(self, model: Model) -> Geometry:
        return Geometry(CHANNELS, PATCH, native_size=(128, 128), prompt_tokens=32)

    def chunks(self, model: Model, request: Request) -> int:
        return 1

    def require_fit(self, ref: str, model: Model) -> None:
        """Whatever is there fits."""

    def label(self, model: Model) -> str:
        return "toy"

    def texts(self, config: Mapping[str, Any]) -> dict[str, str]:
        return {}


register(Toy())
