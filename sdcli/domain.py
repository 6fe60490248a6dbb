"""What is asked for, and how it will be done: plain frozen values that every room may hold.

No torch, no files, no processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

StageName = Literal["encode_prompt", "encode_image", "denoise", "decode"]
DtypeName = Literal["fp32", "fp16", "bf16"]
DeviceName = Literal["cpu", "mps", "cuda"]
Guidance = Literal["batched", "sequential"]
Residency = Literal["resident", "partial", "streamed"]
GiveBack = Literal["stage", "block", "piece"]
Part = Literal["whole", "latents", "pictures"]
MapShape = tuple[int, int, int]
"""Samples, height and width of a map."""

DTYPE_BYTES: dict[DtypeName, int] = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True, slots=True)
class Request:
    """What to draw. `strength` is None for txt2img; img2img sends its pixels beside the request."""

    prompt: str
    negative: str
    width: int
    height: int
    steps: int
    guidance: float
    seed: int
    count: int
    strength: float | None = None
    guidance_is_input: bool = False
    """Whether the model takes the guidance as a number, and needs no second pass."""

    @property
    def seeds(self) -> range:
        """Image i uses seed + i."""
        return range(self.seed, self.seed + self.count)

    @property
    def guided(self) -> bool:
        """Whether the negative prompt is evaluated as well: at a guidance of 1 or less it has no say."""
        return self.guidance > 1.0 and not self.guidance_is_input


@dataclass(frozen=True, slots=True)
class Plan:
    """How the memory is spent. Every plan draws the same picture; they differ in bytes and seconds."""

    residency: Residency
    resident_bytes: int
    guidance: Guidance
    attention_scratch_bytes: int
    vae_tile: int | None
    reasons: tuple[str, ...]
    give_back: GiveBack = "stage"
    """After what the heap's free pages go back to the system: the sooner, the smaller and slower."""
    prepared: bool = False
    """Whether what streams comes from a prepared copy, which is made if it is not there."""
    fresh_decode: bool = False
    """Whether a worker of its own decodes, where nothing is left of what the denoiser had."""


@dataclass(frozen=True, slots=True)
class StageNeed:
    """The predicted peak of one stage: footprint of the whole process tree, in bytes."""

    name: StageName
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Choice:
    """A decision and why it fell that way."""

    value: str
    reason: str
