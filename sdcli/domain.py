"""What is asked for, and how it is done: plain frozen values that every room may hold. No torch, no files."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sdcli.errors import SdcliError

StageName = str
"""encode_prompt, denoise, decode … as the model's family calls its stages."""

DtypeName = Literal["fp32", "fp16", "bf16"]
DeviceName = Literal["cpu", "mps", "cuda"]
Guidance = Literal["batched", "sequential"]
Residency = Literal["resident", "partial", "streamed"]
GiveBack = Literal["stage", "block", "piece"]
Part = Literal["whole", "latents", "pictures"]
Emphasis = Literal["a1111", "comfy", "none"]
"""Whose way weights of words go: A1111's, ComfyUI's; with none a prompt is taken as it is written."""

Upscaler = Literal["latent", "lanczos"]
"""What a picture is enlarged by before --hires draws it anew: its latents between their neighbours, or its pixels."""

Prediction = Literal["epsilon", "v", "sample"]
"""What a denoiser predicts: the noise, v, a mixture of noise and picture (Salimans and Ho 2022), or the picture."""

DTYPE_BYTES: dict[DtypeName, int] = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True, slots=True)
class Hires:
    """A second round of `steps`, all of which are run, at a larger size: `strength` of the enlarged picture changes."""

    width: int
    height: int
    steps: int
    strength: float
    upscaler: Upscaler = "latent"


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
    clip_skip: int | None = None
    """From which of the text encoder's layers words are taken, counted from its last, 1; None is the model's own."""
    sampler: str | None = None
    """By its name (models/samplers.py); None is the model's own."""
    schedule: str | None = None
    """Of noise levels, by its name; None is the model's own."""
    emphasis: Emphasis = "a1111"
    references: tuple[tuple[int, int], ...] = ()
    """Widths and heights of pictures to go by, which are sent beside the request."""
    guidance_is_input: bool = False
    """Whether the model takes the guidance as a number, and needs no second pass."""
    masked: bool = False
    """Whether a mask, sent beside the pixels, says which of them change."""
    canvas: tuple[int, int] | None = None
    """Width and height of the whole picture, in pixels, where what is drawn is laid over a given one."""
    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    target_size: tuple[int, int] | None = None
    """Sizes of before and now, and pixels cut off left and above, that the denoiser is told; None is the picture's."""
    hires: Hires | None = None

    @property
    def seeds(self) -> range:
        """Image i uses seed + i."""
        return range(self.seed, self.seed + self.count)

    @property
    def steps_run(self) -> int:
        """Of all steps those that are run: img2img's are `strength` of all, at least one unless the strength is 0.

        As in diffusers' StableDiffusionImg2ImgPipeline.get_timesteps, which however fails where it comes to none.
        """
        strength = 1.0 if self.strength is None else self.strength
        return min(self.steps, max(int(self.steps * strength), 1 if strength > 0 else 0))

    @property
    def rounds(self) -> tuple[Request, ...]:
        """A request for each round of steps, the first at this size."""
        if self.hires is None:
            return (self,)
        larger, steps = self.hires, self.hires.steps
        again = replace(self, width=larger.width, height=larger.height, strength=larger.strength, hires=None)
        if larger.strength > 0:  # of these so many are run
            steps = math.ceil(larger.steps / larger.strength)
            steps += int(steps * larger.strength) < larger.steps
        return self, replace(again, steps=steps)

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
    reasons: tuple[str, ...]
    ways: Mapping[StageName, str] = field(default_factory=dict)
    """How each stage goes about its work, where it has several ways."""
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
    remainder_bytes: int = 0
    """Of them neither baseline nor weights nor bytes that are alive."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file: its type as the format names it, its shape, and its place in the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes it takes on disk."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A checked safetensors file."""

    path: Path
    size_bytes: int
    tensors: dict[str, TensorInfo]
    header_sha256: str
    stamp: str  # as of when the header was read
    notes: Mapping[str, str] = field(default_factory=dict)
    """What whoever wrote it says of it, `__metadata__` of the format."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a weight comes from: a tensor of a file, or a piece of one, as its layer has it.

    A weight of a fused tensor is some of its `rows`, from the first to before the last. Numbers of eight bits are to be
    multiplied by `scale`, a tensor of one number in the same file. One that is `turned` has columns for rows there; of
    one that is `swapped` the second half of the rows comes first.
    """

    path: Path
    stored: str  # its name in the file
    info: TensorInfo
    rows: tuple[int, int] | None = None
    scale: str | None = None
    turned: bool = False
    swapped: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """As its layer has it, up to sides of length 1."""
        shape = self.info.shape if self.rows is None else (self.rows[1] - self.rows[0], *self.info.shape[1:])
        return shape[::-1] if self.turned else shape

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Word:
    """A word that a file of textual inversion brings: so many vectors of the text encoder's table."""

    name: str
    vectors: int
    origin: Origin
    stamp: str  # of the file, as of when its header was read


