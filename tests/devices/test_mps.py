"""What the MPS device asks of torch, in which order, with a fake in its place: no Apple hardware is needed."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

from sdcli.devices import mps, open_device
from sdcli.devices.base import SeparateWeights
from sdcli.devices.mps import HIGHEST, LOW_TO_HIGH, MpsDevice, watermarks
from sdcli.errors import SdcliError
from sdcli.units import GIB

HIGH, LOW = "PYTORCH_MPS_HIGH_WATERMARK_RATIO", "PYTORCH_MPS_LOW_WATERMARK_RATIO"
RECOMMENDED_BYTES, PHYSICAL_BYTES = 10 * GIB, 16 * GIB


class FakeMps:
    """An Apple GPU that notes calls, and what the environment said at its first use."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fraction: float | None = None
        self.at_first_use: dict[str, str | None] = {}

    def note(self, call: str) -> Callable[..., None]:
        def noted(*arguments: object) -> None:
            self.use()
            self.calls.append(call)

        return noted

    def use(self) -> None:
        if not self.at_first_use:
            self.at_first_use = {name: os.environ.get(name) for name in (HIGH, LOW)}

    def recommended_max_memory(self) -> int:
        self.use()
        return RECOMMENDED_BYTES

    def set_per_process_memory_fraction(self, fraction: float) -> None:
        self.use()
        self.fraction = fraction


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeMps:
    """The fake in place of torch.mps on a machine of 16 GiB; tensors are made on the CPU."""
    fake = FakeMps()
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": PHYSICAL_BYTES // 4096}
    monkeypatch.setattr(mps.os, "sysconf", sizes.__getitem__)
    for name in (HIGH, LOW):
        monkeypatch.setenv(name, "")  # so that it is put back at the end
        monkeypatch.delenv(name)
    monkeypatch.setattr(MpsDevice, "torch_device", torch.device("cpu"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", fake.recommended_max_memory)
    monkeypatch.setattr(torch.mps, "set_per_process_memory_fraction", fake.set_per_process_memory_fraction)
    monkeypatch.setattr(torch.mps, "synchronize", fake.note("synchronize"))
    monkeypatch.setattr(torch.mps, "empty_cache", fake.note("empty_cache"))
    monkeypatch.setattr(mps.gc, "collect", fake.note("collect"))
    return fake


def test_the_watermarks_are_set_from_the_ceiling_before_the_first_use(fake: FakeMps) -> None:
    MpsDevice().prepare(2 * GIB)
    high = 2 / (16 * 2 / 3)
    assert float(fake.at_first_use[HIGH] or 0) == pytest.approx(high, abs=1e-4)
    assert float(fake.at_first_use[LOW] or 0) == pytest.approx(high * LOW_TO_HIGH, abs=1e-4)


def test_the_fraction_is_the_ceiling_over_what_metal_recommends(fake: FakeMps) -> None:
    MpsDevice().prepare(2 * GIB)
    assert fake.fraction == pytest.approx(0.2)


def test_a_ceiling_wins_over_watermarks_from_outside(fake: FakeMps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HIGH, "0.0")  # the advice found everywhere, which takes the limit away
    MpsDevice().prepare(2 * GIB)
    assert 0 < float(os.environ[LOW]) < float(os.environ[HIGH])


def test_no_ceiling_leaves_the_allocator_alone(fake: FakeMps) -> None:
    MpsDevice().prepare(None)
    assert fake.fraction is None
    assert HIGH not in os.environ and LOW not in os.environ


@pytest.mark.parametrize("limit_gib", [0.5, 2, 16, 64, 1000])
def test_watermarks_are_ratios_that_the_allocator_takes(fake: FakeMps, limit_gib: float) -> None:
    marks = {name: float(value) for name, value in watermarks(int(limit_gib * GIB), PHYSICAL_BYTES).items()}
    assert 0 < marks[LOW] < marks[HIGH] <= HIGHEST
    MpsDevice().prepare(int(limit_gib * GIB))
    assert fake.fraction is not None and 0 < fake.fraction <= HIGHEST


def test_no_mps_is_one_line(fake: FakeMps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(SdcliError, match=r"MPS is not available.*--device cpu"):
        MpsDevice().prepare(GIB)
    assert not fake.at_first_use


@pytest.mark.parametrize("broken", ["conv2d", "softmax", "bmm"])
@pytest.mark.parametrize("by", [1.05, float("nan")])
def test_a_device_that_computes_wrongly_is_refused(
    fake: FakeMps, monkeypatch: pytest.MonkeyPatch, broken: str, by: float
) -> None:
    right, calls = getattr(torch, broken), []

    def first_wrong(*arguments: object, **options: object) -> torch.Tensor:
        calls.append(1)
        result: torch.Tensor = right(*arguments, **options)
        return result.mul_(by) if len(calls) == 1 else result

    monkeypatch.setattr(torch, broken, first_wrong)
    with pytest.raises(SdcliError, match=r"wrong result.*2\.14\.1.*--device cpu"):
        MpsDevice().prepare(None)


def test_a_device_that_fails_is_refused_in_one_line(fake: FakeMps, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("MPS backend out of memory\nand a stack of C++")

    monkeypatch.setattr(torch, "conv2d", fail)
    with pytest.raises(SdcliError, match=r"MPS cannot be used: .*out of memory.*--device cpu") as caught:
        MpsDevice().prepare(GIB)
    assert "\n" not in str(caught.value)


def test_release_drops_waits_and_only_then_empties(fake: FakeMps) -> None:
    MpsDevice().release()
    assert fake.calls == ["collect", "synchronize", "empty_cache"]


def test_between_blocks_waits_so_that_freed_tensors_are_free(fake: FakeMps) -> None:
    MpsDevice().between_blocks()
    assert fake.calls == ["synchronize"]


def test_convolutions_are_never_channels_last_and_weights_never_one_buffer(fake: FakeMps) -> None:
    device = MpsDevice()
    assert device.memory_format is torch.contiguous_format
    assert isinstance(device.weight_store(torch.float16, [1, 2]), SeparateWeights)


def test_memory_is_shared_so_that_there_is_no_peak_of_its_own(fake: FakeMps) -> None:
    device = MpsDevice()
    device.reset_peak()
    device.synchronize()
    with device.repeating():
        assert device.peak_bytes() == 0
    assert "MPS" in device.describe()


def test_open_device_gives_a_gpu_that_is_not_prepared(fake: FakeMps) -> None:
    device = open_device("mps")
    assert device.name == "mps" and isinstance(device, MpsDevice)
    assert not fake.at_first_use


def test_preparing_never_sets_the_fallback_to_the_cpu(fake: FakeMps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK", raising=False)
    MpsDevice().prepare(GIB)
    assert "PYTORCH_ENABLE_MPS_FALLBACK" not in os.environ
