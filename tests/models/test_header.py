"""Safetensors headers: what is whole is described, what is not is refused before any library opens it."""

from __future__ import annotations

import io
import json
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from sdcli.domain import TensorInfo
from sdcli.errors import SdcliError
from sdcli.models.header import HEADER_LIMIT_BYTES, read_header, sample_sha256
from sdcli.units import MIB

Refused = Callable[..., AbstractContextManager[None]]
WriteRaw = Callable[[Path, bytes, int], Path]
WriteWeights = Callable[[Path, Mapping[str, tuple[str, list[int]]]], Path]

TWO = {"a": ("F16", [2, 3]), "b": ("F32", [4])}


def entry(dtype: object = "F16", shape: object = None, begin: object = 0, end: object = 8) -> dict[str, object]:
    return {"dtype": dtype, "shape": [4] if shape is None else shape, "data_offsets": [begin, end]}


def test_a_whole_file_is_described_by_its_tensors(tmp_path: Path, write_weights: WriteWeights) -> None:
    path = write_weights(tmp_path / "w.safetensors", TWO)
    file = read_header(path)
    assert file.tensors == {"a": TensorInfo("F16", (2, 3), 0, 12), "b": TensorInfo("F32", (4,), 12, 28)}
    assert (file.tensors["a"].numel, file.tensors["a"].nbytes) == (6, 12)
    assert file.path == path and file.size_bytes == path.stat().st_size
    assert len(file.header_sha256) == 64


def test_a_scalar_an_empty_tensor_and_a_file_without_tensors_are_whole(tmp_path: Path, write_raw: WriteRaw) -> None:
    header = {"none": entry("F32", [0, 7], 0, 0), "scalar": entry("F32", [], 0, 4)}
    assert read_header(write_raw(tmp_path / "w", json.dumps(header).encode(), 4)).tensors["scalar"].numel == 1
    assert read_header(write_raw(tmp_path / "w", b"{}", 0)).tensors == {}


def test_tensors_may_be_listed_in_any_order_and_the_header_may_be_padded(tmp_path: Path, write_raw: WriteRaw) -> None:
    header = {"b": entry("F16", [4], 8, 16), "__metadata__": {"format": "pt"}, "a": entry("F16", [4], 0, 8)}
    assert set(read_header(write_raw(tmp_path / "w", json.dumps(header).encode() + b"   ", 16)).tensors) == {"a", "b"}


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580, 0x4B50, 0x14B50])
def test_a_header_whose_length_looks_like_the_magic_of_a_pickle_is_read(
    tmp_path: Path, write_raw: WriteRaw, length: int
) -> None:
    path = write_raw(tmp_path / "w", json.dumps({"a": entry()}).encode().ljust(length), 8)
    assert read_header(path).tensors["a"].shape == (4,)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["is empty"]),
        (b"\x02\0\0\0\0", ["truncated", "5 bytes"]),
        (b"\x80", ["truncated", "1 bytes"]),
        (bytes(8), ["malformed"]),
        ((2**63).to_bytes(8, "little") + b"{}", ["truncated", str(2**63)]),
        ((2**64 - 1).to_bytes(8, "little") + b"{}", ["truncated", str(2**64 - 1)]),
        ((10**8 + 1).to_bytes(8, "little") + b"{}", ["truncated", str(10**8 + 1)]),
        ((3).to_bytes(8, "little") + b"{}", ["truncated", "3 bytes", "10"]),
        (b"<!DOCTYPE html><html><body>404</body></html>", ["an HTML page, not safetensors", "download failed"]),
        (b"\xef\xbb\xbf\n <html lang='\xfc'>", ["an HTML page, not safetensors"]),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", ["an XML page, not safetensors"]),
        (b'{"error": "Repository not found"}', ["a JSON message, not safetensors"]),
        (b'[{"error": 1}]', ["a JSON message, not safetensors"]),
        (b"Entry not found", ["plain text, not safetensors", "download failed"]),
        (b"404", ["plain text, not safetensors"]),
        (b"GGUF\x03\0\0\0" + bytes(32), ["a GGUF file, not safetensors"]),
        (b"\x1f\x8b\x08\0" + bytes(32), ["a gzip file, not safetensors"]),
        (b"PK\x03\x04" + bytes(32), ["a ZIP file, not safetensors"]),
        (b"\x89PNG\r\n\x1a\n" + bytes(32), ["a PNG file, not safetensors"]),
        (b"\x89HDF\r\n\x1a\n" + bytes(32), ["a HDF5 file, not safetensors"]),
        (b"name".ljust(257, b"\0") + b"ustar" + bytes(300), ["a tar file, not safetensors"]),
    ],
)
def test_a_file_that_cannot_hold_its_header_is_refused(
    tmp_path: Path, refused: Refused, content: bytes, words: list[str]
) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with refused(1, "weights.safetensors", "fetch it again", *words):
        read_header(path)


