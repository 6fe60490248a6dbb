"""sdcli models as a user meets it: what is on this disk, described, checked and removed; and completion."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sdcli.app.hashes import FileHash
from sdcli.app.runs import new_folder, take_lock
from sdcli.models.blobs import digest_for
from sdcli.models.opened import open_model
from sdcli.models.reference import resolve_model
from sdcli.models.stamps import stamps_of
from sdcli.units import MIB
from sdcli.weights.copies import in_use
from tests.cli.conftest import Command, clean_environment
from tests.conftest import SDCLI

ONE, TWO = "1" * 40, "2" * 40
REPO = "somebody/tiny"


def blob_of(content: bytes, large: bool) -> str:
    digest = digest_for("0" * (64 if large else 40), len(content))
    digest.update(content)
    return digest.hexdigest()


def put(hub: Path, repo: str, files: dict[str, bytes], commit: str = ONE, main: bool = True) -> Path:
    """A snapshot in the Hub's cache, as huggingface_hub lays it out."""
    top = hub / f"models--{repo.replace('/', '--')}"
    for name, content in files.items():
        blob = top / "blobs" / blob_of(content, name.endswith(".safetensors"))
        place = top / "snapshots" / commit / name
        for folder in (blob.parent, place.parent):
            folder.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        place.symlink_to(os.path.relpath(blob, place.parent))
    if main:
        (top / "refs").mkdir(exist_ok=True)
        (top / "refs" / "main").write_text(commit)
    return top / "snapshots" / commit


