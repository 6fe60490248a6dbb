"""Fetching models from a Hub that cuts connections, lies and refuses: the right bytes in the end, or a clear error."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdcli.app import hub_errors, transfer
from sdcli.app.pull import Pulled, pull
from sdcli.errors import BadRequest, ModelMissing, SdcliError
from sdcli.models.reference import resolve_model
from tests.conftest import SDCLI
from tests.hub_server import Hub, Server

REPO = "somebody/tiny"
BIG = "unet/diffusion_pytorch_model.fp16.safetensors"
ONE, TWO = "1" * 40, "2" * 40


@pytest.fixture(scope="session")
def files(tiny: Path) -> dict[str, bytes]:
    """What a repository has: a model in two precisions, and much that nobody here needs."""
    found = {path.relative_to(tiny).as_posix(): path.read_bytes() for path in tiny.rglob("*") if path.is_file()}
    halves = {name.replace(".safetensors", ".fp16.safetensors"): data for name, data in found.items()}
    others = {"README.md": b"# hello", "safety_checker/model.safetensors": b"no", "unet/weights.bin": b"\x80\x04."}
    return found | halves | others | {"v1-5-pruned.safetensors": b"a" * 5000, "feature_extractor/x.json": b"{}"}


@pytest.fixture
def hub(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with that repository, and a cache of the test's own."""
    server = Server()
    server.hub.add(REPO, files, ONE)
    monkeypatch.setenv("HF_ENDPOINT", server.hub.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(hub_errors.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(hub_errors.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_errors.constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(hub_errors.time, "sleep", lambda seconds: None)
    yield server.hub
    server.hub.go_on.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def top(hub: Hub, tmp_path: Path) -> Path:
    """The model's folder in the cache."""
    return tmp_path / "hub" / "models--somebody--tiny"


said: list[str] = []


def pulled(repo: str = REPO, file: str | None = None) -> Pulled:
    said.clear()
    return pull(repo, file, lambda note: said.append(note.what), lambda done, total: None)


def require_whole(files: dict[str, bytes], top: Path, commit: str = ONE) -> None:
    """What is there is what the Hub has, and nothing is left over."""
    snapshot = top / "snapshots" / commit
    names = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}
    assert BIG in names and all((snapshot / name).read_bytes() == files[name] for name in names)
    assert not [path for path in top.rglob("*") if "incomplete" in path.name or ".tmp" in path.name]
    assert (top / "refs" / "main").read_text() in (ONE, TWO)


def test_a_pull_brings_what_is_needed_in_half_precision_and_the_model_opens_by_its_name(
    hub: Hub, top: Path, files: dict[str, bytes]
) -> None:
    seen: list[tuple[int, int]] = []
    done = pull(REPO, None, lambda note: said.append(note.what), lambda *amount: seen.append(amount))
    require_whole(files, top)
    names = {path.relative_to(done.path).as_posix() for path in done.path.rglob("*") if path.is_file()}
    assert names == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        *(f"tokenizer/{name}" for name in ("vocab.json", "merges.txt", "tokenizer_config.json")),
        "unet/config.json",
        BIG,
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    }
    assert seen[-1] == (done.size_bytes, done.size_bytes) == (done.fetched_bytes,) * 2
    assert f"{REPO} at 11111111: 11 files" in said[-1]
    model = resolve_model(REPO, lambda *_: None)
    assert model.path == done.path.resolve() and "the snapshot 11111111 in the Hub's cache" in model.notes[0]
    assert {path for path, _ in hub.requests if path.startswith("/api")} == {f"/api/models/{REPO}/revision/main"}
    assert all(headers["user-agent"].startswith("sdcli") for path, headers in hub.requests if "resolve" in path)


def test_a_second_pull_brings_nothing_and_huggingface_hub_finds_all_of_it(hub: Hub, top: Path) -> None:
    from huggingface_hub import scan_cache_dir, snapshot_download

    first = pulled()
    asked = len(hub.requests)
    again = pulled()
    assert (again.fetched_bytes, again.size_bytes, again.path) == (0, first.size_bytes, first.path)
    assert "of it here already" in said[-1] and len(hub.requests) == asked + 1
    found = snapshot_download(REPO, cache_dir=top.parent, local_files_only=True)
    assert Path(found) == first.path
    (repo,) = scan_cache_dir(top.parent).repos
    assert repo.repo_id == REPO and repo.size_on_disk == first.size_bytes


@pytest.mark.parametrize("faults", [["cut"], ["cut"] * 9, ["429"], ["500", "cut", "503"], ["cut", "whole"]], ids=str)
def test_a_connection_that_breaks_is_taken_up_where_it_was(
    hub: Hub, top: Path, files: dict[str, bytes], faults: list[str]
) -> None:
    hub.faults[BIG] = [*faults]
    pulled()
    require_whole(files, top)
    asked = [headers.get("range") for headers in hub.asked_for(BIG)]
    if faults[0] == "cut":
        assert f"bytes={len(files[BIG]) // 2}-" in asked


def test_a_pull_that_failed_is_gone_on_with_by_the_next_one(hub: Hub, top: Path, files: dict[str, bytes]) -> None:
    hub.faults[BIG] = ["cut", *["500"] * 5]
    with pytest.raises(ModelMissing, match="answers 500"):
        pulled()
    assert not (top / "snapshots").exists() and not (top / "refs").exists()
    (left,) = (top / "blobs").glob("*.incomplete")
    assert left.read_bytes() == files[BIG][: len(files[BIG]) // 2]
    with pytest.raises(ModelMissing, match=f"sdcli models pull {REPO}"):
        resolve_model(REPO, lambda *_: None)
    hub.requests.clear()
    pulled()
    require_whole(files, top)
    assert {headers.get("range") for headers in hub.asked_for(BIG)} == {f"bytes={left_bytes(files)}-"}


def left_bytes(files: dict[str, bytes]) -> int:
    return len(files[BIG]) // 2


@pytest.mark.parametrize("left", ["other", "longer", "all but one"])
def test_what_an_earlier_pull_left_is_taken_only_if_it_fits(
    hub: Hub, top: Path, files: dict[str, bytes], left: str
) -> None:
    from tests.hub_server import blob_name

    content = files[BIG]
    partial = top / "blobs" / f"{blob_name(BIG, content)}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes({"other": b"?" * 1000, "longer": content + b"?", "all but one": content[:-1]}[left])
    pulled()
    require_whole(files, top)


@pytest.mark.parametrize("fault", ["wrong", "short", "long", "chunked"])
@pytest.mark.parametrize("path", [BIG, "unet/config.json"])
def test_wrong_bytes_are_an_error_and_nothing_of_them_is_kept(hub: Hub, top: Path, fault: str, path: str) -> None:
    hub.faults[path] = [fault] * 9
    with pytest.raises(SdcliError, match="nothing of it is kept") as caught:
        pulled()
    assert caught.value.exit_code == 1 and path in str(caught.value)
    assert not (top / "snapshots").exists() and not list(top.rglob("*.incomplete"))
    hub.faults.clear()
    pulled()
    assert resolve_model(REPO, lambda *_: None).family == "sd"


def test_wrong_bytes_after_a_cut_are_found_by_the_digest(hub: Hub, top: Path, files: dict[str, bytes]) -> None:
    hub.faults[BIG] = ["cut", "wrong"]
    with pytest.raises(SdcliError, match="other content"):
        pulled()
    pulled()
    require_whole(files, top)


def test_what_is_damaged_in_the_cache_is_fetched_again(hub: Hub, top: Path, files: dict[str, bytes]) -> None:
    done = pulled()
    blob = (done.path / BIG).resolve()
    blob.write_bytes(b"?" + blob.read_bytes()[1:])
    pulled()
    assert "is damaged in the cache" in " ".join(said)
    require_whole(files, top)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("401", r"does not give somebody/tiny to this user \(401\): set HF_TOKEN"),
        ("403", r"does not give somebody/tiny to this user \(403\): set HF_TOKEN"),
        ("404", "answers 404|no somebody/tiny at"),
        ("gated", "given on request only: ask at http.*, then set HF_TOKEN"),
        ("page", "does not answer as the Hub does"),
    ],
)
def test_a_refusal_is_told_at_once(hub: Hub, fault: str, words: str) -> None:
    hub.faults["list"] = [fault]
    with pytest.raises(ModelMissing, match=words):
        pulled()
    assert len(hub.requests) == 1


