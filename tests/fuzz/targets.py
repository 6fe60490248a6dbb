"""The parsers of foreign data that need no torch. Those of the worker: worker_targets.py."""

from __future__ import annotations

import json
import operator
import os
import shutil
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from sdcli.domain import Request, Sources
from sdcli.errors import BadRequest, SdcliError
from sdcli.models.header import ITEM_BYTES
from tests.fuzz import seeds
from tests.fuzz.harness import Run, Target

TENSORS_MOST, BYTES_MOST = 4096, 2**40
"""Of files that are made as an input says: what is more is refused by the header's own target."""


def _file(parse: Any, name: str = "given") -> Any:
    """A parser of one file."""

    def prepare(place: Path) -> Run:
        def run(data: bytes, place: Path) -> object:
            path = place / name
            path.write_bytes(data)
            return parse(path)

        return run

    return prepare


def _text(parse: Any) -> Any:
    """A parser of a text, as the command line brings it: lone surrogates stand for bytes that are no UTF-8."""

    def prepare(place: Path) -> Run:
        return lambda data, place: parse(data.decode("utf-8", "surrogateescape"))

    return prepare


def _made(path: Path, data: bytes) -> Path | None:
    """A file with the tensors that an input names, of which the disk keeps none; None for an input that names none."""
    try:
        shapes = json.loads(data)
        notes = shapes.pop("__metadata__", None)
        header: dict[str, Any] = {} if notes is None else {"__metadata__": notes}
        at = 0
        for name, (dtype, shape) in list(shapes.items())[:TENSORS_MOST]:
            nbytes = ITEM_BYTES[dtype]
            for side in shape:
                nbytes *= operator.index(side)
                if not 0 <= nbytes < BYTES_MOST:
                    return None
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}
            at += nbytes
        raw = json.dumps(header).encode()
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)
    os.truncate(path, 8 + len(raw) + at)
    return path


def _header(path: Path) -> object:
    from sdcli.models.header import read_header
    from sdcli.models.quantised import require_readable

    file = read_header(path)
    require_readable(file)
    return file


def _single(place: Path) -> Run:
    from sdcli.models.opened import open_model
    from sdcli.models.single import parts_in_file

    def run(data: bytes, place: Path) -> object:
        path = _made(place / "m.safetensors", data)
        if path is None:
            return None
        parts_in_file("m", path)
        return open_model("m", Sources(str(path)))

    return run


def _for_demo(change: Any) -> Any:
    """What is added to the built-in model, from a file with the tensors that an input names."""

    def prepare(place: Path) -> Run:
        from sdcli.models.opened import open_model

        model = open_model("demo", seeds.DEMO)

        def run(data: bytes, place: Path) -> object:
            path = _made(place / "added.safetensors", data)
            return None if path is None else change(model, path)

        return run

    return prepare


def _lora(model: Any, path: Path) -> object:
    from sdcli.models.lora import with_loras

    return with_loras(model, [(str(path), 0.5)])


def _embedding(model: Any, path: Path) -> object:
    from sdcli.families.registry import family_of, words_in
    from sdcli.models.header import read_header

    return words_in(family_of(model), read_header(path), model.parts)


def _folder(place: Path) -> Run:
    """A model's folder, one file of which is an input."""
    from sdcli.models.opened import open_model

    home = place / "model"
    shutil.copytree(seeds.DEMO, home, copy_function=os.symlink)
    own = {name: (home / name).readlink() for name in seeds.FILES}

    def run(data: bytes, place: Path) -> object:
        name = seeds.FILES[(data[0] if data else 0) % len(seeds.FILES)]
        (home / name).unlink()
        (home / name).write_bytes(data[1:])
        try:
            return open_model("m", home)
        finally:
            (home / name).unlink()
            (home / name).symlink_to(own[name])

    return run


def _tokenizer(place: Path) -> Run:
    from sdcli.families.sd.parts import VOCABULARY_LIMITS
    from sdcli.models.tokenizer_files import check_tokenizer, is_tokenizer

    def run(data: bytes, place: Path) -> object:
        write_tokenizer(data, place)
        return check_tokenizer(place, VOCABULARY_LIMITS) if is_tokenizer(place) else None

    return run


def write_tokenizer(data: bytes, place: Path) -> None:
    """vocab.json and merges.txt, with a NUL byte in between, or tokenizer.json."""
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (place / name).unlink(missing_ok=True)
    first, apart, second = data.partition(b"\0")
    (place / ("vocab.json" if apart else "tokenizer.json")).write_bytes(first)
    if apart:
        (place / "merges.txt").write_bytes(second)


