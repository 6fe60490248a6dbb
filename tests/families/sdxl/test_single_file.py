"""An SDXL in one file of the original layout: as the same weights in a folder, and as diffusers reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from sdcli.domain import Sources
from sdcli.errors import SdcliError
from sdcli.families.sd.single import CLIP_FOLDER
from sdcli.models.opened import open_model
from sdcli.weights.source import Source
from tests.engine.test_same_picture import gradient
from tests.families.sdxl.test_pictures import KOALA, REQUEST, SMALL, SSD_1B, VEGA
from tests.families.sdxl.tiny import WIDE
from tests.folders import made
from tests.originals import original_clip, original_open_clip, original_unet, original_vae
from tests.support import draw

Tensors = dict[str, torch.Tensor]
HOMES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "conditioner.embedders.0.",
    "text_encoder_2": "conditioner.embedders.1.",
}


def original_second(tensors: Tensors) -> Tensors:
    """OpenCLIP's, with all of its layers and the last matrix as it has it."""
    named = original_open_clip({name: one for name, one in tensors.items() if name != "text_projection.weight"})
    last = max(int(name.split(".")[3]) for name in named if name.startswith("model.transformer."))
    named = {name: one for name, one in named.items() if f".resblocks.{last}." not in name}
    return named | {"model.text_projection": tensors["text_projection.weight"].t().contiguous()}


def originals(folder: Path) -> Tensors:
    """All tensors of a model's folder by their original names."""
    read = {part: load_file(next((folder / part).glob("*.safetensors"))) for part in HOMES}
    named = {
        "unet": original_unet(read["unet"]),
        "vae": original_vae(read["vae"]),
        "text_encoder": original_clip(read["text_encoder"]),
        "text_encoder_2": original_second(read["text_encoder_2"]),
    }
    return {HOMES[part] + name: one.contiguous() for part, some in named.items() for name, one in some.items()}


def write_single(folder: Path, path: Path, more: Mapping[str, torch.Tensor] = {}) -> Path:
    """The same model as one file, with other tensors besides."""
    save_file({**originals(folder), **more}, path)
    return path


def with_tokenizers(folder: Path) -> Path:
    """The model with CLIP's vocabulary."""
    for tokenizer in ("tokenizer", "tokenizer_2"):
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(CLIP_FOLDER / name, folder / tokenizer / name)
    return folder


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tokenizers(made(tmp_path_factory.mktemp("models") / "wide", {}, WIDE))


def test_a_file_is_the_model_that_its_folder_is(wide: Path, tmp_path: Path) -> None:
    single, whole = open_model("m", write_single(wide, tmp_path / "m.safetensors")), open_model("m", wide)
    assert single.family == whole.family == "sdxl"
    for name in (*HOMES, "tokenizer", "tokenizer_2"):
        ours, theirs = single.parts[name], whole.parts[name]
        assert (ours.class_name, ours.settings) == (theirs.class_name, theirs.settings), name
        if ours.tensors is not None:
            assert {n: o.numel for n, o in ours.weights().items()} == {n: o.numel for n, o in theirs.weights().items()}
    assert single.parts["scheduler"].class_name == whole.parts["scheduler"].class_name
    assert any("epsilon-prediction assumed" in note for note in single.notes)


@pytest.mark.full
def test_the_picture_has_the_bits_of_the_folder_s(wide: Path, tmp_path: Path) -> None:
    path = write_single(wide, tmp_path / "m.safetensors")
    assert torch.equal(draw(path, request=REQUEST), draw(wide, request=REQUEST))


def stored(path: Path, part: str) -> Tensors:
    """What the program would fill into each of the part's weights."""
    component = open_model("m", path).parts[part]
    with Source(component) as source:
        named = {name: source.stored(name, origin.shape) for name, origin in component.weights().items()}
        return {name: one.fill(torch.empty(one.tensor.shape)) for name, one in named.items()}


def test_names_and_pieces_are_those_of_diffusers_own_converter(wide: Path, tmp_path: Path) -> None:
    path = write_single(wide, tmp_path / "m.safetensors")
    checkpoint = load_file(path)
    configs = {part: json.loads((wide / part / "config.json").read_text("utf-8")) for part in HOMES}
    settings = {key: configs["text_encoder_2"][key] for key in ("hidden_size", "num_hidden_layers", "projection_dim")}
    with torch.device("meta"):
        config = CLIPTextConfig(**settings, vocab_size=49408, intermediate_size=64, num_attention_heads=1)
        empty = CLIPTextModelWithProjection(config)
    theirs = {
        "unet": convert_ldm_unet_checkpoint(dict(checkpoint), configs["unet"]),
        "text_encoder": convert_ldm_clip_checkpoint(dict(checkpoint)),
        "text_encoder_2": convert_open_clip_checkpoint(
            empty, dict(checkpoint), prefix="conditioner.embedders.1.model."
        ),
    }
    for part, tensors in theirs.items():
        ours = stored(path, part)
        assert set(ours) == {name.removeprefix("text_model.") for name in tensors}, part
        for name, tensor in tensors.items():
            assert torch.equal(ours[name.removeprefix("text_model.")], tensor.float()), name