@pytest.mark.parametrize("fault", ["429", "500", "503"])
def test_a_busy_hub_is_asked_again_and_given_up_in_the_end(hub: Hub, fault: str) -> None:
    hub.faults["list"] = [fault] * 2
    assert pulled().ref == REPO
    hub.faults["list"] = [fault] * 9
    with pytest.raises(ModelMissing, match=fault):
        pulled()
    assert len(hub.faults["list"]) == 9 - hub_errors.LIST_TRIES


def test_a_name_that_is_not_there_and_a_revision_that_is_not_are_told(hub: Hub) -> None:
    with pytest.raises(ModelMissing, match=r"there is no somebody/else at http.*, or it is private"):
        pulled("somebody/else")
    with pytest.raises(ModelMissing, match="has nothing at 'v9'"):
        pulled(f"{REPO}@v9")
    for wrong in ("tiny", "a/b/c", "../x", "https://huggingface.co/a/b", "", "a/b@", "a--b/c"):
        with pytest.raises(BadRequest, match="no model's name"):
            pulled(wrong)


def test_without_a_network_the_line_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ModelMissing, match=r"the connection to http://127.0.0.1:1 fails"):
        pulled()
    for wrong in ("nowhere", "ftp://x", "http://", "http://[::1", "http://x:99999"):
        monkeypatch.setenv("HF_ENDPOINT", wrong)
        with pytest.raises(ModelMissing, match=r"HF_ENDPOINT is .*, which is no address"):
            pulled()
    monkeypatch.setattr(hub_errors.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelMissing, match="HF_HUB_OFFLINE"):
        pulled()