@pytest.mark.parametrize(("change", "word"), [(-1, "truncated"), (-28, "truncated"), (1, "longer"), (4096, "longer")])
def test_data_shorter_or_longer_than_the_header_says_is_refused_with_both_sizes(
    tmp_path: Path, write_weights: WriteWeights, refused: Refused, change: int, word: str
) -> None:
    path = write_weights(tmp_path / "weights.safetensors", TWO)
    os.truncate(path, path.stat().st_size + change)
    with refused(1, "weights.safetensors", word, "28", str(28 + change)):
        read_header(path)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b'{"a": ',
        b"{} {}",
        b'\xef\xbb\xbf{"a": 1}',
        b'{"\xff": 1}',
        "{}".encode("utf-16"),
        "{}".encode("utf-32"),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"__metadata__": []}',
        b'{"__metadata__": {"format": 1}}',
        b'{"__metadata__": {"format": NaN}}',
        b'{"__metadata__": {"a": "1", "a": "2"}}',
    ],
    ids=lambda header: repr(header[:20]),
)
def test_a_header_that_is_no_table_of_tensors_is_refused(
    tmp_path: Path, write_raw: WriteRaw, refused: Refused, header: bytes
) -> None:
    path = write_raw(tmp_path / "weights.safetensors", header, 0)
    with refused(1, "weights.safetensors", "malformed header"):
        read_header(path)


@pytest.mark.parametrize(
    "header",
    [
        '{"a":{"dtype":"F16","shape":[4],"data_offsets":[0,8]},"a":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}}',
        '{"a": {"dtype":"F16","dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        '{"a": {"dtype":"F16","shape":[4],"data_offsets":[0,8],"\\u0073hape":[4]}}',
    ],
)
def test_the_same_key_twice_is_refused_at_every_depth(
    tmp_path: Path, write_raw: WriteRaw, refused: Refused, header: str
) -> None:
    with refused(1, "weights.safetensors", "the same key twice"):
        read_header(write_raw(tmp_path / "weights.safetensors", header.encode(), 8))


@pytest.mark.parametrize(
    "described",
    [
        None,
        7,
        [],
        {},
        {"dtype": "F16", "shape": [4]},
        {**entry(), "extra": 1},
        entry(dtype="F17"),
        entry(dtype="f16"),
        entry(dtype=16),
        entry(dtype=["F16"]),
        entry(dtype={"F16": 1}),
        entry(shape="4"),
        entry(shape={}),
        entry(shape=[-4]),
        entry(shape=[-2, -2]),
        entry(shape=[4.0]),
        entry(shape=["4"]),
        entry(shape=[True, 4]),
        entry(shape=[[4]]),
        entry(shape=[1] * 8 + [4]),
        entry(shape=[2**64 + 4]),
        entry(shape=[2**62, 4]),
        entry(shape=[5]),
        entry(begin=8, end=0),
        entry(begin=-8, end=0),
        entry(begin=False, end=8),
        entry(begin=0.0, end=8),
        entry(begin="0", end=8),
        entry(end=None),
        entry(end=2**63),
        {**entry(), "data_offsets": [0, 4, 8]},
        {**entry(), "data_offsets": [8]},
        {**entry(), "data_offsets": "08"},
        {**entry(), "data_offsets": None},
        entry(shape=[float("nan")]),
        entry(end=float("inf")),
    ],
    ids=repr,
)
def test_a_tensor_described_wrongly_is_refused_by_name(
    tmp_path: Path, write_raw: WriteRaw, refused: Refused, described: object
) -> None:
    path = write_raw(tmp_path / "weights.safetensors", json.dumps({"conv.weight": described}).encode(), 8)
    with refused(1, "weights.safetensors", "'conv.weight'", "wrongly"):
        read_header(path)


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": entry(end=8), "b": entry(begin=4, end=12)},
        {"a": entry(end=8), "b": entry(end=8)},
        {"a": entry(end=8), "b": entry(begin=16, end=24)},
        {"b": entry(begin=8, end=16)},
        {"a": entry(end=8), "none": entry(shape=[0], begin=4, end=4)},
    ],
    ids=["overlap", "the same place", "gap", "gap at the start", "empty inside another"],
)
def test_gaps_and_overlaps_are_refused(
    tmp_path: Path, write_raw: WriteRaw, refused: Refused, tensors: dict[str, object]
) -> None:
    path = write_raw(tmp_path / "weights.safetensors", json.dumps(tensors).encode(), 16)
    with refused(1, "weights.safetensors", "a gap or an overlap"):
        read_header(path)


def test_a_tensor_s_name_cannot_move_the_cursor_or_fill_the_screen(
    tmp_path: Path, write_raw: WriteRaw, refused: Refused
) -> None:
    name = "\x1b[2J\u202e\r\n\ud800" + "x" * 10_000
    with refused(1, "\\x1b[2J", "\\u202e"):
        read_header(write_raw(tmp_path / "weights.safetensors", json.dumps({name: None}).encode(), 0))


def test_a_header_bomb_is_refused_without_being_parsed(tmp_path: Path, write_raw: WriteRaw, refused: Refused) -> None:
    shape = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(f'"t{index:06}":{shape}' for index in range(200_000)) + "}").encode()
    assert len(header) > 11_000_000
    path = write_raw(tmp_path / "weights.safetensors", header, 0)
    tracemalloc.start()
    try:
        with refused(1, "weights.safetensors", "header of 11 MiB", "4 MiB"):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 1 * MIB
    finally:
        tracemalloc.stop()


