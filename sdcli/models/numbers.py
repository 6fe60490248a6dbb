"""A number out of a safetensors file, read without any library."""

from __future__ import annotations

import struct

from sdcli.domain import WeightFile
from sdcli.errors import SdcliError, echo

_FORMATS = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i"}


def read_number(file: WeightFile, name: str) -> float:
    """The one number of a tensor. Raises SdcliError for a tensor of any other size or type."""
    info = file.tensors[name]
    if info.numel != 1 or info.dtype not in (*_FORMATS, "BF16"):
        raise SdcliError(f"{echo(file.path)}: tensor {echo(name)} is no single number: fetch it again")
    begin = file.size_bytes - max(one.end for one in file.tensors.values()) + info.begin
    try:
        with file.path.open("rb") as opened:
            opened.seek(begin)
            raw = opened.read(info.nbytes)
        if info.dtype == "BF16":  # the upper half of an F32
            raw = b"\0\0" + raw
        return float(struct.unpack(_FORMATS.get(info.dtype, "<f"), raw)[0])
    except OSError as error:
        raise SdcliError(
            f"cannot read {echo(file.path)}: {error.strerror}; check the path and its permissions"
        ) from error
    except struct.error as error:
        raise SdcliError(f"{echo(file.path)} has become shorter: fetch it again") from error