AdapterKind = Literal["lora", "loha", "lokr"]


@dataclass(frozen=True, slots=True)
class Adapter:
    """What a LoRA or one of its kin changes of one weight: a difference made of small tensors (models/lora.py).

    Its tensors by role. Of a `lora`, up x down (Hu et al. 2021, https://arxiv.org/abs/2106.09685), with a `mid` of a
    kernel's size between them; of a `loha`, (w1_a w1_b) ∘ (w2_a w2_b), each with a kernel t1, t2; of a `lokr`, the
    Kronecker product of w1 and w2, each of them w_a w_b or with t2 (https://arxiv.org/abs/2309.14859). With a
    `magnitude` for each output, or an `input_magnitude` for each input, the changed weight has these norms (DoRA, Liu
    et al. 2024, https://arxiv.org/abs/2402.09353).
    """

    kind: AdapterKind
    scale: float
    """Times the difference: the file's alpha / rank."""
    weight: float
    """How much of the change there is to be: 0 none, 1 all."""
    tensors: Mapping[str, Origin]


@dataclass(frozen=True, slots=True)
class Lora:
    """A file of adapters that a model is changed by, and how much."""

    file: WeightFile
    weight: float
    changes: int
    """How many of the model's weights it changes."""

    @property
    def name(self) -> str:
        """As people call it: the file's name without its suffix."""
        return self.file.path.stem


@dataclass(frozen=True, slots=True, eq=False)
class Component:
    """One of the parts of a model: the class to build, its settings, and its tensors by today's names.

    `config` has the settings that its file made, which reach a constructor.
    """

    name: str
    class_name: str
    config: dict[str, Any]
    folder: Path
    files: tuple[WeightFile, ...] = ()
    tensors: Mapping[str, Origin] | None = None
    """By the names that the class has for them."""
    passed_over: tuple[str, ...] = ()
    """Keys of its config that are not known here."""
    config_name: str = "config.json"
    words: tuple[Word, ...] = ()
    """That are not in its own table."""
    schema: type[Any] | None = None
    """The dataclass of its settings, as its part has it."""
    adapters: Mapping[str, tuple[Adapter, ...]] = field(default_factory=dict)
    """What is added to which of its weights, by their names."""
    adapter_files: tuple[WeightFile, ...] = ()
    """Where that comes from."""

    @property
    def config_file(self) -> Path:
        """Where its settings come from: of a model in one file, that."""
        return self.folder / self.config_name if self.config_name else self.folder

    @property
    def settings(self) -> Any:
        """All settings: those of its config, and the library's own defaults for the others."""
        if self.schema is None:
            raise TypeError(f"the {self.name} has no schema")
        return self.schema(**self.config)

    def weights(self) -> Mapping[str, Origin]:
        """The tensors; SdcliError for a component that has none."""
        if self.tensors is None:
            raise SdcliError(f"the {self.name} has no weights")
        return self.tensors


@dataclass(frozen=True, slots=True)
class Sources:
    """What a model is read from: a folder or a file, what comes in place of its own parts, and what no file tells."""

    path: str
    parts: Mapping[str, str] = field(default_factory=dict)
    """From a part's name to a file or a folder."""
    prediction: Prediction | None = None
    """What the denoiser predicts; None is what the model says."""
    embeddings: tuple[str, ...] = ()
    """Files of textual inversion, whose words may be in the prompt."""
    loras: tuple[tuple[str, float], ...] = ()
    """Files of LoRA that the model is changed by, and how much of each."""


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A checked model. `ref` is what the user called it; `notes` say what was taken where there was a choice."""

    ref: str
    sources: Sources
    family: str
    """The name of its family."""
    parts: Mapping[str, Component]
    """By name, in the order of use."""
    sha256: str | None = None
    notes: tuple[str, ...] = ()
    loras: tuple[Lora, ...] = ()
    """What it is changed by."""
    said: Mapping[str, bool] = field(default_factory=dict)
    """What its index says besides its parts, where its family takes something else for granted."""

    @property
    def path(self) -> Path:
        """The folder or the file that it lies in."""
        return Path(self.sources.path)

    @property
    def digest(self) -> str:
        """What tells its networks and headers from any others, wherever its files lie and whatever their times are."""
        facts = [
            (part.name, part.class_name, part.config, [(file.path.name, file.header_sha256) for file in part.files])
            for part in self.parts.values()
        ]
        more = [one for one in (sorted(lora.file.header_sha256 for lora in self.loras), dict(self.said)) if one]
        return hashlib.sha256(json.dumps([self.family, facts, *more], sort_keys=True).encode()).hexdigest()
