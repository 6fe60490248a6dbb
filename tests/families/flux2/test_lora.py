"""A LoRA of FLUX.2 [klein], in the names that programs give its modules, draws what weights merged beforehand draw."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_kohya_flux2_lora_to_diffusers,
    _convert_non_diffusers_flux2_lora_to_diffusers,
)
from safetensors.torch import load_file, save_file

from sdcli import machine
from sdcli.devices import open_device
from sdcli.domain import DeviceName, Sources
from sdcli.engine.generate import generate
from sdcli.errors import SdcliError
from sdcli.families.kinds import lora_kind
from sdcli.messages import Job
from sdcli.models.opened import open_model
from sdcli.weights import adapters, sliced
from sdcli.weights.adapters import Merged, changes_of
from sdcli.weights.source import Source
from tests.families.flux2.klein import KLEIN
from tests.families.flux2.test_pictures import REQUEST
from tests.split_files import VAE, comfy_tree, made, original_flux2_vae, original_klein
from tests.support import STREAMED, draw, job_of, largest_difference, pictures

Tensors = dict[str, torch.Tensor]

RANK, ALPHA, WEIGHT = 2, 1.0, 0.75
SHORT = replace(REQUEST, width=64, steps=1)

FUSED = {
    "transformer_blocks.1.attn": ("double_blocks.1.img_attn.qkv", ("to_q", "to_k", "to_v")),
    "transformer_blocks.0.attn": ("double_blocks.0.txt_attn.qkv", ("add_q_proj", "add_k_proj", "add_v_proj")),
}
PLAIN = {
    "transformer_blocks.0.attn.to_out.0": "double_blocks.0.img_attn.proj",
    "transformer_blocks.1.attn.to_add_out": "double_blocks.1.txt_attn.proj",
    "transformer_blocks.0.ff.linear_in": "double_blocks.0.img_mlp.0",
    "transformer_blocks.0.ff.linear_out": "double_blocks.0.img_mlp.2",
    "transformer_blocks.1.ff_context.linear_in": "double_blocks.1.txt_mlp.0",
    "transformer_blocks.1.ff_context.linear_out": "double_blocks.1.txt_mlp.2",
    "single_transformer_blocks.0.attn.to_qkv_mlp_proj": "single_blocks.0.linear1",
    "single_transformer_blocks.1.attn.to_out": "single_blocks.1.linear2",
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "proj_out": "final_layer.linear",
}
"""diffusers' name of a module, and the original's."""

OUT = {"norm_out.linear": "final_layer.adaLN_modulation.1"}
"""Whose halves are swapped there: the library's converter leaves them as they are."""


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with an autoencoder as published ones have it."""
    return made({**KLEIN, "vae": {**KLEIN["vae"], **VAE}}, tmp_path_factory.mktemp("models") / "klein")


def changes(model: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Down and up of each module by diffusers' names; of those that the original fuses, one down."""
    random = torch.Generator().manual_seed(3)
    weights, made = open_model("m", model).parts["transformer"].weights(), {}
    homes = [
        *([f"{home}.{one}" for one in parts] for home, (_, parts) in FUSED.items()),
        *([m] for m in (*PLAIN, *OUT)),
    ]
    for modules in homes:
        down = torch.randn(RANK, weights[f"{modules[0]}.weight"].shape[1], generator=random)
        for module in modules:
            made[module] = down, torch.randn(weights[f"{module}.weight"].shape[0], RANK, generator=random) * 0.2
    return made


def originals(model: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The same by the original's names."""
    every = changes(model)
    named = {theirs: every[ours] for ours, theirs in PLAIN.items()}
    for home, (fused, parts) in FUSED.items():
        named[fused] = every[f"{home}.{parts[0]}"][0], torch.cat([every[f"{home}.{one}"][1] for one in parts])
    for ours, theirs in OUT.items():
        down, up = every[ours]
        named[theirs] = down, torch.cat(up.chunk(2)[::-1])
    return named


def diffusers_names(model: Path) -> Tensors:
    return _lettered("transformer.", changes(model))


def comfy_names(model: Path) -> Tensors:
    return _lettered("diffusion_model.", originals(model))


def older_comfy_names(model: Path) -> Tensors:
    file: Tensors = {}
    for module, (down, up) in originals(model).items():
        name = f"diffusion_model.{module}"
        file |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(ALPHA)}
    return file


def kohya_names(model: Path) -> Tensors:
    file: Tensors = {}
    for module, (down, up) in originals(model).items():
        name = f"lora_unet_{module.replace('.', '_')}"
        file |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(ALPHA)}
    return file


