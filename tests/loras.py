"""Files of LoRA of every kind and naming for the tests' models, and the same merged beforehand in FP64."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sdcli.families.sd.ldm_names import original_blocks, original_name
from sdcli.models.opened import open_model

Tensors = dict[str, torch.Tensor]

KINDS = ("lora", "mid", "loha", "loha_wide", "loha_tucker", "lokr", "lokr_low", "lokr_tucker")
MAGNITUDES = ("", "outputs", "inputs")
NAMINGS = ("kohya", "kohya_te1", "ldm", "peft", "peft_base", "diffusers", "processor")

TEXTS = {"text_encoder_2": "lora_te2_"}

RANK = 4


class Random:
    """Numbers of a seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, deviation: float = 0.3) -> torch.Tensor:
        """Normal ones."""
        return torch.randn(*shape, generator=self._generator) * deviation


def difference(kind: str, shape: torch.Size, random: Random) -> tuple[Tensors, torch.Tensor, int | None]:
    """Tensors of a kind for a weight, by their endings in Kohya's names, the difference in FP64, and its rank."""
    out, into, kernel = shape[0], shape[1], tuple(shape[2:])
    places = math.prod(kernel)
    match kind:
        case "lora":
            some = {"lora_down.weight": random(RANK, into, *kernel)}
            some["lora_up.weight"] = random(out, RANK, *(1,) * len(kernel))
            return some, _flat(some["lora_up.weight"]) @ _flat(some["lora_down.weight"]), RANK
        case "mid":
            ones = (1,) * len(kernel)
            down, up, mid = random(RANK, into, *ones), random(out, RANK, *ones), random(RANK, RANK, *kernel)
            delta = torch.einsum(
                "ou,udk,di->oik", _flat(up), mid.double().reshape(RANK, RANK, -1), _flat(down)
            ).flatten(1)
            return {"lora_down.weight": down, "lora_up.weight": up, "lora_mid.weight": mid}, delta, RANK
        case "loha" | "loha_wide":
            rank = 2 if kind == "loha" else 8
            some = {
                f"hada_w{one}_{side}": random(out, rank) if side == "a" else random(rank, into * places)
                for one in "12"
                for side in "ab"
            }
            one, two = (some[f"hada_w{n}_a"].double() @ some[f"hada_w{n}_b"].double() for n in "12")
            return some, one * two, rank
        case "loha_tucker":
            some, product = {}, torch.ones((), dtype=torch.float64)
            for one in "12":
                t, a, b = random(RANK, RANK, *kernel), random(RANK, out), random(RANK, into)
                some |= {f"hada_t{one}": t, f"hada_w{one}_a": a, f"hada_w{one}_b": b}
                product = product * torch.einsum(
                    "ijk,ip,jr->prk", t.double().reshape(*t.shape[:2], -1), a.double(), b.double()
                )
            return some, product.flatten(1), RANK
    first = 4 if out % 4 == 0 and into % 4 == 0 else 1
    c, d = out // first, into // first
    one = random(first, first)
    some = {"lokr_w1": one}
    if kind == "lokr":
        two = random(c, d, *kernel)
        some["lokr_w2"] = two
    elif kind == "lokr_low":
        a, b = random(c, RANK), random(RANK, d * places)
        left, right = random(first, 2), random(2, first)
        some = {"lokr_w1_a": left, "lokr_w1_b": right, "lokr_w2_a": a, "lokr_w2_b": b}
        one, two = left.double() @ right.double(), a.double() @ b.double()
    else:
        t, a, b = random(RANK, RANK, *kernel), random(RANK, c), random(RANK, d)
        some |= {"lokr_t2": t, "lokr_w2_a": a, "lokr_w2_b": b}
        two = torch.einsum("ijk,ip,jr->prk", t.double().reshape(*t.shape[:2], -1), a.double(), b.double())
    two = two.double().reshape(c, d, places)
    delta = torch.einsum("ab,cdk->acbdk", one.double(), two).reshape(out, -1)
    return some, delta, None if kind == "lokr" else RANK


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double().flatten(1)


def changed(
    plain: torch.Tensor, delta: torch.Tensor, weight: float, magnitude: torch.Tensor | None, by_input: bool
) -> torch.Tensor:
    """W + s (m ∘ (W + D) / |W + D| - W), and without magnitudes W + s D, in FP64 and the weight's shape."""
    matrix = plain.double().flatten(1)
    if magnitude is None:
        return (matrix + weight * delta).view(plain.shape)
    whole = (matrix + delta).view(len(plain), plain.shape[1], -1)
    norms = whole.square().sum((0, 2) if by_input else (1, 2)).sqrt()
    gain = magnitude.double().flatten() / norms
    new = whole * (gain[None, :, None] if by_input else gain[:, None, None])
    return (matrix + weight * (new.flatten(1) - matrix)).view(plain.shape)


