"""Single files that are damaged in every way: an SdcliError or a model, soon and in little memory."""

from __future__ import annotations

import random
import re
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from sdcli.domain import Sources
from sdcli.errors import SdcliError
from sdcli.models.header import ITEM_BYTES, read_header
from sdcli.models.opened import open_model
from sdcli.units import MIB
from tests.folders import made, with_clip
from tests.laid_out import Shapes, head_of
from tests.originals import KINDS, write_single

ROUNDS = 250
"""Files of a kind. Each takes some milliseconds."""

SLOW_S, LARGE_BYTES = 2.0, 24 * MIB


@pytest.fixture(scope="module", params=[*KINDS])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shapes:
    """The tensors of a file that is as it should be."""
    home = tmp_path_factory.mktemp("single")
    folder = with_clip(made(home / "model", KINDS[request.param]))
    tensors = read_header(write_single(folder, home / "m.safetensors")).tensors
    return {name: (info.dtype, [*info.shape]) for name, info in tensors.items()}


def write(path: Path, shapes: Shapes, notes: dict[str, str] | None = None) -> Path:
    """A file with these tensors, all zeros, of which the disk keeps none."""
    head, data_bytes = head_of(shapes, notes)
    path.write_bytes(head)
    with path.open("r+b") as file:
        file.truncate(len(head) + data_bytes)
    return path


ABSURD: list[list[int]] = [[], [0], [1], [0, 0], [2**30], [1, 2**30], [3, 3, 3], [1] * 8, [2, 0, 3, 3], [1, 1, 1, 1]]
NUMBERS = ["0", "1", "7", "99", "999", "1000", "4294967296", "9" * 400, "-1", "0x1", "01", "\u0663", "", "."]
PREFIXES = ["model.diffusion_model.", "cond_stage_model.", "first_stage_model.", "model_ema.diffusion_model", ""]
WORDS = ["weight", "bias", "..", ".", "", "input_blocks", "decoder.up.3", "v_pred", "ztsnr", "scaled_fp8", "\x1b[2J"]


def drop(shapes: Shapes, pick: random.Random) -> None:
    for name in pick.sample([*shapes], min(len(shapes), pick.choice([1, 1, 3, 50]))):
        del shapes[name]


def drop_kind(shapes: Shapes, pick: random.Random) -> None:
    """All of a module, or of a network."""
    home = ".".join(pick.choice([*shapes]).split(".")[: pick.randint(1, 5)])
    for name in [name for name in shapes if name.startswith(home)]:
        del shapes[name]


def reshape(shapes: Shapes, pick: random.Random) -> None:
    name = pick.choice([*shapes])
    dtype, shape = shapes[name]
    others = [shape[::-1], [*shape, 1], shape[:-1], [side + 1 for side in shape], [pick.randint(0, 5) for _ in shape]]
    shapes[name] = dtype, pick.choice([*others, *ABSURD])


def retype(shapes: Shapes, pick: random.Random) -> None:
    name = pick.choice([*shapes])
    shapes[name] = pick.choice([*ITEM_BYTES]), shapes[name][1]


def renumber(shapes: Shapes, pick: random.Random) -> None:
    """Another number in a name, or in all that share it up to there."""
    name = pick.choice([*shapes])
    places = [*re.finditer(r"(?<=\.)\d+(?=\.)", name)]
    if not places:
        return
    place, number = pick.choice(places), pick.choice(NUMBERS)
    head = name[: place.end() + 1]
    for one in [one for one in shapes if one.startswith(head)] if pick.random() < 0.5 else [name]:
        shapes[one[: place.start()] + number + one[place.end() :]] = shapes.pop(one)


def rename(shapes: Shapes, pick: random.Random) -> None:
    name = pick.choice([*shapes])
    words = name.split(".")
    words[pick.randrange(len(words))] = pick.choice(WORDS)
    shapes[".".join(words)] = shapes.pop(name)


def twice(shapes: Shapes, pick: random.Random) -> None:
    """The same weight by another spelling, or under another network's prefix."""
    name = pick.choice([*shapes])
    other = name.replace("transformer.text_model.", "transformer.")
    home = next((prefix for prefix in PREFIXES if prefix and name.startswith(prefix)), "")
    shapes[pick.choice([other, pick.choice(PREFIXES) + name.removeprefix(home), name + ".weight"])] = shapes[name]


def move(shapes: Shapes, pick: random.Random) -> None:
    """A whole network under another prefix."""
    old, new = pick.choice(PREFIXES[:3]), pick.choice(PREFIXES)
    for name in [name for name in shapes if name.startswith(old)]:
        shapes[new + name.removeprefix(old)] = shapes.pop(name)


def scale(shapes: Shapes, pick: random.Random) -> None:
    name = pick.choice([name for name in shapes if name.endswith("weight")] or ["weight"])
    shapes[name] = "F8_E4M3", shapes.get(name, ("F16", [4]))[1]
    shapes[name.removesuffix("weight") + "scale_weight"] = pick.choice(["F32", "F16"]), pick.choice(ABSURD)


CHANGES: list[Callable[[Shapes, random.Random], None]] = [
    drop, drop_kind, reshape, reshape, retype, renumber, renumber, rename, twice, move, scale
]  # fmt: skip


def damaged(whole: Shapes, seed: int) -> Shapes:
    pick, shapes = random.Random(seed), dict(whole)
    for _ in range(pick.choice([1, 1, 2, 3, 8])):
        if shapes:
            pick.choice(CHANGES)(shapes, pick)
    return shapes


@pytest.mark.parametrize("whole", ["first"], indirect=True)
def test_a_tensor_that_is_there_twice_is_refused_by_both_names(whole: Shapes, tmp_path: Path) -> None:
    for old, new in (
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "transformer.final_layer_norm.bias"),
        ("model.diffusion_model.input_blocks.0.0.weight", "conv_in.weight"),
        ("first_stage_model.decoder.norm_out.bias", "decoder.conv_norm_out.bias"),
    ):
        other = next(prefix for prefix in PREFIXES if old.startswith(prefix)) + new
        path = write(tmp_path / "m.safetensors", whole | {other: whole[old]})
        with pytest.raises(
            SdcliError, match=f"has one tensor twice, as '{re.escape(old)}' and as '{re.escape(other)}'"
        ):
            open_model("m", Sources(str(path)))


@pytest.mark.every(5)
@pytest.mark.parametrize("first", range(0, ROUNDS, ROUNDS // 5))
def test_whatever_is_damaged_is_refused_in_one_line_or_is_a_model(whole: Shapes, tmp_path: Path, first: int) -> None:
    open_model("m", Sources(str(write(tmp_path / "m.safetensors", whole))))
    opened = 0
    for seed in range(first, first + ROUNDS // 5):
        path = write(tmp_path / "m.safetensors", damaged(whole, seed))
        begun = time.process_time()
        try:
            open_model("m", Sources(str(path)))
            opened += 1
        except SdcliError as error:
            assert str(error).isprintable() and len(str(error)) < 600, seed
        assert time.process_time() - begun < SLOW_S, seed
    assert 0 < opened < ROUNDS // 5


@pytest.mark.every(2)
def test_a_damaged_file_takes_no_more_memory_than_a_whole_one(whole: Shapes, tmp_path: Path) -> None:
    for seed in range(ROUNDS, ROUNDS + 30):
        path = write(tmp_path / "m.safetensors", damaged(whole, seed))
        tracemalloc.start()
        try:
            with suppress(SdcliError):
                open_model("m", Sources(str(path)))
            assert tracemalloc.get_traced_memory()[1] < LARGE_BYTES, seed
        finally:
            tracemalloc.stop()