def test_the_token_goes_to_the_hub_alone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pulled()
    to_hub = [headers for path, headers in hub.requests if not path.startswith("/cdn/")]
    elsewhere = [headers for path, headers in hub.requests if path.startswith("/cdn/")]
    assert to_hub and all(headers["authorization"] == "Bearer hf_secret" for headers in to_hub)
    assert elsewhere and not any("authorization" in headers for headers in elsewhere)


@pytest.mark.parametrize(
    "entry",
    [
        {"rfilename": "../../../evil"},
        {"rfilename": "/etc/passwd"},
        {"rfilename": "a\\..\\b"},
        {"blobId": "../../evil"},
        {"blobId": None},
        {"size": None},
        {"size": -1},
        {"size": "9"},
    ],
    ids=str,
)
def test_a_list_that_would_lead_astray_is_refused(hub: Hub, tmp_path: Path, entry: dict[str, object]) -> None:
    hub.listed["unet/config.json"] = entry
    with pytest.raises(SdcliError, match="lists"):
        pulled()
    assert not list((tmp_path / "hub").rglob("*evil*"))


def test_a_size_that_is_a_lie_is_found(hub: Hub, files: dict[str, bytes], top: Path) -> None:
    for size in (len(files["unet/config.json"]) + 9, 5, 10**15):
        hub.listed["unet/config.json"] = {"size": size}
        with pytest.raises(SdcliError, match=r"as .* where the Hub lists|needs .* has room"):
            pulled()
        assert not (top / "snapshots").exists() and not list(top.rglob("*.incomplete"))


def test_a_commit_may_be_named_and_main_stays_what_it_was(hub: Hub, top: Path, files: dict[str, bytes]) -> None:
    pulled()
    hub.add(REPO, files | {"scheduler/scheduler_config.json": files["scheduler/scheduler_config.json"] + b"\n"}, TWO)
    done = pulled(f"{REPO}@{TWO}")
    assert done.ref == f"{REPO}@{TWO}" and (top / "refs" / "main").read_text() == ONE
    assert resolve_model(REPO, lambda *_: None).path.name == ONE
    assert resolve_model(f"{REPO}@{TWO[:8]}", lambda *_: None).path.name == TWO
    pulled()
    assert resolve_model(REPO, lambda *_: None).path.name == TWO
    assert (top / "snapshots" / ONE / BIG).is_file()


def test_a_new_commit_that_does_not_come_whole_leaves_the_old_one(hub: Hub, files: dict[str, bytes]) -> None:
    pulled()
    hub.add(REPO, files | {BIG: files[BIG][::-1]}, TWO)
    hub.faults[BIG] = ["cut", *["500"] * 9]
    with pytest.raises(ModelMissing):
        pulled()
    assert resolve_model(REPO, lambda *_: None).path.name == ONE


