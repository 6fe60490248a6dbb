"""Lent weights: the same output however they are lent, no more memory than was asked for, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from sdcli.devices.base import PooledWeights
from sdcli.devices.cpu import CpuDevice
from sdcli.devices.mps import MpsDevice
from sdcli.domain import Component
from sdcli.errors import SdcliError
from sdcli.families.sd.autoencoder import borrow_decoder
from sdcli.families.sd.text_encoder import borrow_text_encoder
from sdcli.models.opened import open_model
from sdcli.units import MIB
from sdcli.weights.empty import without_memory
from sdcli.weights.lend import lend_weights
from sdcli.weights.lent import Lent, Packing
from tests.networks import DTYPES, NARROW, borrowing, table

UNET = "diffusion_pytorch_model.safetensors"
Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def changed(model: Path, home: Path, part: str, change: Change, name: str | None = None) -> Path:
    """A copy of the model with one component's tensors changed, in a file of another name if given."""
    copy = home / "changed"
    shutil.copytree(model, copy)
    (file,) = (copy / part).glob("*.safetensors")
    tensors = change(load_file(file))
    file.unlink()
    save_file(tensors, file.with_name(name or file.name), metadata={"format": "pt"})
    return copy


def lending(
    module: Any, component: Component, device: Any, dtype: torch.dtype, resident_bytes: int = 0, **options: Any
) -> Any:
    """The module's weights, with so many bytes of matrices resident."""
    return lend_weights(module, component, table(component, resident_bytes, dtype, module), device, dtype, **options)


@torch.no_grad()
def denoised(model: Path, resident_bytes: int, dtype: torch.dtype = torch.float32, **options: Any) -> torch.Tensor:
    """One step of the denoiser with so many bytes resident."""
    unet, lent = empty_unet(open_model("m", model).parts["unet"])
    with lending(unet, lent, CpuDevice(), dtype, resident_bytes=resident_bytes, **options):
        return run(unet, dtype)


def empty_unet(component: Component) -> tuple[UNet2DConditionModel, Component]:
    with without_memory():
        return UNet2DConditionModel(**component.config).eval(), component


def run(unet: UNet2DConditionModel, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents, context = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((2, 4, 8, 8), (2, 77, 32)))
    output: torch.Tensor = unet(latents.contiguous(memory_format=torch.channels_last), 500, context)[0]
    return output


def matrix_bytes(component: Component, dtype: torch.dtype) -> int:
    return sum(origin.numel for origin in component.weights().values() if len(origin.shape) > 1) * dtype.itemsize


@pytest.mark.parametrize("dtype", DTYPES)
def test_resident_partial_and_streamed_weights_give_the_same_bits(tiny: Path, dtype: torch.dtype) -> None:
    resident = denoised(tiny, 2**40, dtype)
    for resident_bytes in (0, 1, 50_000, 400_000, 900_000):
        assert torch.equal(denoised(tiny, resident_bytes, dtype), resident), resident_bytes


