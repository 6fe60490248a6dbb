"""A model on disk, in diffusers layout: found, checked from its headers, and described. Loads no weights."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcli.domain import Request
from sdcli.errors import SdcliError, echo
from sdcli.models.configs import (
    CONFIG_FILES,
    ComponentName,
    checked_config,
    class_name,
    keys_passed_over,
    read_json,
)
from sdcli.models.header import TensorInfo, WeightFile, read_header
from sdcli.models.hub import model_folders_in
from sdcli.models.index import INDEX_FILE, read_index
from sdcli.models.tokenizer_files import check_tokenizer, is_tokenizer
from sdcli.models.weight_files import find_weights, what_lies_there

WEIGHT_STEMS: dict[ComponentName, str] = {
    "text_encoder": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
_WEIGHT_DTYPES = {"F16", "BF16", "F32"}

_OLD_VAE_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names of the autoencoder's attention in files written before diffusers 0.15, the published SD 1.5 among them."""

_UNUSED: dict[ComponentName, re.Pattern[str]] = {
    "text_encoder": re.compile(
        r"(text_model\.)?embeddings\.position_ids|(text|visual)_projection\.weight|logit_scale|vision_model\..*"
    ),
    "unet": re.compile(r"(?!)"),
    "vae": re.compile(r"loss\..*|model_ema\..*"),
}
"""Tensors of more than the component's class: the other half of a CLIP, what an autoencoder was trained with."""

SIDE_LIMIT = 8192
"""Pixels of a picture's longer side."""


@dataclass(frozen=True, slots=True, eq=False)
class Component:
    """One of the parts of a model: the class to build, its settings, and its tensors by today's names.

    `tensors` maps the name that the class uses to (file, name in the file, description).
    """

    name: ComponentName
    class_name: str
    config: dict[str, Any]
    folder: Path
    files: tuple[WeightFile, ...] = ()
    tensors: dict[str, tuple[Path, str, TensorInfo]] | None = None
    passed_over: tuple[str, ...] = ()
    """Keys of its config that are not known here."""

    @property
    def config_file(self) -> Path:
        """Where its settings come from."""
        return self.folder / CONFIG_FILES[self.name]

    def weights(self) -> dict[str, tuple[Path, str, TensorInfo]]:
        """The tensors; SdcliError for a component that has none."""
        if self.tensors is None:
            raise SdcliError(f"the {self.name} has no weights")
        return self.tensors


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A checked model. `ref` is what the user called it; `notes` say what was taken where there was a choice."""

    ref: str
    folder: Path
    text_encoder: Component
    unet: Component
    vae: Component
    scheduler: Component
    tokenizer: Component
    sha256: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def components(self) -> tuple[Component, ...]:
        """All of them, in the order of use."""
        return self.tokenizer, self.text_encoder, self.scheduler, self.unet, self.vae

    @property
    def family(self) -> str:
        """`sd15` for Stable Diffusion 1.x, else `sd`: the same components in other sizes."""
        widths = tuple(self.unet.config.get("block_out_channels", ()))
        context = self.unet.config.get("cross_attention_dim")
        return "sd15" if widths == (320, 640, 1280, 1280) and context == 768 else "sd"

    @property
    def latent_channels(self) -> int:
        """Numbers that the latents have for each place: 4 in Stable Diffusion 1.x."""
        return int(self.vae.config.get("latent_channels", 4))

    @property
    def takes_guidance(self) -> bool:
        """Whether the denoiser was distilled to take the guidance as an input (Meng et al. 2022), as LCM's were."""
        return self.unet.config.get("time_cond_proj_dim") is not None

    @property
    def latent_factor(self) -> int:
        """Pixels to a latent, along each side: each level of the autoencoder but one halves. 8 in Stable Diffusion."""
        return 2 ** (len(self.vae.config.get("block_out_channels", [64])) - 1)

    @property
    def native_size(self) -> tuple[int, int]:
        """Width and height of the picture it was made for, in pixels."""
        side = self.unet.config.get("sample_size") or 64
        height, width = (side[0], side[-1]) if isinstance(side, list) else (side, side)
        return width * self.latent_factor, height * self.latent_factor

    @property
    def prompt_tokens(self) -> int:
        """Tokens of a chunk of the prompt, both marks among them: what the tokenizer pads to. 77 in CLIP."""
        most: int = self.text_encoder.config.get("max_position_embeddings", 77)
        length = self.tokenizer.config.get("model_max_length")
        return min(most, length) if type(length) is int and length > 2 else most

    def latent_shape(self, request: Request) -> tuple[int, int]:
        """Height and width of the request's picture in latents."""
        return request.height // self.latent_factor, request.width // self.latent_factor


