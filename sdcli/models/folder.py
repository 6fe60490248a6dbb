"""A model on disk, in diffusers layout: found, checked from its headers, and described. Loads no weights."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcli.domain import LATENT_FACTOR
from sdcli.errors import SdcliError, echo
from sdcli.models.configs import CONFIG_FILES, ComponentName, checked_config, class_name, read_json
from sdcli.models.header import TensorInfo, WeightFile, read_header

WEIGHT_STEMS: dict[ComponentName, str] = {
    "text_encoder": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
_TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_WEIGHT_DTYPES = {"F16", "BF16", "F32"}

_OLD_VAE_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names of the autoencoder's attention in files written before diffusers 0.15, the published SD 1.5 among them."""


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

    def weights(self) -> dict[str, tuple[Path, str, TensorInfo]]:
        """The tensors; SdcliError for a component that has none."""
        if self.tensors is None:
            raise SdcliError(f"the {self.name} has no weights")
        return self.tensors


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A checked model. `ref` is what the user called it."""

    ref: str
    folder: Path
    text_encoder: Component
    unet: Component
    vae: Component
    scheduler: Component
    tokenizer: Component
    sha256: str | None = None

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
    def native_size(self) -> int:
        """The side of the square picture it was made for, in pixels."""
        side = self.unet.config.get("sample_size") or 64
        return (max(side) if isinstance(side, list) else int(side)) * LATENT_FACTOR


def open_model(ref: str, folder: Path, sha256: str | None = None) -> Model:
    """Check a folder in diffusers layout. Raises SdcliError naming all that is missing, or the first that is wrong."""
    try:
        if not folder.is_dir():
            raise SdcliError(f"the model {echo(ref)} is not a folder: give one in diffusers layout")
        _require_all(ref, folder)
    except OSError as error:
        raise SdcliError(f"cannot read the model {echo(ref)}: {error.strerror}; check its permissions") from error
    model = Model(
        ref=ref,
        folder=folder.resolve(),
        text_encoder=_component(folder, "text_encoder"),
        unet=_component(folder, "unet"),
        vae=_component(folder, "vae"),
        scheduler=_component(folder, "scheduler"),
        tokenizer=_component(folder, "tokenizer"),
        sha256=sha256,
    )
    taken = model.unet.config.get("in_channels", 4)
    if taken != model.latent_channels:
        raise SdcliError(
            f"the model {echo(ref)} has a denoiser of {taken} channels for latents of {model.latent_channels}:"
            " inpainting and other variants are not supported yet; give a text-to-image model"
        )
    return model


def _require_all(ref: str, folder: Path) -> None:
    missing, refused = [], []
    for name, config in CONFIG_FILES.items():
        home = folder / name
        if name == "tokenizer":
            if not any(all((home / file).is_file() for file in files) for files in _TOKENIZER_FILES):
                missing.append("tokenizer/vocab.json and merges.txt")
            continue
        if not (home / config).is_file():
            missing.append(f"{name}/{config}")
        if name in WEIGHT_STEMS and (lacking := _lacking_weights(home, name)):
            missing.append(f"{name}/{lacking}")
            refused += [path.name for path in home.glob("*") if path.suffix in {".bin", ".ckpt", ".pt", ".pth"}]
    if missing:
        hint = f"; {refused[0]} is a pickle, which is never opened" if refused else ""
        raise SdcliError(f"the model {echo(ref)} lacks {', '.join(missing)}{hint}: complete the folder")


def _weight_paths(home: Path, name: ComponentName) -> list[Path]:
    stem = WEIGHT_STEMS[name]
    for suffix in (".fp16.safetensors", ".safetensors"):
        if (home / f"{stem}{suffix}").is_file():
            return [home / f"{stem}{suffix}"]
    return sorted(home.glob(f"{stem}-?????-of-?????.safetensors"))


def _lacking_weights(home: Path, name: ComponentName) -> str | None:
    """The first weight file that a component lacks."""
    present = {path.name for path in _weight_paths(home, name)}
    if not present:
        return f"{WEIGHT_STEMS[name]}.safetensors"
    shard = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})\.safetensors", min(present), re.ASCII)
    if shard is None:
        return None
    names = (f"{shard[1]}-{index:05}-of-{shard[2]}.safetensors" for index in range(1, int(shard[2]) + 1))
    return next((name for name in names if name not in present), None)


def _component(folder: Path, name: ComponentName) -> Component:
    home = folder / name
    path = home / CONFIG_FILES[name]
    table = read_json(path) if name != "tokenizer" or os.path.lexists(path) else {}
    kind, config = class_name(name, table, path), checked_config(name, table, path)
    if name not in WEIGHT_STEMS:
        return Component(name, kind, config, home)
    files = tuple(read_header(path) for path in _weight_paths(home, name))
    tensors: dict[str, tuple[Path, str, TensorInfo]] = {}
    for file in files:
        for stored, info in file.tensors.items():
            today = _todays_name(name, stored)
            if today is None:
                continue
            if info.dtype not in _WEIGHT_DTYPES:
                raise SdcliError(
                    f"{echo(file.path)}: tensor {echo(stored)} is {info.dtype}; weights may be F16, BF16 or F32"
                )
            if today in tensors:
                raise SdcliError(f"{echo(file.path)}: tensor {echo(stored)} is there twice: fetch the model again")
            tensors[today] = (file.path, stored, info)
    return Component(name, kind, config, home, files, tensors)


def _todays_name(component: ComponentName, stored: str) -> str | None:
    """The name that the class gives a stored tensor; None for one that it computes itself."""
    if component == "text_encoder":
        name = stored.removeprefix("text_model.")
        return None if name.endswith("position_ids") else name
    if component == "vae" and ".attentions." in stored:
        for old, new in _OLD_VAE_NAMES.items():
            stored = stored.replace(old, new)
    return stored
