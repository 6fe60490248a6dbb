"""What the CUDA device asks of torch, with a fake in its place; tests/devices/test_gpu.py has the real one."""

from __future__ import annotations

import pytest
import torch

from sdcli.devices import cuda, open_device
from sdcli.devices.cuda import LAZY_BYTES, CudaDevice
from sdcli.errors import SdcliError
from sdcli.units import GIB, MIB

CONTEXT_BYTES, OTHERS_BYTES, TOTAL_BYTES = 480 * MIB, 3 * GIB, 80 * GIB


class FakeCuda:
    """A GPU of 80 GiB on which other programs hold 3 and a context takes 480 MiB."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fraction: float | None = None
        self.used_bytes = OTHERS_BYTES
        self.reserved_bytes = 0

    def init(self) -> None:
        self.calls.append("init")
        self.used_bytes += CONTEXT_BYTES

    def set_per_process_memory_fraction(self, fraction: float, index: int) -> None:
        self.fraction = fraction


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """The fake in place of torch.cuda; tensors are made on the CPU."""
    fake = FakeCuda()
    monkeypatch.setattr(CudaDevice, "torch_device", torch.device("cpu"))
    monkeypatch.setattr(cuda, "gpu_used_bytes", lambda: fake.used_bytes)
    monkeypatch.setattr(cuda.gc, "collect", lambda: fake.calls.append("collect"))
    for name, stand_in in {
        "init": fake.init,
        "mem_get_info": lambda index: (TOTAL_BYTES - fake.used_bytes, TOTAL_BYTES),
        "memory_reserved": lambda index: fake.reserved_bytes,
        "max_memory_reserved": lambda index: 5 * MIB,
        "set_per_process_memory_fraction": fake.set_per_process_memory_fraction,
        "synchronize": lambda index: fake.calls.append("synchronize"),
        "empty_cache": lambda: fake.calls.append("empty_cache"),
        "reset_peak_memory_stats": lambda index: fake.calls.append("reset_peak"),
        "get_device_name": lambda index: "NVIDIA Fake",
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return fake


def test_the_allocator_gets_what_the_context_leaves_of_the_ceiling(fake: FakeCuda) -> None:
    CudaDevice().prepare(2 * GIB)
    assert fake.fraction is not None
    assert fake.fraction * TOTAL_BYTES == pytest.approx(2 * GIB - CONTEXT_BYTES - LAZY_BYTES, abs=1)


def test_a_ceiling_below_the_context_leaves_nothing(fake: FakeCuda) -> None:
    CudaDevice().prepare(100 * MIB)
    assert fake.fraction == 0.0


def test_a_ceiling_above_the_gpu_is_all_of_it(fake: FakeCuda) -> None:
    CudaDevice().prepare(1000 * GIB)
    assert fake.fraction == 1.0


def test_no_ceiling_is_no_cap(fake: FakeCuda) -> None:
    CudaDevice().prepare(None)
    assert fake.fraction is None


def test_the_peak_is_the_context_and_what_the_allocator_held(fake: FakeCuda) -> None:
    device = CudaDevice()
    device.prepare(None)
    assert device.peak_bytes() >= CONTEXT_BYTES + 5 * MIB
    assert device.peak_bytes() < OTHERS_BYTES, "what other programs hold is not ours"


def test_release_drops_waits_and_only_then_empties(fake: FakeCuda) -> None:
    CudaDevice().release()
    assert fake.calls == ["collect", "synchronize", "empty_cache"]


def test_the_other_calls_reach_torch(fake: FakeCuda) -> None:
    device = CudaDevice()
    device.reset_peak()
    device.synchronize()
    device.between_blocks()
    with device.repeating():
        pass
    assert fake.calls == ["reset_peak", "synchronize"]
    assert device.describe() == "NVIDIA Fake"


@pytest.mark.parametrize(
    "error",
    [
        AssertionError("Torch not compiled with CUDA enabled"),
        RuntimeError("No CUDA GPUs are available\nand a stack of C++"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_an_unusable_gpu_is_one_line(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(torch.cuda, "init", fail)
    with pytest.raises(SdcliError, match=r"CUDA cannot be used: .*--device cpu") as caught:
        CudaDevice().prepare(GIB)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 1


def test_open_device_gives_a_gpu_that_is_not_prepared(fake: FakeCuda) -> None:
    device = open_device("cuda")
    assert device.name == "cuda" and isinstance(device, CudaDevice)
    assert fake.calls == []