def _prompt(text: str) -> object:
    from sdcli.app.asked import Asked
    from sdcli.app.loras import loras_of, without_tags
    from sdcli.cli.prompt_types import Text
    from sdcli.families.prompts import is_marked, turns_of

    text = Text().convert(text, None, None)
    request = Request(without_tags(text), text[:40], 64, 64, 7, 7.5, 1, 1)
    loras_of(Asked(prompt=text, seed=1))
    return is_marked(request), turns_of(request)


def _options(text: str) -> object:
    from sdcli.cli import pairs, types
    from sdcli.cli.prompt_types import Text
    from sdcli.models.hub_ids import parse_hub_ref
    from sdcli.settings import read_profile
    from sdcli.units import parse_size

    kinds = [
        types.WholeNumber(0, 1000),
        types.Side(),
        types.Size(),
        types.FiniteNumber(0),
        types.Margins(),
        types.Seed(),
    ]
    kinds += [types.Limit(), Text(), types.LoraFile(), types.SamplerName(), types.ScheduleName()]
    for convert in (
        *(lambda text, kind=kind: kind.convert(text, None, None) for kind in (*kinds, pairs.PIXEL_SIZE, pairs.CORNER)),
        read_profile,
        parse_size,
        parse_hub_ref,
    ):
        try:
            convert(text)
        except SdcliError as error:
            assert str(error).isprintable(), str(error)
        except click.UsageError as error:
            assert error.format_message().isprintable(), error.format_message()
    return None


_HELP: Any = {"help_option_names": ["-h", "--help"]}
"""As the program has it: a command remembers what it was first asked with."""


def _lines(place: Path) -> Run:
    """--prompts FILE."""
    from sdcli.cli.lines import _parsed
    from sdcli.cli.prompt_types import PromptFile
    from sdcli.cli.txt2img import command

    def run(data: bytes, place: Path) -> object:
        path = place / "prompts.txt"
        path.write_bytes(data)
        with suppress(click.UsageError):
            PromptFile().convert(str(path), None, None)
        with command.make_context("txt2img", ["--prompts", str(path)], **_HELP) as ctx:
            for at, line in ctx.params["prompts"][:8]:
                try:
                    _parsed(ctx, at, line)
                except (BadRequest, SdcliError) as error:
                    assert str(error).isprintable(), str(error)
        return None

    return run


def _config(place: Path) -> Run:
    """The user's config file."""
    from sdcli.cli.txt2img import command

    def run(data: bytes, place: Path) -> object:
        path = place / "config.toml"
        path.write_bytes(data)
        os.environ["SDCLI_CONFIG"] = str(path)
        try:
            with command.make_context("txt2img", ["a fox"], **_HELP) as ctx:
                return ctx.params
        finally:
            del os.environ["SDCLI_CONFIG"]

    return run


def _picture_with(name: bytes) -> Any:
    """A picture whose text an input is: what it says of itself, and what would draw it again."""

    def parse(path: Path) -> object:
        text = path.read_bytes()
        body = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", body), (b"iTXt", name + b"\0\0\0\0\0" + text), (b"IEND", b"")]
        raw = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + raw)
        return _told(path)

    return parse


def _told(path: Path) -> object:
    from sdcli.app.replay import info_report, replay_of, require_given
    from sdcli.images.told import read_told

    told = read_told(path)
    json.dumps(info_report(str(path), told)).encode()
    found = replay_of(told)
    assert all(text.isprintable() for note in found.notes for text in note), found.notes
    require_given(told, {"init": None, "mask": None, "references": ()})
    return found


def _init(path: Path) -> object:
    from dataclasses import replace

    from sdcli.images.read import ALL_OF_IT, read_init

    image = read_init(path, 64, 64)
    assert len(image.pixels) == 64 * 64 * 3
    with suppress(SdcliError):
        read_init(path, None, None, replace(ALL_OF_IT, mask="alpha"))
    return image


def _run_folder(name: str) -> Any:
    """A run's folder, one file of which is an input: listed, gone on with."""

    def prepare(place: Path) -> Run:
        from sdcli.app.folder import RunFolder
        from sdcli.app.resume import _retry
        from sdcli.app.runs import take_lock
        from sdcli.app.unfinished import _step_of, look_at
        from tests.fuzz.runs import write_run

        home = write_run(place / "runs" / "20261128-000000-00000000")

        def run(data: bytes, place: Path) -> object:
            path = home / name
            before = path.read_bytes() if path.exists() else None
            path.write_bytes(data)
            try:
                _retry(home)
                found = look_at(home)
                _step_of(path, found.file.request)
                job = found.file.task() if name == "job.json" else None
                lock = take_lock(home)
                assert lock is not None
                folder = RunFolder.reopened(home, lock, found.count)
                [folder.checkpoints[one] for one in folder.checkpoints]
                [folder.latents[one] for one in folder.latents]
                os.close(lock)
                return job
            finally:
                path.unlink(missing_ok=True)
                if before is not None:
                    path.write_bytes(before)

        return run

    return prepare