def test_the_header_cap_is_exact(tmp_path: Path, write_raw: WriteRaw, refused: Refused) -> None:
    path = tmp_path / "weights.safetensors"
    assert read_header(write_raw(path, b"{}".ljust(HEADER_LIMIT_BYTES), 0)).tensors == {}
    with refused(1, "weights.safetensors", "4 MiB"):
        read_header(write_raw(path, b"{}".ljust(HEADER_LIMIT_BYTES + 1), 0))


class Canary:
    """A pickle that runs code when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_under_another_name_is_refused_and_not_run(tmp_path: Path, refused: Refused, protocol: int) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps(Canary(tmp_path / "canary"), protocol))
    with refused(1, "weights.safetensors", "pickle" if protocol >= 2 else "not safetensors"):
        read_header(path)
    assert not (tmp_path / "canary").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "canary").exists(), "the canary would have sung"


def test_a_checkpoint_of_torch_under_another_name_is_refused(tmp_path: Path, refused: Refused) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Canary(tmp_path / "canary")))
    path = tmp_path / "weights.safetensors"
    path.write_bytes(archive.getvalue())
    with refused(1, "weights.safetensors", "pickle"):
        read_header(path)
    assert not (tmp_path / "canary").exists()


def test_a_git_lfs_pointer_is_named_as_one(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 3438167534\n")
    with refused(1, "weights.safetensors", "git lfs pull"):
        read_header(path)


def test_a_missing_file_is_refused(tmp_path: Path, refused: Refused) -> None:
    with refused(1, "weights.safetensors", "No such file"):
        read_header(tmp_path / "weights.safetensors")


def test_a_file_without_read_permission_is_refused(
    open_folder: Path,
    write_weights: WriteWeights,
    refused: Refused,
    unprivileged: Callable[[], AbstractContextManager[None]],
) -> None:
    path = write_weights(open_folder / "weights.safetensors", TWO)
    with unprivileged():
        assert set(read_header(path).tensors) == set(TWO)
    path.chmod(0)
    with unprivileged(), refused(1, "weights.safetensors", "Permission denied"):
        read_header(path)


@pytest.mark.timeout(20)
def test_what_is_not_a_regular_file_is_refused_without_waiting(tmp_path: Path, refused: Refused) -> None:
    folder = tmp_path / "weights.safetensors"
    folder.mkdir()
    with refused(1, "weights.safetensors", "not a regular file"):
        read_header(folder)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.safetensors")
        (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
        for name in ("pipe.safetensors", "zero.safetensors"):
            with refused(1, name, "not a regular file"):
                read_header(tmp_path / name)


def test_links_are_followed_as_the_hub_s_cache_needs(
    tmp_path: Path, write_weights: WriteWeights, refused: Refused
) -> None:
    blob = write_weights(tmp_path / "blobs" / "c0ffee", TWO)
    link = tmp_path / "snapshots" / "main" / "weights.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(Path("../../blobs/c0ffee"))
    file = read_header(link)
    assert file.path == link and set(file.tensors) == set(TWO)

    blob.unlink()
    with refused(1, "weights.safetensors", "No such file"):
        read_header(link)
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    with refused(1, "loop.safetensors", "symbolic links"):
        read_header(tmp_path / "loop.safetensors")


def test_the_digest_of_a_header_changes_with_the_header_only(tmp_path: Path, write_weights: WriteWeights) -> None:
    path = write_weights(tmp_path / "w", TWO)
    first = read_header(path).header_sha256
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
    assert read_header(path).header_sha256 == first
    assert read_header(write_weights(path, {**TWO, "c": ("U8", [1])})).header_sha256 != first


@pytest.mark.parametrize("size_bytes", [1, 4095, 4096, 4097, 3_000_000])
def test_a_sampled_digest_finds_a_file_truncated_emptied_or_replaced(tmp_path: Path, size_bytes: int) -> None:
    path = tmp_path / "file"
    content = b"\7" + os.urandom(size_bytes - 1)
    path.write_bytes(content)
    first = sample_sha256(path)
    assert sample_sha256(path) == first
    for other in (content[:-1], b"", bytes(size_bytes), b"\6" + os.urandom(size_bytes - 1)):
        path.write_bytes(other)
        assert sample_sha256(path) != first


def test_a_sampled_digest_sees_both_ends_of_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3_000_000))
    first = sample_sha256(path)
    for offset in (0, 2_999_999):
        path.write_bytes(bytes(offset) + b"\1" + bytes(2_999_999 - offset))
        assert sample_sha256(path) != first


def test_a_page_is_one_whatever_bytes_it_has(tmp_path: Path) -> None:
    page = tmp_path / "model.safetensors"
    page.write_bytes(b"<!DOCTYPE html><html>" + bytes(100))
    with pytest.raises(SdcliError, match="is an HTML page, not safetensors: the download failed"):
        read_header(page)
