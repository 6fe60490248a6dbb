"""A UNet in OpenVINO, both halves of guidance at once: seconds of each step but the first, as JSON.

python -m benchmarks.theirs.by_openvino convert FOLDER UNET.xml WIDTH HEIGHT
python -m benchmarks.theirs.by_openvino steps FOLDER UNET.xml WIDTH HEIGHT STEPS DTYPE

`convert` reads diffusers' UNet and keeps it in FP16, `steps` runs it. Text encoder, scheduler and decoder are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

PRECISIONS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}

ROWS = 2
"""Samples of a step: with the prompt, and without."""

TOKENS, TIME_IDS = 77, 6


def main() -> None:
    """One of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=("convert", "steps"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("unet", type=Path)
    parser.add_argument("width", type=int)
    parser.add_argument("height", type=int)
    parser.add_argument("steps", type=int, nargs="?", default=0)
    parser.add_argument("dtype", choices=PRECISIONS, nargs="?", default="fp32")
    options = parser.parse_args()
    shapes = input_shapes(options.folder, options.width, options.height, ROWS)
    if options.work == "convert":
        convert(options.folder, options.unet, shapes)
    else:
        print(json.dumps({"steps": seconds(options.unet, shapes, options.steps, options.dtype)[1:], "decode": 0.0}))


def input_shapes(folder: Path, width: int, height: int, rows: int) -> list[tuple[int, ...]]:
    """Of latents, time, the prompt's states and, for SDXL, what goes in with the time."""
    config = json.loads((folder / "unet" / "config.json").read_text("utf-8"))
    shapes: list[tuple[int, ...]] = [
        (rows, config["in_channels"], height // 8, width // 8),
        (),
        (rows, TOKENS, config["cross_attention_dim"]),
    ]
    if config.get("addition_embed_type") == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - TIME_IDS * config["addition_time_embed_dim"]
        shapes += [(rows, pooled), (rows, TIME_IDS)]
    return shapes


def convert(folder: Path, to: Path, shapes: list[tuple[int, ...]]) -> None:
    """Write the UNet as OpenVINO has it."""
    import openvino
    import torch
    from diffusers import UNet2DConditionModel

    class Step(torch.nn.Module):
        """Tensors in, a tensor out."""

        def __init__(self) -> None:
            super().__init__()
            self.unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", dtype=torch.float32).eval()

        def forward(self, sample: Any, timestep: Any, context: Any, *added: Any) -> Any:
            more = dict(zip(("text_embeds", "time_ids"), added, strict=True)) if added else None
            return self.unet(sample, timestep, context, added_cond_kwargs=more, return_dict=False)[0]

    example = tuple(torch.randn(shape) if shape else torch.tensor(981) for shape in shapes)
    with torch.no_grad():
        model = openvino.convert_model(Step(), example_input=example)
    for index, shape in enumerate(shapes):
        model.inputs[index].get_node().set_partial_shape(openvino.PartialShape(list(shape)))
    model.validate_nodes_and_infer_types()
    openvino.save_model(model, to, compress_to_fp16=True)


def seconds(path: Path, shapes: list[tuple[int, ...]], steps: int, dtype: str) -> list[float]:
    """Of each step."""
    import numpy as np
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": PRECISIONS[dtype], "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(path, "CPU", hints).create_infer_request()
    draw = np.random.default_rng(0).standard_normal
    given: dict[int, Any] = {index: draw(shape, "f4") for index, shape in enumerate(shapes) if shape}
    times = []
    for step in range(steps):
        started = time.perf_counter()
        request.infer({**given, 1: np.array(981 - step)})
        times.append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    main()
