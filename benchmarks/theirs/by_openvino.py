"""A model's denoiser in OpenVINO: seconds of each step but the first, as JSON.

python -m benchmarks.theirs.by_openvino convert FOLDER DENOISER.xml WIDTH HEIGHT
python -m benchmarks.theirs.by_openvino steps FOLDER DENOISER.xml WIDTH HEIGHT STEPS DTYPE

`convert` reads diffusers' denoiser and keeps a UNet in FP16, a transformer in BF16; `steps` runs it. A step of a UNet
is both halves of guidance at once, a step of FLUX.2 [klein] or Z-Image one sample without guidance. Text encoder,
scheduler and decoder are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

PRECISIONS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}

ROWS = 2
"""Samples of a UNet's step: with the prompt, and without."""

TOKENS, TIME_IDS = 77, 6

KLEIN_TOKENS = 512
"""Every prompt of klein's is padded to so many."""

Z_IMAGE_TOKENS = 64
"""A prompt of a sentence or two; Z-Image's denoiser pads to a multiple of 32."""

Shapes = list[tuple[int, ...]]


def main() -> None:
    """One of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=("convert", "steps"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("denoiser", type=Path)
    parser.add_argument("width", type=int)
    parser.add_argument("height", type=int)
    parser.add_argument("steps", type=int, nargs="?", default=0)
    parser.add_argument("dtype", choices=PRECISIONS, nargs="?", default="fp32")
    options = parser.parse_args()
    size = (options.width, options.height)
    if options.work == "convert":
        convert(options.folder, options.denoiser, *size, ROWS)
    else:
        shapes = input_shapes(options.folder, *size, ROWS)
        times = seconds(options.denoiser, shapes, options.steps, options.dtype)
        print(json.dumps({"steps": times[1:], "decode": 0.0}))


def config_of(folder: Path) -> dict[str, Any]:
    """The denoiser's."""
    home = next(home for home in (folder / "unet", folder / "transformer") if home.is_dir())
    config: dict[str, Any] = json.loads((home / "config.json").read_text("utf-8"))
    return config


def input_shapes(folder: Path, width: int, height: int, rows: int) -> Shapes:
    """Of latents, time, the prompt's states and, for SDXL, what goes in with the time. `rows` are a UNet's samples."""
    config, grid = config_of(folder), (height // 8, width // 8)
    channels = config["in_channels"]
    if config["_class_name"] == "Flux2Transformer2DModel":
        patches = (grid[0] // 2) * (grid[1] // 2)
        return [(1, patches, channels), (1,), (1, KLEIN_TOKENS, config["joint_attention_dim"])]
    if config["_class_name"] == "ZImageTransformer2DModel":
        return [(channels, 1, *grid), (1,), (Z_IMAGE_TOKENS, config["cap_feat_dim"])]
    shapes: Shapes = [(rows, channels, *grid), (), (rows, TOKENS, config["cross_attention_dim"])]
    if config.get("addition_embed_type") == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - TIME_IDS * config["addition_time_embed_dim"]
        shapes += [(rows, pooled), (rows, TIME_IDS)]
    return shapes


def convert(folder: Path, to: Path, width: int, height: int, rows: int) -> None:
    """Write the denoiser as OpenVINO has it, for a picture of that size."""
    import openvino
    import torch

    from benchmarks.theirs import denoisers

    shapes = input_shapes(folder, width, height, rows)
    times = torch.tensor(981) if shapes[1] == () else torch.tensor([0.5])
    latents, context, *added = (torch.randn(shape) for index, shape in enumerate(shapes) if index != 1)
    with torch.no_grad():
        step = denoisers.opened(folder, config_of(folder)["_class_name"], (height // 8, width // 8), KLEIN_TOKENS)
        model = openvino.convert_model(step, example_input=(latents, times, context, *added))
    for index, shape in enumerate(shapes):
        model.inputs[index].get_node().set_partial_shape(openvino.PartialShape(list(shape)))
    model.validate_nodes_and_infer_types()
    openvino.save_model(model, to, compress_to_fp16=isinstance(step, denoisers.UNet))


def seconds(path: Path, shapes: Shapes, steps: int, dtype: str) -> list[float]:
    """Of each step."""
    import numpy as np
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": PRECISIONS[dtype], "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(path, "CPU", hints).create_infer_request()
    draw = np.random.default_rng(0).standard_normal
    given: dict[int, Any] = {index: draw(shape, "f4") for index, shape in enumerate(shapes) if index != 1}
    times = []
    for step in range(steps):
        now = np.array(981 - step) if shapes[1] == () else np.array([0.981 - step / 1000], "f4")
        started = time.perf_counter()
        request.infer({**given, 1: now})
        times.append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    main()
