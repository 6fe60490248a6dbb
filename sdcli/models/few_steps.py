"""Models and LoRAs that were distilled to draw in a few steps: what they want where nobody says anything. No torch.

They are told by a network that takes the guidance, by the scheduler, by names and by what files say of themselves.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from sdcli.domain import Model
from sdcli.errors import echo

EMBEDDED_GUIDANCE = 8.5
"""Of a model that takes the guidance as an input: diffusers' LatentConsistencyModelPipeline has it so."""

STEPS_MOST = 32
"""A name that says more steps is of something else."""

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")
_UNTELLING = {"pytorch_lora_weights", "diffusion_pytorch_model", "model", "lora"}
"""Names of files that say nothing; their folder's may."""

_TITLES = ("modelspec.title", "ss_output_name")


@dataclass(frozen=True, slots=True)
class FewSteps:
    """What a distilled model wants, and why it is taken for one."""

    method: str
    steps: int
    guidance: float
    sampler: str | None
    """None is the model's own."""
    schedule: str | None
    why: str


@dataclass(frozen=True, slots=True)
class _Method:
    name: str
    sampler: str
    schedule: str | None = None


_METHODS = {
    "lcm": _Method("LCM", "LCM"),  # https://arxiv.org/abs/2311.05556
    "tcd": _Method("TCD", "TCD"),  # https://arxiv.org/abs/2402.19159
    "turbo": _Method("Turbo", "Euler a", "trailing"),  # https://arxiv.org/abs/2311.17042
    "lightning": _Method("Lightning", "Euler", "trailing"),  # https://arxiv.org/abs/2402.13929
    "hyper": _Method("Hyper-SD", "DDIM", "trailing"),  # https://arxiv.org/abs/2404.13686
    "dmd": _Method("DMD2", "LCM", "trailing"),  # https://arxiv.org/abs/2405.14867
}
"""By the word of a name, and as those who made them advise."""

_ONE_STEP = {
    ("dmd", "the model"): _Method("DMD2", "LCM", "399"),  # https://huggingface.co/tianweiy/DMD2
    ("hyper", "the model"): _Method("Hyper-SD", "LCM", "800"),  # https://huggingface.co/ByteDance/Hyper-SD
    ("hyper", "the LoRA"): _Method("Hyper-SD", "TCD"),
}
"""Those of one step that go about it in another way."""

_STEPS, _GUIDANCE, _KEPT_GUIDANCE = 4, 1.0, 5.0
"""Of nearly all; and the guidance of those that are named for keeping it."""


def few_steps_of(model: Model, takes_guidance: bool) -> FewSteps | None:
    """What the model wants with its LoRAs, the first of which says so goes before it; None for one of many steps."""
    scheduler = model.parts["scheduler"].class_name
    if scheduler.startswith("FlowMatch"):
        return None
    for lora in model.loras:
        if lora.weight and (found := _by_names("the LoRA", _names_of(lora.file.path), lora.file.notes)):
            return found
    if takes_guidance:
        return FewSteps("LCM", _STEPS, EMBEDDED_GUIDANCE, None, None, "it takes the guidance as an input")
    notes = {key: note for part in model.parts.values() for file in part.files for key, note in file.notes.items()}
    found = _by_names("the model", _names_of_model(model), notes)
    if found is not None and not model.path.is_file():  # a folder has the scheduler that it wants
        return FewSteps(found.method, found.steps, found.guidance, None, None, found.why)
    if found is None and scheduler in ("LCMScheduler", "TCDScheduler"):
        return FewSteps(scheduler[:3], _STEPS, _GUIDANCE, None, None, f"its scheduler is {scheduler}")
    return found


def _by_names(whose: str, names: Iterable[str], notes: Mapping[str, str]) -> FewSteps | None:
    for name in (*names, *(notes[key] for key in _TITLES if key in notes)):
        words = [word.lower() for word in _WORD.findall(name)]
        steps = _steps_in(words)
        for word, method in _METHODS.items():
            if word in words and (word != "hyper" or steps is not None or "sd" in words):
                how = _ONE_STEP.get((word, whose), method) if steps == 1 else method
                return FewSteps(
                    method.name,
                    steps or _STEPS,
                    _KEPT_GUIDANCE if "cfg" in words else _GUIDANCE,
                    how.sampler,
                    how.schedule,
                    f"{whose} is called {echo(name)}",
                )
    return None


def _steps_in(words: list[str]) -> int | None:
    """The number before `step` or `steps`."""
    for number, word in pairwise(words):
        if word in ("step", "steps") and number.isdecimal() and len(number) < 3 and 1 <= int(number) <= STEPS_MOST:
            return int(number)
    return None


def _names_of(path: Path) -> list[str]:
    """Of a file, or where that says nothing of its folder and of its repository in the Hub's cache."""
    if path.stem not in _UNTELLING:
        return [path.stem]
    return [path.parent.name, *(part for part in path.parts if part.startswith("models--"))]


def _names_of_model(model: Model) -> list[str]:
    """Of a file or a folder, or of what the user called it where that is no path."""
    if os.path.exists(model.ref):  # not where the folder that this would be in may not be looked into
        return _names_of(model.path) if model.path.is_file() else [model.path.name]
    return [model.ref.partition("/")[2] or model.ref]
