"""Finished pictures' latents: kept until their turn to be decoded comes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sdcli.spool import Spool


class Latents:
    """From a picture's number to its latents, (1, channels, h, w) in FP32. All but the last one's are in a file."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        self._shape = (1, channels, height, width)
        self._spool = Spool()

    def __setitem__(self, image: int, latents: torch.Tensor) -> None:
        self._spool[image] = latents.float().contiguous().numpy().tobytes()

    def __iter__(self) -> Iterator[int]:
        return iter(self._spool)

    def __getitem__(self, image: int) -> torch.Tensor:
        return torch.frombuffer(bytearray(self._spool[image]), dtype=torch.float32).view(self._shape)
