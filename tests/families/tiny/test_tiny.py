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
from torch import nn

from sdcli.app.asked import Asked, Note
from sdcli.app.tasks import _parts_of
from sdcli.devices import open_device
from sdcli.devices.base import DTYPES
from sdcli.domain import DtypeName, Sources
from sdcli.engine.synthesize import write_model
from sdcli.errors import ModelMissing, SdcliError
from sdcli.families.flux2.network import decode as decode_klein
from sdcli.families.sd.network import decode
from sdcli.models.opened import open_model
from sdcli.units import MIB
from sdcli.weights.borrow import Borrow
from tests.families.flux2.klein import KLEIN
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
    file = tmp_path / "taef" / "diffusion_pytorch_model.safetensors"
    assert torch.equal(draw(with_tiny(folder, file), request=request), ours)


class Pooled(nn.Module):
    """A block that looks at all of the smallest map first, as the author of FLUX.2's has it (taesd.py)."""

    def __init__(self, block: Any, channels: int = 64) -> None:
        super().__init__()
        self.conv, wide = block.conv, 4 * channels
        first, last = nn.Conv2d(channels, wide, 1, bias=False), nn.Conv2d(wide, channels, 1, bias=False)
        self.pool = nn.Sequential(first, nn.GroupNorm(4, wide), nn.ReLU(), last)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        states = states + self.pool(states)
        return torch.relu(self.conv(states) + states)


def taef2(path: Path, first: int = 0) -> AutoencoderTiny:
    """One for a tiny klein's latents, written by diffusers' names, or by the author's, who counts from 1."""
    model = weights(KLEIN["vae"]["latent_channels"])
    torch.manual_seed(5)
    for number in (2, 3, 4):
        model.decoder.layers[number] = Pooled(model.decoder.layers[number])
        nn.init.normal_(model.decoder.layers[number].pool[1].weight, 1.0, 0.5)
    home = "" if first else "decoder.layers."
    named = {k.removeprefix("layers.").partition(".")[::2]: one for k, one in model.decoder.state_dict().items()}
    others = {} if first else {f"encoder.{name}": one for name, one in model.encoder.state_dict().items()}
    save_file({f"{home}{int(n) + first}.{rest}": one for (n, rest), one in named.items()} | others, path)
    return model.eval()


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "klein"
    folder.mkdir()
    deque(write_model(KLEIN, folder), maxlen=0)
    return folder


@pytest.mark.parametrize(
    ("size", "dtype", "most"), [((4, 4), "fp32", 1), ((9, 14), "fp32", 1), ((40, 30), "fp32", 1), ((4, 5), "bf16", 6)]
)
@torch.inference_mode()
def test_flux_2_s_looks_at_all_of_its_smallest_map(
    klein: Path, tmp_path: Path, size: tuple[int, int], dtype: DtypeName, most: int
) -> None:
    model, request = taef2(tmp_path / "taef2.safetensors"), replace(FOX, steps=1)
    channels = KLEIN["transformer"]["in_channels"]
    latents = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(1)) * 2
    unpatchified = latents.view(1, channels // 4, 2, 2, *size).permute(0, 1, 4, 2, 5, 3)
    unpatchified = unpatchified.reshape(1, channels // 4, 2 * size[0], 2 * size[1])
    theirs = model.to(DTYPES[dtype]).decode(unpatchified.to(DTYPES[dtype])).sample.float()
    sources = with_tiny(klein, tmp_path / "taef2.safetensors")
    borrow = Borrow(open_device("cpu"), DTYPES[dtype], tables(sources, request, dtype=dtype)["decode"])
    with decode_klein(open_model("m", sources), request, borrow) as run:
        ours = run(latents)
    assert ours.shape == theirs.shape and ours.std() > 0.01
    assert (ours - theirs).abs().max() * 127.5 <= most


def test_flux_2_takes_that_of_its_latents_from_either_naming(klein: Path, tmp_path: Path) -> None:
    request = replace(FOX, steps=1)
    taef2(tmp_path / "taef2.safetensors")
    taef2(tmp_path / "taef2_decoder.safetensors", first=1)
    ours, named = (
        draw(with_tiny(klein, tmp_path / f"{name}.safetensors"), request=request) for name in ("taef2", "taef2_decoder")
    )
    assert torch.equal(ours, named) and largest_difference(ours, draw(klein, request=request)) > 1
    large = replace(request, width=1024, height=1024)
    tiny, own = (
        min(way.live_bytes for way in counted(sources, large)["decode"].ways.values())
        for sources in (with_tiny(klein, tmp_path / "taef2.safetensors"), Sources(str(klein)))
    )
    assert tiny < 150 * MIB and own > 0
    with pytest.raises(ModelMissing, match=r"sdcli models pull madebyollin/taef2 taef2.safetensors"):
        open_model("m", Sources(str(klein), {"tiny_decoder": ""}))
    weights(4).save_pretrained(tmp_path / "taesd")
    with pytest.raises(SdcliError, match="latents of 4 channels, and those"):
        open_model("m", with_tiny(klein, tmp_path / "taesd"))


def test_it_is_used_where_it_is_asked_for() -> None:
    told: list[Note] = []
    assert _parts_of(Asked("a", 0, parts={"tiny_decoder": "x"}), told.append) == {}
    assert told == [Note("--tiny-decoder has no effect without --decoder tiny", "warning")]
    assert _parts_of(Asked("a", 0, parts={"tiny_decoder": "x"}, decoder="tiny"), told.append) == {"tiny_decoder": "x"}
    assert _parts_of(Asked("a", 0, decoder="tiny"), told.append) == {"tiny_decoder": ""}
