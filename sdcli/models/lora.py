"""A model changed by files of LoRA: which of its weights, by what, told from the headers. Loads no weights.

Each weight gets the tensors that change it (domain.Adapter). What they do to it: weights/adapters.py.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sdcli.domain import Adapter, AdapterKind, Component, Lora, Model, Origin, WeightFile
from sdcli.errors import SdcliError, echo
from sdcli.families.contract import Part
from sdcli.families.kinds import foreign_lora, likely_kind, lora_kind
from sdcli.families.registry import family_of
from sdcli.models.header import read_header
from sdcli.models.lora_alpha import Alphas
from sdcli.models.lora_keys import ALPHA, parse_key, refused_kind
from sdcli.models.lora_shapes import check_shapes
from sdcli.models.numbers import read_number

DTYPES = frozenset({"F16", "BF16", "F32", "F8_E4M3", "F8_E5M2"})
"""Types that the tensors of a LoRA may be stored in."""

Weight = tuple[str, str]
"""A part of the model, and the name of a weight in it."""


@dataclass(frozen=True, slots=True)
class Share:
    """Which rows of a file's module a layer has: an equal part of them, whose halves may be swapped."""

    which: int = 0
    count: int = 1
    swapped: bool = False


WHOLE = Share()


@dataclass(slots=True)
class _Group:
    """Tensors that a file has for one module, by role."""

    kinds: set[AdapterKind] = field(default_factory=set)
    tensors: dict[str, str] = field(default_factory=dict)


def with_loras(model: Model, loras: Sequence[tuple[str, float]]) -> Model:
    """The model with files of LoRA, each so much of it. A weight of 0 leaves it as it is.

    Raises SdcliError for what is no such file, is for another model, or is of a kind that is not supported.
    """
    names = _Names(model) if loras else None
    for path, weight in loras:
        file = read_header(Path(path))
        found, note = _adapters(model, file, weight, names or _Names(model))
        if weight != 0:
            model = _with(model, Lora(file, weight, len(found)), found)
        if note:
            model = replace(model, notes=(*model.notes, note))
    return model


def _with(model: Model, lora: Lora, found: Mapping[Weight, Adapter]) -> Model:
    parts = {**model.parts}
    for name, part in model.parts.items():
        mine = {weight: adapter for (of, weight), adapter in found.items() if of == name}
        if mine:
            adapters = dict(part.adapters)
            for weight, adapter in mine.items():
                adapters[weight] = (*adapters.get(weight, ()), adapter)
                _require_one_kind_of_magnitudes(lora, weight, adapters[weight])
            files = (*part.adapter_files, lora.file)
            parts[name] = replace(part, adapters=adapters, adapter_files=files)
    return replace(model, parts=parts, loras=(*model.loras, lora))


def _require_one_kind_of_magnitudes(lora: Lora, weight: str, adapters: tuple[Adapter, ...]) -> None:
    roles = {role for adapter in adapters for role in adapter.tensors if role.endswith("magnitude")}
    if len(roles) > 1:
        raise SdcliError(
            f"{echo(lora.file.path)} has magnitudes for {echo(weight)} of another kind than a file before it, those of"
            " outputs and of inputs: give one of the two"
        )


def _adapters(model: Model, file: WeightFile, weight: float, names: _Names) -> tuple[dict[Weight, Adapter], str]:
    """What the file changes, and what is to be said of it: how many of its modules are not the model's."""
    groups = _groups(file)
    matched = {module: some for module in groups if (some := names.of(module))}
    shapes = {name: info.shape for name, info in file.tensors.items()}
    label = family_of(model).label(model)
    others = [name for m, group in groups.items() if m not in matched for name in group.tensors.values()]
    foreign = foreign_lora(others)
    if foreign and not (
        matched and label == "sdxl" and foreign == "Stable Diffusion XL"
    ):  # for a deeper one of its kind
        foreign = lora_kind(shapes) or foreign if foreign == "Flux" else foreign
        raise SdcliError(f"{echo(file.path)} is for {foreign}, and the model is {label}: give a LoRA for this model")
    if not matched:
        _refuse_what_is_none(file, groups, shapes, label)
    found: dict[Weight, Adapter] = {}
    alphas = Alphas(file)
    for module, of, share in ((module, of, share) for module, some in matched.items() for of, share in some):
        if of in found:
            raise SdcliError(f"{echo(file.path)} changes {echo(of[1])} twice, under two names: fetch it again")
        found[of] = _adapter(model.parts[of[0]], of[1], file, module, groups[module], weight, alphas, share)
    other = next((module for module in groups if module not in matched), None)
    if other is None:
        return found, ""
    return found, (
        f"{echo(file.path.name)}: {len(matched)} of its {len(groups)} modules are in this model;"
        f" {echo(other)}, for one, is not"
    )


