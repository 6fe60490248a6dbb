"""What a model family is, as far as the host may know: its parts, stages, sizes and defaults.

A family is a folder of families/ with two files at least: family.py, which the host reads and which imports no torch,
and network.py, which the worker runs. The network has `build(component)`, the module of a part on the meta device;
`try_out()`, called once as it is imported; `start(model, init, generator)`, latents to begin from where there is an
init image; and for each stage a context manager of its name, `(model, request, borrow)` to a function:

- of a stage that runs once: from what stages before gave to what this one gives, mappings of tensors by name;
- of the steps: (latents, timestep, conditioning, guidance) to the model's output; its `lent` counts what it reads;
- of the pictures: latents to pixels, (1, 3, h, w) in -1…1.

A network of models that are made for inpainting has `beside(model, surroundings, mask, noise)` as well: what the steps
are told of a mask, from the `surroundings` that a stage gave; part of the conditioning, each tensor of one row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from sdcli.domain import Component, Model, Prediction, Request, StageName, WeightFile, Word
from sdcli.families.colours import Colours

Times = Literal["once", "steps", "pictures", "to_pixels", "to_latents"]
"""How often a stage runs: once a job, at every step of every picture, or once a picture. Between two rounds of steps a
picture may go to pixels, which are enlarged, and from there to latents again."""

Library = Literal["diffusers", "transformers"]

PREDICTIONS: Mapping[Prediction, str] = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}
"""As configs of schedulers call them."""

FLOAT8 = frozenset({"F8_E4M3", "F8_E5M2"})

WEIGHT_DTYPES = frozenset({"F16", "BF16", "F32"}) | FLOAT8
"""Types that weights are stored in, as the format names them."""

Numbers = Callable[[WeightFile, str], Sequence[float]]
"""Reads the numbers of a small tensor of a file."""


@dataclass(frozen=True)
class Settings:
    """The schema of a part: a field a key that its config may have, with its rule and the library's own default."""

    def faults(self, given: Collection[str]) -> Iterator[str]:
        """Why no network can be built with these settings, each of which is by its rule. A config had the `given`."""
        yield from ()


@dataclass(frozen=True, slots=True)
class VocabularyLimits:
    """How large the files of a tokenizer may be before any library parses them."""

    title: str
    """Whose tokenizer it is."""
    limits_bytes: Mapping[str, int]
    """Of each of its files: vocab.json, merges.txt, tokenizer.json."""
    entries: int
    """Lines or tokens of a file."""
    unmerged: int
    """Tokens of its vocabulary that no merge makes: bytes, and marks."""


