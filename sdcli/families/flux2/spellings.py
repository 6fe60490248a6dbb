"""How files of LoRA spell the modules of FLUX.2's denoiser: by diffusers' names or the original's, which fuse some."""

from __future__ import annotations

from collections.abc import Mapping

from sdcli.domain import Component
from sdcli.families.flux2.original import DOUBLE, FUSED, MODULES, OF_DOUBLE, OF_SINGLE, SINGLE, SWAPPED

PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_", "transformer.", "diffusion_model.", "model.diffusion_model.")

_ENDS = {ours: theirs for theirs, ours in MODULES.items()}
_INNER = {
    DOUBLE[1]: (DOUBLE[0], {ours: theirs for theirs, ours in OF_DOUBLE.items()}),
    SINGLE[1]: (SINGLE[0], {ours: theirs for theirs, ours in OF_SINGLE.items()}),
}
_SHARES = {one: (fused, (index, len(every))) for fused, every in FUSED.items() for index, one in enumerate(every)}


def spellings(component: Component, module: str) -> list[str]:
    """diffusers' name, the one without the number of the way out, and the original's unless that lies otherwise."""
    blocks, number, inner = _taken_apart(module)
    theirs, names = _INNER.get(blocks, ("", {}))
    original = f"{theirs}.{number}.{names[inner]}" if inner in names else _ENDS.get(module, module)
    short = module.removesuffix(".0") if module.endswith(".to_out.0") else module
    return [*dict.fromkeys((module, short, *(() if module == SWAPPED else (original,))))]


def fused_spellings(component: Component, module: str) -> Mapping[str, tuple[int, int]]:
    """The original's name of queries, keys and values in one, and which share of three the module is."""
    blocks, number, inner = _taken_apart(module)
    if blocks != DOUBLE[1] or inner not in _SHARES:
        return {}
    fused, share = _SHARES[inner]
    return {f"{DOUBLE[0]}.{number}.{fused}": share}


def swapped_spellings(component: Component, module: str) -> tuple[str, ...]:
    """The original's name of the module whose shift comes before its scale there."""
    return (_ENDS[module],) if module == SWAPPED else ()


def _taken_apart(module: str) -> tuple[str, str, str]:
    """Of a block's module: the blocks, the block's number, and the module's name in there."""
    blocks, _, rest = module.partition(".")
    number, _, inner = rest.partition(".")
    return blocks, number, inner
