"""What a person asks for, as far as it was said, and how a run talks back: plain values that any face may make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from sdcli.domain import Emphasis, Prediction, Upscaler

SEED_END = 2**64
"""Seeds are below this."""

OnLimit = Literal["degrade", "kill"]
"""What is done when the ceiling is crossed: go on from the last step with a smaller plan, or end the run."""

STRENGTH, MASK_BLUR = 0.6, 4
"""Where nothing was said."""

HIRES_STRENGTH: float = 0.7
HIRES_UPSCALER: Upscaler = "latent"
"""Likewise, of --hires: as A1111 has them."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What to draw, with what, on what, under which ceiling. None is what was not said: the model or the machine knows.

    `parts` are files or folders in place of the model's own, by the parts' names. `init` is the file of a picture to
    edit, and `strength`, which nothing else needs, how much to change it. `device` and `dtype` may be `auto`;
    `mem_limit` is a size with its unit, `auto` or `none`.
    """

    prompt: str
    seed: int
    negative: str = ""
    model: str | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    prediction: Prediction | None = None
    clip_skip: int | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    original_size: tuple[int, int] | None = None
    """Width and height that the denoiser is told the picture had before it was cut to shape."""
    crop: tuple[int, int] | None = None
    """Pixels that it is told were cut off left and above."""
    target_size: tuple[int, int] | None = None
    """Width and height that it is told the picture has."""
    count: int = 1
    references: tuple[str, ...] = ()
    """Files of pictures that the model is to go by."""
    init: str | None = None
    strength: float | None = None
    mask: str | None = None
    """A file, of which what is white changes, or `alpha` for what is transparent in the init image."""
    mask_blur: int = MASK_BLUR
    invert_mask: bool = False
    inpaint_area: Literal["whole", "masked"] = "whole"
    outpaint: tuple[int, int, int, int] | None = None
    """Pixels to draw left of the init image, above, right of it and below."""
    fit: Literal["crop", "pad", "stretch", "exact"] = "crop"
    hires: float | tuple[int, int] | None = None
    """How many times as large the picture is drawn once more, or width and height."""
    hires_strength: float | None = None
    hires_steps: int | None = None
    hires_upscaler: Upscaler | None = None
    preview_every: int = 0
    """Steps from one preview of the picture to the next; 0 is none."""
    decoder: Literal["full", "tiny"] = "full"
    """What makes pictures of latents: the model's own autoencoder, or a tiny one."""
    background: tuple[int, int, int] = (255, 255, 255)
    """What transparency of the init image is laid on, in RGB."""
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    """Of the CPU; None is what the library takes."""
    mem_limit: str = "auto"
    kernel_limit: str | None = None
    """Size of a control group that the worker is to have for itself; None is none."""
    on_limit: OnLimit = "degrade"
    embeddings: tuple[str, ...] = ()
    """Files of textual inversion."""
    embedding_dir: str | None = None
    """Where those lie whose names are in a prompt."""
    loras: tuple[tuple[str, float], ...] = ()
    """Files of LoRA, and how much of each."""
    no_prepare: bool = False
    """Whether no prepared copy of weights is made, nor one that is there used."""
    no_cache: bool = False
    """Whether encodings of prompts are neither kept for other runs nor taken from them."""
    lora_dir: str | None = None
    """Where those lie that the prompt names."""
    emphasis: Emphasis = "a1111"
    sampler: str | None = None
    schedule: str | None = None
    """Of noise levels. Both by any of their names (models/samplers.py)."""


@dataclass(frozen=True, slots=True)
class Note:
    """A line that a person should read: what was decided for them, what goes on all the same, or a detail."""

    what: str
    kind: Literal["notice", "warning", "detail"] = "notice"


Tell = Callable[[Note], None]
