"""How fast this machine is, as its runs have shown, remembered in the cache by device and type."""

from __future__ import annotations

from dataclasses import asdict

from sdcli.plan.remembered import change_table, number, read_table
from sdcli.plan.seconds import Speed

_FILE = "speeds.json"

TYPICAL = {
    "cpu fp32": Speed(0.1e12, 1e9, 10e9),
    "cpu bf16": Speed(),
    "cuda fp16": Speed(45e12, 8e9),
    "cuda fp32": Speed(30e12, 8e9),
    "mps fp16": Speed(3e12, 4e9),
}
"""Before a first run: two cores of a server's processor with a matrix unit, an H100, and a guess at a laptop."""

BELIEVED = {"flops": (1e6, 1e16), "cast_bytes": (1e4, 1e13), "prepared_bytes": (1e4, 1e13)}
"""What a machine can have, from fp16 on a small processor and a cold card to years from now; a file may claim more."""


def typical_speed(device: str, dtype: str) -> Speed:
    """Before anything was measured."""
    return TYPICAL.get(f"{device} {dtype}", Speed())


def remembered_speed(device: str, dtype: str, threads: int | None = None) -> Speed | None:
    """What was measured on this device in this type, by so many threads if that was asked for."""
    told = read_table(_FILE).get(_key(device, dtype, threads))
    if not isinstance(told, dict) or not told.keys() <= BELIEVED.keys():
        return None
    speeds = {name: number(value, *BELIEVED[name]) for name, value in told.items()}
    known = {name: float(value) for name, value in speeds.items() if value is not None}
    return Speed(**known) if len(known) == len(told) > 0 else None


def remember_speed(device: str, dtype: str, speed: Speed, threads: int | None = None) -> None:
    """Keep it for the next plan."""
    change_table(_FILE, lambda table: table | {_key(device, dtype, threads): asdict(speed)})


def _key(device: str, dtype: str, threads: int | None) -> str:
    return f"{device} {dtype}" + ("" if threads is None else f" {threads} threads")
