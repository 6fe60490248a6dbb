"""Devices that the engine computes on, behind one small interface."""

from __future__ import annotations

from sdcli.devices.base import Device
from sdcli.domain import DeviceName


def open_device(name: DeviceName) -> Device:
    """The device of that name, not yet prepared."""
    if name == "cuda":
        from sdcli.devices.cuda import CudaDevice

        return CudaDevice()
    if name == "mps":
        from sdcli.devices.mps import MpsDevice

        return MpsDevice()
    from sdcli.devices.cpu import CpuDevice

    return CpuDevice()
