"""Which weight files are taken: whole sets before others, plain and fp16 before other variants."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from sdcli.models.opened import open_model
from sdcli.models.weight_files import find_weights

Refused = Callable[..., AbstractContextManager[None]]

PLAIN, FP16, BF16 = "m.safetensors", "m.fp16.safetensors", "m.bf16.safetensors"
SHARDS = ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"]
FP16_SHARDS = ["m.fp16-00001-of-00002.safetensors", "m.fp16-00002-of-00002.safetensors"]
OLD_SHARDS = ["m-00001-of-00002.fp16.safetensors", "m-00002-of-00002.fp16.safetensors"]


@pytest.mark.parametrize(
    ("there", "taken", "variant"),
    [
        ([PLAIN], [PLAIN], ""),
        ([PLAIN, FP16, BF16], [FP16], "fp16"),
        ([PLAIN, "m.non_ema.safetensors", "m.bin"], [PLAIN], ""),
        ([PLAIN, *FP16_SHARDS], [PLAIN], ""),
        (SHARDS, SHARDS, ""),
        (FP16_SHARDS, FP16_SHARDS, "fp16"),
        (OLD_SHARDS, OLD_SHARDS, "fp16"),
        ([*SHARDS, *FP16_SHARDS], SHARDS, ""),
        ([*SHARDS[:1], *FP16_SHARDS], FP16_SHARDS, "fp16"),
        ([*FP16_SHARDS[1:], *SHARDS], SHARDS, ""),
        ([*SHARDS, "m-00001-of-00003.safetensors"], SHARDS, ""),
        ([BF16], [BF16], "bf16"),
        (["m.non_ema.safetensors", BF16], [BF16], "bf16"),
        (["m.fp32.safetensors", "m.ema.safetensors"], ["m.fp32.safetensors"], "fp32"),
        (["m.int8-x.safetensors", "m.ema.safetensors"], ["m.ema.safetensors"], "ema"),
        (["m.pruned.safetensors"], ["m.pruned.safetensors"], "pruned"),
        (["m.bf16-00001-of-00001.safetensors"], ["m.bf16-00001-of-00001.safetensors"], "bf16"),
        ([FP16, *SHARDS, "m.safetensors.index.fp16.json", "m.safetensors.index.json"], [FP16], "fp16"),
    ],
)
def test_the_best_set_is_taken(tmp_path: Path, there: list[str], taken: list[str], variant: str) -> None:
    for name in [*there, "mm.safetensors", "other.fp16.safetensors", "m.safetensors.part"]:
        (tmp_path / name).touch()
    found = find_weights(tmp_path, "m")
    assert ([path.name for path in found.paths], found.variant, found.missing) == (taken, variant, None)


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        ([], PLAIN),
        (["m.SAFETENSORS", "m.bin", "m-1-of-2.safetensors"], PLAIN),
        (SHARDS[:1], SHARDS[1]),
        (FP16_SHARDS[1:], FP16_SHARDS[0]),
        (OLD_SHARDS[:1], OLD_SHARDS[1]),
        ([*SHARDS[:1], *FP16_SHARDS[:1]], SHARDS[1]),
        ([FP16_SHARDS[0], OLD_SHARDS[1]], OLD_SHARDS[0]),
    ],
)
def test_what_is_missing_is_named_as_the_others_are(tmp_path: Path, there: list[str], missing: str) -> None:
    for name in there:
        (tmp_path / name).touch()
    assert find_weights(tmp_path, "m").missing == missing
    assert find_weights(tmp_path / "absent", "m").missing == PLAIN


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("diffusion_pytorch_model.fp16.bin", ["'diffusion_pytorch_model.fp16.bin' is a pickle", "convert it"]),
        ("diffusion_pytorch_model.SAFETENSORS", ["unet has 'diffusion_pytorch_model.SAFETENSORS'"]),
        ("model.safetensors", ["unet has 'model.safetensors'"]),
        ("diffusion_flax_model.msgpack", ["unet has 'diffusion_flax_model.msgpack'"]),
        ("model.onnx", ["unet has 'model.onnx'"]),
    ],
)
def test_what_lies_there_instead_is_named(model_folder: Path, refused: Refused, name: str, words: list[str]) -> None:
    path = model_folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(model_folder / "unet" / name)
    with refused(1, "lacks unet/diffusion_pytorch_model.safetensors", *words):
        open_model("m", model_folder)


def test_a_link_whose_blob_was_deleted_is_named(model_folder: Path, refused: Refused) -> None:
    path = model_folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.unlink()
    path.symlink_to("../../blobs/lost")
    with refused(1, "lacks unet/diffusion_pytorch_model.safetensors", "is a link to a file that is gone"):
        open_model("m", model_folder)
    path.rename(path.with_name("diffusion_pytorch_model-00001-of-00001.safetensors"))
    with refused(1, "00001-of-00001.safetensors", "No such file"):
        open_model("m", model_folder)
