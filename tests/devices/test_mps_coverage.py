"""Every operation that the engine runs on a device has a kernel for MPS, as far as can be known without a Mac.

The operations are captured on the CPU, below autograd, from components that run as they would on MPS. torch's
own table of operations (native_functions.yaml, in every wheel) says which are registered for MPS. It does not
say for which types, nor that they are right: that is for the device's self-test.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchgen
from torch.utils._python_dispatch import TorchDispatchMode
from torchgen.gen import parse_native_yaml
from torchgen.model import DispatchKey

from sdcli.blocks import planes
from sdcli.devices.cpu import CpuDevice
from sdcli.domain import DeviceName, Guidance
from sdcli.families.sd.autoencoder import borrow_decoder, borrow_encoder
from sdcli.families.sd.denoiser import borrow_denoiser
from sdcli.families.sd.text_encoder import borrow_text_encoder, tokenize
from sdcli.models.opened import open_model
from sdcli.weights import lend as weights
from tests.networks import borrowing
from tests.support import RESIDENT, STREAMED

NATIVE = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native"

MADE_OF: dict[str, tuple[str, ...]] = {
    # the caller reaches these; each has one implementation for all devices, which calls those on the right
    "_to_copy": ("empty_strided", "copy_"),
    "_unsafe_view": ("view",),
    "alias": (),
    "arange": ("arange.start_out",),
    "arange.start": ("arange.start_out",),
    "clone": ("empty_like", "copy_"),
    "convolution": ("_mps_convolution",),
    "copy_": ("_copy_from",),
    "detach": ("alias",),
    "embedding": ("index_select",),
    "empty_like": ("empty_strided",),
    "expand": ("as_strided",),
    "lift_fresh": (),
    "permute": ("as_strided",),
    "select.int": ("as_strided",),
    "slice.Tensor": ("as_strided",),
    "softmax.int_out": ("_softmax.out",),
    "split.Tensor": ("slice.Tensor",),
    "stack": ("unsqueeze", "cat"),
    "t": ("transpose.int",),
    "transpose.int": ("as_strided",),
    "unbind.int": ("select.int",),
    "unsqueeze": ("as_strided",),
    "view.dtype": (),
    "zeros": ("empty.memory_format", "zero_"),
}
"""Read in ATen/native: Convolution, Copy, SoftMax, TensorConversions, TensorFactories, TensorShape (.cpp).

Those with nothing on the right only make another view of the same memory.
"""

ON_MPS = {"_scaled_dot_product_flash_attention_for_cpu": "_scaled_dot_product_attention_math_for_mps"}
"""What torch chooses by the device of the tensors: the name that was captured, and what it is on MPS."""


@functools.cache
def native() -> Any:
    """torch's table of operations: functions by name, and which have kernels on which backend."""
    return parse_native_yaml(str(NATIVE / "native_functions.yaml"), str(NATIVE / "tags.yaml"))


@functools.cache
def functions() -> dict[str, Any]:
    """Every operation by its name and overload."""
    return {str(function.func.name): function for function in native().native_functions}


def lacks(name: str) -> str | None:
    """Why the operation cannot run on MPS, or None if it can."""
    name = ON_MPS.get(name, name)
    function = functions().get(name)
    if function is None:
        return f"{name} is not an operation of torch"
    mps = native().backend_indices[DispatchKey.MPS]
    delegate = function.structured_delegate
    if mps.has_kernel(function) or (delegate and mps.has_kernel(functions()[str(delegate)])):
        return None
    if not (
        function.has_composite_explicit_autograd_kernel
        or function.has_composite_explicit_autograd_non_functional_kernel
    ):
        return f"{name} has no kernel for MPS"
    if name not in MADE_OF:
        return f"{name} is made of other operations: read which, and list them in MADE_OF"
    return next((fault for part in MADE_OF[name] if (fault := lacks(part))), None)


