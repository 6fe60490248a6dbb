"""The parts of SDXL's refiner as they lie on disk: SDXL's, without the first text encoder and its tokenizer."""

from __future__ import annotations

from sdcli.families.sdxl.parts import PARTS as WHOLE

PARTS = tuple(part for part in WHOLE if part.name not in ("tokenizer", "text_encoder"))
"""In the order of use."""
