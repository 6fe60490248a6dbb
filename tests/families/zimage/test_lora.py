"""A LoRA of Z-Image, in the names that programs give its modules, draws what weights merged beforehand draw."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdcli.domain import Sources
from sdcli.errors import SdcliError
from sdcli.models.opened import open_model
from tests.families.zimage.tiny import FOX
from tests.support import STREAMED, draw, largest_difference

RANK, SCALE = 2, 0.5
SHORT = replace(FOX, steps=2)

MODULES = (
    "layers.1.attention.to_q",
    "layers.1.attention.to_k",
    "layers.1.attention.to_v",
    "layers.1.attention.to_out.0",
    "layers.2.feed_forward.w1",
    "layers.2.feed_forward.w2",
    "noise_refiner.0.adaLN_modulation.0",
    "all_x_embedder.2-1",
    "all_final_layer.2-1.linear",
)


def changes(model: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Down and up of each module; of those that the original fuses, one down."""
    random = torch.Generator().manual_seed(3)
    weights, made, shared = open_model("z", model).parts["transformer"].weights(), {}, None
    for module in MODULES:
        out, into = weights[f"{module}.weight"].shape
        down = torch.randn(RANK, into, generator=random)
        shared = down if module.endswith("to_q") else shared
        fused = shared is not None and module.endswith(("to_k", "to_v"))
        up = torch.randn(out, RANK, generator=random) * 0.1
        made[module] = (shared.clone() if fused and shared is not None else down, up)
    return made


def merged(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    (file,) = (folder / "transformer").glob("*.safetensors")
    tensors = load_file(file)
    for module, (down, up) in changes(model).items():
        name = f"{module}.weight"
        tensors[name] = (tensors[name].double() + SCALE * (up.double() @ down.double())).float()
    save_file(tensors, file)
    return folder


def diffusers_names(model: Path, path: Path) -> None:
    save_file(
        {
            f"transformer.{module}.lora_{letter}.weight": tensor
            for module, both in changes(model).items()
            for letter, tensor in zip("AB", both, strict=True)
        },
        path,
    )


def kohya_names(model: Path, path: Path) -> None:
    file = {}
    for module, (down, up) in changes(model).items():
        name = f"lora_unet_{module.replace('.', '_')}"
        file |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}
    save_file(file, path)


def original_names(model: Path, path: Path) -> None:
    made, file = changes(model), dict[str, torch.Tensor]()
    ups = [made.pop(f"layers.1.attention.{name}") for name in ("to_q", "to_k", "to_v")]
    made["layers.1.attention.qkv"] = ups[0][0], torch.cat([up for _, up in ups])
    for module, both in made.items():
        name = module.replace("to_out.0", "out").replace("all_x_embedder.2-1", "x_embedder")
        name = name.replace("all_final_layer.2-1", "final_layer")
        file |= {f"diffusion_model.{name}.lora_{letter}.weight": t for letter, t in zip("AB", both, strict=True)}
    save_file(file, path)


NAMINGS = [diffusers_names, kohya_names, original_names]


@pytest.mark.parametrize("write", NAMINGS)
@pytest.mark.every(3)
def test_every_naming_draws_what_merged_weights_draw(
    model: Path, tmp_path: Path, write: Callable[[Path, Path], None]
) -> None:
    write(model, tmp_path / "style.safetensors")
    changed = Sources(str(model), loras=((str(tmp_path / "style.safetensors"), SCALE),))
    opened = open_model("z", changed)
    assert opened.notes == () and opened.loras[0].changes == len(MODULES)
    expected = draw(merged(model, tmp_path / "merged"), request=SHORT)
    assert largest_difference(expected, draw(model, request=SHORT)) > 1, "it changes nothing"
    ours = draw(changed, request=SHORT)
    assert largest_difference(ours, expected) <= 1
    assert torch.equal(draw(changed, request=SHORT, plan=STREAMED), ours)


def test_rows_that_are_not_of_three_layers_are_refused(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    name = "diffusion_model.layers.0.attention.qkv"
    save_file({f"{name}.lora_A.weight": torch.ones(1, 48), f"{name}.lora_B.weight": torch.ones(100, 1)}, path)
    with pytest.raises(SdcliError, match="changes 3 layers in one, and its rows are not of so many alike"):
        open_model("z", Sources(str(model), loras=((str(path), 1.0),)))


def test_a_fused_loha_is_refused(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "loha.safetensors"
    roles = {"w1_a": (144, 1), "w1_b": (1, 48), "w2_a": (144, 1), "w2_b": (1, 48)}
    name = "diffusion_model.layers.0.attention.qkv"
    save_file({f"{name}.hada_{role}": torch.ones(sides) for role, sides in roles.items()}, path)
    with pytest.raises(SdcliError, match="changes several layers in one, as a loha: only a plain LoRA"):
        open_model("z", Sources(str(model), loras=((str(path), 1.0),)))
