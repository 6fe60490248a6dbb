"""Whether the weights of a file have been squeezed into a type that is not read, told by what lies beside them.

Float8, with a scale for each tensor or none, is read (weights/source.py). ComfyUI says of each layer what it is, in
JSON: in a tensor of bytes beside the weight, or for all of them in the header.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from sdcli.domain import WeightFile
from sdcli.errors import SdcliError, echo

READ = frozenset({"float8_e4m3fn", "float8_e5m2"})
"""Formats by ComfyUI's names, which are torch's."""

MARK, NOTE = ".comfy_quant", "_quantization_metadata"

_MARK_LIMIT = 4096
"""Bytes of a layer's JSON; those that are known have 30 to 100."""

_TELLTALES = (
    (r".*bitsandbytes__(?P<what>nf4|fp4)", "{what} (bitsandbytes)"),
    (r".*\.(?:absmax|quant_map|SCB)", "bitsandbytes"),
    (r".*\.(?:wscales|smooth_factor|smooth)", "int4 (nunchaku)"),
    (r".*\.(?:qzeros|g_idx)", "GPTQ or AWQ"),
    (r".*\.weight_scale_2", "nvfp4"),
    (r".*\.(?:qweight|weight_codebook)", "int4 or int8"),
)
"""Names that only such files have."""


def require_readable(file: WeightFile) -> None:
    """Raise SdcliError naming what the weights are in, unless that is read."""
    what = next(_formats(file), None) or next(filter(None, map(_by_name, file.tensors)), None)
    if what is not None:
        raise SdcliError(
            f"{echo(file.path)} has weights in {echo(what)}, which is not supported: give BF16, FP16 or float8 (fp8)"
        )


def _by_name(name: str) -> str | None:
    for pattern, what in _TELLTALES:
        if found := re.fullmatch(pattern, name):
            return what.format(**found.groupdict())
    return None


def _formats(file: WeightFile) -> Iterator[str]:
    """Those of layers that are not read."""
    noted = _json(file.notes.get(NOTE, "")).get("layers")
    for layer in [*(noted.values() if isinstance(noted, dict) else ()), *_marks(file)]:
        name = layer.get("format") if isinstance(layer, dict) else None
        if isinstance(name, str) and name not in READ:
            yield name


def _marks(file: WeightFile) -> list[dict[str, Any]]:
    marks = [
        info
        for name, info in file.tensors.items()
        if name.endswith(MARK) and info.dtype == "U8" and info.nbytes <= _MARK_LIMIT
    ]
    if not marks:
        return []
    begin = file.size_bytes - max(info.end for info in file.tensors.values())
    try:
        with file.path.open("rb") as opened:
            raws = [opened.read(info.nbytes) for info in marks if opened.seek(begin + info.begin) >= 0]
    except OSError as error:
        raise SdcliError(f"cannot read {echo(file.path)}: {error.strerror}; check its permissions") from error
    return [table for raw in raws if (table := _json(raw))]


def _json(raw: str | bytes) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        table = json.loads(raw)
        return table if isinstance(table, dict) else {}
    return {}
