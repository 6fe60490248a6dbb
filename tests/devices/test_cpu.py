"""The CPU: what is freed goes back to the system, and weights lie close together without touching."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref

import pytest
import torch

from sdcli.devices import cpu, open_device
from sdcli.devices.base import AHEAD_BYTES, PooledWeights, SeparateWeights
from sdcli.devices.cpu import EXACT_BYTES, REUSE_BYTES, CpuDevice
from sdcli.units import MIB

HEAP = f"""
import json, sys
import torch
from sdcli.devices.cpu import CpuDevice

def anonymous():
    status = open("/proc/self/status").read()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024

kept = []
def churn(mib, count):
    "MiB that stay in use after tensors of so many MiB came and went, each followed by a small one that stays."
    before, tensors = anonymous(), []
    for _ in range(count):
        tensors.append(torch.ones(mib * {MIB} // 4))
        kept.append(torch.ones(1000))
    peak = anonymous() - before
    del tensors
    return peak, anonymous() - before

torch.ones(10**6).sum()
device, found = CpuDevice(), {{}}
if "unprepared" in sys.argv:
    found["unprepared"] = churn(1, 100)
else:
    device.prepare(None)
    found["exact"] = churn(1, 100)
    begun = anonymous()
    with device.repeating():
        found["repeating"] = churn(1, 100)
        device.between_blocks()
        found["between blocks"] = (0, anonymous() - begun)
    found["exact again"] = churn(2, 50)
    try:
        with device.repeating():
            raise KeyError
    except KeyError:
        found["exact after an error"] = churn(3, 40)
print(json.dumps(found))
"""


def heap(*arguments: str) -> dict[str, list[float]]:
    """(peak, what stayed) in MiB for each way of churning, in a process of its own."""
    command = [sys.executable, "-P", "-c", HEAP, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(CpuDevice()._libc is None, reason="needs glibc")
@pytest.mark.full
def test_freed_memory_goes_back_except_while_the_work_repeats() -> None:
    plain, found = heap("unprepared"), heap()
    assert plain["unprepared"][1] > 60, "glibc alone gives it back: the device need not do anything"
    assert all(found[case][0] > 90 for case in ("exact", "repeating", "exact again", "exact after an error"))
    assert found["exact"][1] < 20
    assert found["repeating"][1] > 60, "memory is not kept for reuse"
    assert found["between blocks"][1] < 20
    assert found["exact again"][1] < 20
    assert found["exact after an error"][1] < 20


def test_release_collects_cycles() -> None:
    cycle: list[object] = [tensor := torch.ones(3)]
    cycle.append(cycle)
    alive = weakref.ref(tensor)
    del cycle, tensor
    CpuDevice().release()
    assert alive() is None


@pytest.mark.parametrize("libc", [None, object()], ids=["no C library", "one without mallopt"])
def test_a_system_without_mallopt_works_all_the_same(monkeypatch: pytest.MonkeyPatch, libc: object) -> None:
    monkeypatch.setattr(cpu.sys, "platform", "linux" if libc else "win32")
    monkeypatch.setattr(cpu.ctypes, "CDLL", lambda name: libc)
    device = CpuDevice()
    device.prepare(2**30)
    with device.repeating(), device.exact():
        device.between_blocks()
    device.synchronize()
    device.release()
    assert device.peak_bytes() == 0


class FakeLibc:
    """Notes the calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def mallopt(self, parameter: int, value: int) -> None:
        self.calls.append((parameter, value))

    def malloc_trim(self, pad: int) -> None:
        self.calls.append(("trim", pad))


def test_both_thresholds_move_together_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    libc = FakeLibc()
    monkeypatch.setattr(cpu.sys, "platform", "linux")
    monkeypatch.setattr(cpu.ctypes, "CDLL", lambda name: libc)
    device = CpuDevice()
    device.prepare(None)
    exact = list(libc.calls)
    with device.repeating():
        reuse = libc.calls[2:]
        with device.exact():
            apart = libc.calls[4:]
    assert exact == [(-3, EXACT_BYTES), (-1, EXACT_BYTES)]
    assert reuse == [(-3, REUSE_BYTES), (-1, REUSE_BYTES)]
    assert apart == [(-3, EXACT_BYTES)]
    assert libc.calls[5:] == [(-3, REUSE_BYTES), *exact]


def test_the_cpu_says_what_it_is() -> None:
    device = open_device("cpu")
    assert device.name == "cpu" and device.torch_device.type == "cpu"
    assert device.describe().endswith(f"CPU, {torch.get_num_threads()} threads")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooled_weights_begin_at_cache_lines_and_do_not_overlap(dtype: torch.dtype) -> None:
    shapes = [(3, 5), (1,), (32,), (33,), (2, 2, 3, 3), (64, 64)]
    store = CpuDevice().weight_store(dtype, [torch.Size(shape).numel() for shape in shapes])
    assert isinstance(store, PooledWeights)
    taken = [store.take(shape).fill_(number) for number, shape in enumerate(shapes)]
    for number, (tensor, shape) in enumerate(zip(taken, shapes, strict=True)):
        assert tuple(tensor.shape) == shape and tensor.dtype == dtype and tensor.is_contiguous()
        assert tensor.data_ptr() % PooledWeights.ALIGN_BYTES == 0
        assert (tensor == number).all()
    assert len({tensor.untyped_storage().data_ptr() for tensor in taken}) == 1


def test_a_pool_of_nothing_is_empty() -> None:
    assert CpuDevice().weight_store(torch.float32, []).take((0,)).numel() == 0


def test_separate_weights_are_each_an_allocation() -> None:
    store = SeparateWeights(torch.device("cpu"), torch.float16)
    one, other = store.take((2, 3)), store.take((4,))
    assert one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr()
    assert one.untyped_storage().nbytes() == 12 and one.dtype == torch.float16


@pytest.mark.parametrize(
    ("container", "limit", "little"),
    [(None, None, False), (None, 600, False), (700, 600, False), (640, 600, True), (700, None, True), (500, 500, True)],
)
def test_in_a_container_without_room_for_files_little_is_read_ahead(
    monkeypatch: pytest.MonkeyPatch, container: int | None, limit: int | None, little: bool
) -> None:
    monkeypatch.setattr(cpu, "container_limit_bytes", lambda: container and container * MIB)
    device = CpuDevice()
    device.prepare(limit and limit * MIB)
    assert device.ahead_bytes == (cpu.LITTLE_AHEAD_BYTES if little else AHEAD_BYTES)