def test_lent_weights_are_those_that_the_library_loads(tiny: Path) -> None:
    plain = UNet2DConditionModel.from_pretrained(tiny, subfolder="unet", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = run(plain, torch.float32)
    for resident_bytes in (0, 2**40):
        torch.testing.assert_close(denoised(tiny, resident_bytes), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("resident_bytes", [0, 300_000, 2**40])
@torch.no_grad()
def test_what_streaming_reads_is_counted_to_the_byte(tiny: Path, resident_bytes: int) -> None:
    unet, component = empty_unet(open_model("m", tiny).parts["unet"])
    with lending(unet, component, CpuDevice(), torch.float32, resident_bytes=resident_bytes) as lent:
        streamed = {
            name for name, p in unet.named_parameters() if p.dtype == torch.float16 and p.untyped_storage().nbytes()
        }
        assert lent.bytes_read == 0
        for times in (1, 2):
            run(unet, torch.float32)
            stored = component.weights()
            assert lent.bytes_read == times * sum(stored[name].info.nbytes for name in streamed)
    assert bool(streamed) == (resident_bytes < 2**40)
    if resident_bytes == 0:
        assert len(streamed) == sum(len(origin.shape) > 1 for origin in component.weights().values())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("resident_bytes", [0, 4096, 123_456, 777_777, 2**40])
def test_resident_matrices_never_take_more_than_allowed(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, resident_bytes: int, dtype: torch.dtype, packed: bool
) -> None:
    packed_bytes, compute_with = [], Lent.compute_with

    def noted(self: Lent, packing: Packing, weights: list[torch.Tensor], read_bytes: int = 0) -> None:
        packed_bytes.append(sum(weight.numel() for weight in weights) * dtype.itemsize)
        compute_with(self, packing, weights)

    monkeypatch.setattr(Lent, "compute_with", noted)
    unet, component = empty_unet(open_model("m", tiny).parts["unet"])
    with lending(unet, component, CpuDevice(), dtype, resident_bytes=resident_bytes, packed=packed):
        kept = {p.data_ptr(): p.nbytes for p in unet.parameters() if p.ndim > 1 and p.dtype == dtype and not p.is_meta}
    held = sum(kept.values()) + sum(packed_bytes)
    assert held <= resident_bytes
    whole = matrix_bytes(component, dtype)
    largest = max(origin.numel for origin in component.weights().values()) * dtype.itemsize
    assert held > min(whole, resident_bytes) - largest, "room was left that another matrix would have fitted in"
    if resident_bytes > whole:
        assert held == whole


@pytest.mark.parametrize("resident_bytes", [0, 300_000, 2**40])
@pytest.mark.parametrize("fail", [False, True])
@torch.no_grad()
def test_nothing_is_left_when_the_loan_ends(tiny: Path, resident_bytes: int, fail: bool) -> None:
    unet, component = empty_unet(open_model("m", tiny).parts["unet"])
    before = dict(unet.named_parameters())

    def boom(*_: object) -> None:
        raise KeyError("within a layer, while it has the buffer")

    def lend() -> None:
        with lending(unet, component, CpuDevice(), torch.float32, resident_bytes=resident_bytes):
            hook = unet.mid_block.attentions[0].proj_in.register_forward_pre_hook(boom) if fail else None
            try:
                run(unet, torch.float32)
            finally:
                if hook is not None:
                    hook.remove()

    if fail:
        with pytest.raises(KeyError):
            lend()
    else:
        lend()
    assert all(parameter.is_meta for parameter in unet.parameters())
    assert dict(unet.named_parameters()) == before
    for layer in unet.modules():
        assert not layer._forward_hooks and not layer._forward_pre_hooks
        assert "forward" not in vars(layer)
    assert torch.equal(denoised(tiny, 0), denoised(tiny, 2**40)), "it can be lent again"


def test_only_the_half_of_the_autoencoder_that_was_asked_for_is_lent(tiny: Path) -> None:
    component = open_model("m", tiny).parts["vae"]
    with without_memory():
        vae = AutoencoderKL(**component.config).eval()
    parts = ("decoder.", "post_quant_conv.")
    with lending(vae, component, CpuDevice(), torch.float32, parts=parts):
        for name, parameter in vae.named_parameters():
            convolution = name.startswith(parts) and parameter.ndim == 4  # copied whenever they are used
            assert parameter.is_meta == (convolution or not name.startswith(parts)), name


# Files that do not match


def drop(*endings: str) -> Change:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.endswith(endings)}


def test_missing_tensors_are_named_three_at_most(tiny: Path, tmp_path: Path) -> None:
    model = changed(tiny, tmp_path, "unet", drop("to_q.weight"))
    with pytest.raises(SdcliError, match="lacks the tensors") as caught:
        denoised(model, 0)
    message = str(caught.value)
    assert message.count("to_q.weight'") == 3 and " more: not the model that its config describes" in message
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight" in message
    assert message.isprintable() and len(message) < 500


def test_a_single_missing_tensor_is_named_alone(tiny: Path, tmp_path: Path) -> None:
    model = changed(tiny, tmp_path, "unet", drop("conv_in.bias"))
    with pytest.raises(SdcliError, match=r"lacks the tensors 'conv_in\.bias': not the model"):
        denoised(model, 0)


def test_unexpected_tensors_are_named_so_that_they_cannot_harm_a_terminal(tiny: Path, tmp_path: Path) -> None:
    names = ["\x1b[2Jgone\nError: all is well", "x" * 5000, "b", "c"]
    model = changed(tiny, tmp_path, "unet", lambda t: {**t, **{name: torch.zeros(3) for name in names}})
    with pytest.raises(SdcliError, match="has unexpected tensors") as caught:
        denoised(model, 0)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 500
    assert "and 1 more" in message


def test_wrong_shapes_are_named(tiny: Path, tmp_path: Path) -> None:
    def turn(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = "conv_in.weight"
        return {**tensors, name: tensors[name].transpose(0, 1).contiguous()}

    model = changed(tiny, tmp_path, "unet", turn)
    with pytest.raises(SdcliError, match=r"has wrong shapes for the tensors 'conv_in\.weight'"):
        denoised(model, 0)


def test_a_text_encoder_that_lacks_a_tensor_is_refused_too(tiny: Path, tmp_path: Path) -> None:
    model = changed(tiny, tmp_path, "text_encoder", drop("fc1.bias"))
    component = open_model("m", model).parts["text_encoder"]
    with (
        pytest.raises(SdcliError, match="lacks the tensors"),
        borrow_text_encoder(component, borrowing(component)),
    ):
        pass


# Files of other kinds


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("resident_bytes", [0, 2**40])
def test_files_of_other_types_are_converted(
    tiny: Path, tmp_path: Path, stored: torch.dtype, resident_bytes: int
) -> None:
    model = changed(tiny, tmp_path, "unet", lambda t: {name: tensor.to(stored) for name, tensor in t.items()})
    output, expected = denoised(model, resident_bytes), denoised(tiny, resident_bytes)
    assert output.dtype == torch.float32
    if stored == torch.float32:
        assert torch.equal(output, expected)
    else:
        assert 0 < (output - expected).abs().max() < 0.1
    half = denoised(model, resident_bytes, torch.bfloat16)
    assert half.dtype == torch.bfloat16


def test_sharded_files_are_one_model(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "sharded"
    shutil.copytree(tiny, copy)
    tensors = load_file(copy / "unet" / UNET)
    (copy / "unet" / UNET).unlink()
    for shard in range(3):
        part = {name: tensor for index, (name, tensor) in enumerate(tensors.items()) if index % 3 == shard}
        save_file(part, copy / "unet" / f"diffusion_pytorch_model-{shard + 1:05}-of-00003.safetensors")
    for resident_bytes in (0, 400_000, 2**40):
        assert torch.equal(denoised(copy, resident_bytes), denoised(tiny, resident_bytes))


def test_the_fp16_variant_is_read(tiny: Path, tmp_path: Path) -> None:
    model = changed(tiny, tmp_path, "unet", lambda t: t, "diffusion_pytorch_model.fp16.safetensors")
    assert torch.equal(denoised(model, 0), denoised(tiny, 0))


@torch.no_grad()
def test_an_autoencoder_with_the_old_names_decodes_the_same(tiny: Path, tmp_path: Path) -> None:
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        renamed = {}
        for name, tensor in tensors.items():
            if ".attentions." in name:
                for today, before in old.items():
                    name = name.replace(today, before)  # noqa: PLW2901
                if name.endswith(("query.weight", "key.weight", "value.weight", "proj_attn.weight")):
                    tensor = tensor[:, :, None, None]  # noqa: PLW2901  they were 1x1 convolutions once
            renamed[name] = tensor
        assert sum(".proj_attn." in name for name in renamed) == 4
        return renamed

    latents = torch.randn(1, 4, 17, 17, generator=torch.Generator().manual_seed(0))
    decoded = []
    for model in (tiny, changed(tiny, tmp_path, "vae", rename)):
        with borrow_decoder(
            open_model("m", model).parts["vae"], borrowing(open_model("m", model).parts["vae"])
        ) as decode:
            decoded.append(decode(latents))
    assert torch.equal(*decoded)


@torch.no_grad()
def test_a_text_encoder_with_the_old_prefix_gives_the_same_context(tiny: Path, tmp_path: Path) -> None:
    def prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        named = {f"text_model.{name}": tensor for name, tensor in tensors.items()}
        return {**named, "text_model.embeddings.position_ids": torch.arange(77)[None]}

    ids = torch.arange(77)[None, None]
    contexts = []
    for model in (tiny, changed(tiny, tmp_path, "text_encoder", prefix)):
        part = open_model("m", model).parts["text_encoder"]
        with borrow_text_encoder(part, borrowing(part)) as encode:
            contexts.append(encode(ids))
    assert torch.equal(*contexts)


# Where weights lie


def test_weights_that_move_to_a_device_of_another_layout_are_contiguous(tiny: Path) -> None:
    class Plain(CpuDevice):
        memory_format = MpsDevice.memory_format

    unet, component = empty_unet(open_model("m", tiny).parts["unet"])
    layouts: list[bool] = []

    def note(module: Any, _: Any) -> None:
        layouts.append(module.weight.is_contiguous())

    with torch.no_grad(), lending(unet, component, Plain(), torch.float32):
        unet.conv_in.register_forward_pre_hook(note)
        run(unet, torch.float32)
    assert layouts == [True]


def test_resident_weights_share_one_allocation(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[PooledWeights] = []
    init = PooledWeights.__init__

    def note(self: PooledWeights, *given: Any) -> None:
        pools.append(self)
        init(self, *given)

    monkeypatch.setattr(PooledWeights, "__init__", note)
    unet, component = empty_unet(open_model("m", tiny).parts["unet"])
    with lending(unet, component, CpuDevice(), torch.float32, resident_bytes=2**40):
        (pool,) = pools
        assert pool._at == pool._pool.numel(), "room was reserved that nothing takes"
        inside = [p for p in unet.parameters() if not p.is_meta]
        assert {p.untyped_storage().data_ptr() for p in inside} == {pool._pool.data_ptr()}


LARGE = """
import json, sys, torch
from pathlib import Path
from torch import nn
from sdcli.weights.packed import can_map
from sdcli.weights.prepared import make_copy
from sdcli.weights.lend import lend_weights, packer
from sdcli.devices.cpu import CpuDevice
from sdcli.domain import Origin
from sdcli.uses import WeightRow
from sdcli.domain import Component
from sdcli.models.header import read_header

def anonymous():
    return int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]) / 1024

path, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
file = read_header(path)
component = Component("unet", "", {}, path.parent, (file,), {n: Origin(path, n, i) for n, i in file.tensors.items()})
device = CpuDevice()
device.prepare(None)
with torch.device("meta"):
    module = nn.Sequential(*(nn.Linear(4096, 2048, bias=False) for _ in range(4)))
module.requires_grad_(False)
torch.ones(2, 4096, dtype=dtype) @ torch.ones(4096, 64, dtype=dtype)
begun, found = anonymous(), {}
def table(resident):
    return [WeightRow("unet", f"{i}.weight", (2048, 4096), "matrix", (2, 64, 64), resident) for i in range(4)]
ways = {"cast": {}, "resident": {"resident": True}, "packed": {"packed": True}}
ways["packed, resident"] = {"packed": True, "resident": True}
if can_map():
    with packer(module, component, table(False), device, dtype) as (names, pack):
        copy = make_copy(path.parent / "key", names, pack)
    del pack
    ways["prepared"] = {"packed": True, "prepared": copy}
    ways["prepared, resident"] = {"packed": True, "prepared": copy, "resident": True}
for name, options in ways.items():
    rows = table(options.pop("resident", False))
    with torch.no_grad(), lend_weights(module, component, rows, device, dtype, **options):
        for layer in module:
            layer(torch.ones(2, 4096, dtype=dtype))
        found[name] = anonymous() - begun
    found[f"after {name}"] = anonymous() - begun
print(json.dumps(found))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.full
def test_a_streamed_file_stays_clean_pages_and_a_resident_one_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    save_file({f"{index}.weight": torch.full((2048, 4096), index, dtype=torch.float16) for index in range(4)}, path)
    path.chmod(0o444)
    before, dtype = path.read_bytes(), str(NARROW).removeprefix("torch.")
    done = subprocess.run(
        [sys.executable, "-P", "-c", LARGE, str(path), dtype], capture_output=True, text=True, check=True, timeout=60
    )
    found = json.loads(done.stdout)
    assert path.stat().st_size > 64 * 2**20
    layer = 2048 * 4096 * NARROW.itemsize / MIB
    assert layer - 2 < found["cast"] < layer + 14, "and what a kernel needs, of four"
    assert found["packed"] < 2 * layer + 18, "the same, and one that is packed while the last one is remembered"
    assert found.get("prepared", 0) < 12, "nothing but what a kernel needs"
    for name, anonymous in found.items():
        if name.startswith("after"):
            assert anonymous < 12, name
        elif name.endswith("resident"):
            assert 4 * layer - 4 < anonymous < 4 * layer + 36, name
    assert path.read_bytes() == before
