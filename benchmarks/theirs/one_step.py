"""One step of Stable Diffusion without guidance in OpenVINO, from a prompt's tokens to a PNG file.

python -m benchmarks.theirs.one_step convert FOLDER TINY HOME WIDTH HEIGHT
python -m benchmarks.theirs.one_step draw HOME WIDTH HEIGHT DTYPE FILE.png

`convert` writes text encoder, UNet and the tiny decoder into HOME, in FP16; `draw` opens them and makes a picture. What
OpenVINO compiles it keeps in HOME as well, so that later runs start sooner. The tokenizer is left out, in its favour.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.theirs.by_openvino import PRECISIONS, TOKENS, convert, input_shapes

TIME = 999
"""Of the one step: all is noise."""


def main() -> None:
    """One of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    works = parser.add_subparsers(dest="work", required=True)
    converts, draws = works.add_parser("convert"), works.add_parser("draw")
    for name in ("folder", "tiny"):
        converts.add_argument(name, type=Path)
    for one in (converts, draws):
        one.add_argument("home", type=Path)
        one.add_argument("width", type=int)
        one.add_argument("height", type=int)
    draws.add_argument("dtype", choices=PRECISIONS)
    draws.add_argument("to", type=Path)
    options = parser.parse_args()
    if options.work == "convert":
        convert_all(options.folder, options.tiny, options.home, options.width, options.height)
    else:
        draw(options.home, options.width, options.height, options.dtype, options.to)


def convert_all(folder: Path, tiny: Path, home: Path, width: int, height: int) -> None:
    """Write the three networks, and what is noise's share of a latent at the one step."""
    import openvino
    import torch
    from diffusers import AutoencoderTiny, DDIMScheduler
    from transformers import CLIPTextModel

    class Words(torch.nn.Module):
        """Tokens to states."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()

        def forward(self, tokens: Any) -> Any:
            return self.encoder(tokens, return_dict=False)[0]

    shapes = input_shapes(folder, width, height, 1)
    decoder = AutoencoderTiny.from_pretrained(tiny, dtype=torch.float32).eval().decoder
    with torch.no_grad():
        words = openvino.convert_model(Words(), example_input=torch.zeros(1, TOKENS, dtype=torch.long))
        words.reshape([1, TOKENS])
        openvino.save_model(words, home / "words.xml", compress_to_fp16=True)
        pixels = openvino.convert_model(decoder, example_input=torch.randn(shapes[0]))
        pixels.reshape(list(shapes[0]))
        openvino.save_model(pixels, home / "pixels.xml", compress_to_fp16=True)
    convert(folder, home / "unet.xml", width, height, 1)
    kept = float(DDIMScheduler.from_pretrained(folder, subfolder="scheduler").alphas_cumprod[TIME])
    (home / "kept.json").write_text(json.dumps(kept), "utf-8")


def draw(home: Path, width: int, height: int, dtype: str, to: Path) -> None:
    """One picture. Each network goes before the next one comes."""
    import numpy as np
    import openvino
    from PIL import Image

    core = openvino.Core()
    core.set_property({"CACHE_DIR": str(home / "compiled")})
    hints = {"INFERENCE_PRECISION_HINT": PRECISIONS[dtype], "PERFORMANCE_HINT": "LATENCY"}

    def run(name: str, *given: Any) -> Any:
        return core.compile_model(home / f"{name}.xml", "CPU", hints)(list(given))[0]

    tokens = np.full((1, TOKENS), 49407)
    tokens[0, :6] = 49406, 320, 1125, 539, 550, 18376
    states = run("words", tokens)
    noise = np.random.default_rng(0).standard_normal((1, 4, height // 8, width // 8), "f4")
    kept = json.loads((home / "kept.json").read_text("utf-8"))
    latents = (noise - (1 - kept) ** 0.5 * run("unet", noise, np.array(TIME), states)) / kept**0.5
    pixels = run("pixels", latents)[0].transpose(1, 2, 0)  # the tiny decoder's are -1 to 1
    Image.fromarray(((pixels.clip(-1, 1) + 1) * 127.5).round().astype("uint8")).save(to)


if __name__ == "__main__":
    main()