class Capture(TorchDispatchMode):
    """Notes every operation and every type of number."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: set[str] = set()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.add(func.name())
        self.dtypes |= {value.dtype for value in (*args, result) if isinstance(value, torch.Tensor)}
        return result


class LikeMps(CpuDevice):
    """The CPU, asked to lay everything out as for MPS, and not to pack."""

    name: DeviceName = "mps"
    memory_format = torch.contiguous_format


@contextmanager
def capturing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Capture]:
    """Capture without gradients: inference mode, as the engine has it, would hide what composite operations call."""
    for module in (weights, planes):
        monkeypatch.setattr(module, "packing_of", lambda layer, device, dtype: None)
    with torch.no_grad(), Capture() as capture:
        yield capture


@pytest.fixture(scope="module")
def captured(tiny: Path) -> Capture:
    """All that the components run for txt2img and img2img, in every way that a plan can ask for."""
    model, device, dtype = open_model("tiny", tiny), LikeMps(), torch.bfloat16
    plans = [replace(plan, attention_scratch_bytes=1_000_000) for plan in (RESIDENT, STREAMED)]
    parts = {part: borrowing(model.parts[part], dtype=dtype, device=device) for part in ("text_encoder", "vae")}
    steps = [borrowing(model.parts["unet"], plan, dtype, device=device, repeats=True) for plan in plans]
    ids = tokenize(model.parts["tokenizer"], 77, ["a fox " * 60, "a horse"]).ids
    pixels, latents = torch.rand(1, 3, 128, 136), torch.randn(1, 4, 16, 17)  # 272 tokens: more than FEW_KEYS
    monkeypatch = pytest.MonkeyPatch()
    with capturing(monkeypatch) as capture:
        with borrow_text_encoder(model.parts["text_encoder"], parts["text_encoder"]) as encode_words:
            context = encode_words(ids)
        with borrow_encoder(model.parts["vae"], parts["vae"]) as encode:
            encode(pixels)
        guidances: tuple[Guidance, ...] = ("batched", "sequential")
        for step, guidance in itertools.product(steps, guidances):
            with borrow_denoiser(model.parts["unet"], step) as denoiser:
                rows = [context] if guidance == "batched" else [row[None] for row in context]
                for row in rows:
                    for timestep in (torch.tensor(999), torch.tensor(998.5)):
                        denoiser(latents.expand(len(row), -1, -1, -1), timestep, {"tokens": row})
        with borrow_decoder(model.parts["vae"], parts["vae"]) as decode:
            assert decode(latents).shape == pixels.shape
    monkeypatch.undo()
    return capture


def test_every_operation_has_a_kernel_for_mps(captured: Capture) -> None:
    names = {name.removeprefix("aten::") for name in captured.operations}
    assert {name: fault for name in sorted(names) if (fault := lacks(name))} == {}


def test_the_capture_saw_the_work(captured: Capture) -> None:
    names = {name.removeprefix("aten::") for name in captured.operations}
    seen = {"convolution", "addmm", "baddbmm.out", "bmm", "softmax.int_out", "native_group_norm", "native_layer_norm"}
    assert seen | {"gelu", "silu_", "silu.out", "embedding"} <= names
    assert not any(name == "scaled_dot_product_attention" for name in names), "a composite hid what it calls"
    assert all(name.startswith("aten::") for name in captured.operations)


def test_nothing_is_computed_in_fp64_which_mps_does_not_have(captured: Capture) -> None:
    assert torch.bfloat16 in captured.dtypes
    assert captured.dtypes & {torch.float64, torch.complex64, torch.complex128} == set()


@pytest.mark.parametrize("name", ["linalg_eig", "ormqr", "_scaled_dot_product_flash_attention", "no_such_operation"])
def test_an_operation_without_a_kernel_is_found(name: str) -> None:
    assert lacks(name)


def test_an_operation_made_of_others_has_to_be_listed() -> None:
    assert "MADE_OF" in (lacks("linalg_lu_factor_ex") or lacks("rot90") or "")
