"""A checkpoint: all that a run needs to go on after a step as if it had never stopped.

A safetensors blob: the latents, the scheduler's history, the generator's state, and which image and step.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from sdcli.engine.schedulers import restore_scheduler, scheduler_state
from sdcli.errors import CheckpointDamaged

DAMAGED = "a checkpoint of this run is damaged: sdcli runs remove takes the run away; draw it anew"

LENGTH_MOST = 10_000
"""Of a scheduler's lists: more than it has steps."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after `step` steps of a `round` of image number `image`. Latents: (1, channels, h, w), FP32."""

    image: int
    step: int
    latents: torch.Tensor
    generator: torch.Tensor
    scheduler_tensors: dict[str, torch.Tensor]
    scheduler_plain: dict[str, Any]
    round: int = 0

    @classmethod
    def take(
        cls,
        image: int,
        step: int,
        count: int,
        latents: torch.Tensor,
        generator: torch.Generator,
        scheduler: Any,
        number: int = 0,
    ) -> Checkpoint:
        """Look at a round of that number after `step` of `count` steps. After its last one nobody asks for the
        scheduler any more."""
        history: tuple[Any, Any] = scheduler_state(scheduler) if step < count else ({}, {})
        return cls(image, step, latents, generator.get_state(), *history, round=number)

    def restore(self, generator: torch.Generator, scheduler: Any) -> torch.Tensor:
        """Bring generator and scheduler to where they were; returns the latents.

        Raises CheckpointDamaged for one that is of others.
        """
        try:
            generator.set_state(self.generator)
            restore_scheduler(scheduler, self.scheduler_tensors, self.scheduler_plain)
        except (RuntimeError, TypeError, LookupError) as error:
            raise CheckpointDamaged(DAMAGED) from error
        return self.latents

    def require_sound(self, shape: torch.Size, count: int) -> None:
        """Raise CheckpointDamaged for one that is not of a picture of this shape, drawn in so many steps.

        A scheduler's own numbers may be infinite: logarithms of a noise level of 0.
        """
        lengths = [value.get("length") for value in self.scheduler_plain.values() if isinstance(value, dict)]
        sound = (
            self.latents.shape == shape
            and self.latents.dtype is torch.float32
            and 0 <= self.step <= count
            and bool(torch.isfinite(self.latents).all())
            and all(isinstance(length, int) and 0 <= length <= LENGTH_MOST for length in lengths)
        )
        if not sound:
            raise CheckpointDamaged(DAMAGED)

    def to_bytes(self) -> bytes:
        """As one blob."""
        tensors = {"latents": self.latents, "generator": self.generator}
        tensors |= {f"scheduler.{name}": tensor for name, tensor in self.scheduler_tensors.items()}
        plain = torch.frombuffer(
            bytearray(json.dumps([self.image, self.step, self.round, self.scheduler_plain]).encode()), dtype=torch.uint8
        )
        blob: bytes = save({name: t.detach().clone().contiguous() for name, t in tensors.items()} | {"plain": plain})
        return blob

    @classmethod
    def from_bytes(cls, blob: bytes) -> Checkpoint:
        """Undo `to_bytes`. Raises CheckpointDamaged for what is no checkpoint."""
        try:
            tensors = load(blob)
            image, step, number, plain = json.loads(bytes(tensors.pop("plain").tolist()))
            latents, generator = tensors.pop("latents"), tensors.pop("generator")
        except (SafetensorError, ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
            raise CheckpointDamaged(DAMAGED) from error
        if not all(type(one) is int for one in (image, step, number)) or not isinstance(plain, dict):
            raise CheckpointDamaged(DAMAGED)
        scheduler = {name.removeprefix("scheduler."): tensor for name, tensor in tensors.items()}
        return cls(image, step, latents, generator, scheduler, plain, number)
