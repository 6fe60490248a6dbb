"""Put the trained weights together as a model in diffusers layout, FP16, with its card and licence.

`python -m training.assemble --from DIR --out MODEL_FOLDER [--measures measures.json]`
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from training import state
from training.card import LICENCE, model_card
from training.glyphs import Glyphs, load_glyphs
from training.networks import SCHEDULER, text_config, unet_config, vae_config
from training.pictures import loss_curves
from training.recipes import caption_words
from training.words import write_tokenizer

LARGEST_MODEL = 32 * 2**20
"""Bytes of the whole folder at most."""

INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
}

STEMS = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}


def assemble(source: Path, out: Path, glyphs: Glyphs, size: str = "full", measures: Path | None = None) -> int:
    """Write the model folder anew; returns its bytes. Raises SystemExit for weights that lack or are not finite."""
    for name in (*STEMS, "tokenizer", "scheduler"):
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir(parents=True)
    tokens = write_tokenizer(caption_words(glyphs.names), out / "tokenizer")
    configs = {"vae": vae_config(size), "unet": unet_config(size), "text_encoder": text_config(tokens, size)}
    counts = {}
    for name, file in STEMS.items():
        tensors = {key: value.half() for key, value in state.load_weights(source, name).items()}
        if not tensors:
            raise SystemExit(f"no {name}-*.safetensors in {source}: train first")
        broken = [key for key, value in tensors.items() if not torch.isfinite(value).all()]
        if broken:
            raise SystemExit(f"{name} in {source} has numbers that FP16 cannot hold, in {broken[0]}")
        tensors = {key: value.contiguous() for key, value in tensors.items() if not key.endswith("position_ids")}
        save_file(tensors, out / name / file, metadata={"format": "pt"})
        (out / name / file).chmod(0o644)
        _write_json(out / name / "config.json", configs[name])
        counts[name] = sum(value.numel() for value in tensors.values())
    _write_json(out / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_json(out / "model_index.json", INDEX)
    known = json.loads(measures.read_text("utf-8")) if measures and measures.is_file() else {}
    history = source / "history.md"
    told = history.read_text("utf-8") if history.is_file() else ""
    card = model_card(glyphs.names, counts, state.facts_of(source), known, told)
    (out / "MODEL_CARD.md").write_text(card, "utf-8")
    (out / "LICENSE.md").write_text(LICENCE, "utf-8")
    if (source / "losses.csv").is_file():
        loss_curves(source / "losses.csv", out / "curves.png")
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if total > LARGEST_MODEL:
        raise SystemExit(f"the model takes {total / 2**20:.2f} MiB, more than {LARGEST_MODEL / 2**20:.0f} MiB")
    return total


def _write_json(path: Path, table: dict[str, Any]) -> None:
    path.write_text(json.dumps(table, indent=2) + "\n", "utf-8")


def main(argv: list[str] | None = None) -> None:
    """Assemble, and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, required=True, help="the folder of state")
    parser.add_argument("--out", type=Path, required=True, help="the model folder")
    parser.add_argument("--glyphs", type=Path, default=Path("training/glyphs.npz"))
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--measures", type=Path, help="what evaluate wrote, for the card")
    args = parser.parse_args(argv)
    total = assemble(args.source, args.out, load_glyphs(args.glyphs), args.size, args.measures)
    print(f"{args.out}: {total / 2**20:.2f} MiB", flush=True)


if __name__ == "__main__":
    main()
