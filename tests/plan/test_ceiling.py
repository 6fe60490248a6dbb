"""The ceiling that is asked for, against the machine and its container."""

from __future__ import annotations

import pytest

from sdcli import machine
from sdcli.errors import BadRequest
from sdcli.plan.ceiling import KERNEL_BYTES, Ceiling, decide_ceiling, kernel_share_bytes, options_for
from sdcli.units import GIB, MIB


@pytest.fixture
def computer(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine of 6 GiB without a container and without a GPU."""
    have(monkeypatch, 6 * GIB)
    return monkeypatch


def have(monkeypatch: pytest.MonkeyPatch, memory: int, container: int | None = None, gpu: int | None = None) -> None:
    monkeypatch.setattr(machine, "physical_memory_bytes", lambda: memory)
    monkeypatch.setattr(machine, "container_limit_bytes", lambda: container)
    monkeypatch.setattr(machine, "gpu_memory_bytes", lambda: gpu)


@pytest.mark.parametrize(
    ("memory", "share"),
    [
        (2 * GIB, 1 * GIB),
        (3 * GIB, GIB * 3 // 2),
        (4 * GIB, 2 * GIB),
        (6 * GIB, int(2.8 * GIB)),
        (8 * GIB, int(3.6 * GIB)),
        (64 * GIB, 26 * GIB),
        (0, 0),
    ],
)
def test_auto_is_the_share_that_ios_grants_an_app(computer: pytest.MonkeyPatch, memory: int, share: int) -> None:
    have(computer, memory)
    ceiling = decide_ceiling("auto", "cpu")
    assert abs((ceiling.limit_bytes or 0) - share) <= 2 and ceiling.warning is None
    assert "an app's share, as on iOS, of the " in ceiling.reason


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_auto_is_never_more_than_the_container_has(computer: pytest.MonkeyPatch, device: str) -> None:
    have(computer, 64 * GIB, container=GIB)
    assert decide_ceiling("auto", device) == Ceiling(GIB, "the container's limit of 1.00 GiB")
    have(computer, 6 * GIB, container=5 * GIB)
    assert decide_ceiling("auto", device).limit_bytes == machine.iphone_share_bytes(6 * GIB)


def test_none_is_no_ceiling(computer: pytest.MonkeyPatch) -> None:
    for device in ("cpu", "mps", "cuda"):
        ceiling = decide_ceiling("none", device)
        assert ceiling.limit_bytes is None and "measured, not limited" in ceiling.reason and ceiling.warning is None


def test_a_size_is_taken_to_the_byte(computer: pytest.MonkeyPatch) -> None:
    assert decide_ceiling("2GB", "cpu") == Ceiling(2 * 10**9, "asked for: 2000000000 bytes")
    assert decide_ceiling("6GiB", "cpu").warning is None


@pytest.mark.parametrize(
    ("container", "limit", "whose"),
    [
        (None, 6 * GIB, "this machine has: 6.00 GiB"),
        (7 * GIB, 6 * GIB, "this machine has: 6.00 GiB"),
        (512 * MIB, 512 * MIB, "the container has: 512 MiB"),
    ],
)
def test_m7_a_size_above_what_there_is_becomes_that_with_a_warning(
    computer: pytest.MonkeyPatch, container: int | None, limit: int, whose: str
) -> None:
    have(computer, 6 * GIB, container)
    ceiling = decide_ceiling("100GiB", "cpu")
    assert ceiling.limit_bytes == limit
    assert ceiling.warning == f"the ceiling of 100.00 GiB is more than {whose} is used"


def test_m11_on_cuda_the_ceiling_is_the_gpu_s(computer: pytest.MonkeyPatch) -> None:
    have(computer, 6 * GIB, container=GIB, gpu=80 * GIB)
    assert decide_ceiling("40GiB", "cuda").limit_bytes == 40 * GIB
    auto = decide_ceiling("auto", "cuda")
    assert auto.limit_bytes == machine.iphone_share_bytes(80 * GIB) and "of the GPU" in auto.reason
    assert "more than the GPU has: 80.00 GiB is used" in (decide_ceiling("81GiB", "cuda").warning or "")


@pytest.mark.parametrize("text", ["", "2048", "AUTO", "nan", "-1GiB", "0GiB"])
def test_anything_else_is_wrong_usage(computer: pytest.MonkeyPatch, text: str) -> None:
    with pytest.raises(BadRequest):
        decide_ceiling(text, "cpu")


@pytest.mark.parametrize(
    ("container", "limit", "share"),
    [
        (None, GIB, 0), (GIB, None, 0), (GIB, GIB, KERNEL_BYTES), (GIB, GIB - MIB, KERNEL_BYTES - MIB),
        (GIB, GIB - KERNEL_BYTES, 0), (GIB, MIB, 0), (GIB, 2 * GIB, KERNEL_BYTES),
    ],
)  # fmt: skip
def test_near_a_container_s_limit_room_is_left_for_what_a_footprint_has_not(
    computer: pytest.MonkeyPatch, container: int | None, limit: int | None, share: int
) -> None:
    have(computer, 6 * GIB, container)
    assert kernel_share_bytes(Ceiling(limit, "")) == share


def test_the_limit_of_a_control_group_is_as_a_container_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "physical_memory_bytes", lambda: 8 * GIB)
    monkeypatch.setattr(machine, "container_limit_bytes", lambda: 2 * GIB)
    auto = decide_ceiling("auto", "cpu", "1GiB")
    assert auto == Ceiling(GIB, "the control group's limit of 1.00 GiB", kernel_limit_bytes=GIB)
    assert kernel_share_bytes(auto) == KERNEL_BYTES
    assert "more than the control group has: 1.00 GiB is used" in (decide_ceiling("3GiB", "cpu", "1GiB").warning or "")
    assert decide_ceiling("auto", "cpu", "3GiB").reason == "the container's limit of 2.00 GiB"
    none = decide_ceiling("none", "cpu", "1GiB")
    assert (none.limit_bytes, none.kernel_limit_bytes, kernel_share_bytes(none)) == (None, GIB, 0)


@pytest.mark.parametrize(
    ("limit", "kernel_limit", "options"),
    [
        (300, None, "--mem-limit 600MiB"),
        (300, 1024, "--mem-limit 600MiB"),
        (500, 500, "--kernel-limit 600MiB"),
        (300, 400, "--mem-limit 600MiB and --kernel-limit 632MiB"),
        (300, 610, "--mem-limit 600MiB and --kernel-limit 632MiB"),
    ],
)
def test_what_raises_a_ceiling_is_the_option_that_holds_it_down(
    computer: pytest.MonkeyPatch, limit: int, kernel_limit: int | None, options: str
) -> None:
    have(computer, 6 * GIB, None)
    kernel_limit_bytes = None if kernel_limit is None else kernel_limit * MIB
    assert options_for(600 * MIB, limit * MIB, kernel_limit_bytes) == options
    given = dict(one.split(" ") for one in options.split(" and "))
    raised = decide_ceiling(
        given.get("--mem-limit", "auto"), "cpu", given.get("--kernel-limit", kernel_limit and f"{kernel_limit}MiB")
    )
    assert raised.limit_bytes == 600 * MIB and raised.warning is None
