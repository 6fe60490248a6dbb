"""Synthetic models in the cache: made once, in one piece, found again, and made anew when damaged."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from sdcli import settings
from sdcli.errors import SdcliError
from sdcli.families.registry import family_of
from sdcli.families.sd.vocabulary import tokenizer_files
from sdcli.models.header import sample_sha256
from sdcli.models.opened import open_model
from sdcli.models.synthetic import LAYOUT, MANIFEST, family_of_configs, find_synthetic, weight_path, write_texts
from tests.support import geometry_of

Refused = Callable[..., AbstractContextManager[None]]

REF = "synthetic:sd15"
FILES = {"unet/weights": b"unet" * 5000, "vae/weights": b"vae" * 100}
DIGEST = hashlib.sha256(b"all of it").hexdigest()


class Maker:
    """Makes small files with a true manifest, and remembers where."""

    def __init__(self) -> None:
        self.folders: list[Path] = []

    def __call__(self, name: str, folder: Path) -> None:
        assert name == "sd15" and folder.is_dir() and not list(folder.iterdir())
        self.folders.append(folder)
        entries = {}
        for file, content in FILES.items():
            path = folder / file
            path.parent.mkdir()
            path.write_bytes(content)
            entries[file] = {"size": len(content), "sample_sha256": sample_sha256(path)}
        (folder / MANIFEST).write_text(json.dumps({"sha256": DIGEST, "files": entries}), "utf-8")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, not made yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SDCLI_CACHE", str(folder))
    return folder


def is_whole(folder: Path) -> bool:
    return all((folder / file).read_bytes() == content for file, content in FILES.items())


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_model_is_made_once_and_then_found(cache: Path) -> None:
    make = Maker()
    folder, digest = find_synthetic(REF, make)
    assert (folder, digest) == (cache / "synthetic" / f"sd15-{LAYOUT}", DIGEST)
    assert is_whole(folder)
    assert find_synthetic(REF, make) == (folder, digest)
    assert len(make.folders) == 1 and make.folders[0].parent == folder.parent
    assert names_in(folder.parent) == [folder.name]


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("damage", ["truncated", "emptied", "replaced", "removed", "a folder now", "a pipe now"])
def test_a_damaged_model_is_made_anew(cache: Path, name: str, damage: str) -> None:
    make = Maker()
    folder, _ = find_synthetic(REF, make)
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    match damage:
        case "truncated":
            path.write_bytes(content[:-1])
        case "emptied":
            path.write_bytes(b"")
        case "replaced":
            path.write_bytes(b"x" * len(content))
        case "a folder now":
            path.mkdir()
        case "a pipe now":
            os.mkfifo(path)
    assert find_synthetic(REF, make) == (folder, DIGEST)
    assert len(make.folders) == 2 and is_whole(folder)
    assert names_in(folder.parent) == [folder.name]


@pytest.mark.parametrize(
    "manifest",
    ["[]", "null", "7", "{}", '{"files": []}', '{"files": {"a": 1}, "sha256": ""}', '{"files": {"a": {}}}', "[" * 9999],
    ids=lambda manifest: manifest[:30],
)
def test_a_manifest_that_is_none_means_a_damaged_model(cache: Path, manifest: str) -> None:
    make = Maker()
    folder, _ = find_synthetic(REF, make)
    (folder / MANIFEST).write_text(manifest, "utf-8")
    assert find_synthetic(REF, make) == (folder, DIGEST)
    assert len(make.folders) == 2 and is_whole(folder)


def test_what_killed_runs_left_goes_after_a_day(cache: Path) -> None:
    home = cache / "synthetic"
    for name, hours in (
        (".sd15-forgotten", 25),
        (".old-forgotten", 25),
        (".sd15-being-made", 1),
        ("mine-forgotten", 99),
    ):
        (home / name / "unet").mkdir(parents=True)
        (home / name / "unet" / "weights").touch()
        for path in (home / name / "unet" / "weights", home / name / "unet", home / name):
            os.utime(path, (time.time() - hours * 3600,) * 2)
    os.utime(home / ".sd15-being-made", (1, 1))
    folder, _ = find_synthetic(REF, Maker())
    assert names_in(home) == sorted([folder.name, ".sd15-being-made", "mine-forgotten"])


def test_a_file_or_an_empty_folder_in_its_place_gives_way(cache: Path) -> None:
    folder = cache / "synthetic" / f"sd15-{LAYOUT}"
    folder.mkdir(parents=True)
    assert find_synthetic(REF, Maker()) == (folder, DIGEST)
    shutil.rmtree(folder)
    folder.write_text("a file", "utf-8")
    assert find_synthetic(REF, Maker()) == (folder, DIGEST)
    assert is_whole(folder) and names_in(folder.parent) == [folder.name]


@pytest.mark.parametrize(
    "failure", [KeyboardInterrupt(), SdcliError("the worker died"), RuntimeError("a bug"), SystemExit(1)], ids=repr
)
def test_a_crash_while_making_leaves_nothing_behind(cache: Path, failure: BaseException) -> None:
    def crash(name: str, folder: Path) -> None:
        Maker()(name, folder)
        (folder / "unet" / "weights").write_bytes(b"half")
        raise failure

    with pytest.raises(type(failure)):
        find_synthetic(REF, crash)
    assert names_in(cache / "synthetic") == []
    assert find_synthetic(REF, Maker())[1] == DIGEST


def test_a_full_disk_while_making_is_said_and_leaves_nothing_behind(cache: Path, refused: Refused) -> None:
    def fill(name: str, folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with refused(1, REF, "No space left on device"):
        find_synthetic(REF, fill)
    assert names_in(cache / "synthetic") == []


def test_a_model_that_does_not_verify_never_gets_the_name(cache: Path, refused: Refused) -> None:
    def make_wrongly(name: str, folder: Path) -> None:
        Maker()(name, folder)
        (folder / "vae" / "weights").write_bytes(b"other")

    for make in (make_wrongly, lambda name, folder: None):
        with refused(1, "does not verify"):
            find_synthetic(REF, make)
        assert names_in(cache / "synthetic") == []


def test_a_crash_while_making_anew_keeps_what_was_there(cache: Path) -> None:
    folder, _ = find_synthetic(REF, Maker())
    (folder / "vae" / "weights").write_bytes(b"damaged")

    def crash(name: str, half: Path) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        find_synthetic(REF, crash)
    assert (folder / "vae" / "weights").read_bytes() == b"damaged"
    assert names_in(folder.parent) == [folder.name]


@pytest.mark.parametrize("damaged", [False, True])
def test_two_runs_that_make_it_at_once_both_end_with_a_whole_model(cache: Path, damaged: bool) -> None:
    if damaged:
        folder, _ = find_synthetic(REF, Maker())
        (folder / MANIFEST).write_text("{}", "utf-8")
    both = threading.Barrier(2, timeout=30)
    make = Maker()

    def make_together(name: str, folder: Path) -> None:
        make(name, folder)
        both.wait()

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: find_synthetic(REF, make_together), range(2)))
    assert found[0] == found[1] == (cache / "synthetic" / f"sd15-{LAYOUT}", DIGEST)
    assert len(set(make.folders)) == 2 and is_whole(found[0][0])
    assert names_in(cache / "synthetic") == [f"sd15-{LAYOUT}"]


def test_a_slower_run_leaves_the_model_of_a_faster_one_where_it_is(cache: Path) -> None:
    inodes = []

    def make_slowly(name: str, folder: Path) -> None:
        faster, _ = find_synthetic(REF, Maker())
        inodes.append((faster / "unet" / "weights").stat().st_ino)
        Maker()(name, folder)

    folder, digest = find_synthetic(REF, make_slowly)
    assert digest == DIGEST and inodes == [(folder / "unet" / "weights").stat().st_ino]
    assert names_in(folder.parent) == [folder.name]


def test_a_cache_that_cannot_be_written_is_said_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/dev/null/cache"), tmp_path / ("x" * 300)):
        monkeypatch.setenv("SDCLI_CACHE", str(place))
        with refused(1, "cannot write in", "set SDCLI_CACHE"):
            find_synthetic(REF, Maker())


def test_a_cache_without_permission_is_said_with_the_way_out(
    open_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Refused,
    unprivileged: Callable[[], AbstractContextManager[None]],
) -> None:
    open_folder.chmod(0o555)
    monkeypatch.setenv("SDCLI_CACHE", str(open_folder / "cache"))
    with unprivileged(), refused(1, "cannot write in", "Permission denied", "set SDCLI_CACHE"):
        find_synthetic(REF, Maker())
    assert names_in(open_folder) == []


def test_an_unknown_name_makes_nothing(cache: Path, refused: Refused) -> None:
    with refused(2, "'synthetic:sd99'", REF):
        find_synthetic("synthetic:sd99", Maker())
    assert not cache.exists()


@pytest.mark.parametrize("vocab_size", [514, 515, 1000, 2000, 40_000, 49_408])
def test_a_vocabulary_has_exactly_the_entries_asked_for(vocab_size: int) -> None:
    vocabulary, merges = tokenizer_files(vocab_size)
    assert len(vocabulary) == vocab_size
    assert sorted(vocabulary.values()) == list(range(vocab_size))
    assert len(merges) == len(set(merges)) == vocab_size - 512 - 2
    assert vocabulary["<|startoftext|>"] == vocab_size - 2
    assert vocabulary["<|endoftext|>"] == vocab_size - 1


def test_every_merge_joins_two_entries_that_come_before_it() -> None:
    vocabulary, merges = tokenizer_files(49_408)
    for index, merge in enumerate(merges):
        left, right = merge.split(" ")
        assert vocabulary[left + right] == 512 + index
        assert vocabulary[left] < 512 + index and vocabulary[right] < 512


def test_a_vocabulary_of_clip_s_size_has_clip_s_layout() -> None:
    vocabulary, merges = tokenizer_files(49_408)
    assert len(merges) == 48_894
    assert (vocabulary["!"], vocabulary["~"], vocabulary["!</w>"]) == (0, 93, 256)
    assert vocabulary["\u0120"] == 220 and vocabulary["\u0120</w>"] == 476
    assert (vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]) == (49_406, 49_407)
    assert all(len(entry.removesuffix("</w>")) == 1 for entry, index in vocabulary.items() if index < 512)
    assert all(entry.isprintable() for entry in vocabulary)


Whole = Callable[[str], Path]


@pytest.fixture
def whole(tmp_path: Path, write_weights: Callable[[Path, dict[str, tuple[str, list[int]]]], Path]) -> Whole:
    """Makes a folder of a shipped model, with any weights."""

    def make(name: str) -> Path:
        config = settings.read_config("models", name)
        write_texts(config, tmp_path)
        for part in family_of_configs(config).parts:
            if part.stem is not None:
                tensors = {tensor: ("F32", [128]) for tensor in ("bn.running_mean", "bn.running_var")}
                write_weights(weight_path(tmp_path, part), {"weight": ("F16", [1]), **tensors})
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("name", "label", "side"),
    [("sd15", "sd15", 512), ("sdxl", "sdxl", 1024), ("klein", "klein-4b", 1024), ("z-image", "z-image-turbo", 1024)],
)
def test_the_texts_of_a_shipped_model_and_any_weights_make_a_whole_model(
    whole: Whole, name: str, label: str, side: int
) -> None:
    model = open_model(name, whole(name))
    assert family_of(model).label(model) == label and geometry_of(model).native_size == (side, side)


def test_every_shipped_model_was_looked_at() -> None:
    assert {*settings.config_names("models")} == {"sd15", "sdxl", "klein", "z-image"}


def test_the_texts_of_stable_diffusion_are_clip_s(whole: Whole) -> None:
    folder = whole("sd15")
    model = open_model("sd15", folder)
    vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text("utf-8"))
    assert len(vocabulary) == model.parts["text_encoder"].config["vocab_size"]
    merges = (folder / "tokenizer" / "merges.txt").read_text("utf-8")
    assert merges.startswith("#version: 0.2\n") and merges.count("\n") == len(vocabulary) - 513
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    assert os.listdir(folder / "scheduler") == ["scheduler_config.json"]


def test_the_vocabulary_of_qwen_s_size_has_an_entry_for_each_number(whole: Whole) -> None:
    table = json.loads((whole("z-image") / "tokenizer" / "tokenizer.json").read_text("utf-8"))
    numbers = [*table["model"]["vocab"].values(), *(mark["id"] for mark in table["added_tokens"])]
    assert sorted(numbers) == list(range(151_936)) and len(table["model"]["merges"]) == 151_936 - 256 - 5