def _lettered(prefix: str, every: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Tensors:
    return {
        f"{prefix}{module}.lora_{letter}.weight": tensor
        for module, both in every.items()
        for letter, tensor in zip("AB", both, strict=True)
    }


def saved(tensors: Tensors, path: Path) -> Path:
    save_file({name: one.clone().contiguous() for name, one in tensors.items()}, path)
    return path


def merged(model: Path, folder: Path, every: dict[str, tuple[torch.Tensor, torch.Tensor]], scale: float) -> Path:
    """The model's folder in FP32 with the weights changed beforehand."""
    shutil.copytree(model, folder)
    (file,) = (folder / "transformer").glob("*.safetensors")
    tensors = {name: one.float() for name, one in load_file(file).items()}
    for module, (down, up) in every.items():
        name = f"{module}.weight"
        tensors[name] = (tensors[name].double() + scale * (up.double() @ down.double())).float()
    save_file(tensors, file)
    return folder


NAMINGS = {diffusers_names: 1.0, comfy_names: 1.0, older_comfy_names: ALPHA / RANK, kohya_names: ALPHA / RANK}
"""And how much of the product each says."""


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_changes_weights_by_its_product(
    klein: Path, tmp_path: Path, naming: Callable[[Path], Tensors]
) -> None:
    path = saved(naming(klein), tmp_path / "style.safetensors")
    opened = open_model("m", Sources(str(klein), loras=((str(path), WEIGHT),)))
    component, every = opened.parts["transformer"], changes(klein)
    assert opened.notes == () and opened.loras[0].changes == len(every)
    with Source(component) as source:
        changed = changes_of(component, source)
        assert changed.keys() == {f"{module}.weight" for module in every}
        for module, (down, up) in every.items():
            stored = source.stored(f"{module}.weight", (len(up), down.shape[1]))
            ours = Merged(stored, changed[f"{module}.weight"]).cast(torch.device("cpu"), torch.float32)
            torch.testing.assert_close(ours, stored.tensor.float() + WEIGHT * NAMINGS[naming] * (up @ down))


@pytest.mark.full
def test_a_picture_is_that_of_weights_merged_beforehand_under_every_plan(klein: Path, tmp_path: Path) -> None:
    path = saved(kohya_names(klein), tmp_path / "style.safetensors")
    changed = Sources(str(klein), loras=((str(path), WEIGHT),))
    ours, plain = draw(changed, request=SHORT), draw(klein, request=SHORT)
    expected = draw(merged(klein, tmp_path / "merged", changes(klein), WEIGHT * ALPHA / RANK), request=SHORT)
    assert largest_difference(ours, expected) <= 1 < largest_difference(ours, plain) - 5
    assert torch.equal(draw(changed, request=SHORT, plan=STREAMED), ours)


@pytest.mark.full
def test_it_changes_split_files_as_it_does_a_folder(klein: Path, tmp_path: Path) -> None:
    path = saved(comfy_names(klein), tmp_path / "style.safetensors")
    single = comfy_tree(
        klein, tmp_path, "flux-2-klein-4b.safetensors", "flux2-vae.safetensors", original_klein, original_flux2_vae
    )
    drawn = [draw(Sources(str(one), loras=((str(path), WEIGHT),)), request=SHORT) for one in (klein, single)]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("naming", [comfy_names, older_comfy_names, kohya_names])
def test_the_library_s_converter_has_the_same_modules(klein: Path, naming: Callable[[Path], Tensors]) -> None:
    """But for the norm, whose halves it leaves as they are."""
    given = {name: one for name, one in naming(klein).items() if "adaLN" not in name}
    convert = (
        _convert_kohya_flux2_lora_to_diffusers
        if naming is kohya_names
        else _convert_non_diffusers_flux2_lora_to_diffusers
    )
    converted = convert(
        {name: one for name, one in given.items() if naming is kohya_names or not name.endswith("alpha")}
    )
    scale = NAMINGS[naming] if naming is kohya_names else 1.0
    for module, (down, up) in changes(klein).items():
        if module not in OUT:
            a, b = (converted[f"transformer.{module}.lora_{letter}.weight"] for letter in "AB")
            torch.testing.assert_close(b @ a, scale * (up @ down))


def test_what_is_for_another_size_is_refused(klein: Path, tmp_path: Path) -> None:
    name = "diffusion_model.double_blocks.7.img_attn.qkv"
    tensors = {
        **comfy_names(klein),
        f"{name}.lora_A.weight": torch.ones(1, 64),
        f"{name}.lora_B.weight": torch.ones(192, 1),
    }
    path = saved(tensors, tmp_path / "nine.safetensors")
    with pytest.raises(SdcliError, match=r"is for Flux, and the model is flux2: give a LoRA for this model"):
        open_model("m", Sources(str(klein), loras=((str(path), 1.0),)))


def nine(*modules: str) -> Tensors:
    """A file for FLUX.2 [klein] 9B, with 32 heads of 128."""
    letters = {"A": torch.ones(1, 4096), "B": torch.ones(3 * 4096, 1)}
    return {f"diffusion_model.{module}.lora_{a}.weight": one for module in modules for a, one in letters.items()}


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        (["double_blocks.0.img_attn.qkv", "double_blocks.7.img_attn.qkv"], "and the model is flux2: give a LoRA"),
        (["double_blocks.0.img_attn.qkv"], "is for a weight of"),
    ],
)
def test_it_is_told_which_size_one_of_another_size_is_for(
    klein: Path, tmp_path: Path, modules: list[str], said: str
) -> None:
    path = saved(nine(*modules), tmp_path / "nine.safetensors")
    with pytest.raises(SdcliError, match=r"is for FLUX.2 \[klein\] 9B") as caught:
        open_model("m", Sources(str(klein), loras=((str(path), 1.0),)))
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("width", [3072, 4096, 6144])
@pytest.mark.parametrize("naming", ["diffusion_model.", "lora_unet_", "transformer."])
def test_the_width_tells_the_size(naming: str, width: int) -> None:
    module = (
        "single_transformer_blocks.3.attn.to_qkv_mlp_proj" if naming == "transformer." else "single_blocks.3.linear1"
    )
    module = naming + (module.replace(".", "_") if naming.endswith("_") else module)
    down, up = ("lora_down", "lora_up") if naming == "lora_unet_" else ("lora_A", "lora_B")
    shapes = {f"{module}.{down}.weight": (16, width), f"{module}.{up}.weight": (9 * width, 16)}
    sizes = {3072: "FLUX.2 [klein] 4B", 4096: "FLUX.2 [klein] 9B", 6144: "FLUX.2 [dev]"}
    assert lora_kind(shapes) == sizes[width]


