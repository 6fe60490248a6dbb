"""Z-Image in files of its own: a denoiser, FLUX.1's autoencoder, Qwen3, each alone or all in one.

No file brings a config: sizes are those of the tensors, and what none tells is what all published models have.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdcli.domain import Component, Prediction, WeightFile
from sdcli.families.contract import FLOW_CLASS, Elsewhere, Found, Numbers
from sdcli.families.qwen3.single import TEXT_SEARCH, TOKENIZER_ELSEWHERE, text_encoder_elsewhere
from sdcli.families.sd import single
from sdcli.families.single_file import Names, Search, Shapes, levels_of, networks_in
from sdcli.families.tiny.single import TINY_SEARCH
from sdcli.families.zimage.family import BASE_SHIFT, TURBO_SHIFT
from sdcli.families.zimage.original import transformer_names
from sdcli.families.zimage.parts import TRANSFORMER, VAE
from sdcli.families.zimage.schema import PATCH

SCALING_FACTOR, SHIFT_FACTOR = 0.3611, 0.1159
"""Of the autoencoder's latents."""

_VAE_ELSEWHERE = Elsewhere(
    "ae.safetensors",
    ("vae",),
    ("ae.safetensors", "ae[_-]*.safetensors", "z_image_vae*.safetensors", "flux_vae*.safetensors"),
    ("Comfy-Org/z_image_turbo/split_files/vae/ae.safetensors",),
)


def parts_of(file: WeightFile, numbers: Numbers, prediction: Prediction | None) -> Found:
    """The parts that a file has. Raises SdcliError for types that are not read."""
    found = networks_in(file, (TRANSFORMER_SEARCH, TEXT_SEARCH, VAE_SEARCH, TINY_SEARCH))
    if "vae" in found:
        found["vae"].config.update(sample_size=1024, scaling_factor=SCALING_FACTOR, shift_factor=SHIFT_FACTOR)
    if "transformer" not in found:
        return Found(found)
    shift, note = _shift(file.path)
    schedule = {"num_train_timesteps": 1000, "use_dynamic_shifting": False, "shift": shift}
    found["scheduler"] = Component("scheduler", FLOW_CLASS, schedule, file.path, config_name="")
    elsewhere = {
        "tokenizer": TOKENIZER_ELSEWHERE,
        "text_encoder": text_encoder_elsewhere(found["transformer"].config["cap_feat_dim"]),
        "vae": _VAE_ELSEWHERE,
    }
    return Found(found, (note,), elsewhere=elsewhere)


def _shift(path: Path) -> tuple[float, str]:
    """How far steps are shifted towards noise, which tells the distilled model from the other; and what to say."""
    name = path.stem.lower()
    is_base = re.search(r"(?<![a-z])base(?![a-z])|^z[ _-]?image(?!.*turbo)", name) is not None
    if is_base:
        return BASE_SHIFT, "by its name this is Z-Image, not its Turbo; if that is wrong, give --steps 8 --guidance 1"
    why = "by its name" if re.search(r"turbo|(?<![a-z])zit", name) else "assumed, as no tensor tells"
    return TURBO_SHIFT, f"Z-Image-Turbo {why}; if it is not the Turbo, give --steps 30 --guidance 4"


def _transformer_config(shapes: Shapes, names: Names) -> dict[str, Any]:
    width, numbers = shapes["all_x_embedder.2-1.weight"]
    (head,) = shapes["layers.0.attention.norm_q.weight"]
    heads, axis = width // head, head // 8
    return {
        "in_channels": numbers // PATCH**2,
        "dim": width,
        "n_layers": len(levels_of(shapes, "layers")),
        "n_refiner_layers": len(levels_of(shapes, "noise_refiner")),
        "n_heads": heads,
        "n_kv_heads": heads,
        "cap_feat_dim": shapes["cap_embedder.0.weight"][0],
        "axes_dims": [2 * axis, 3 * axis, 3 * axis],
    }


TRANSFORMER_SEARCH = Search(
    TRANSFORMER,
    re.compile(r"x_pad_token"),
    ("model.diffusion_model.", "diffusion_model.", "transformer.", ""),
    transformer_names,
    _transformer_config,
)
VAE_SEARCH = replace(single.VAE_SEARCH, part=VAE, prefixes=("vae.", *single.VAE_SEARCH.prefixes))
