"""Models in one file of the original layout: as the same weights in a folder, and as diffusers reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from sdcli.domain import Sources
from sdcli.errors import SdcliError
from sdcli.families.sd.single import CLIP_FOLDER
from sdcli.models.opened import open_model
from tests.engine.test_same_picture import reference
from tests.folders import made, with_clip
from tests.loras import write_lora
from tests.originals import KINDS, PREFIXES, originals, write_single
from tests.support import ASTRONAUT, draw, largest_difference

REQUEST = replace(ASTRONAUT, prompt="a fox in the rain!", negative="ugly", steps=2)


@pytest.fixture(scope="module", params=[*KINDS])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of each kind, with CLIP's vocabulary."""
    return with_clip(made(tmp_path_factory.mktemp("models") / request.param, KINDS[request.param]))


def sources(path: Path, folder: Path) -> Sources:
    return Sources(str(path), prediction="v" if folder.name == "second" else None)


def test_a_file_is_the_model_that_its_folder_is(folder: Path, tmp_path: Path) -> None:
    single = open_model("m", sources(write_single(folder, tmp_path / "m.safetensors"), folder))
    whole = open_model("m", folder)
    for name in ("unet", "vae", "text_encoder", "tokenizer"):
        ours, theirs = single.parts[name], whole.parts[name]
        assert (ours.class_name, ours.settings) == (theirs.class_name, theirs.settings), name
        if ours.tensors is not None:
            assert {n: o.numel for n, o in ours.weights().items()} == {n: o.numel for n, o in theirs.weights().items()}
    differs = {"_class_name", "clip_sample"}
    ours, theirs = single.parts["scheduler"], whole.parts["scheduler"]
    assert ours.class_name == theirs.class_name
    assert {k: v for k, v in ours.config.items() if k not in differs} == {
        k: v for k, v in theirs.config.items() if k not in differs
    }


def test_the_picture_has_the_bits_of_the_folder_s_and_is_diffusers_s(folder: Path, tmp_path: Path) -> None:
    path = write_single(folder, tmp_path / "m.safetensors")
    ours = draw(sources(path, folder), request=REQUEST)
    assert torch.equal(ours, draw(folder, request=REQUEST))
    assert largest_difference(ours, reference(folder, REQUEST)) <= 1


def stored(folder: Path, part: str, path: Path) -> dict[str, torch.Tensor]:
    """What the program would fill into each of the part's weights."""
    from sdcli.weights.source import Source

    component = open_model("m", sources(path, folder)).parts[part]
    with Source(component) as source:
        named = {name: source.stored(name, origin.shape) for name, origin in component.weights().items()}
        return {name: one.fill(torch.empty(one.tensor.shape)) for name, one in named.items()}


def test_names_and_pieces_are_those_of_diffusers_own_converter(folder: Path, tmp_path: Path) -> None:
    path = write_single(folder, tmp_path / "m.safetensors")
    checkpoint = load_file(path)
    configs = {part: json.loads((folder / part / "config.json").read_text("utf-8")) for part in PREFIXES}
    theirs = {
        "unet": convert_ldm_unet_checkpoint(dict(checkpoint), configs["unet"]),
        "vae": convert_ldm_vae_checkpoint(dict(checkpoint), configs["vae"]),
    }
    if folder.name == "first":
        text = convert_ldm_clip_checkpoint(dict(checkpoint))
    else:
        settings = {key: configs["text_encoder"][key] for key in ("hidden_size", "num_hidden_layers", "vocab_size")}
        with torch.device("meta"):
            empty = CLIPTextModel(CLIPTextConfig(**settings, intermediate_size=64, num_attention_heads=1))
        checkpoint["cond_stage_model.model.text_projection"] = torch.zeros(32, 8)
        text = convert_open_clip_checkpoint(empty, dict(checkpoint))
        last = f"encoder.layers.{settings['num_hidden_layers']}."
        text = {name: tensor for name, tensor in text.items() if last not in name and "projection" not in name}
    theirs["text_encoder"] = {name.removeprefix("text_model."): tensor for name, tensor in text.items()}
    for part, tensors in theirs.items():
        ours = stored(folder, part, path)
        assert set(ours) == set(tensors), part
        for name, tensor in tensors.items():
            assert torch.equal(ours[name].flatten(), tensor.float().flatten()), name


def ema_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As LitEma keeps them: without dots."""
    home = PREFIXES["unet"]
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(home)}
    ema = {
        f"model_ema.diffusion_model{name.removeprefix(home).replace('.', '')}": tensor
        for name, tensor in tensors.items()
        if name.startswith(home)
    }
    return {**kept, **ema, "model_ema.decay": torch.ones(()), "model_ema.num_updates": torch.ones(())}


def besides_ema(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Unpruned: the average beside the weights themselves, whose picture it is."""
    ema = {name: tensor + 1 for name, tensor in ema_names(tensors).items() if name.startswith("model_ema.")}
    return {**ema, **tensors, "alphas_cumprod": torch.ones(1000), "first_stage_model.loss.logvar": torch.ones(())}


