"""A LoRA of rank 32 on everything, at real size: it takes little, and draws the same under every ceiling."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sdcli.models.opened import open_model
from sdcli.units import MIB
from tests.full.conftest import Program
from tests.full.outside import watch

pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the outside view reads /proc"),
]

RANK, MORE_BYTES = 32, 15 * MIB


@pytest.fixture(scope="module")
def lora(sd15: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of every matrix and convolution of the text encoder and the denoiser, in FP16."""
    model, tensors, generator = open_model("m", sd15), {}, torch.Generator().manual_seed(0)
    for part, prefix in (("text_encoder", "lora_te_text_model_"), ("unet", "lora_unet_")):
        for name, origin in model.parts[part].weights().items():
            if len(origin.shape) < 2 or name.startswith("embeddings."):
                continue
            key, (out, into, *kernel) = prefix + name.removesuffix(".weight").replace(".", "_"), origin.shape
            down, up = (RANK, into, *kernel), (out, RANK, *(1 for _ in kernel))
            tensors[f"{key}.lora_down.weight"] = torch.randn(down, generator=generator).mul_(0.02).half()
            tensors[f"{key}.lora_up.weight"] = torch.randn(up, generator=generator).mul_(0.02).half()
            tensors[f"{key}.alpha"] = torch.tensor(RANK / 2)
    path = tmp_path_factory.mktemp("loras") / "everything.safetensors"
    save_file(tensors, path)
    return path


def test_it_takes_little_and_draws_the_same_under_every_ceiling(program: Program, lora: Path) -> None:
    drawn = {}
    for limit in ("none", "600MiB"):
        over = {}
        for name, options in (("without", []), ("with", ["--lora", str(lora)])):
            job = program.line("txt2img", "--mem-limit", limit, "-o", f"{name}.png", "--force", *options)
            seen = watch(job, program.environment)
            assert seen.code == 0, seen.err
            report = json.loads(seen.out)
            under = [stage for stage in report["stages"] if stage["peak_bytes"] > stage["predicted_peak_bytes"]]
            assert under == [], (limit, name)
            memory = report["memory"]
            over[name] = memory["peak_bytes"] - memory["baseline_bytes"] - report["plan"]["resident_bytes"]
        if limit != "none":  # where freed memory goes back in the midst of a step: else gaps differ by more
            assert over["with"] <= over["without"] + MORE_BYTES
        with Image.open("with.png") as picture:
            drawn[limit] = picture.tobytes()
    assert drawn["none"] == drawn["600MiB"]
