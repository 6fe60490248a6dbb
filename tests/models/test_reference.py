"""What the user calls a model: each form of reference ends in a model or in the exit code of its failure."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from sdcli.errors import BadRequest, ModelMissing
from sdcli.models.header import sample_sha256
from sdcli.models.reference import resolve_model

Refused = Callable[..., AbstractContextManager[None]]


def never(name: str, folder: Path) -> None:
    raise AssertionError(f"made {name} in {folder}")


def test_a_folder_is_opened_under_the_name_the_user_gave_it(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_folder.parent)
    for ref in ("model", "./model/", str(model_folder)):
        model = resolve_model(ref, never)
        assert (model.ref, model.path, model.sha256) == (ref, model_folder.resolve(), None)


def test_a_synthetic_model_is_made_and_opened_with_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build_model: Callable[[Path], Path]
) -> None:
    monkeypatch.setenv("SDCLI_CACHE", str(tmp_path / "cache"))

    def make(name: str, folder: Path) -> None:
        build_model(folder)
        files = {
            path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sample_sha256": sample_sha256(path)}
            for path in folder.rglob("*")
            if path.is_file()
        }
        digest = hashlib.sha256(name.encode()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps({"sha256": digest, "files": files}), "utf-8")

    model = resolve_model("synthetic:sd15", make)
    assert (model.ref, model.sha256) == ("synthetic:sd15", hashlib.sha256(b"sd15").hexdigest())
    assert model.path.is_relative_to((tmp_path / "cache").resolve())
    again = resolve_model("synthetic:sd15", never)
    assert (again.ref, again.path, again.sha256) == (model.ref, model.path, model.sha256)


@pytest.mark.parametrize("ref", ["", " ", "\t\n", "\0", "model\0", "synthetic", "synthetic:"])
def test_a_name_that_is_none_is_a_usage_error_or_a_missing_model(refused: Refused, ref: str) -> None:
    expected = 3 if ref == "synthetic" else 2
    with refused(expected, "synthetic:sd15"):
        resolve_model(ref, never)


@pytest.mark.parametrize(
    "ref", ["https://huggingface.co/x/y", "http://[::1]/m", "file:///etc", "s3://bucket/model", "hf://x/y", "://"]
)
def test_an_address_is_a_usage_error(refused: Refused, ref: str) -> None:
    with refused(2, "address", "on disk only"):
        resolve_model(ref, never)


@pytest.mark.parametrize(
    "ref",
    ["synthetic:sd16", "synthetic:SD15", "synthetic:../sd15", "synthetic:sd15\0", "synthetic:sd15 ", "synthetic:/"],
)
def test_an_unknown_synthetic_model_is_a_usage_error_that_names_the_known(
    refused: Refused, ref: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDCLI_CACHE", str(tmp_path / "cache"))
    with refused(2, "there is synthetic:klein, synthetic:sd15, synthetic:sdxl, synthetic:z-image"):
        resolve_model(ref, never)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "ref",
    [
        "no-such-model",
        "runwayml/stable-diffusion-v1-5",
        "~/model",
        "a" * 200,
        "\x1b[31mred",
        "\u202egnp.exe",
        "caf\udce9",
        "\ud800",
        "a\nb",
        "-m",
    ],
)
def test_a_model_that_is_not_there_is_missing(
    refused: Refused, ref: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with refused(3, "no model", "on this disk"):
        resolve_model(ref, never)


def test_a_path_through_a_file_is_missing(model_folder: Path, refused: Refused) -> None:
    with refused(3, "no model"):
        resolve_model(str(model_folder / "unet" / "config.json" / "unet"), never)


def test_a_name_too_long_for_the_disk_is_refused(refused: Refused) -> None:
    for ref in ("a" * 5000, "a/" * 5000):
        with refused(1, "too long"):
            resolve_model(ref, never)


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt", "model"])
def test_a_pickle_is_refused(tmp_path: Path, refused: Refused, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04}\x94.")
    with refused(1, name, "holds a pickle"):
        resolve_model(str(tmp_path / name), never)


def test_an_empty_folder_lacks_everything(tmp_path: Path, refused: Refused) -> None:
    with refused(1, "lacks", "unet/config.json", "vae/config.json", "complete the folder"):
        resolve_model(str(tmp_path), never)


@pytest.mark.timeout(20)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_or_a_device_is_refused_without_waiting(tmp_path: Path, refused: Refused) -> None:
    os.mkfifo(tmp_path / "pipe")
    for ref in (str(tmp_path / "pipe"), "/dev/zero"):
        with refused(1, "is not a regular file"):
            resolve_model(ref, never)


def test_a_dangling_link_is_a_missing_model_and_a_loop_is_refused(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    with refused(3, "no model"):
        resolve_model(str(tmp_path / "dangling"), never)
    (tmp_path / "loop").symlink_to("loop")
    with refused(1, "loop", "symbolic links"):
        resolve_model(str(tmp_path / "loop"), never)


def test_a_model_in_a_folder_that_may_not_be_entered_is_refused(
    open_folder: Path,
    build_model: Callable[[Path], Path],
    refused: Refused,
    unprivileged: Callable[[], AbstractContextManager[None]],
) -> None:
    folder = build_model(open_folder / "locked" / "model")
    with unprivileged():
        assert resolve_model(str(folder), never).family == "sd"
    folder.parent.chmod(0)
    with unprivileged(), refused(1, "model", "Permission denied"):
        resolve_model(str(folder), never)
    folder.parent.chmod(0o755)


def test_the_kinds_of_failure_are_told_apart_by_their_class(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing):
        resolve_model(str(tmp_path / "absent"), never)
    with pytest.raises(BadRequest):
        resolve_model("https://example.org", never)