@pytest.mark.parametrize(
    ("settings", "down", "up"),
    [
        (SMALL, [1, 2, 4], [[4, 3], [2, 1], 1]),
        (SSD_1B, [1, 2, 4], [[4, 4, 10], [2, 1, 1], 1]),
        (VEGA, [1, 1, 2], None),
        (KOALA, [1, 2, 3], None),
    ],
    ids=["small", "SSD-1B", "Segmind-Vega", "KOALA"],
)
def test_depths_of_a_distilled_kind_are_told_from_its_tensors(
    tmp_path: Path, settings: dict[str, Any], down: list[Any], up: list[Any] | None
) -> None:
    folder = with_tokenizers(made(tmp_path / "small", {"unet": settings}, WIDE))
    model = open_model("m", write_single(folder, tmp_path / "m.safetensors"))
    config = model.parts["unet"].config
    assert config["mid_block_type"] == settings["mid_block_type"]
    assert config["transformer_layers_per_block"] == down
    assert config.get("reverse_transformer_layers_per_block") == up
    request = replace(REQUEST, steps=1, width=64)
    assert torch.equal(draw(tmp_path / "m.safetensors", request=request), draw(folder, request=request))


def test_keys_of_v_prediction_and_zero_snr_are_heard(wide: Path, tmp_path: Path) -> None:
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    scheduler = open_model("m", write_single(wide, tmp_path / "m.safetensors", marks)).parts["scheduler"]
    wanted: dict[str, Any] = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    assert scheduler.config | wanted | {"timestep_spacing": "trailing"} == scheduler.config


@pytest.mark.full
def test_an_autoencoder_from_a_file_has_sdxl_s_scale(wide: Path, tmp_path: Path) -> None:
    vae = {name.removeprefix(HOMES["vae"]): one for name, one in originals(wide).items() if name.startswith("first")}
    save_file(vae, tmp_path / "vae.safetensors")
    model = open_model("m", Sources(str(wide), {"vae": str(tmp_path / "vae.safetensors")}))
    assert model.parts["vae"].settings.scaling_factor == 0.13025
    request = replace(REQUEST, steps=1)
    sources = Sources(str(wide), {"vae": str(tmp_path / "vae.safetensors")})
    assert torch.equal(draw(sources, request=request), draw(wide, request=request))


@pytest.mark.full
def test_an_inpainting_checkpoint_has_nine_channels(tmp_path: Path) -> None:
    folder = with_tokenizers(made(tmp_path / "nine", {"unet": {"in_channels": 9}}, WIDE))
    path = write_single(folder, tmp_path / "m.safetensors")
    assert open_model("m", path).parts["unet"].settings.in_channels == 9
    request = replace(REQUEST, width=64, strength=0.5, steps=2, masked=True)
    payload = gradient(64, 64).tobytes() + bytes(64 * 32) + b"\xff" * (64 * 32)
    ours = draw(path, request=request, payload=payload)
    assert torch.equal(ours, draw(folder, request=request, payload=payload))


def split(folder: Path, home: Path) -> tuple[Path, Path, Path, Path]:
    """The model as people keep it for ComfyUI: denoiser, both text encoders and autoencoder in files of their own."""
    names = {"unet": "unet", "text_encoder": "clip_l", "text_encoder_2": "clip_g", "vae": "sdxl_vae"}
    files = []
    for part, name in names.items():
        tensors = load_file(next((folder / part).glob("*.safetensors")))
        if part.startswith("text") and not any(one.startswith("text_model.") for one in tensors):
            tensors = {one if "projection" in one else f"text_model.{one}": tensor for one, tensor in tensors.items()}
        files.append(home / f"{name}.safetensors")
        save_file(tensors, files[-1])
    return files[0], files[1], files[2], files[3]


@pytest.mark.full
def test_a_denoiser_alone_draws_with_files_that_are_given_or_lie_beside_it(tmp_path: Path) -> None:
    sizes = {"addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 48 + 6 * 256}
    folder = with_tokenizers(made(tmp_path / "m", {"unet": sizes}, WIDE))
    (tmp_path / "given").mkdir()
    unet, first, second, vae = split(folder, tmp_path / "given")
    near = open_model("m", unet)
    assert [Path(near.sources.parts[name]).name for name in ("text_encoder", "text_encoder_2", "vae")] == [
        "clip_l.safetensors", "clip_g.safetensors", "sdxl_vae.safetensors",
    ]  # fmt: skip
    (tmp_path / "alone").mkdir()
    alone = unet.rename(tmp_path / "alone" / "m.safetensors")
    with pytest.raises(SdcliError, match=r"give --text-encoder and --text-encoder-2 and --vae, or put clip_l"):
        open_model("m", alone)
    parts = {"text_encoder": str(first), "text_encoder_2": str(second), "vae": str(vae)}
    request = replace(REQUEST, steps=1, width=64)
    assert torch.equal(draw(Sources(str(alone), parts), request=request), draw(folder, request=request))


@pytest.mark.parametrize(
    ("name", "mended"),
    [("sdxl-vae-fp16-fix", True), ("sdxl_vae_fp16fix", True), ("sdxl_vae.fp16.fix", True), ("sdxl_vae_fp16", False)],
)
def test_an_autoencoder_that_was_mended_is_known_by_its_name(
    wide: Path, tmp_path: Path, name: str, mended: bool
) -> None:
    vae = {key.removeprefix(HOMES["vae"]): one for key, one in originals(wide).items() if key.startswith("first")}
    save_file(vae, tmp_path / f"{name}.safetensors")
    model = open_model("m", Sources(str(wide), {"vae": str(tmp_path / f"{name}.safetensors")}))
    assert model.parts["vae"].settings.force_upcast is not mended


def test_so_is_one_in_a_checkpoint_that_says_so(wide: Path, tmp_path: Path) -> None:
    for name, mended in (("novaXL_fp16VAEFix", True), ("novaXL_v10", False)):
        model = open_model("m", write_single(wide, tmp_path / f"{name}.safetensors"))
        assert model.parts["vae"].settings.force_upcast is not mended
