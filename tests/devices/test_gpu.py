"""On a real NVIDIA GPU: the picture of the CPU, under a ceiling on the GPU's memory."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdcli import machine
from tests.conftest import SDCLI
from tests.support import psnr

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("cuda" not in machine.available_devices(), reason="needs an NVIDIA GPU and a torch for it"),
]

PSNR_FLOOR_DB = 30.0


def txt2img(model: Path, out: str, *options: str, code: int = 0) -> dict[str, Any]:
    """Run the program; returns its report."""
    command = [
        *SDCLI,
        "txt2img",
        "a red fox",
        "-m",
        str(model),
        "-s",
        "4",
        "--seed",
        "7",
        "-o",
        out,
        "--json",
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 else {}


def pixels(path: str) -> torch.Tensor:
    with Image.open(path) as picture:
        return torch.from_numpy(np.asarray(picture).astype(np.int32))


def test_a_seed_is_the_same_picture_on_gpu_and_cpu(tiny: Path) -> None:
    txt2img(tiny, "cpu.png", "--device", "cpu", "--dtype", "fp32")
    report = txt2img(tiny, "gpu.png", "--device", "cuda")
    assert report["dtype"] == "fp16"
    assert psnr(pixels("gpu.png"), pixels("cpu.png")) >= PSNR_FLOOR_DB


def test_the_report_has_device_and_host_memory_apart_and_the_ceiling_holds(tiny: Path) -> None:
    memory = txt2img(tiny, "gpu.png", "--device", "cuda", "--mem-limit", "2GiB")["memory"]
    assert 0 < memory["peak_bytes"] <= memory["limit_bytes"] == 2 * 2**30
    assert memory["host_peak_bytes"] > 0


def test_a_ceiling_below_the_context_will_not_fit(tiny: Path) -> None:
    txt2img(tiny, "gpu.png", "--device", "cuda", "--mem-limit", "100MiB", code=4)