def open_model(ref: str, folder: Path, sha256: str | None = None) -> Model:
    """Check a folder in diffusers layout. Raises SdcliError naming all that is missing, or the first that is wrong."""
    try:
        if not folder.is_dir():
            raise SdcliError(f"the model {echo(ref)} is not a folder: give one in diffusers layout")
        index = read_index(folder)
        _require_all(ref, folder)
    except OSError as error:
        raise SdcliError(f"cannot read the model {echo(ref)}: {error.strerror}; check its permissions") from error
    model = Model(
        ref=ref,
        folder=folder.resolve(),
        text_encoder=_component(folder, "text_encoder"),
        unet=_component(folder, "unet"),
        vae=_component(folder, "vae"),
        scheduler=_component(folder, "scheduler", index.get("scheduler")),
        tokenizer=_component(folder, "tokenizer"),
        sha256=sha256,
        notes=tuple(filter(None, (_variant_note(folder, name) for name in WEIGHT_STEMS))),
    )
    _require_fit(ref, model)
    return model


def _require_fit(ref: str, model: Model) -> None:
    """The parts must be of one model: what one gives, the next takes."""
    unet, latents = model.unet.config, model.latent_channels
    taken, given = unet.get("in_channels", 4), unet.get("out_channels", 4)
    if taken != latents or given != latents:
        raise SdcliError(
            f"the model {echo(ref)} has a denoiser of {taken if taken != latents else given} channels for latents of"
            f" {latents}: inpainting and other variants are not supported yet; give a text-to-image model"
        )
    colours = {model.vae.config.get(key, 3) for key in ("in_channels", "out_channels")}
    if colours != {3}:
        raise SdcliError(
            f"the model {echo(ref)} has an autoencoder for {max(colours - {3})} colours: it takes one for 3"
        )
    words = model.text_encoder.config.get("hidden_size", 512)
    context = unet.get("cross_attention_dim", 1280)
    for width in context if isinstance(context, list) else [context]:
        if width != words:
            raise SdcliError(
                f"the model {echo(ref)} has a denoiser that takes {width} numbers a word and a text encoder that gives"
                f" {words}: they are of two models; fetch it again"
            )
    if max(model.native_size) > SIDE_LIMIT:
        raise SdcliError(
            f"{echo(model.unet.config_file)} sets 'sample_size' to {max(model.native_size)} pixels:"
            f" refused; pictures have at most {SIDE_LIMIT}"
        )


def _require_all(ref: str, folder: Path) -> None:
    missing, hints = [], []
    for name, config in CONFIG_FILES.items():
        home = folder / name
        if name == "tokenizer":
            if not is_tokenizer(home):
                missing.append("tokenizer/vocab.json and merges.txt")
            continue
        if not (home / config).is_file():
            missing.append(f"{name}/{config}")
        if name in WEIGHT_STEMS and (lacking := find_weights(home, WEIGHT_STEMS[name]).missing):
            missing.append(f"{name}/{lacking}")
            hints.append(what_lies_there(home, lacking))
    if missing:
        inner = "" if (folder / "unet").is_dir() else model_folders_in(folder)
        if inner:
            raise SdcliError(f"{echo(ref)} is not a model's folder, it has some in it: give {inner}")
        hint = next(filter(None, hints), "")
        raise SdcliError(
            f"the model {echo(ref)} lacks {', '.join(missing)}{'; ' if hint else ''}{hint}: complete the folder"
        )