def _as_stored(name: str) -> str:
    return name


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A part of a family's models: a folder in diffusers layout, and what may lie in it.

    Of its kinds a network has a stem, a tokenizer has limits of its vocabulary, and a scheduler has neither: it is any
    of those that models/schedulers.py knows, or one of its own classes.
    """

    name: str
    """Of its folder."""
    library: Library = "diffusers"
    classes: frozenset[str] = frozenset()
    """Those that a config may name: no class comes from anywhere else."""
    class_key: str = "_class_name"
    """Where else a config may name its class."""
    default_class: str | None = None
    """The class of a config that names none."""
    config_file: str = "config.json"
    inner_key: str | None = None
    """Where the config of something larger has the settings of this part."""
    schema: type[Settings] = Settings
    unset: Mapping[str, object] = field(default_factory=dict)
    """Keys that would change the picture and are not honoured, with the value that they have while they are unset: null
    is always one, and with None here so are false, zero and what is empty."""
    idle: frozenset[str] = frozenset()
    """Keys that have no say in a picture."""
    corrected: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] = lambda config, table: config
    """From checked settings and the table that they were in to what the library makes of them."""
    stem: str | None = None
    """Of the names of its files with weights; None for a part that has none."""
    renamed: Callable[[str], str] = _as_stored
    """From the name of a stored tensor to the one that the class gives it."""
    unused: re.Pattern[str] = re.compile(r"(?!)")
    """Names of stored tensors that are not of this class."""
    dtypes: frozenset[str] = WEIGHT_DTYPES
    """Types that weights may be stored in."""
    check: Callable[[Component], None] = lambda component: None
    """Raises SdcliError where its weights are not those that its settings describe."""
    lora_prefixes: tuple[str, ...] = ()
    """What names of its modules begin with in files of LoRA: before dots, or before underscores in their place."""
    spellings: Callable[[Component, str], Collection[str]] = lambda component, module: (module,)
    """Names that such files have for one of its modules, with dots; none for one that no LoRA changes."""
    fused_spellings: Callable[[Component, str], Mapping[str, tuple[int, int]]] = lambda component, module: {}
    """Names that such files have for a module of which this one is a share: which, and of how many that are alike."""
    swapped_spellings: Callable[[Component, str], Collection[str]] = lambda component, module: ()
    """Names that such files have for a module whose outputs' second half comes first here."""
    vocabulary: VocabularyLimits | None = None
    option: str | None = None
    """The option that names another one in place of a model's own."""
    of_model: tuple[str, ...] = ()
    """Keys of its config that another one takes over where the model has them all: its denoiser was made for them."""
    pulled: str | None = None
    """The repository on the Hub that has it, where no folder of a model does."""
    tells: bool = False
    """Whether a folder of its name tells that the folder around it is a model's."""

    @property
    def is_scheduler(self) -> bool:
        """Whether it is neither a network nor a tokenizer."""
        return self.stem is None and self.vocabulary is None


SCHEDULER = Part("scheduler", config_file="scheduler_config.json")
"""That of models that take noise away."""

FLOW_CLASS = "FlowMatchEulerDiscreteScheduler"
FLOW_SCHEDULER = replace(SCHEDULER, classes=frozenset({FLOW_CLASS}))
"""That of flow models."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a family's networks."""

    name: StageName
    times: Times
    lends: tuple[str, ...]
    """Parts whose weights it borrows. Those of the first may be prepared, where it runs at every step."""
    title: str
    """What does the work, in words that follow "the stage's": the denoiser, the autoencoder."""
    reads: tuple[str, ...] = ()
    """Parts whose other files it reads."""
    ways: Mapping[str, str] = field(default_factory=dict)
    """Ways to go about it, with words for what each costs: the quickest first, the one in least memory last."""
    extra_bytes: int = 0
    """What it takes besides weights and tensors: a tokenizer's tables."""
    kept: bool = False
    """Whether what it gives is kept for other runs: it goes by the words and its parts, and by nothing else."""
    round: int = 0
    """Of the request's rounds of steps, the one that it is part of."""
    network_name: str = ""
    """What the family's network calls it, where that is not its name."""

    @property
    def function(self) -> str:
        """Its name in the family's network."""
        return self.network_name or self.name

    @property
    def parts(self) -> tuple[str, ...]:
        """All parts whose files it reads."""
        return *self.reads, *self.lends


@dataclass(frozen=True, slots=True)
class FlowTimes:
    """Where a flow model's steps begin on the way from noise to picture: shares of noise, a step each, from 1 down.

    They are shifted towards noise as the model's scheduler says, by `mu` where that depends on the picture.
    """

    sigmas: tuple[float, ...]
    mu: float | None = None


