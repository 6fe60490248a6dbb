"""How much of a LoRA's product there is to be: alpha / rank, wherever a program has left its alpha.

Kohya's scripts write it beside the matrices; diffusers into the notes of the header; PEFT into adapter_config.json
beside the file. Where there is none, it is the rank.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from sdcli.domain import WeightFile
from sdcli.errors import SdcliError
from sdcli.models.configs import read_json

NOTE = "lora_adapter_metadata"
"""The note of diffusers: its keys begin with the part that they are for."""

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"


class Alphas:
    """What a file's program says of alphas that are not among its tensors."""

    def __init__(self, file: WeightFile) -> None:
        self._table = _noted(file) or _beside(file)

    def scale(self, part: str, module: str, rank: int) -> float:
        """alpha / rank of a module, or alpha / √rank where the program meant that (Kalajdzievski 2023)."""
        settings = {key.removeprefix(f"{part}."): value for key, value in self._table.items()}
        patterns = settings.get("alpha_pattern")
        alpha = settings.get("lora_alpha")
        for pattern, special in patterns.items() if isinstance(patterns, dict) else ():
            if f".{module}".endswith(f".{pattern}"):
                alpha = special
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
            return 1.0
        return alpha / (math.sqrt(rank) if settings.get("use_rslora") is True else rank)


def _noted(file: WeightFile) -> Mapping[str, Any]:
    try:
        table = json.loads(file.notes.get(NOTE, "{}"))
    except (ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


def _beside(file: WeightFile) -> Mapping[str, Any]:
    """What lies beside a file of PEFT's."""
    config = file.path.with_name(PEFT_CONFIG)
    if file.path.name != PEFT_FILE or not config.is_file():
        return {}
    try:
        return read_json(config)
    except SdcliError:
        return {}