@pytest.fixture
def files(tiny: Path) -> dict[str, bytes]:
    return {
        path.relative_to(tiny).as_posix(): path.read_bytes()
        for path in tiny.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub."""
    folder = tmp_path / "hf" / "hub"
    folder.mkdir(parents=True)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HUGGINGFACE_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(folder.parent))
    return folder


@pytest.fixture
def cached(hub: Path, files: dict[str, bytes]) -> Path:
    """The snapshot of a whole model in it."""
    return put(hub, REPO, files)


def test_the_list_has_what_is_there_and_why_some_of_it_cannot_be_drawn_with(
    sdcli: Command, hub: Path, cached: Path, files: dict[str, bytes]
) -> None:
    put(hub, "somebody/half", {name: data for name, data in files.items() if "vae" not in name})
    put(hub, "somebody/other", {"model_index.json": b'{"_class_name": "FluxPipeline"}', "unet/config.json": b"{}"})
    put(hub, "somebody/words", {"config.json": b"{}", "model.safetensors": b"\x02\0\0\0\0\0\0\0{}"})
    put(hub, REPO, files | {"README.md": b"new"}, TWO, main=False)
    (hub / "models--empty--one").mkdir()
    (hub / "datasets--a--b" / "snapshots").mkdir(parents=True)
    outcome = sdcli("models", "list")
    assert (outcome.code, outcome.err) == (0, "")
    rows = {line.split()[0]: line for line in outcome.out.splitlines()}
    assert rows.keys() == {"demo", "somebody/half", "somebody/other", "somebody/words", REPO, f"{REPO}@{TWO}"} | (
        rows.keys() & {"somebody/words/model.safetensors"}
    )
    assert rows[REPO].endswith("  sd") and "MiB" in rows[REPO]
    assert "no: it lacks vae/config.json" in rows["somebody/half"] and "FluxPipeline" in rows["somebody/other"]
    table = json.loads(sdcli("models", "list", "--json").out)
    assert table["schema"] == "sdcli.models/1"
    entry = next(one for one in table["models"] if one["ref"] == REPO)
    assert entry == {
        "ref": REPO,
        "path": str(cached),
        "size_bytes": sum(map(len, files.values())),
        "family": "sd",
        "draws": True,
        "why": None,
    }
    broken = next(one for one in table["models"] if one["ref"] == "somebody/half")
    assert (broken["family"], broken["draws"]) == (None, False) and broken["why"].startswith("it lacks")


def test_without_a_cache_the_list_has_the_built_in_model(sdcli: Command, tmp_path: Path, hub: Path) -> None:
    shutil.rmtree(hub.parent)
    assert [line.split()[0] for line in sdcli("models", "list").out.splitlines()] == ["demo"]


def test_a_synthetic_model_is_listed_checked_and_removed(sdcli: Command, hub: Path, tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "cache" / "synthetic" / "sd15-1")
    assert "synthetic:sd15" in sdcli("models", "list").out
    assert sdcli("models", "verify", "synthetic:sd15").code == 0
    (folder / "unet" / "config.json").write_text("{}")
    assert "no: " in sdcli("models", "list").out
    sdcli("models", "verify", "synthetic:sd15").refused(1, "damaged", "makes it anew")
    assert sdcli("models", "remove", "synthetic:sd15", "--yes").code == 0 and not folder.exists()
    sdcli("models", "remove", "synthetic:sd15", "--yes").refused(3, "no model", "sdcli models list")


def test_a_model_of_the_hub_is_named_by_its_id_and_what_was_taken_is_said(
    sdcli: Command, hub: Path, cached: Path, files: dict[str, bytes], work: Path
) -> None:
    outcome = sdcli("plan", "a", "-m", REPO)
    assert outcome.code == 0 and f"{REPO}: the snapshot 11111111 in the Hub's cache" in outcome.err
    assert sdcli("plan", "a", "-m", f"{REPO}@1111111").code == 0
    put(hub, "somebody/file", {"one.safetensors": b"\x02\0\0\0\0\0\0\0{}"})
    for ref in ("somebody/file", "somebody/file/one.safetensors"):
        sdcli("plan", "a", "-m", ref).refused(1, ref)
    shutil.copytree(cached, work / "somebody" / "tiny")
    outcome = sdcli("plan", "a", "-m", REPO)
    assert outcome.code == 0 and "is a path here: that is taken, not the model of this name" in outcome.err


def test_what_is_not_there_names_the_command_that_fetches_it(
    sdcli: Command, hub: Path, files: dict[str, bytes]
) -> None:
    sdcli("plan", "a", "-m", "some/thing").refused(3, "fetch it with sdcli models pull some/thing")
    sdcli("plan", "a", "-m", "some/thing@v1").refused(3, "sdcli models pull some/thing@v1")
    sdcli("plan", "a", "-m", "some/thing/a.safetensors").refused(3, "sdcli models pull some/thing/a.safetensors")
    put(hub, "some/thing", {name: data for name, data in files.items() if not name.startswith("unet")})
    sdcli("plan", "a", "-m", "some/thing").refused(3, "lacks unet/config.json", "sdcli models pull some/thing")
    for path in ("./some/thing", "models/x.safetensors", "a/b/c", "/nowhere/model"):
        outcome = sdcli("plan", "a", "-m", path)
        assert outcome.code == 3 and "pull" not in outcome.err


def test_verify_reads_every_byte_and_names_what_is_wrong(sdcli: Command, cached: Path, tiny: Path) -> None:
    outcome = sdcli("models", "verify", REPO)
    assert outcome.code == 0 and "every byte as listed" in outcome.out
    outcome = sdcli("models", "verify", tiny)
    assert outcome.code == 0 and "well-formed" in outcome.out
    weights = cached / "vae" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.resolve().write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    sdcli("models", "verify", REPO).refused(
        1, "is damaged: 'vae/diffusion_pytorch_model.safetensors'", f"sdcli models pull {REPO}"
    )
    weights.resolve().unlink()
    (cached / "unet" / "config.json").resolve().write_text("{}")
    sdcli("models", "verify", REPO).refused(1, "is damaged: 'unet/config.json' and 1 more")
    sdcli("models", "verify", "some/thing").refused(3, "sdcli models pull some/thing")


def test_remove_takes_a_model_of_the_cache_whole_and_leaves_what_other_commits_have(
    sdcli: Command, hub: Path, cached: Path, files: dict[str, bytes]
) -> None:
    other = put(hub, REPO, files | {"README.md": b"new"}, TWO, main=False)
    top = hub / "models--somebody--tiny"
    before = len(list((top / "blobs").iterdir()))
    sdcli("models", "remove", f"{REPO}@{TWO}").refused(2, "give --yes")
    outcome = sdcli("models", "remove", f"{REPO}@{TWO}", "--yes")
    assert outcome.code == 0 and "removed somebody/tiny@2222" in outcome.err
    assert not other.exists() and len(list((top / "blobs").iterdir())) == before - 1
    assert sdcli("models", "verify", REPO).code == 0
    assert sdcli("models", "remove", REPO, "--yes").code == 0 and not top.exists()
    sdcli("models", "remove", REPO, "--yes").refused(3, "no model")


def test_with_a_model_go_its_prepared_copies_that_nobody_uses(
    sdcli: Command, cached: Path, tiny: Path, tmp_path: Path
) -> None:
    def copy_of(folder: Path) -> Path:
        whose = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        copy = tmp_path / "cache" / "prepared" / whose / f"fp32-{'0' * 16}"
        copy.mkdir(parents=True)
        (copy / "index.json").write_text("{}")
        (copy / "weights.bin").write_bytes(bytes(3 * 2**20))
        return copy

    kept, gone, used = copy_of(tiny / "unet"), copy_of(cached / "unet"), copy_of(cached / "vae")
    with in_use(used):
        outcome = sdcli("models", "remove", REPO, "--yes")
    assert outcome.code == 0 and "and its prepared copies, 3 MiB" in outcome.err
    assert kept.is_dir() and used.is_dir() and not gone.exists()


def test_remove_never_takes_a_folder_of_the_user_s_nor_what_a_run_uses(
    sdcli: Command, hub: Path, cached: Path, tiny: Path, work: Path
) -> None:
    shutil.copytree(tiny, work / "mine" / "model")
    for ref in ("mine/model", "./mine/model", str(work / "mine"), "demo", "synthetic:", "..", "~", str(cached)):
        assert sdcli("models", "remove", ref, "--yes").code in (2, 3)
    assert (work / "mine" / "model" / "unet").is_dir() and cached.is_dir()
    folder = new_folder()
    assert folder is not None
    lock = take_lock(folder)
    sources = {"path": str(cached.resolve())}
    (folder / "job.json").write_text(json.dumps({"task": {"model": {"sources": sources}}}))
    sdcli("models", "remove", REPO, "--yes").refused(1, "a run draws with")
    assert lock is not None
    os.close(lock)
    assert sdcli("models", "remove", REPO, "--yes").code == 0


def test_remove_asks_on_a_terminal(sdcli: Command, cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    asked: list[str] = []
    for answer in (False, True):

        def confirm(text: str, answer: bool = answer, **_: Any) -> bool:
            asked.append(text)
            return answer

        monkeypatch.setattr("sdcli.cli.models.click.confirm", confirm)
        assert sdcli("models", "remove", REPO).code == 0
        assert cached.exists() is not answer
    assert all(text.startswith("Remove ") and "MiB?" in text for text in asked)


def test_show_describes_a_model_and_what_it_would_take(
    sdcli: Command, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = sdcli("models", "show", REPO)
    assert outcome.code == 0 and "the snapshot 11111111" in outcome.err
    for words in (f"{REPO}: sd, ", "digest ", "UNet2DConditionModel", "F16", "64x64, 20 steps, guidance 7.5, DDIM"):
        assert words in outcome.out
    assert "fits: predicted peak" in outcome.out and "plan: denoiser resident" in outcome.out
    table = json.loads(sdcli("models", "show", REPO, "--json").out)
    assert table["schema"] == "sdcli.model/1" and table["ref"] == REPO and table["family"] == "sd"
    assert [part["name"] for part in table["parts"]] == ["tokenizer", "text_encoder", "scheduler", "unet", "vae"]
    assert table["defaults"]["scheduler"] == "DDIMScheduler" and table["forecast"]["fits"] is True
    plan = json.loads(sdcli("plan", "", "-m", REPO, "--json").out)
    assert table["forecast"]["smallest_limit_bytes"] == plan["smallest_limit_bytes"]
    assert table["forecast"]["plan"] == plan["plan"]
    monkeypatch.setattr("sdcli.machine.physical_memory_bytes", lambda: 100 * MIB)
    outcome = sdcli("models", "show", REPO)
    assert outcome.code == 0 and "does not fit here: " in outcome.out and "fits: " not in outcome.out
    sdcli("models", "show", "some/thing").refused(3, "sdcli models pull some/thing")


def test_a_pull_that_makes_no_sense_is_wrong_usage(sdcli: Command, hub: Path) -> None:
    for argv in (["tiny"], ["https://huggingface.co/a/b"], [REPO + "/a.safetensors", "b.safetensors"]):
        sdcli("models", "pull", *argv).refused(2, "is no model's name on the Hub", "ORG/NAME")
    sdcli("models", "pull", REPO).refused(3, "HF_HUB_OFFLINE")
    sdcli("models", "pull").refused(2, "Missing argument")
    sdcli("models", "nonsense").refused(2, "nonsense")
    assert sdcli("models").code == 0


def complete(work: Path, hub: Path, *words: str) -> list[str]:
    line = " ".join(("sdcli", *words))
    environment = clean_environment(work) | {
        "HF_HOME": str(hub.parent),
        "_SDCLI_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(SDCLI, cwd=work, env=environment, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_a_shell_completes_models_options_and_commands(work: Path, cached: Path, hub: Path) -> None:
    found = complete(work, hub, "txt2img", "-m", "so")
    assert found == ["file,so", f"plain,{REPO}"]
    assert "plain,demo" in complete(work, hub, "models", "show", "d")
    assert "plain,--steps" in complete(work, hub, "txt2img", "--st")
    assert complete(work, hub, "mod") == ["plain,models"]


@pytest.mark.parametrize(
    ("option", "folder"), [("--lora", "--lora-dir"), ("--embedding", "--embedding-dir"), ("--vae", None)]
)
def test_a_shell_completes_files_of_weights(work: Path, hub: Path, option: str, folder: str | None) -> None:
    for name in ("near.safetensors", "near.txt", "far.safetensors", "more/next.safetensors", "all/new.SAFETENSORS"):
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).touch()
    (work / "none").mkdir()
    assert complete(work, hub, "txt2img", option, "ne") == ["dir,ne", "plain,near.safetensors"]
    assert complete(work, hub, "plan", option, "more/") == ["dir,more/", "plain,more/next.safetensors"]
    assert complete(work, hub, "plan", option, "gone/x") == ["dir,gone/x"]
    if folder is not None:
        found = complete(work, hub, "txt2img", folder, "all", option, "ne")
        assert found == ["dir,ne", "plain,near.safetensors", "plain,all/new.SAFETENSORS"]
        assert complete(work, hub, "txt2img", folder, "gone", option, "none") == ["dir,none"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_itself_offers_models_and_files(work: Path, cached: Path, hub: Path) -> None:
    (work / "next.safetensors").touch()
    (work / "sdcli").write_text(f'#!/bin/sh\nexec {" ".join(map(shlex.quote, SDCLI))} "$@"\n')
    (work / "sdcli").chmod(0o755)
    environment = clean_environment(work) | {"HF_HOME": str(hub.parent)}
    for words, offered in ((["txt2img", "-m", "so"], REPO), (["txt2img", "--lora", "ne"], "next.safetensors")):
        line = " ".join(map(shlex.quote, ["./sdcli", *words]))
        script = 'eval "$(./sdcli completion bash)"; compopt() { :; }; COMP_WORDS=(' + line + "); COMP_CWORD=3"
        script += '; _sdcli_completion ./sdcli; printf "%s\\n" "${COMPREPLY[@]}"'
        done = subprocess.run(["bash", "-c", script], cwd=work, env=environment, capture_output=True, text=True)
        assert done.stdout.split() == [offered], done.stderr


@pytest.mark.parametrize("kind", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_each_shell(sdcli: Command, kind: str, tmp_path: Path) -> None:
    outcome = sdcli("completion", kind)
    assert outcome.code == 0 and f"_SDCLI_COMPLETE={kind}_complete" in outcome.out and outcome.err == ""
    if program := shutil.which(kind):
        script = tmp_path / "script"
        script.write_text(outcome.out)
        assert subprocess.run([program, "-n", script], capture_output=True, check=False).returncode == 0
    sdcli("completion", "csh").refused(2, "csh")


def test_a_single_file_of_the_hub_s_cache_goes_by_the_name_of_its_repository_and_by_its_own(
    sdcli: Command, hub: Path, tmp_path: Path
) -> None:
    from tests.folders import made, with_clip
    from tests.originals import FIRST, write_single

    content = write_single(with_clip(made(tmp_path / "first", FIRST)), tmp_path / "one.safetensors").read_bytes()
    snapshot = put(hub, "somebody/file", {"README.md": b"#", "one.safetensors": content})
    for ref in ("somebody/file", "somebody/file/one.safetensors"):
        model = resolve_model(ref, lambda *_: None)
        assert "of it 'one.safetensors'" in model.notes[0] and model.path.name == "one.safetensors"
        worker_s = open_model(ref, model.sources)
        assert stamps_of(worker_s) == stamps_of(model)
        assert FileHash(model)() == hashlib.sha256(content).hexdigest()
    (entry,) = [one for one in json.loads(sdcli("models", "list", "--json").out)["models"] if one["ref"] != "demo"]
    assert (entry["ref"], entry["family"], entry["path"]) == ("somebody/file", "sd", str(snapshot / "one.safetensors"))
    assert sdcli("models", "verify", "somebody/file").out.startswith("somebody/file: 1 file, ")