def test_a_repository_of_single_files_wants_one_named(hub: Hub) -> None:
    several = {"big.safetensors": b"x" * 3_000_000, "small.safetensors": b"y" * 2000, "README.md": b""}
    hub.add("somebody/files", several)
    with pytest.raises(SdcliError, match=r"several models: name one of 'big.safetensors' \(3 MiB\), 'small"):
        pulled("somebody/files")
    with pytest.raises(SdcliError, match=r"has no 'other.safetensors': name one of"):
        pulled("somebody/files", "other.safetensors")
    for argv in (("somebody/files", "small.safetensors"), ("somebody/files/small.safetensors", None)):
        done = pulled(*argv)
        assert done.ref == "somebody/files/small.safetensors" and done.path.read_bytes() == b"y" * 2000
    hub.add("somebody/file", {"one.safetensors": b"z" * 9})
    assert pulled("somebody/file").path.read_bytes() == b"z" * 9
    hub.add("somebody/pickle", {"one.ckpt": b"z" * 9})
    with pytest.raises(SdcliError, match=r"nor any .safetensors file"):
        pulled("somebody/pickle")


def test_a_tokenizer_comes_alone_from_beside_large_files(hub: Hub) -> None:
    hub.add("somebody/words", {"model.safetensors": b"x" * 3_000_000, "tokenizer.json": b"{}"})
    done = pulled("somebody/words/tokenizer.json", None)
    assert done.path.read_bytes() == b"{}" and not hub.asked_for("model.safetensors")


def test_what_sdcli_cannot_draw_with_is_said_before_its_weights_come(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add("somebody/other", {**files, "model_index.json": b'{"_class_name": "FluxPipeline"}'})
    with pytest.raises(SdcliError, match=r"FluxPipeline.*not supported"):
        pulled("somebody/other")
    pickles = {name.replace(".safetensors", ".bin"): data for name, data in files.items()}
    hub.add("somebody/pickles", pickles)
    with pytest.raises(SdcliError, match=r"has no 'text_encoder/model.safetensors', .* are pickles"):
        pulled("somebody/pickles")
    assert not hub.asked_for("unet/diffusion_pytorch_model.bin")


def test_a_disk_without_room_is_said_before_anything_comes(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("sdcli.app.pull.shutil.disk_usage", lambda path: usage)
    with pytest.raises(SdcliError, match=r"somebody/tiny needs .* has room for 1 KiB: make room"):
        pulled()
    assert not hub.asked_for(BIG)


def test_a_disk_that_fills_up_meanwhile_keeps_nothing(hub: Hub, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object, piece: bytes) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr(transfer, "_write", full)
        with pytest.raises(SdcliError, match="No space left on device; make room, or set HF_HUB_CACHE"):
            pulled()
    assert not list(top.rglob("*.incomplete"))
    pulled()


def test_a_cache_that_cannot_be_written_is_said(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(SdcliError, match="set HF_HUB_CACHE to a folder that can be written"):
        pulled()


def started(hub: Hub, *argv: str) -> subprocess.Popen[bytes]:
    """A pull as a user's shell starts it."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*SDCLI, "models", "pull", *argv], env=environment, **streams)


def test_two_pulls_at_once_end_well_and_each_byte_comes_once(hub: Hub, top: Path, files: dict[str, bytes]) -> None:
    hub.faults[BIG] = ["halt"]
    first = started(hub, REPO)
    assert hub.halted.wait(30)
    second = started(hub, REPO)
    waiting = b""
    while b"waiting for it" not in waiting:
        assert second.stderr is not None
        line = second.stderr.readline()
        assert line, "the second pull did not wait"
        waiting += line
    hub.go_on.set()
    outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert outputs[0] == outputs[1] == os.fsencode(top / "snapshots" / ONE) + b"\n"
    require_whole(files, top)
    assert len([path for path, _ in hub.requests if path.startswith("/cdn/") and path.endswith(BIG)]) == 1


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_pull_that_is_stopped_leaves_nothing_that_is_taken_for_whole(
    hub: Hub, top: Path, files: dict[str, bytes], signum: int, code: int
) -> None:
    hub.faults[BIG] = ["halt"]
    process = started(hub, REPO)
    assert hub.halted.wait(30)
    deadline = time.monotonic() + 10
    while not list(top.rglob("*.incomplete")) and time.monotonic() < deadline:
        pass
    process.send_signal(signum)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code and out == b""
    if code > 0:
        assert err.decode().splitlines()[-1].startswith("Error: interrupted; what came is kept")
    with pytest.raises(ModelMissing, match=f"sdcli models pull {REPO}"):
        resolve_model(REPO, lambda *_: None)
    hub.go_on.set()
    pulled()
    require_whole(files, top)
