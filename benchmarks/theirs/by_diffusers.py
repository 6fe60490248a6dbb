"""diffusers' own pipeline of a model's folder: seconds of each step but the first, and of decoding, as JSON.

    python -m benchmarks.theirs.by_diffusers FOLDER STEPS WIDTH HEIGHT DTYPE [--compile] [--save FILE.png]

Stable Diffusion goes from a prompt to pixels. FLUX.2 [klein] and Z-Image get random states in place of a text
encoder's: from there on it is the pipeline's denoiser, scheduler and decoder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from benchmarks.theirs.by_openvino import KLEIN_TOKENS, Z_IMAGE_TOKENS

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def main() -> None:
    """One picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("width", type=int)
    parser.add_argument("height", type=int)
    parser.add_argument("dtype", choices=DTYPES)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    dtype = DTYPES[options.dtype]
    pipeline, words = opened(options.folder, dtype)
    for name in ("unet", "vae"):
        if getattr(pipeline, name, None) is not None:
            getattr(pipeline, name).to(memory_format=torch.channels_last)
    if options.compile:
        from torch._inductor import config

        config.freezing = True
        name = "unet" if hasattr(pipeline, "unet") else "transformer"
        setattr(pipeline, name, torch.compile(getattr(pipeline, name)))
    pipeline.set_progress_bar_config(disable=True)
    times: list[float] = []

    def tick(_pipeline: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        times.append(time.perf_counter())
        return tensors

    size = {"width": options.width, "height": options.height, "num_inference_steps": options.steps}
    with torch.no_grad():
        made = pipeline(**words, **size, callback_on_step_end=tick)
    ended = time.perf_counter()
    if options.save:
        made.images[0].save(options.save)
    later = [after - before for before, after in itertools.pairwise(times)]
    print(json.dumps({"steps": later, "decode": ended - times[-1]}))


def opened(folder: Path, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """The pipeline, and what it is given for words."""
    kind = json.loads((folder / "model_index.json").read_text("utf-8"))["_class_name"]
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True}
    if kind not in ("Flux2KleinPipeline", "ZImagePipeline"):
        extra = {"safety_checker": None} if kind == "StableDiffusionPipeline" else {}
        return DiffusionPipeline.from_pretrained(folder, **options, **extra), {"prompt": "astronaut"}
    pipeline = DiffusionPipeline.from_pretrained(folder, **options, text_encoder=None, tokenizer=None)
    config, generator = pipeline.transformer.config, torch.Generator().manual_seed(0)
    if kind == "Flux2KleinPipeline":
        states = torch.randn(1, KLEIN_TOKENS, config.joint_attention_dim, generator=generator)
        return pipeline, {"prompt_embeds": states.to(dtype), "guidance_scale": 1.0}
    states = torch.randn(Z_IMAGE_TOKENS, config.cap_feat_dim, generator=generator)
    return pipeline, {"prompt_embeds": [states.to(dtype)], "guidance_scale": 0.0}


if __name__ == "__main__":
    main()