def spelled(naming: str, part: str, module: str, blocks: Mapping[str, str]) -> str | None:
    """The name of a module with its prefix, as a program writes it; None where it does not have such modules."""
    text = part.startswith("text_encoder")
    whole = f"text_model.{module}" if text and module != "text_projection" else module
    match naming:
        case "kohya" | "kohya_te1":
            prefix = TEXTS.get(part, "lora_te_" if naming == "kohya" else "lora_te1_") if text else "lora_unet_"
            return prefix + whole.replace(".", "_")
        case "ldm":
            original = None if text else original_name(blocks, module)
            return f"lora_unet_{original.replace('.', '_')}" if original else None
        case "peft":
            return f"{part}.{whole}"
        case "peft_base":
            return f"base_model.model.{module}"
        case "diffusers":
            return f"{part}.{whole}"
        case _:
            attention = not text and ".attn" in module
            home, _, last = module.removesuffix(".0").rpartition(".")
            return f"{part}.{home}.processor.{last}" if attention else None


ENDINGS = {
    "peft": {"lora_down.weight": ".lora_A.weight", "lora_up.weight": ".lora_B.weight"},
    "peft_base": {"lora_down.weight": ".lora_A.weight", "lora_up.weight": ".lora_B.weight"},
    "diffusers": {"lora_down.weight": ".lora.down.weight", "lora_up.weight": ".lora.up.weight"},
    "processor": {"lora_down.weight": "_lora.down.weight", "lora_up.weight": "_lora.up.weight"},
}


def write_lora(
    model: Path,
    path: Path,
    kind: str = "lora",
    naming: str = "kohya",
    magnitudes: str = "",
    seed: int = 3,
    alpha: float | None = 2.0,
    dtype: torch.dtype = torch.float32,
    wanted: Callable[[str], bool] = lambda name: True,
    scale: float = 1.0,
) -> dict[tuple[str, str], Callable[[torch.Tensor, float], torch.Tensor]]:
    """A file that changes every matrix of the model's text encoder and UNet; what it makes of each weight."""
    opened, random = open_model("m", model), Random(seed)
    blocks = {ours: theirs for theirs, ours in original_blocks(opened.parts["unet"].settings).items()}
    file: Tensors = {}
    changes: dict[tuple[str, str], Callable[[torch.Tensor, float], torch.Tensor]] = {}
    for part in (*(name for name in opened.parts if name.startswith("text_encoder")), "unet"):
        for name, origin in sorted(opened.parts[part].weights().items()):
            module = name.removesuffix(".weight")
            key = spelled(naming, part, module, blocks)
            if len(origin.shape) < 2 or module.startswith("embeddings.") or key is None or not wanted(name):
                continue
            some, delta, rank = difference(kind, torch.Size(origin.shape), random)
            some = {
                ending: (tensor * scale if "down" in ending else tensor).to(dtype) for ending, tensor in some.items()
            }
            if scale != 1 or dtype is not torch.float32:
                delta = _again(some)
            stored = {ENDINGS.get(naming, {}).get(ending, f".{ending}"): tensor for ending, tensor in some.items()}
            if alpha is not None:
                stored[".alpha"] = torch.tensor(alpha)
                delta = delta * (alpha / rank if rank else 1)
            magnitude = None
            if magnitudes:
                by_input = magnitudes == "inputs"
                sides = (1, origin.shape[1]) if by_input else (origin.shape[0], 1)
                magnitude = random(*sides, *(1,) * (len(origin.shape) - 2), deviation=0.5).abs() + 1
                stored[".dora_scale"] = magnitude
            file |= {key + ending: tensor.contiguous() for ending, tensor in stored.items()}

            def change(
                plain: torch.Tensor,
                weight: float,
                delta: torch.Tensor = delta,
                magnitude: torch.Tensor | None = magnitude,
            ) -> torch.Tensor:
                return changed(plain, delta, weight, magnitude, magnitudes == "inputs")

            changes[part, name] = change
    save_file(file, path)
    return changes


def _again(some: Tensors) -> torch.Tensor:
    """A LoRA's difference of the numbers as they are stored."""
    return _flat(some["lora_up.weight"].float()) @ _flat(some["lora_down.weight"].float())


def merged(
    model: Path, folder: Path, changes: list[tuple[dict[tuple[str, str], Callable[..., torch.Tensor]], float]]
) -> Path:
    """A copy of the model with its weights changed beforehand, each change of the weight as it was; in FP32."""
    shutil.copytree(model, folder)
    opened = open_model("m", folder)
    for part in (*(name for name in opened.parts if name.startswith("text_encoder")), "unet"):
        (file,) = opened.parts[part].files
        tensors = load_file(file.path)
        for name, origin in opened.parts[part].weights().items():
            plain = tensors[origin.stored]
            new = plain.double()
            for change, weight in changes:
                if (part, name) in change:
                    new = new + change[part, name](plain, weight) - plain.double()
            tensors[origin.stored] = new.float() if new.dtype is torch.float64 else new
        save_file(tensors, file.path)
    return folder
