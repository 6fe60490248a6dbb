"""Names of models on the Hub, and the cache's folder: the same that huggingface_hub finds."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from sdcli.models.hub_ids import HubRef, cached_refs, find_in_cache, hub_cache, parse_hub_ref
from sdcli.models.weight_files import weights_to_fetch

VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "HOME")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES[:4]:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("org/name", HubRef("org/name")),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", HubRef("stable-diffusion-v1-5/stable-diffusion-v1-5")),
        ("a.b_c/D-1.5", HubRef("a.b_c/D-1.5")),
        ("org/name@0123abc", HubRef("org/name", "0123abc")),
        ("org/name@fp16/x/y.safetensors", HubRef("org/name", "fp16", "x/y.safetensors")),
        ("org/name/y.safetensors", HubRef("org/name", None, "y.safetensors")),
        ("org/name/tokenizer.json", HubRef("org/name", None, "tokenizer.json")),
    ],
)
def test_a_name_is_read_and_written_alike(text: str, ref: HubRef) -> None:
    assert parse_hub_ref(text) == ref and str(ref) == text


@pytest.mark.parametrize(
    "text",
    [
        *("name", "/a/b", "./a/b", "../a", "a/..", "a/b/../c.safetensors", "a/b/c", "a--b/c", "-a/b", "a/b-", "a/b@"),
        *(
            "a/b@../c",
            "a/b.safetensors",
            "a/b.CKPT",
            "a/b/my_tokenizer.json",
            "a /b",
            "a/b\n",
            "a/b\0",
            "ä/b",
            "a\\b/c",
            "~/a",
        ),
        "a" * 60 + "/" + "b" * 60,
    ],
)
def test_what_is_no_name_is_none(text: str) -> None:
    assert parse_hub_ref(text) is None


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"HF_HOME": "/x/y"},
        {"HF_HOME": "~/x"},
        {"HF_HOME": "$HOME/x"},
        {"HF_HUB_CACHE": "/x/cache", "HF_HOME": "/y"},
        {"HUGGINGFACE_HUB_CACHE": "/x/old"},
        {"HF_HUB_CACHE": "/x/cache", "HUGGINGFACE_HUB_CACHE": "/x/old"},
        {"XDG_CACHE_HOME": "/x/caches"},
    ],
    ids=str,
)
def test_the_cache_is_where_huggingface_hub_has_it(setting: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (setting | {"HOME": "/home/somebody"}).items():
        monkeypatch.setenv(name, value)
    code = "import runpy, sys; print(runpy.run_path(sys.argv[1])['HF_HUB_CACHE'])"
    spec = find_spec("huggingface_hub")
    assert spec is not None and spec.origin is not None
    constants = Path(spec.origin).with_name("constants.py")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, constants], capture_output=True, text=True, check=True
    )
    assert str(hub_cache()) == done.stdout.strip()


def test_a_snapshot_is_found_by_main_by_a_commit_its_beginning_or_a_branch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    top = tmp_path / "models--a--b"
    one, two = "1" * 40, "1" * 39 + "2"
    for commit in (one, two):
        (top / "snapshots" / commit / "unet").mkdir(parents=True)
    (top / "refs").mkdir()
    (top / "refs" / "fp16").write_text(two)

    def found(text: str) -> str | None:
        ref = parse_hub_ref(text)
        assert ref is not None
        path = find_in_cache(ref)
        return path[0].name if path else None

    assert found("a/b") is None and found(f"a/b@{one}") == one and found("a/b@fp16") == two
    assert found("a/b@1111111") is None and found("a/b@" + two[:40]) == two and found("a/b@nope") is None
    assert [str(ref) for ref in cached_refs()] == [f"a/b@{one}", f"a/b@{two}"]
    (top / "refs" / "main").write_text(one)
    assert found("a/b") == one and [str(ref) for ref in cached_refs()] == ["a/b", f"a/b@{two}"]
    (top / "refs" / "main").write_text("../../../etc")
    assert found("a/b") is None


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["m.safetensors", "m.fp16.safetensors", "m.bf16.safetensors"], ["m.fp16.safetensors"]),
        (["m.safetensors", "m.bf16.safetensors", "m.non_ema.safetensors"], ["m.bf16.safetensors"]),
        (["m.safetensors", "m.non_ema.safetensors", "m.bin"], ["m.safetensors"]),
        (
            ["m.safetensors", "m.fp16-00001-of-00002.safetensors", "m.fp16-00002-of-00002.safetensors"],
            ["m.fp16-00001-of-00002.safetensors", "m.fp16-00002-of-00002.safetensors"],
        ),
        (["m.safetensors", "m.fp16-00001-of-00002.safetensors"], ["m.safetensors"]),
        (["m.bin"], []),
    ],
    ids=lambda value: value[-1] if value else "none",
)
def test_half_precision_is_fetched_where_it_is_whole(names: list[str], taken: list[str]) -> None:
    assert [path.name for path in weights_to_fetch(Path(), names, "m").paths] == taken


def test_reading_the_cache_imports_no_huggingface_hub() -> None:
    code = "import json, sys, sdcli.cli.models, sdcli.models.reference; print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert "sdcli" in loaded and loaded & {"huggingface_hub", "httpx", "httpx2", "filelock"} == set()
