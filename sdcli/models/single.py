"""The parts of a model that lie in one file, and what a file is that has none. Loads no weights."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from sdcli.domain import Prediction, WeightFile
from sdcli.errors import SdcliError, echo
from sdcli.families.contract import Family, Found
from sdcli.families.kinds import CHECKPOINT, likely_kind
from sdcli.families.registry import parts_in
from sdcli.models.configs import checked_config
from sdcli.models.header import read_header
from sdcli.models.quantised import require_readable

WANTED = (
    CHECKPOINT,
    "Stable Diffusion 1.x",
    "Stable Diffusion 2.x",
    "Stable Diffusion XL",
    "a latent consistency model",
    "FLUX.2",
    "Z-Image",
)
"""Kinds whose single files are read."""

NUMBERS_LIMIT = 65536
"""Numbers that are read of a tensor, which is a norm's offsets or a scale."""


def parts_in_file(
    ref: str, path: Path, prediction: Prediction | None = None, family_name: str | None = None
) -> tuple[Family, Found]:
    """The family of a single file unless its name is known, and the parts that it has: one at least.

    Raises SdcliError for a file that has none, naming what it looks like.
    """
    file = read_header(path)
    require_readable(file)
    likely = likely_kind({name: info.shape for name, info in file.tensors.items()})
    likely = None if likely in WANTED else likely
    family, found = parts_in(file, numbers_in, prediction, family_name)
    if not found.parts or likely is not None:
        what = f"{echo(ref)} looks like {likely}" if likely else f"{echo(ref)} has no network that is known here"
        raise SdcliError(
            f"{what}: give a checkpoint of Stable Diffusion 1.x, 2.x or XL, a denoiser of FLUX.2 [klein] or Z-Image,"
            " or a folder in diffusers layout"
        )
    for part in (*family.parts, *family.extras):
        if part.stem is not None and part.name in found.parts:
            component = found.parts[part.name]
            checked_config(part, component.config, path)
            part.check(component)
    return family, found


def numbers_in(file: WeightFile, name: str) -> Sequence[float]:
    """The numbers of a small tensor; none of one that is large, or of a type that is not read so."""
    info = file.tensors[name]
    if info.numel > NUMBERS_LIMIT or info.dtype not in ("F32", "F16", "BF16"):
        return ()
    try:
        with file.path.open("rb") as opened:
            opened.seek(file.size_bytes - max(one.end for one in file.tensors.values()) + info.begin)
            raw = opened.read(info.nbytes)
    except OSError as error:
        raise SdcliError(f"cannot read {echo(file.path)}: {error.strerror}; check its permissions") from error
    if info.dtype == "BF16":  # the upper half of an FP32
        raw = b"".join(b"\0\0" + raw[at : at + 2] for at in range(0, len(raw), 2))
    return struct.unpack(f"<{info.numel}{'e' if info.dtype == 'F16' else 'f'}", raw)