@pytest.mark.parametrize(
    "shapes",
    [
        {"lora_unet_single_blocks_3_linear1.lora_down.weight": (16, 3072),
         "lora_unet_single_blocks_3_linear1.lora_up.weight": (7 * 3072, 16)},
        {"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": (16, 3072)},
        {"diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": (16, 3072)},
        {"diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": (16, 64)},
        {"diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": (4096,)},
    ],
)  # fmt: skip
def test_one_that_may_be_flux_1_s_is_not_taken_for_a_size(shapes: dict[str, tuple[int, ...]]) -> None:
    assert lora_kind(shapes) is None


def test_a_loha_of_the_swapped_norm_is_refused(klein: Path, tmp_path: Path) -> None:
    roles = {"w1_a": (128, 1), "w1_b": (1, 64), "w2_a": (128, 1), "w2_b": (1, 64)}
    name = "diffusion_model.final_layer.adaLN_modulation.1"
    path = saved({f"{name}.hada_{role}": torch.ones(s) for role, s in roles.items()}, tmp_path / "loha.safetensors")
    with pytest.raises(SdcliError, match="changes the halves of a layer the other way round, as a loha: only a plain"):
        open_model("m", Sources(str(klein), loras=((str(path), 1.0),)))


def kept(job: Job) -> Job:
    """The same with weights in memory that it gives out by the slice."""
    tables = {
        stage: tuple(replace(row, stays=row.stays or row.use == "sliced") for row in rows)
        for stage, rows in job.tables.items()
    }
    return replace(job, tables=tables)


@pytest.mark.parametrize("name", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_weights_that_stay_are_merged_to_the_bits_of_those_that_do_not(
    klein: Path, tmp_path: Path, name: DeviceName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "PIECE_BYTES", 3 * 64 * 4)
    monkeypatch.setattr(sliced, "PIECE_BYTES", 10 * 64 * 4)
    if name not in machine.available_devices():
        pytest.skip("needs an NVIDIA GPU and a torch for it")
    lora = saved(diffusers_names(klein), tmp_path / "lora.safetensors")
    by_slices = job_of(Sources(str(klein), loras=((str(lora), WEIGHT),)), request=SHORT, plan=STREAMED)
    assert kept(by_slices) != by_slices
    device = open_device(name)
    device.prepare(None)
    one, other = (pictures(list(generate(job, device)))[0] for job in (by_slices, kept(by_slices)))
    assert one.float().std() > 10 and torch.equal(one, other)