def _remembered(place: Path) -> Run:
    """The small tables in the cache."""
    from sdcli.app.unfinished import TOLD, sweep
    from sdcli.plan import baselines, remainders, speeds

    names = ("speeds.json", "remainders.json", "baseline.json", TOLD)

    def run(data: bytes, place: Path) -> object:
        os.environ["SDCLI_CACHE"] = str(place)
        try:
            for name in names:
                (place / name).write_bytes(data)
            sweep()
            key = "cpu fp32"
            return (
                speeds.remembered_speed("cpu", "fp32"),
                remainders.remembered_remainder(key),
                baselines.remembered_baseline("cpu"),
            )
        finally:
            del os.environ["SDCLI_CACHE"]

    return run


def _counts(place: Path) -> Run:
    """What a dry run counted, kept in the cache."""
    from sdcli.app import counts

    (place / "counts").mkdir()

    def run(data: bytes, place: Path) -> object:
        (place / "counts" / "key.json").write_bytes(data)
        os.environ["SDCLI_CACHE"] = str(place)
        try:
            return counts._read("key")
        finally:
            del os.environ["SDCLI_CACHE"]

    return run


def _manifest(path: Path) -> object:
    from sdcli.models.synthetic import MANIFEST, _verified

    path.rename(path.parent / MANIFEST)
    return _verified(path.parent)


def _detected(path: Path) -> object:
    from sdcli.sniff import HEAD_BYTES, detect

    return detect(path.read_bytes()[:HEAD_BYTES])


_SPEEDS = {"cpu fp32": {"flops": 1e11, "cast_bytes": 1e9, "prepared_bytes": 1e10}}
_REMAINDERS = {"cpu fp32": {"times": 1.1, "heap_bytes": 1e8}}
_COUNTED = {"denoise": {"weights": [["unet", "a.weight", [4, 4], "matrix", [8, 8], 1]], "ways": {"": [1, 1, 2.0, 3]}}}

HOST = (
    Target("header", _file(_header, "w.safetensors"), seeds.headers, "header", 1400),
    Target("sniff", _file(_detected), lambda: [*seeds.headers(), *seeds.pictures()], "bytes", 400),
    Target("single", _single, seeds.networks, "json", 600),
    Target("lora", _for_demo(_lora), seeds.loras, "json", 600),
    Target("embedding", _for_demo(_embedding), seeds.words, "json", 600),
    Target("model-folder", _folder, seeds.configs, "config", 800),
    Target("tokenizer-files", _tokenizer, seeds.vocabularies, "bytes", 600),
    Target("prompt", _text(_prompt), seeds.PROMPTS, "text", 1600),
    Target("options", _text(_options), seeds.OPTIONS, "text", 1600),
    Target("prompts-file", _lines, seeds.LINES, "text", 300),
    Target("config-file", _config, seeds.CONFIG, "text", 500),
    Target("told", _file(_told), seeds.pictures, "bytes", 800),
    Target("a1111", _file(_picture_with(b"parameters")), seeds.A1111, "text", 1200),
    Target("comfyui", _file(_picture_with(b"prompt")), seeds.COMFYUI, "json", 1200),
    Target("record", _file(_picture_with(b"sdcli")), seeds.records, "json", 1200),
    Target("init-image", _file(_init), seeds.pictures, "bytes", 800),
    Target("job", _run_folder("job.json"), lambda: _runs().jobs(), "json", 600),
    Target("checkpoint-file", _run_folder("checkpoint-0"), lambda: _runs().checkpoints(), "bytes", 400),
    Target("saved-mark", _run_folder("saved-0"), seeds.plain("/a/b.png", None), "json", 400),
    Target(
        "retry-mark", _run_folder("retry.json"), seeds.plain({"dtype": "fp32", "denoised": {"0": "bf16"}}), "json", 400
    ),
    Target(
        "remembered", _remembered, seeds.plain(_SPEEDS, _REMAINDERS, {"20261128-000000-00000000": 1.0}), "json", 800
    ),
    Target("counts", _counts, seeds.plain(_COUNTED), "json", 1000),
    Target(
        "manifest",
        _file(_manifest),
        seeds.plain({"files": {"a": {"size": 1, "sample_sha256": ""}}, "sha256": ""}),
        "json",
        600,
    ),
)


def _runs() -> Any:
    from tests.fuzz import runs

    return runs
