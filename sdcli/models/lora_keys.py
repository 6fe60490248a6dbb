"""Names of tensors in files of LoRA: which module's they are, and what part they play there.

As Kohya's scripts, LyCORIS, diffusers (old and new) and PEFT write them.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from sdcli.domain import AdapterKind

ALPHA = "alpha"

_LORA = {
    r"\.lora_down\.weight": "down",
    r"\.lora_up\.weight": "up",
    r"\.lora_mid\.weight": "mid",
    r"\.lora_A(?:\.default)?(?:\.weight)?": "down",
    r"\.lora_B(?:\.default)?(?:\.weight)?": "up",
    r"\.lora(?:_linear_layer)?\.down\.weight": "down",
    r"\.lora(?:_linear_layer)?\.up\.weight": "up",
    r"_lora\.down\.weight": "down",
    r"_lora\.up\.weight": "up",
}
_OTHERS: dict[AdapterKind, dict[str, str]] = {
    "loha": {rf"\.hada_{role}": role for role in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    "lokr": {rf"\.lokr_{role}": role for role in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
}
_OF_ALL = {
    r"\.alpha": ALPHA,
    r"\.dora_scale": "dora_scale",
    r"\.lora_magnitude_vector(?:\.default)?(?:\.weight)?": "magnitude",
}
_REFUSED = {
    r"\.diff": "a whole difference (diff)",
    r"\.diff_b|\.lora_(?:B|up)\.bias": "a difference of a bias",
    r"\.[wb]_norm": "a difference of a norm",
    r"\.set_weight|\.set_bias": "a replacement of a weight",
    r"\.oft_(?:blocks|diag)|\.oft_R(?:\.default)?(?:\.weight)?": "orthogonal finetuning (OFT)",
    r"\.on_input|\.ia3_l(?:\.default)?(?:\.weight)?": "IA3",
    r"\.[ab][12]\.weight": "GLoRA",
    r"\.lora_embedding_[AB](?:\.default)?": "a LoRA of an embedding",
    r"\.scalar": "a LoRA with a scalar",
    r"\.vera_lambda_[bd](?:\.default)?": "VeRA",
    r"\.hada_w[12](?:_[ab])?_mid|\.boft_[RBs]": "a kind of LyCORIS that is not known here",
}


class Key(NamedTuple):
    """A tensor's name taken apart. `kind` is None for what all kinds have."""

    module: str
    role: str
    kind: AdapterKind | None


def _endings() -> list[tuple[re.Pattern[str], str, AdapterKind | None]]:
    table: list[tuple[dict[str, str], AdapterKind | None]] = [(_LORA, "lora"), *((v, k) for k, v in _OTHERS.items())]
    table.append((_OF_ALL, None))
    return [(_at_end(ending), role, kind) for some, kind in table for ending, role in some.items()]


def _at_end(ending: str) -> re.Pattern[str]:
    return re.compile(rf"(.+?)(?:{ending})", re.ASCII)


_ENDINGS = _endings()
_KINDS_REFUSED = [(_at_end(ending), what) for ending, what in _REFUSED.items()]


def parse_key(name: str) -> Key | None:
    """The name of a tensor taken apart; None for one that no kind of LoRA has that is known here."""
    for ending, role, kind in _ENDINGS:
        if found := ending.fullmatch(name):
            module = found[1].removeprefix("base_model.model.").replace(".processor.", ".")
            return Key(module, role, kind)
    return None


def refused_kind(name: str) -> str | None:
    """What a tensor of this name belongs to that is known and not supported."""
    return next((what for ending, what in _KINDS_REFUSED if ending.fullmatch(name)), None)
