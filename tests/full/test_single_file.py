"""Models of real size in one file of the original layout: the bits of their folders, and no more memory to load."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdcli import settings
from sdcli.units import MIB
from tests.conftest import SDCLI
from tests.folders import made, with_clip
from tests.full.conftest import slow_disk
from tests.full.outside import watch
from tests.originals import write_single

pytestmark = [pytest.mark.full, pytest.mark.timeout(2400)]

CHANGES: dict[str, dict[str, Any]] = {
    "scheduler/scheduler_config.json": {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
    "model_index.json": {"scheduler": ["diffusers", "PNDMScheduler"]},
}
"""To the synthetic model, which has another scheduler than Stable Diffusion 1.5."""

SECOND: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 96,
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "text_encoder": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
    "tokenizer": {"pad_token": "!"},
    "scheduler": {"prediction_type": "v_prediction"},
}
"""Stable Diffusion 2.1, as it differs from 1.5 in its published configs."""


@pytest.fixture(params=[pytest.param("first", marks=pytest.mark.long), "second"])
def both(request: pytest.FixtureRequest, sd15: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A model's folder, with CLIP's vocabulary, and the same as one file."""
    folder, single = tmp_path / "folder", tmp_path / "model.safetensors"
    if request.param == "first":
        shutil.copytree(sd15, folder, copy_function=os.link)
        for path, changes in CHANGES.items():
            table = json.loads((folder / path).read_text("utf-8"))
            (folder / path).unlink()
            (folder / path).write_text(json.dumps({**table, **changes}), "utf-8")
    else:
        made(folder, SECOND, settings.read_config("models", "sd15"))
    with_clip(folder)
    yield folder, write_single(folder, single)
    for large in (folder, single, tmp_path / "cache"):  # gigabytes
        shutil.rmtree(large) if large.is_dir() else large.unlink(missing_ok=True)


def test_one_file_has_the_bits_of_its_folder_and_takes_no_more_memory(both: tuple[Path, Path], tmp_path: Path) -> None:
    for limit in ("2GiB", "450MiB"):
        drawn, peaks = [], []
        for model in both:
            slow_disk(Path(os.environ["SDCLI_CACHE"]))
            output = tmp_path / f"{model.stem}.png"
            job = ["-s", "2", "--seed", "7", "--size", "256x256", "--mem-limit", limit, "--device", "cpu"]
            given = ["--prediction", "v"] if "folder" not in model.name and _is_second(both[0]) else []
            line = [*SDCLI, "txt2img", "a fox", "-m", str(model), *job, *given, "--json", "-q", "--force", "--no-cache"]
            seen = watch([*line, "-o", str(output)], dict(os.environ))
            assert seen.code == 0, seen.err
            report = json.loads(seen.out)
            peaks.append({stage["name"]: stage["peak_bytes"] / MIB for stage in report["stages"]})
            assert report["memory"]["peak_bytes"] <= report["memory"]["predicted_peak_bytes"]
            with Image.open(output) as picture:
                drawn.append(picture.tobytes())
        assert drawn[0] == drawn[1], limit
        assert all(peaks[1][name] <= peaks[0][name] + 20 for name in peaks[0]), peaks


def _is_second(folder: Path) -> bool:
    config = json.loads((folder / "unet" / "config.json").read_text("utf-8"))
    return bool(config.get("use_linear_projection"))
