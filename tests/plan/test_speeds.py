"""Speeds are remembered by device and type, and a damaged memory is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdcli.plan.seconds import Speed
from sdcli.plan.speeds import remember_speed, remembered_speed, typical_speed


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SDCLI_CACHE", str(tmp_path))
    return tmp_path


def test_each_device_and_type_has_its_own() -> None:
    assert remembered_speed("cpu", "bf16") is None
    remember_speed("cpu", "bf16", Speed(1e12, 2e9, 3e9))
    remember_speed("cpu", "fp32", Speed(4e11, 5e9, 6e9))
    assert remembered_speed("cpu", "bf16") == Speed(1e12, 2e9, 3e9)
    assert remembered_speed("cpu", "fp32") == Speed(4e11, 5e9, 6e9)
    assert remembered_speed("cuda", "fp16") is None
    assert typical_speed("cuda", "fp16").flops > typical_speed("cpu", "fp32").flops


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"cpu bf16": 1}', '{"cpu bf16": {"flops": "x"}}', '{"cpu bf16": {"flops": 0}}',
     '{"cpu bf16": {"flops": NaN}}', '{"cpu bf16": {"flops": 1, "other": 2}}'],
)  # fmt: skip
def test_what_cannot_be_read_is_forgotten_and_replaced(cache: Path, text: str) -> None:
    (cache / "speeds.json").write_text(text)
    assert remembered_speed("cpu", "bf16") is None
    remember_speed("cpu", "bf16", Speed(1e12, 2e9, 3e9))
    assert remembered_speed("cpu", "bf16") == Speed(1e12, 2e9, 3e9)


def test_a_cache_that_cannot_be_written_is_no_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "file").touch()
    monkeypatch.setenv("SDCLI_CACHE", str(cache / "file" / "below"))
    remember_speed("cpu", "bf16", Speed())
    assert remembered_speed("cpu", "bf16") is None


def test_each_number_of_threads_has_a_speed_of_its_own() -> None:
    remember_speed("cpu", "fp32", Speed(4e11))
    remember_speed("cpu", "fp32", Speed(1e11), 1)
    found = [remembered_speed("cpu", "fp32", threads) for threads in (None, 1, 2)]
    assert found == [Speed(4e11), Speed(1e11), None]
