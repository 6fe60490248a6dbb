"""Versions against what sdcli is tested with, and combinations that are known to go wrong."""

from __future__ import annotations

from importlib import metadata

import pytest

from sdcli import settings
from sdcli.app.troubles import facts, known_troubles
from sdcli.app.versions import Version, fits, versions


@pytest.mark.parametrize(
    ("version", "bounds", "fit"),
    [
        ("2.13.0+cpu", ">=2.13,<2.15", True),
        ("2.13", ">=2.13.0", True),
        ("2.14.1", ">=2.13,<2.15", True),
        ("2.15.0", ">=2.13,<2.15", False),
        ("2.9.1", ">=2.13", False),
        ("5.25.0.dev0", "<5.25", False),
        ("1.2", "==1.2.0", True),
        ("1.2", "!=1.2", False),
        ("1.3", ">1.2", True),
        ("1.2", "<=1.2", True),
        ("7", "~=7.0", True),
        ("3.11.7", "", True),
    ],
)
def test_bounds(version: str, bounds: str, fit: bool) -> None:
    assert fits(version, bounds) == fit


def test_states() -> None:
    states = {
        version: Version("torch", version, ">=2.13,<2.15").state for version in ("2.13.0", "2.12.9", "2.15", None)
    }
    assert [*states.values()] == ["tested", "older", "newer", "missing"]


def test_all_that_is_required_is_looked_at_and_nothing_of_the_tests() -> None:
    found = {version.name: version for version in versions()}
    assert found["torch"].wanted == ">=2.13,<2.15" and found["python"].wanted == ">=3.11"
    assert {"diffusers", "transformers", "pillow", "huggingface_hub"} <= set(found) and "pytest" not in found
    assert all(version.state == "tested" for version in found.values())


def test_a_program_that_was_not_installed_has_no_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", none)
    assert [(version.name, version.state) for version in versions()] == [("python", "tested")]


def test_every_known_trouble_can_be_read_and_goes_by_facts_that_there_are() -> None:
    here = facts("cpu", "fp32")
    table = settings.read_config("troubles", "known")
    assert len(table) >= 8
    for told in table.values():
        assert told["when"].keys() <= here.keys() and told["why"] and told["do"]


A72 = {"machine": "aarch64", "build": "CUDA 13.0", "cpu": "Raspberry Pi 4 Model B (4 Cortex-A72)"}


@pytest.mark.parametrize(
    ("so", "names"),
    [
        (A72, ["cuda-build-on-cortex-a72"]),
        ({**A72, "build": ""}, []),
        ({"system": "darwin", "machine": "x86_64"}, ["intel-mac"]),
        ({"device": "mps", "torch": "2.13.0"}, ["mps-convolution"]),
        ({"device": "mps", "torch": "2.14.1", "mps_fallback": "1"}, ["mps-fallback"]),
        ({"system": "linux", "libc": "", "proc": ""}, ["no-glibc"]),
        ({"system": "linux", "libc": "glibc", "proc": "hidden"}, ["proc-hidden"]),
        ({"address_space": "limited", "cache": "memory"}, ["address-space", "cache-in-memory"]),
        ({}, []),
    ],
)
def test_a_trouble_is_known_where_all_that_it_takes_is_so(so: dict[str, str], names: list[str]) -> None:
    assert [trouble.name for trouble in known_troubles(so)] == names
    assert all(trouble.broken == (trouble.name in BROKEN) for trouble in known_troubles(so))


BROKEN = {"cuda-build-on-cortex-a72", "intel-mac", "proc-hidden"}
