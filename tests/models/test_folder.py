"""Folders in diffusers layout: whole ones are described, others are refused with all that is missing."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from sdcli.domain import Component, Model, Request
from sdcli.families.registry import family_of
from sdcli.models.opened import open_model
from tests.support import geometry_of

Refused = Callable[..., AbstractContextManager[None]]
WriteWeights = Callable[[Path, Mapping[str, tuple[str, list[int]]]], Path]
EditConfig = Callable[..., None]

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "text_encoder/model.safetensors"


def label_of(model: Model) -> str:
    return family_of(model).label(model)


def test_a_whole_model_is_described_by_its_parts(model_folder: Path) -> None:
    model = open_model("my model", model_folder, "abc")
    assert (model.ref, model.path, model.sha256) == ("my model", model_folder.resolve(), "abc")
    parts = (
        model.parts["text_encoder"],
        model.parts["unet"],
        model.parts["vae"],
        model.parts["scheduler"],
        model.parts["tokenizer"],
    )
    assert [part.class_name for part in parts] == [
        "CLIPTextModel",
        "UNet2DConditionModel",
        "AutoencoderKL",
        "DDIMScheduler",
        "CLIPTokenizer",
    ]
    assert model.parts["unet"].config.items() >= {"sample_size": 8, "cross_attention_dim": 8}.items()
    assert next(iter(model.parts.values())) is model.parts["tokenizer"] and len(model.parts) == 5 and model.notes == ()
    origin = model.parts["unet"].weights()["conv_in.weight"]
    assert origin.path.samefile(model_folder / UNET)
    assert (origin.stored, origin.info.dtype, origin.shape) == ("conv_in.weight", "F16", (4, 4, 3, 3))
    assert [file.path.name for file in model.parts["vae"].files] == ["diffusion_pytorch_model.safetensors"]


def test_a_part_without_weights_says_so(model_folder: Path, refused: Refused) -> None:
    with refused(1, "the scheduler has no weights"):
        open_model("m", model_folder).parts["scheduler"].weights()
    assert Component("scheduler", "DDIMScheduler", {}, model_folder).tensors is None


def test_all_that_is_missing_is_named_at_once(tmp_path: Path, refused: Refused) -> None:
    with refused(
        1,
        "'typo'",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "unet/config.json",
        UNET,
        "vae/config.json",
        VAE,
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json and merges.txt",
    ):
        open_model("typo", tmp_path)


def test_a_part_s_folder_is_refused_with_the_model_s(model_folder: Path, refused: Refused) -> None:
    with refused(1, "is a part of a model: give ", model_folder.name):
        open_model("m", model_folder / "unet")


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae", "scheduler", "tokenizer"])
def test_a_missing_part_is_named_and_no_other(model_folder: Path, refused: Refused, part: str) -> None:
    shutil.rmtree(model_folder / part)
    with refused(1, f"lacks {part}/", "complete the folder"):
        open_model("m", model_folder)
    (model_folder / part).write_text("a file in place of a folder", "utf-8")
    with refused(1, f"lacks {part}/"):
        open_model("m", model_folder)


def test_weights_that_are_a_pickle_are_mentioned_and_not_opened(model_folder: Path, refused: Refused) -> None:
    (model_folder / UNET).rename(model_folder / "unet" / "diffusion_pytorch_model.bin")
    with refused(1, f"lacks {UNET}", "'diffusion_pytorch_model.bin' is a pickle", "convert it"):
        open_model("m", model_folder)


def test_a_pickle_beside_whole_weights_does_not_matter(model_folder: Path) -> None:
    (model_folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04}\x94.")
    (model_folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"junk")
    assert open_model("m", model_folder).parts["unet"].weights()


def test_a_pickle_under_the_name_of_weights_is_refused(model_folder: Path, refused: Refused) -> None:
    (model_folder / VAE).write_bytes(b"\x80\x04}\x94." + bytes(100))
    with refused(1, "diffusion_pytorch_model.safetensors", "pickle"):
        open_model("m", model_folder)


def test_the_fp16_variant_is_preferred(model_folder: Path, write_weights: WriteWeights) -> None:
    write_weights(model_folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", {"half": ("F16", [1])})
    assert set(open_model("m", model_folder).parts["unet"].weights()) == {"half"}
    (model_folder / UNET).unlink()
    assert set(open_model("m", model_folder).parts["unet"].weights()) == {"half"}


def test_sharded_weights_are_joined_and_each_tensor_knows_its_file(
    model_folder: Path, write_weights: WriteWeights
) -> None:
    (model_folder / UNET).unlink()
    for index in (1, 2, 3):
        name = f"diffusion_pytorch_model-{index:05}-of-00003.safetensors"
        write_weights(model_folder / "unet" / name, {f"t{index}": ("F16", [index])})
    unet = open_model("m", model_folder).parts["unet"]
    assert {name: origin.path.name for name, origin in unet.weights().items()} == {
        f"t{index}": f"diffusion_pytorch_model-{index:05}-of-00003.safetensors" for index in (1, 2, 3)
    }
    assert len(unet.files) == 3


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_missing_shard_is_named(model_folder: Path, write_weights: WriteWeights, refused: Refused, lost: int) -> None:
    (model_folder / UNET).unlink()
    for index in {1, 2, 3} - {lost}:
        name = f"diffusion_pytorch_model-{index:05}-of-00003.safetensors"
        write_weights(model_folder / "unet" / name, {f"t{index}": ("F16", [index])})
    with refused(1, f"lacks unet/diffusion_pytorch_model-{lost:05}-of-00003.safetensors:"):
        open_model("m", model_folder)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"t1": ["a"]}}', '{"weight_map": {"t1": "other"}}'],
)
def test_a_damaged_index_beside_whole_shards_is_named_and_not_needed(
    model_folder: Path, write_weights: WriteWeights, content: str
) -> None:
    (model_folder / UNET).unlink()
    names = [f"diffusion_pytorch_model-{index:05}-of-00002.safetensors" for index in (1, 2)]
    for name in names:
        write_weights(model_folder / "unet" / name, {f"t{name[25]}": ("F16", [1])})
    index = model_folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"t0": names[0], "t1": names[1]}}), "utf-8")
    write_weights(model_folder / "unet" / names[1], {"other": ("F16", [1])})
    assert open_model("m", model_folder).notes == ()
    index.write_text(content, "utf-8")
    model = open_model("m", model_folder)
    assert len(model.notes) == 1 and f"unet/{index.name} is damaged" in model.notes[0]
    assert len(model.parts["unet"].weights()) == 2


def test_the_same_tensor_in_two_shards_or_under_two_names_is_refused(
    model_folder: Path, write_weights: WriteWeights, refused: Refused
) -> None:
    write_weights(model_folder / TEXT_ENCODER, {"a.weight": ("F16", [1]), "text_model.a.weight": ("F16", [1])})
    with refused(1, "model.safetensors", "'text_model.a.weight'", "twice"):
        open_model("m", model_folder)
    write_weights(model_folder / TEXT_ENCODER, {"a.weight": ("F16", [1])})
    (model_folder / UNET).unlink()
    for index in (1, 2):
        name = f"diffusion_pytorch_model-{index:05}-of-00002.safetensors"
        write_weights(model_folder / "unet" / name, {"same": ("F16", [1])})
    with refused(1, "00002-of-00002.safetensors", "'same'", "twice"):
        open_model("m", model_folder)


def test_old_names_of_the_text_encoder_are_mapped_and_position_ids_dropped(
    model_folder: Path, write_weights: WriteWeights
) -> None:
    stored = {
        "text_model.embeddings.position_ids": ("I64", [1, 77]),
        "text_model.embeddings.token_embedding.weight": ("F16", [520, 8]),
        "text_model.encoder.layers.0.self_attn.q_proj.weight": ("F16", [8, 8]),
        "text_model.final_layer_norm.bias": ("F16", [8]),
    }
    write_weights(model_folder / TEXT_ENCODER, stored)
    weights = open_model("m", model_folder).parts["text_encoder"].weights()
    assert {today: origin.stored for today, origin in weights.items()} == {
        name.removeprefix("text_model."): name for name in stored if "position_ids" not in name
    }


def test_old_names_of_the_autoencoder_s_attention_are_mapped(model_folder: Path, write_weights: WriteWeights) -> None:
    home = "decoder.mid_block.attentions.0"
    write_weights(
        model_folder / VAE,
        {
            f"{home}.query.weight": ("F16", [8, 8]),
            f"{home}.key.weight": ("F16", [8, 8]),
            f"{home}.value.bias": ("F16", [8]),
            f"{home}.proj_attn.weight": ("F16", [8, 8]),
            f"{home}.group_norm.weight": ("F16", [8]),
            "decoder.mid_block.resnets.0.conv1.weight": ("F16", [8, 8, 3, 3]),
        },
    )
    weights = open_model("m", model_folder).parts["vae"].weights()
    assert set(weights) == {
        f"{home}.to_q.weight",
        f"{home}.to_k.weight",
        f"{home}.to_v.bias",
        f"{home}.to_out.0.weight",
        f"{home}.group_norm.weight",
        "decoder.mid_block.resnets.0.conv1.weight",
    }
    assert weights[f"{home}.to_out.0.weight"].stored == f"{home}.proj_attn.weight"


@pytest.mark.parametrize("dtype", ["I64", "F64", "U8"])
def test_weights_of_another_type_are_refused_by_the_tensor_s_name(
    model_folder: Path, write_weights: WriteWeights, refused: Refused, dtype: str
) -> None:
    write_weights(model_folder / UNET, {"conv_in.weight": ("F16", [4]), "mid.weight": (dtype, [4])})
    with refused(1, "diffusion_pytorch_model.safetensors", f"'mid.weight' is {dtype}", "F32, BF16, F16 or F8"):
        open_model("m", model_folder)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F8_E4M3", "F8_E5M2"])
def test_weights_of_other_types_are_taken(model_folder: Path, write_weights: WriteWeights, dtype: str) -> None:
    write_weights(model_folder / UNET, {"conv_in.weight": (dtype, [4])})
    assert open_model("m", model_folder).parts["unet"].weights()["conv_in.weight"].info.dtype == dtype


def test_a_truncated_weight_file_is_refused_by_name(model_folder: Path, refused: Refused) -> None:
    os.truncate(model_folder / VAE, (model_folder / VAE).stat().st_size - 1)
    with refused(1, "diffusion_pytorch_model.safetensors", "truncated"):
        open_model("m", model_folder)


def test_the_family_is_told_from_the_unet(model_folder: Path, edit_config: EditConfig) -> None:
    config = model_folder / "unet" / "config.json"
    assert label_of(open_model("m", model_folder)) == "sd"
    words = model_folder / "text_encoder" / "config.json"
    config.write_text('{"_class_name": "UNet2DConditionModel"}', "utf-8")
    for context, family in ((768, "sd15"), (1024, "sd"), ([768] * 4, "sd")):
        edit_config(config, block_out_channels=[320, 640, 1280, 1280], cross_attention_dim=context)
        edit_config(words, hidden_size=768 if family == "sd15" or isinstance(context, list) else 1024)
        assert label_of(open_model("m", model_folder)) == family
    edit_config(words, hidden_size=1280)
    config.write_text('{"_class_name": "UNet2DConditionModel"}', "utf-8")
    assert label_of(open_model("m", model_folder)) == "sd"


@pytest.mark.parametrize(
    ("sample_size", "size"),
    [(64, (512, 512)), (96, (768, 768)), (None, (512, 512)), ([64, 64], (512, 512)), ([64, 96], (768, 512))],
)
def test_the_native_size_is_the_sample_size_in_pixels_height_first_as_diffusers_takes_it(
    model_folder: Path, edit_config: EditConfig, sample_size: object, size: tuple[int, int]
) -> None:
    edit_config(model_folder / "unet" / "config.json", sample_size=sample_size)
    assert geometry_of(open_model("m", model_folder)).native_size == size


@pytest.mark.parametrize(
    ("version", "sample_size", "side"),
    [("0.8.1", 32, 512), ("0.3.0.dev0", 32, 512), ("0.9.0.dev0", 32, 256), ("0.10.2", 32, 256), ("0.6.0", 96, 768),
     (None, 32, 256), ("none", 32, 256), ("0.6.0", [32, 32], 256)],
)  # fmt: skip
def test_a_model_converted_before_diffusers_0_9_is_for_512_pixels_whatever_it_says(
    model_folder: Path, edit_config: EditConfig, version: object, sample_size: object, side: int
) -> None:
    edit_config(model_folder / "unet" / "config.json", sample_size=sample_size, _diffusers_version=version)
    assert geometry_of(open_model("m", model_folder)).native_size == (side, side)


@pytest.mark.parametrize("sample_size", [1_000_000, 1025, [64, 1025], [2**19, 64]])
def test_the_native_size_obeys_the_cap_of_every_size(
    model_folder: Path, edit_config: EditConfig, refused: Refused, sample_size: object
) -> None:
    edit_config(model_folder / "unet" / "config.json", sample_size=1024)
    assert geometry_of(open_model("m", model_folder)).native_size == (8192, 8192)
    edit_config(model_folder / "unet" / "config.json", sample_size=sample_size)
    with refused(1, "unet/config.json", "'sample_size'", "8192"):
        open_model("m", model_folder)


@pytest.mark.parametrize(("levels", "factor"), [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16)])
def test_each_level_of_the_autoencoder_but_one_halves(
    model_folder: Path, edit_config: EditConfig, levels: int, factor: int
) -> None:
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    edit_config(model_folder / "vae" / "config.json", block_out_channels=[4] * levels, **blocks)
    model = open_model("m", model_folder)
    assert geometry_of(model).latent_factor == factor and geometry_of(model).native_size == (8 * factor, 8 * factor)
    assert geometry_of(model).latent_shape(Request("", "", 96, 64, 1, 1.0, 0, 1)) == (64 // factor, 96 // factor)


def test_a_denoiser_for_other_latents_is_refused_as_not_supported(
    model_folder: Path, edit_config: EditConfig, refused: Refused
) -> None:
    edit_config(model_folder / "unet" / "config.json", in_channels=8)
    with refused(1, "8 channels for latents of 4", "InstructPix2Pix"):
        open_model("m", model_folder)


def test_the_native_size_of_a_model_that_does_not_say_is_that_of_stable_diffusion_1(model_folder: Path) -> None:
    config = json.loads((model_folder / "unet" / "config.json").read_text("utf-8"))
    del config["sample_size"]
    (model_folder / "unet" / "config.json").write_text(json.dumps(config), "utf-8")
    assert geometry_of(open_model("m", model_folder)).native_size == (512, 512)


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae", "tokenizer"])
def test_a_hostile_config_of_any_part_is_refused_by_its_file(
    model_folder: Path, edit_config: EditConfig, refused: Refused, part: str
) -> None:
    [config] = (model_folder / part).glob("*config.json")
    edit_config(config, auto_map={"AutoModel": "evil.Evil"}, **({"text_config": {}} if part == "text_encoder" else {}))
    with refused(1, f"{part}/{config.name}", "'auto_map'"):
        open_model("m", model_folder)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"_class_name": "StableDiffusion3Pipeline"}, ["'StableDiffusion3Pipeline'", "not supported yet"]),
        ({"_class_name": "FluxPipeline"}, ["'FluxPipeline'"]),
        ({"_class_name": "StableDiffusionDepth2ImgPipeline"}, ["'StableDiffusionDepth2ImgPipeline'"]),
        ({"_class_name": "StableDiffusionControlNetPipeline"}, ["'StableDiffusionControlNetPipeline'"]),
        ({"_class_name": "os.system"}, ["'os.system'"]),
        ({"_class_name": ["evil", "Evil"]}, ["somebody's own pipeline"]),
        ({"_class_name": {"a": 1}}, ["somebody's own pipeline"]),
        ({"unet": ["os", "system"]}, ["'unet'", "no known library"]),
        ({"vae": ["diffusers_modules.local.evil", "Evil"]}, ["'vae'", "no known library"]),
        ({"scheduler": ["diffusers", "evil"]}, ["asks for the class 'evil'"]),
        ({"text_encoder": [None, None]}, ["'text_encoder'"]),
        ({"tokenizer": "CLIPTokenizer"}, ["'tokenizer'"]),
        ({"custom_pipeline": "evil/evil"}, ["pipeline of its own"]),
    ],
    ids=repr,
)
def test_an_index_of_another_pipeline_or_of_somebody_s_code_is_refused(
    model_folder: Path, refused: Refused, index: dict[str, object], words: list[str]
) -> None:
    (model_folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **index}))
    with refused(1, "model_index.json", *words):
        open_model("m", model_folder)


def test_an_index_says_which_scheduler_and_nothing_of_what_is_not_used(
    model_folder: Path, edit_config: EditConfig
) -> None:
    index = {"safety_checker": ["stable_diffusion", "Checker"], "unet": ["diffusers", "UNet2DConditionModel"]}
    (model_folder / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "PNDMScheduler"]}))
    assert open_model("m", model_folder).parts["scheduler"].class_name == "PNDMScheduler"
    (model_folder / "model_index.json").write_text(json.dumps(index))
    assert open_model("m", model_folder).parts["scheduler"].class_name == "DDIMScheduler"


def test_a_tokenizer_may_be_one_file_and_have_no_config(model_folder: Path) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (model_folder / "tokenizer" / name).unlink()
    (model_folder / "tokenizer" / "tokenizer.json").write_text("{}", "utf-8")
    tokenizer = open_model("m", model_folder).parts["tokenizer"]
    assert (tokenizer.class_name, tokenizer.config) == ("CLIPTokenizer", {})


@pytest.mark.parametrize("lost", ["vocab.json", "merges.txt"])
def test_half_a_tokenizer_is_missing(model_folder: Path, refused: Refused, lost: str) -> None:
    (model_folder / "tokenizer" / lost).unlink()
    with refused(1, "lacks tokenizer/vocab.json and merges.txt"):
        open_model("m", model_folder)


def test_a_tokenizer_config_that_is_there_and_unreadable_is_not_taken_for_absent(
    model_folder: Path, refused: Refused
) -> None:
    path = model_folder / "tokenizer" / "tokenizer_config.json"
    path.unlink()
    path.symlink_to("../../blobs/lost")
    with refused(1, "tokenizer_config.json", "No such file"):
        open_model("m", model_folder)


def test_a_file_given_as_the_model_is_refused(model_folder: Path, refused: Refused) -> None:
    with refused(1, "'m' has no network that is known here"):
        open_model("m", model_folder / UNET)
    with refused(1, "cannot read", "absent"):
        open_model("m", model_folder / "absent")


def test_a_snapshot_of_links_into_another_folder_is_opened(model_folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "main"
    for index, path in enumerate(sorted(model_folder.rglob("*"))):
        if path.is_file():
            blob = tmp_path / "blobs" / f"{index:040x}"
            blob.parent.mkdir(exist_ok=True)
            link = snapshot / path.relative_to(model_folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            path.rename(blob)
            link.symlink_to(os.path.relpath(blob, link.parent))
    model = open_model("m", snapshot)
    assert model.parts["unet"].weights()["conv_in.weight"].path.name == "diffusion_pytorch_model.safetensors"


def test_a_snapshot_whose_blob_is_gone_or_loops_lacks_the_file(model_folder: Path, refused: Refused) -> None:
    for target in ("../../blobs/lost", "diffusion_pytorch_model.safetensors"):
        (model_folder / UNET).unlink()
        (model_folder / UNET).symlink_to(target)
        with refused(1, f"lacks {UNET}"):
            open_model("m", model_folder)


@pytest.mark.timeout(20)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_devices_in_a_model_are_never_read(model_folder: Path, refused: Refused) -> None:
    (model_folder / UNET).unlink()
    os.mkfifo(model_folder / UNET)
    config = model_folder / "tokenizer" / "tokenizer_config.json"
    config.unlink()
    config.symlink_to("/dev/zero")
    with refused(1, f"lacks {UNET}"):
        open_model("m", model_folder)
    (model_folder / UNET).rename(model_folder / "unet" / "diffusion_pytorch_model-00001-of-00001.safetensors")
    with refused(1, "00001-of-00001.safetensors", "not a regular file"):
        open_model("m", model_folder)
    shutil.copy(model_folder / VAE, model_folder / UNET)
    with refused(1, "tokenizer_config.json", "not a regular file"):
        open_model("m", model_folder)


def test_a_model_without_permission_is_refused(
    open_folder: Path,
    build_model: Callable[[Path], Path],
    refused: Refused,
    unprivileged: Callable[[], AbstractContextManager[None]],
) -> None:
    folder = build_model(open_folder / "model")
    with unprivileged():
        assert open_model("m", folder).parts["unet"].weights()
    (folder / UNET).chmod(0)
    with unprivileged(), refused(1, "diffusion_pytorch_model.safetensors", "Permission denied"):
        open_model("m", folder)
    (folder / UNET).chmod(0o644)
    (folder / "unet").chmod(0)
    with unprivileged(), refused(1, "'m'", "Permission denied"):
        open_model("m", folder)
    (folder / "unet").chmod(0o755)
    folder.chmod(0)
    with unprivileged(), refused(1, "'m'", "Permission denied"):
        open_model("m", folder)
    folder.chmod(0o755)


FILES = ("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json")


@pytest.mark.parametrize("name", FILES)
def test_a_disk_that_fails_while_it_is_read_is_one_line(
    model_folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., AbstractContextManager[None]]
) -> None:
    class Failing(io.FileIO):
        def read(self, *_: Any) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    real = Path.open

    def fail_there(path: Path, *arguments: Any, **options: Any) -> Any:
        return Failing(path) if path == model_folder / name else real(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", fail_there)
    with refused(1, "cannot read", Path(name).name, "Input/output error"):
        open_model("m", model_folder)