def _groups(file: WeightFile) -> dict[str, _Group]:
    """The file's tensors by the module that they change. Raises SdcliError for kinds that are not supported."""
    groups: dict[str, _Group] = defaultdict(_Group)
    for name, info in file.tensors.items():
        key = parse_key(name)
        if key is None:
            if what := refused_kind(name):
                raise SdcliError(
                    f"{echo(file.path)} has {echo(name)}, {what}, which is not supported:"
                    " give a LoRA, LoHa, LoKr or DoRA"
                )
            groups[name].tensors.setdefault("", name)  # of no kind that is known: told of as of no module of the model
            continue
        if info.dtype not in DTYPES and key.role != ALPHA:
            raise SdcliError(
                f"{echo(file.path)}: tensor {echo(name)} is {info.dtype}; a LoRA's may be F16, BF16, F32 or F8"
            )
        group = groups[key.module]
        if key.role in group.tensors:
            raise SdcliError(f"{echo(file.path)}: tensor {echo(name)} is there twice: fetch it again")
        group.tensors[key.role] = name
        if key.kind is not None:
            group.kinds.add(key.kind)
    return groups


def _refuse_what_is_none(
    file: WeightFile, groups: Mapping[str, _Group], shapes: Mapping[str, tuple[int, ...]], label: str
) -> None:
    if not any(group.kinds for group in groups.values()):
        what = likely_kind(shapes)
        seems = f"; it looks like {what}" if what and what != "a LoRA" else ""
        raise SdcliError(f"{echo(file.path)} is no LoRA: none of its {len(shapes)} tensors is of one{seems}")
    example = next(module for module, group in groups.items() if group.kinds)
    raise SdcliError(
        f"{echo(file.path)} is for another model than {label}: of its {len(groups)} modules, such as"
        f" {echo(example)}, none is in this one"
    )


def _adapter(
    part: Component,
    name: str,
    file: WeightFile,
    module: str,
    group: _Group,
    weight: float,
    alphas: Alphas,
    share: Share,
) -> Adapter:
    where = f"{echo(file.path)}: {echo(module)}"
    if len(group.kinds) != 1:
        raise SdcliError(f"{where} is {'of two kinds' if group.kinds else 'without its matrices'}: fetch it again")
    (kind,) = group.kinds
    alpha = group.tensors.get(ALPHA)
    stored = {role: stored for role, stored in group.tensors.items() if role != ALPHA}
    tensors = {role: Origin(file.path, stored, file.tensors[stored]) for role, stored in stored.items()}
    if share != WHOLE:
        tensors = _shared(where, kind, tensors, share)
    tensors, rank = check_shapes(where, kind, tensors, name, part.weights()[name].shape, _meant_for(file))
    scale = 1.0
    if rank is not None and alpha is None:
        scale = alphas.scale(part.name, name.removesuffix(".weight"), rank)
    elif rank is not None and alpha is not None:
        scale = read_number(file, alpha) / rank
        if not math.isfinite(scale):
            raise SdcliError(f"{where} has an alpha of {scale * rank}: fetch it again")
    return Adapter(kind, scale, weight, tensors)


def _meant_for(file: WeightFile) -> str:
    """What to say of a file whose shapes are not the model's."""
    kind = lora_kind({name: info.shape for name, info in file.tensors.items()})
    return f"it is for {kind}" if kind else "give a LoRA for this model"


def _shared(where: str, kind: AdapterKind, tensors: Mapping[str, Origin], share: Share) -> dict[str, Origin]:
    """The tensors of one of several layers that are fused in the file: a share of the rows of those for outputs."""
    if kind != "lora" or "mid" in tensors:
        what = "the halves of a layer the other way round" if share.swapped else "several layers in one"
        raise SdcliError(f"{where} changes {what}, as a {kind}: only a plain LoRA of those is supported")
    parted = dict(tensors)
    for role in ("up", "dora_scale", "magnitude"):
        if role in tensors and tensors[role].shape[0] > 1:
            rows, left = divmod(tensors[role].shape[0], share.count)
            if left:
                raise SdcliError(f"{where} changes {share.count} layers in one, and its rows are not of so many alike")
            some = None if share.count == 1 else (share.which * rows, (share.which + 1) * rows)
            parted[role] = replace(tensors[role], rows=some, swapped=share.swapped)
    return parted


class _Names:
    """All names that a file of LoRA may have for the model's modules, and their weights."""

    def __init__(self, model: Model) -> None:
        self._whole: dict[str, Weight] = {}
        self._shared: dict[str, list[tuple[Weight, Share]]] = {}
        for part in family_of(model).parts:
            component = model.parts[part.name]
            for weight, origin in component.weights().items() if part.lora_prefixes else ():
                if weight.endswith(".weight") and len(origin.shape) > 1:
                    module = weight.removesuffix(".weight")
                    for spelled in part.spellings(component, module):
                        for name in _prefixed(part, spelled):
                            self._whole.setdefault(name, (part.name, weight))
                    shares = [(spelled, Share(*of)) for spelled, of in part.fused_spellings(component, module).items()]
                    shares += [(one, Share(swapped=True)) for one in part.swapped_spellings(component, module)]
                    for spelled, share in shares:
                        for name in _prefixed(part, spelled):
                            self._shared.setdefault(name, []).append(((part.name, weight), share))

    def of(self, module: str) -> list[tuple[Weight, Share]]:
        """The weights that a file's module is, and which share of it each is; none for one of another model."""
        if module in self._whole:
            return [(self._whole[module], WHOLE)]
        return self._shared.get(module, [])


def _prefixed(part: Part, module: str) -> Iterator[str]:
    yield module
    yield from (_with_prefix(prefix, module) for prefix in part.lora_prefixes)


def _with_prefix(prefix: str, module: str) -> str:
    return prefix + (module.replace(".", "_") if prefix.endswith("_") else module)