@dataclass(frozen=True, slots=True)
class Defaults:
    """What is taken where nobody says anything."""

    steps: int
    guidance: float
    aligned_levels: tuple[float, ...] = ()
    """Noise levels that Align Your Steps found for the family, the noisiest first; none where nobody has looked."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of what a model works on."""

    latent_channels: int
    """Numbers that latents have for each place."""
    latent_factor: int
    """Pixels to a place, along each side."""
    native_size: tuple[int, int]
    """Width and height of the picture that it was made for, in pixels."""
    prompt_tokens: int
    """Tokens of a chunk of the prompt, its marks among them."""
    text_layers: range = range(0)
    """Of the text encoder, from which words may be taken: counted from its last, the first is the model's own."""
    takes_guidance: bool = False
    """Whether the denoiser takes the guidance as an input, and needs no second pass."""
    patch: int = 1
    """Latents that the denoiser takes together, along each side: a picture's sides are of whole ones."""
    defaults: Defaults | None = None
    """Of the model, where they differ from its family's."""
    references: int = 0
    """Pictures that the model can go by, at most."""
    edits: str = ""
    """What the model is, where it draws nothing from words alone."""
    told_sizes: frozenset[str] = frozenset()
    """Of `original_size`, `crop` and `target_size` those that its denoiser is told (domain.Request)."""
    weighs_words: bool = True
    """Whether prompts are read as A1111 reads them: with weights, alternatives and chunks (families/prompts.py)."""
    colours: Colours | None = None
    """Of latents, where somebody has found out."""
    flow_times: Callable[[Request], FlowTimes] | None = None
    """Of a flow model (Lipman et al. 2022, https://arxiv.org/abs/2210.02747), when its steps are."""

    @property
    def side_multiple(self) -> int:
        """Pixels that the sides of a picture are multiples of."""
        return self.latent_factor * self.patch

    def latent_shape(self, request: Request) -> tuple[int, int]:
        """Height and width of the request's picture in latents."""
        return request.height // self.latent_factor, request.width // self.latent_factor


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Where people keep a part that a single file lacks."""

    file: str
    """What they call it."""
    folders: tuple[str, ...]
    """Beside the file that lacks it, or beside a folder that it lies in."""
    patterns: tuple[str, ...]
    """Of names in there, in lower case, the likeliest first; of a tokenizer none is asked."""
    refs: tuple[str, ...]
    """On the Hub, as `models pull` takes them: the first is the one to advise."""


@dataclass(frozen=True, slots=True)
class Found:
    """Parts that a single file has, by name, and what was assumed where it does not tell."""

    parts: Mapping[str, Component]
    notes: tuple[str, ...] = ()
    said: Mapping[str, bool] = field(default_factory=dict)
    """What a model's index says besides, of the keys that the family's `index_extras` have, where it says otherwise."""
    elsewhere: Mapping[str, Elsewhere] = field(default_factory=dict)
    """Where to look for parts that it lacks, by name."""


FindParts = Callable[[WeightFile, Numbers, Prediction | None], Found]
"""The parts of a family that a single file has, as far as names and shapes tell. With the network that runs at every
step comes what no file has: a scheduler, the tokenizer. Raises SdcliError for weights that cannot be read."""


FindWords = Callable[[WeightFile, Mapping[str, Component]], Mapping[str, tuple[Word, ...]]]
"""The words that a file of textual inversion brings to these parts, by the name of the part that has them then. Raises
SdcliError for a file that brings none to this model."""


class Family(Protocol):
    """A model family."""

    name: str
    network: str
    """The module that the worker runs."""
    pipelines: tuple[str, ...]
    """Classes that a model's index may name as the pipeline; the first is the one to advise, and that of a synthetic
    model."""
    index_extras: Mapping[str, object]
    """What such an index says besides its pipeline and parts."""
    parts: tuple[Part, ...]
    """In the order of use."""
    extras: tuple[Part, ...]
    """Parts that a model has where they are asked for."""
    defaults: Defaults

    def stages(self, model: Model, request: Request) -> tuple[Stage, ...]:
        """The stages that a request takes, in order: exactly one of them runs at every step."""
        ...

    def geometry(self, model: Model) -> Geometry:
        """Sizes of what the model works on."""
        ...

    def chunks(self, model: Model, request: Request) -> int:
        """How much the encoded prompts may take, in chunks of the text encoder: a bound, known without a tokenizer."""
        ...

    def require_fit(self, ref: str, model: Model) -> None:
        """Raise SdcliError unless all parts are of one model: what one gives, the next takes."""
        ...

    def label(self, model: Model) -> str:
        """What reports call the model's kind."""
        ...

    def texts(self, config: Mapping[str, Any]) -> dict[str, str]:
        """What a synthetic model of these configs has besides them and weights, by path: a tokenizer's files."""
        ...
