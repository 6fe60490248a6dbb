"""A tiny but well-formed model in diffusers layout, written by hand: no torch, no library."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from sdcli.errors import SdcliError

NOBODY = 65534

ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "U8": 1}

CONFIGS: dict[str, dict[str, Any]] = {
    "text_encoder/config.json": {
        "architectures": ["CLIPTextModel"],
        "vocab_size": 520,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "max_position_embeddings": 77,
    },
    "unet/config.json": {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 8,
        "block_out_channels": [4, 8],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": 8,
    },
    "vae/config.json": {
        "_class_name": "AutoencoderKL",
        "sample_size": 64,
        "block_out_channels": [4, 4, 8, 8],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "norm_num_groups": 4,
    },
    "scheduler/scheduler_config.json": {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000},
    "tokenizer/tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77},
}

TENSORS: dict[str, dict[str, tuple[str, list[int]]]] = {
    "text_encoder/model.safetensors": {"embeddings.token_embedding.weight": ("F16", [520, 8])},
    "unet/diffusion_pytorch_model.safetensors": {"conv_in.weight": ("F16", [4, 4, 3, 3]), "conv_in.bias": ("F16", [4])},
    "vae/diffusion_pytorch_model.safetensors": {"decoder.conv_in.weight": ("F32", [8, 4, 3, 3])},
}


def header_of(tensors: Mapping[str, tuple[str, list[int]]]) -> tuple[dict[str, Any], int]:
    """The entries of a safetensors header for tensors laid out one after another, and the bytes of all."""
    entries: dict[str, Any] = {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        end = at + ITEM_BYTES[dtype]
        for side in shape:
            end = at + (end - at) * side
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    return entries, at


@pytest.fixture
def write_raw() -> Callable[[Path, bytes, int], Path]:
    """Writes a safetensors file from the bytes of its header and the number of bytes of its data."""

    def write(path: Path, header: bytes, data_bytes: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(data_bytes))
        return path

    return write


@pytest.fixture
def write_weights(
    write_raw: Callable[[Path, bytes, int], Path],
) -> Callable[[Path, Mapping[str, tuple[str, list[int]]]], Path]:
    """Writes a safetensors file of zeros from {name: (dtype, shape)}."""

    def write(path: Path, tensors: Mapping[str, tuple[str, list[int]]]) -> Path:
        entries, data_bytes = header_of(tensors)
        return write_raw(path, json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode(), data_bytes)

    return write


@pytest.fixture
def build_model(
    write_weights: Callable[[Path, Mapping[str, tuple[str, list[int]]]], Path],
) -> Callable[[Path], Path]:
    """Writes a whole tiny model into a folder."""

    def build(folder: Path) -> Path:
        for name, table in CONFIGS.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(table), "utf-8")
        for name, tensors in TENSORS.items():
            write_weights(folder / name, tensors)
        (folder / "tokenizer" / "vocab.json").write_text("{}", "utf-8")
        (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n", "utf-8")
        return folder

    return build


@pytest.fixture
def model_folder(build_model: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A whole tiny model."""
    return build_model(tmp_path / "model")


@pytest.fixture
def edit_config() -> Callable[..., None]:
    """Changes keys of a JSON file."""

    def edit(path: Path, **changes: object) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")

    return edit


@pytest.fixture
def refused() -> Callable[..., AbstractContextManager[None]]:
    """Asserts an SdcliError with this exit code whose message is one short printable line with these words."""

    @contextmanager
    def check(exit_code: int, *words: str) -> Iterator[None]:
        with pytest.raises(SdcliError) as caught:
            yield
        message = str(caught.value)
        assert caught.value.exit_code == exit_code, message
        assert message.isprintable() and len(message) < 400, message
        for word in words:
            assert word in message, message

    return check


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="sdcli-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def unprivileged() -> Callable[[], AbstractContextManager[None]]:
    """Inside, permissions count: root, who may read everything, becomes nobody."""

    @contextmanager
    def drop() -> Iterator[None]:
        if not hasattr(os, "geteuid"):
            pytest.skip("needs POSIX permissions")
        if os.geteuid() != 0:
            yield
            return
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)

    return drop
