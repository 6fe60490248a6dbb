"""What all tests share: a tiny model that they build, a cache of their own, and no network."""

from __future__ import annotations

import collections
import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # a program that is installed is compiled: so is what tests start
sys.dont_write_bytecode = False
if "PYTEST_XDIST_WORKER" in os.environ:  # tests side by side: threads that wait for each other would wait for others'
    os.environ["OMP_NUM_THREADS"] = "1"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in what a shell has put in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)  # unknown where xdist is switched off
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Fast tests go two at a time; real-size runs want the machine to themselves."""
    return 2 if config.option.markexpr == "not full and not gpu" else 0


@pytest.hookimpl(tryfirst=True)  # before what `-m` leaves out is left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked `every(n)` the fast tests run every n-th case, and the full lane all others."""
    seen = collections.Counter[str]()
    for item in items:
        marker = item.get_closest_marker("every")
        if marker is not None:
            test = item.nodeid.partition("[")[0]
            if seen[test] % marker.args[0]:
                item.add_marker("full")
            seen[test] += 1


TINY: dict[str, Any] = {
    "seed": 7,
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": [32, 64],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "sample_size": 64,
        "latent_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": [16, 16, 32, 32],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "norm_num_groups": 8,
        "scaling_factor": 0.18215,
    },
    "text_encoder": {
        "architectures": ["CLIPTextModel"],
        "vocab_size": 2000,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "bos_token_id": 1998,
        "eos_token_id": 1999,
        "pad_token_id": 1999,
    },
    "tokenizer": {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    },
    "scheduler": {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    },
}
"""A whole Stable Diffusion of 0.4 M parameters that draws 64x64 pixels in milliseconds."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's folder, in diffusers layout. Treat it as read-only; copy it to change it."""
    from sdcli.engine.synthesize import write_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    for _ in write_model(TINY, folder):
        pass
    return folder


@pytest.fixture(scope="module", autouse=True)
def nothing_to_search() -> None:
    """No search for cycles in what the tests before have imported: every stage of a run ends in two, 0.1 s each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Caches and a config of the test's own, and a folder of its own to run in; no SDCLI_ settings from outside."""
    for name in [name for name in os.environ if name.startswith("SDCLI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SDCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    yield


SDCLI = [sys.executable, "-P", "-m", "sdcli"]
"""How tests start the program as a user's shell would."""


@pytest.fixture(scope="session")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """synthetic:sd15, made once a session, or taken from the cache named by SDCLI_FULL_CACHE and kept there."""
    from sdcli.engine.synthesize import synthesize
    from sdcli.models.synthetic import find_synthetic

    kept = os.environ.get("SDCLI_FULL_CACHE")
    cache = Path(kept) if kept else tmp_path_factory.mktemp("cache")
    before = os.environ.get("SDCLI_CACHE")
    os.environ["SDCLI_CACHE"] = str(cache)

    def make(name: str, half: Path) -> None:
        collections.deque(synthesize(name, half), maxlen=0)

    try:
        folder, _ = find_synthetic("synthetic:sd15", make)
    finally:
        os.environ.pop("SDCLI_CACHE") if before is None else os.environ.update(SDCLI_CACHE=before)
    return folder
