"""A tiny autoencoder in place of the model's own: as diffusers decodes, from either naming, in little memory."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from sdcli.app.asked import Asked, Note
from sdcli.app.tasks import _parts_of
from sdcli.devices import open_device
from sdcli.devices.base import DTYPES
from sdcli.domain import DtypeName, Sources
from sdcli.engine.synthesize import write_model
from sdcli.errors import ModelMissing, SdcliError
from sdcli.families.sd.network import decode
from sdcli.models.opened import open_model
from sdcli.units import MIB
from sdcli.weights.borrow import Borrow
from tests.families.zimage.tiny import FOX
from tests.families.zimage.tiny import TINY as Z_IMAGE
from tests.support import ASTRONAUT, STREAMED, counted, draw, largest_difference, subject, tables

SHORT = replace(ASTRONAUT, steps=1)


def weights(channels: int = 4) -> AutoencoderTiny:
    """Random, of the published sizes."""
    torch.manual_seed(3)
    return AutoencoderTiny(latent_channels=channels).eval()


@pytest.fixture(scope="module")
def taesd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "taesd"
    weights().save_pretrained(folder)
    return folder


def original(folder: Path, path: Path, half: str = "decoder") -> Path:
    """One half as its author names it: a decoder's layers are counted from 1."""
    first = half == "decoder"
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    named = {name.removeprefix(f"{half}.layers."): one for name, one in tensors.items() if name.startswith(half)}
    counted_anew = {
        f"{int(n) + first}.{rest}": one for (n, _, rest), one in ((k.partition("."), v) for k, v in named.items())
    }
    save_file(counted_anew, path)
    return path


def with_tiny(model: Path, where: Path) -> Sources:
    return Sources(str(model), {"tiny_decoder": str(where)})


def decoded(sources: Sources, latents: torch.Tensor, dtype: DtypeName) -> torch.Tensor:
    borrow = Borrow(open_device("cpu"), DTYPES[dtype], tables(sources, SHORT, dtype=dtype)["decode"])
    with torch.inference_mode(), decode(open_model("m", sources), SHORT, borrow) as run:
        return run(latents)


@pytest.mark.parametrize(("dtype", "most"), [("fp32", 1), ("bf16", 4)])
@pytest.mark.parametrize("size", [(8, 8), (17, 26)])
def test_it_decodes_as_the_library_does(
    tiny: Path, taesd: Path, size: tuple[int, int], dtype: DtypeName, most: int
) -> None:
    latents = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(1)) * 2
    with torch.inference_mode():
        theirs = weights().to(DTYPES[dtype]).decode(latents.to(DTYPES[dtype])).sample.float()
    ours = decoded(with_tiny(tiny, taesd), latents, dtype)
    assert ours.shape == theirs.shape and ours.std() > 0.01
    assert (ours - theirs).abs().max() * 127.5 <= most


def test_every_naming_has_the_same_bits(tiny: Path, taesd: Path, tmp_path: Path) -> None:
    files = [
        taesd,
        taesd / "diffusion_pytorch_model.safetensors",
        original(taesd, tmp_path / "taesd_decoder.safetensors"),
    ]
    pictures = [draw(with_tiny(tiny, file), request=SHORT) for file in files]
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)
    assert largest_difference(pictures[0], draw(tiny, request=SHORT)) > 1
    configs = [open_model("m", with_tiny(tiny, file)).parts["tiny_decoder"].settings for file in files]
    assert all(config == configs[0] or [*config.num_decoder_blocks] == [3, 3, 3, 1] for config in configs)


def test_img2img_begins_with_the_model_s_own_encoder(tiny: Path, taesd: Path) -> None:
    request, payload = replace(SHORT, strength=0.0), bytes(range(192)) * 64
    parts = [stage.lends for stage in subject(with_tiny(tiny, taesd), request).stages]
    assert parts == [("text_encoder",), ("vae",), ("unet",), ("tiny_decoder",)]
    assert draw(with_tiny(tiny, taesd), request=request, payload=payload, plan=STREAMED).float().std() > 1


def test_no_map_of_the_picture_s_size_is_there(tiny: Path, taesd: Path) -> None:
    large = replace(SHORT, width=1024, height=1024)
    (way,) = counted(with_tiny(tiny, taesd), large)["decode"].ways.values()
    assert way.live_bytes < 100 * MIB < 64 * 1024 * 1024 * 4, way.live_bytes / MIB


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda home, taesd: weights(16).save_pretrained(home / "t") or home / "t",
            "latents of 16 channels, and those",
        ),
        (lambda home, taesd: original(taesd, home / "e.safetensors", "encoder"), "lacks 'decoder.layers.0.weight'"),
    ],
    ids=["FLUX's", "an encoder"],
)
def test_what_is_no_decoder_of_this_family_s_is_refused(
    tiny: Path, taesd: Path, tmp_path: Path, make: Any, said: str
) -> None:
    with pytest.raises(SdcliError, match=said):
        open_model("m", with_tiny(tiny, make(tmp_path, taesd)))


def test_a_pulled_one_is_found(tiny: Path, taesd: Path, tmp_path: Path) -> None:
    wanted = Sources(str(tiny), {"tiny_decoder": ""})
    with pytest.raises(ModelMissing, match=r"sdcli models pull madebyollin/taesd diffusion_pytorch_model.safetensors"):
        open_model("m", wanted)
    snapshot = tmp_path / "hub" / "models--madebyollin--taesd" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    original(taesd, snapshot / "taesd_decoder.safetensors")
    assert open_model("m", wanted).sources.parts == {"tiny_decoder": str(snapshot / "taesd_decoder.safetensors")}
    (snapshot / "diffusion_pytorch_model.safetensors").write_bytes(
        (taesd / "diffusion_pytorch_model.safetensors").read_bytes()
    )
    assert open_model("m", wanted).sources.parts["tiny_decoder"].endswith("diffusion_pytorch_model.safetensors")


def test_z_image_takes_that_of_its_latents(tmp_path: Path) -> None:
    folder = tmp_path / "z"
    folder.mkdir()
    deque(write_model(Z_IMAGE, folder), maxlen=0)
    weights(8).save_pretrained(tmp_path / "taef")
    request = replace(FOX, steps=1)
    ours = draw(with_tiny(folder, tmp_path / "taef"), request=request)
    assert ours.shape == (96, 64, 3) and largest_difference(ours, draw(folder, request=request)) > 1


def test_it_is_used_where_it_is_asked_for() -> None:
    told: list[Note] = []
    assert _parts_of(Asked("a", 0, parts={"tiny_decoder": "x"}), told.append) == {}
    assert told == [Note("--tiny-decoder has no effect without --decoder tiny", "warning")]
    assert _parts_of(Asked("a", 0, parts={"tiny_decoder": "x"}, decoder="tiny"), told.append) == {"tiny_decoder": "x"}
    assert _parts_of(Asked("a", 0, decoder="tiny"), told.append) == {"tiny_decoder": ""}