def older_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of the text encoder, as newer versions of transformers write it."""
    return {name.replace("transformer.text_model.", "transformer."): tensor for name, tensor in tensors.items()}


def with_positions(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    home = "cond_stage_model.transformer.text_model.embeddings."
    return {**tensors, f"{home}position_ids": torch.arange(77)[None]}


@pytest.mark.parametrize("change", [ema_names, besides_ema, older_names, with_positions])
@pytest.mark.parametrize("folder", ["first"], indirect=True)
@pytest.mark.every(2)
def test_files_as_they_are_out_there(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    path = write_single(folder, tmp_path / "m.safetensors")
    save_file({name: one.contiguous() for name, one in change(load_file(path)).items()}, path)
    assert torch.equal(draw(Sources(str(path)), request=REQUEST), draw(folder, request=REQUEST))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("folder", ["first"], indirect=True)
@pytest.mark.every(3)
def test_types_that_weights_are_stored_in(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    path = write_single(folder, tmp_path / "m.safetensors")
    tensors = {name: one.to(torch.bfloat16).to(dtype) for name, one in load_file(path).items()}
    save_file(tensors, path)
    wide = tmp_path / "wide.safetensors"
    save_file({name: one.float() for name, one in tensors.items()}, wide)
    assert torch.equal(draw(Sources(str(path)), request=REQUEST), draw(Sources(str(wide)), request=REQUEST))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("folder", ["first"], indirect=True)
@pytest.mark.every(4)
def test_eight_bits_are_drawn_as_the_same_values_in_sixteen(
    folder: Path, tmp_path: Path, dtype: torch.dtype, scaled: bool
) -> None:
    path, same = write_single(folder, tmp_path / "m.safetensors"), tmp_path / "same.safetensors"
    narrow, wide = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    for name, tensor in load_file(path).items():
        few = name.startswith("model.diffusion_model.") and scaled and tensor.ndim > 1
        narrow[name] = (tensor.float() * 4 if few else tensor).to(dtype)
        wide[name] = narrow[name].float()
        if few:
            narrow[name.removesuffix("weight") + "scale_weight"] = torch.tensor(0.25)
            wide[name] *= 0.25
    if scaled:
        narrow["scaled_fp8"] = torch.zeros(2).to(dtype)
    save_file(narrow, path)
    save_file({name: tensor.half() for name, tensor in wide.items()}, same)
    assert torch.equal(draw(Sources(str(path)), request=REQUEST), draw(Sources(str(same)), request=REQUEST))


@pytest.mark.parametrize("folder", ["first"], indirect=True)
@pytest.mark.full
def test_a_lora_changes_eight_bits_as_it_does_sixteen(folder: Path, tmp_path: Path) -> None:
    path, same = write_single(folder, tmp_path / "m.safetensors"), tmp_path / "same.safetensors"
    write_lora(folder, tmp_path / "x.safetensors")
    narrow, wide = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    for name, tensor in load_file(path).items():
        narrow[name] = tensor.to(torch.float8_e4m3fn)
        wide[name] = narrow[name].half()
        if name.endswith(".weight") and tensor.ndim > 1 and name.startswith(PREFIXES["unet"]):
            narrow[name.removesuffix("weight") + "scale_weight"] = torch.tensor(0.5)
            wide[name] *= 0.5
    save_file(narrow, path)
    save_file(wide, same)
    loras = ((str(tmp_path / "x.safetensors"), 0.8),)
    drawn = [draw(Sources(str(one), loras=loras), request=REQUEST) for one in (path, same)]
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], draw(Sources(str(path)), request=REQUEST))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("number", ["999", "1000000000", "9" * 5000, "\u0663", "-1"])
@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.input_blocks.{}.0.op.weight",
        "model.diffusion_model.output_blocks.{}.1.conv.weight",
        "first_stage_model.decoder.up.{}.block.0.conv1.weight",
        "first_stage_model.encoder.down.{}.block.0.conv1.weight",
        "cond_stage_model.model.transformer.resblocks.{}.ln_1.weight",
    ],
)
@pytest.mark.parametrize("folder", ["second"], indirect=True)
def test_numbers_in_names_are_no_reason_to_work_long(folder: Path, tmp_path: Path, name: str, number: str) -> None:
    path = write_single(folder, tmp_path / "m.safetensors", None, **{name.format(number): torch.zeros(2)})
    with suppress(SdcliError):
        open_model("m", sources(path, folder))


def test_the_vocabulary_is_clip_s() -> None:
    vocabulary = json.loads((CLIP_FOLDER / "vocab.json").read_text("utf-8"))
    known = {"<|startoftext|>": 49406, "<|endoftext|>": 49407, "!": 0, "a</w>": 320, "cat</w>": 2368}
    assert len(vocabulary) == 49408 and known.items() <= vocabulary.items()


def test_originals_are_all_of_it(folder: Path) -> None:
    counts = {part: len(load_file(next((folder / part).glob("*.safetensors")))) for part in PREFIXES}
    found = originals(folder)
    assert (len(found["unet"]), len(found["vae"])) == (counts["unet"], counts["vae"])