def _variant_note(folder: Path, name: ComponentName) -> str | None:
    variant = find_weights(folder / name, WEIGHT_STEMS[name]).variant
    return None if variant in ("", "fp16") else f"{name}: only the variant {echo(variant)} of its weights is there"


def _component(folder: Path, name: ComponentName, kind: str | None = None) -> Component:
    """A part of the model, of the class that its config names unless the pipeline's index says which."""
    home = folder / name
    path = home / CONFIG_FILES[name]
    table = read_json(path) if name != "tokenizer" or os.path.lexists(path) else {}
    if name == "scheduler" and kind is not None and table.get("_class_name") is None:
        table["_class_name"] = kind
    class_ = class_name(name, table, path)
    if kind is not None:
        class_ = class_name(name, {"_class_name": kind}, folder / INDEX_FILE)
        table |= {"_class_name": class_} if name == "scheduler" else {}  # whose settings are looked at below
    if name == "text_encoder" and isinstance(table.get("text_config"), dict):  # of a whole CLIP
        checked_config(name, table, path)
        table = table["text_config"]
    config, passed_over = checked_config(name, table, path), tuple(keys_passed_over(name, table))
    if name == "tokenizer":
        check_tokenizer(home)
    if name not in WEIGHT_STEMS:
        return Component(name, class_, config, home, passed_over=passed_over)
    if name == "unet" and _is_older_than_0_9(table) and type(size := config.get("sample_size")) is int and size < 64:
        config["sample_size"] = 64  # written wrongly then, as diffusers knows (StableDiffusionPipeline.__init__)
    files = tuple(read_header(path) for path in find_weights(home, WEIGHT_STEMS[name]).paths)
    tensors: dict[str, tuple[Path, str, TensorInfo]] = {}
    for file in files:
        for stored, info in file.tensors.items():
            if _UNUSED[name].fullmatch(stored):
                continue
            if info.dtype not in _WEIGHT_DTYPES:
                raise SdcliError(
                    f"{echo(file.path)}: tensor {echo(stored)} is {info.dtype}; weights may be F16, BF16 or F32"
                )
            today = _todays_name(name, stored)
            if today in tensors:
                raise SdcliError(f"{echo(file.path)}: tensor {echo(stored)} is there twice: fetch the model again")
            tensors[today] = (file.path, stored, info)
    if name == "text_encoder":
        _require_tables(config, tensors, path)
    return Component(name, class_, config, home, files, tensors, passed_over)


def _require_tables(config: dict[str, Any], tensors: dict[str, tuple[Path, str, TensorInfo]], path: Path) -> None:
    """The tables that words are looked up in have as many rows as the config says that there are words."""
    for table, key, default in (("token", "vocab_size", 49408), ("position", "max_position_embeddings", 77)):
        found = tensors.get(f"embeddings.{table}_embedding.weight")
        rows = config.get(key, default)
        stored = found[2].shape[:1] if found else (rows,)
        if stored != (rows,):
            raise SdcliError(
                f"{echo(path)} sets {echo(key)} to {rows}, and the weights have {sum(stored)} rows:"
                " they are of two models; fetch both again"
            )


def _is_older_than_0_9(table: dict[str, Any]) -> bool:
    """Whether a config was written by a diffusers before 0.9."""
    version = re.match(r"(\d{1,9})\.(\d{1,9})", str(table.get("_diffusers_version")))
    return version is not None and (int(version[1]), int(version[2])) < (0, 9)


def _todays_name(component: ComponentName, stored: str) -> str:
    """The name that the class gives a stored tensor."""
    if component == "text_encoder":
        return stored.removeprefix("text_model.")
    if component == "vae" and ".attentions." in stored:
        for old, new in _OLD_VAE_NAMES.items():
            stored = stored.replace(old, new)
    return stored
