"""The shape of the program, read from its source.

A room is a folder of sdcli/, or a module beside them. A room imports from lower floors and from itself, and
never from another room of its own floor. Floor 0 is one room of several files. Only the rooms that run in the
worker may import the libraries that do the arithmetic.
"""

from __future__ import annotations

import ast
import configparser
import graphlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sdcli

PACKAGE = Path(sdcli.__file__).parent

FLOORS = {
    "__main__": 11,
    "cli": 10,
    "app": 9,
    "host": 8,
    "engine": 7,
    "networks": 6,
    "blocks": 5,
    "weights": 4,
    "pages": 4,
    "devices": 3,
    "plan": 3,
    "models": 2,
    "families": 1,
    "images": 2,
    "arm": 0,
    "machine": 1,
    "domain": 0,
    "units": 0,
    "uses": 0,
    "errors": 0,
    "settings": 0,
    "locks": 0,
    "messages": 0,
    "interrupts": 0,
    "sniff": 0,
    "spool": 0,
}

FAMILIES = {
    "autoencoders",
    "contract",
    "registry",
    "colours",
    "rounds",
    "rules",
    "kinds",
    "family",
    "parts",
    "schema",
    "vocabulary",
} | {
    "single",
    "single_file",
    "original",
    "embeddings",
    "ldm_names",
    "spellings",
    "prompts",
    "byte_pairs",
}
"""Modules of families/ that the host may load: models are checked by them. All others there are networks, which compute
with what lies on the floors between, and are a room of their own."""

WORKER_ROOMS = {"engine", "networks", "blocks", "weights", "devices"}
ARITHMETIC = {"torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy"}
ONLY_IN = {"PIL": "images", "click": "cli", "matplotlib": "pages", "jinja2": "pages"}

LINES_LIMIT = 350

BOUNDARIES = {
    "cli/main.py": "the one boundary of the program: a person gets one line",
    "engine/__main__.py": "the one boundary of the worker: the host hears of it, or it begins anew with plain imports",
    "host/watchdog.py": "the same boundary's end in the watch's thread: the host raises it where a person sees it",
    "weights/empty.py": "constructors raise bare exceptions of many kinds for a config that they cannot build",
    "families/sd/text_encoder.py": "the tokenizer library raises bare exceptions of many kinds for a damaged file",
    "families/qwen3/tokens.py": "the same",
}
"""Where everything may be caught and not raised again, and why."""

NAMES_OF_MODELS = re.compile(
    r"(?<![A-Za-z0-9])(?:UNet\w*|unets?|CLIP(?:[A-Z][a-z]\w*)?|clip(?![_-](?:s(?:ample|kip)|on))|AutoencoderKL\w*|VAE|vae|attn[12]|text_encoder"
    r"|block_out_channels)(?![A-Za-z0-9])|(?<![\w.])(?:77|0\.18215)(?![\w.])"
)
"""Networks, layers and constants of one model, as whole words: parts of a name that has underscores are words."""

NAMING_ALLOWED = {
    "blocks/attention.py": "the 77 tokens of a chunk: a number that its comments measure with",
    "blocks/bands.py": "diffusers' module that has the distribution of latents",
    "blocks/frugal.py": "diffusers' block of attention, which families share, calls its layers attn1 and attn2",
    "engine/lean_imports.py": "modules of diffusers that need not be imported",
    "weights/lend.py": "the 77 tokens of a chunk, in a comment",
    "weights/packed.py": "an example, in a comment",
}
"""Files outside of families/ that name them still, and why."""

MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in MODULES.items()}


def room(module: str) -> str:
    """The room of `sdcli.room.module`; an empty name for the package itself."""
    name = module.split(".")[1] if "." in module else ""
    is_network = name == "families" and module in MODULES and MODULES[module].stem not in FAMILIES | {"__init__"}
    return "networks" if is_network else name


def imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every module that is imported, also inside functions, by its full name, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"line {node.lineno}: imports are absolute here"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module, node.lineno


def faults_of_import(importer: str, imported: str) -> str | None:
    """Why `importer` may not import `imported`, both modules of ours; None if it may."""
    mine, other = room(importer), room(imported)
    if other in {"", mine} or FLOORS[mine] == FLOORS[other] == 0:
        return None
    if FLOORS[other] >= FLOORS[mine]:
        return f"{importer} is on floor {FLOORS[mine]} and imports {imported} of floor {FLOORS[other]}"
    return None


def test_every_room_is_on_a_floor_and_every_floor_has_its_rooms() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert folders - {"configs"} | files | {"networks"} == set(FLOORS)  # configs/ is data


def test_every_package_is_installed_and_so_is_what_lies_in_it() -> None:
    setup = configparser.ConfigParser()
    setup.read(PACKAGE.parent / "setup.cfg", "utf-8")
    packages = {".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in PACKAGE.rglob("__init__.py")}
    assert set(setup["options"]["packages"].split()) == packages | {"sdcli.configs"}
    data = {
        path
        for package, patterns in setup["options.package_data"].items()
        if package != "sdcli.configs"
        for pattern in patterns.split()
        for path in PACKAGE.parent.joinpath(*package.split(".")).glob(pattern)
    }
    kept = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}}
    assert {path.relative_to(PACKAGE).as_posix() for path in kept - data} == set()


def test_rooms_import_downwards_only() -> None:
    faults = [
        fault
        for importer, tree in TREES.items()
        for imported, _ in imports(tree)
        if imported.split(".")[0] == "sdcli" and (fault := faults_of_import(importer, imported))
    ]
    assert faults == []


def test_the_rule_itself_tells_up_from_down() -> None:
    assert faults_of_import("sdcli.engine.decode", "sdcli.app.run")
    assert faults_of_import("sdcli.devices.cpu", "sdcli.plan.meter")
    assert faults_of_import("sdcli.models.folder", "sdcli.images.read")
    assert faults_of_import("sdcli.errors", "sdcli.machine")
    assert faults_of_import("sdcli.app.run", "sdcli.cli.say")
    assert faults_of_import("sdcli.families.sd.family", "sdcli.families.sd.network")
    assert faults_of_import("sdcli.families.sd.schema", "sdcli.models.folder")
    assert faults_of_import("sdcli.models.folder", "sdcli.families.sd.unet")
    assert faults_of_import("sdcli.models.folder", "sdcli.families.registry") is None
    assert faults_of_import("sdcli.families.sd.network", "sdcli.families.sd.family") is None
    assert faults_of_import("sdcli.cli.draw", "sdcli.app.run") is None
    assert faults_of_import("sdcli.messages", "sdcli.domain") is None
    assert faults_of_import("sdcli.cli.say", "sdcli") is None


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        importer: {imported for imported, _ in imports(tree) if imported in MODULES and imported != importer}
        for importer, tree in TREES.items()
    }
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
    assert order.index("sdcli.errors") < order.index("sdcli.cli.main")


def test_only_the_worker_s_rooms_import_the_arithmetic() -> None:
    faults = [
        f"{importer}:{line} imports {imported}"
        for importer, tree in TREES.items()
        if room(importer) not in WORKER_ROOMS
        for imported, line in imports(tree)
        if imported.split(".")[0] in ARITHMETIC
    ]
    assert faults == []


def test_libraries_of_one_room_stay_in_it() -> None:
    faults = [
        f"{importer}:{line} imports {imported}"
        for importer, tree in TREES.items()
        for imported, line in imports(tree)
        if (at_home := ONLY_IN.get(imported.split(".")[0])) and room(importer) != at_home
    ]
    assert faults == []


def test_modules_are_short() -> None:
    lengths = {name: len(path.read_text("utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > LINES_LIMIT} == {}


def undocumented(module: str, tree: ast.Module) -> Iterator[str]:
    """Public functions, classes and methods without a docstring; methods that override a library's are excused."""
    if tree.body and ast.get_docstring(tree) is None:
        yield module
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            yield f"{module}.{node.name}"
        if isinstance(node, ast.ClassDef) and all(ast.unparse(base) == "Protocol" for base in node.bases):
            methods = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name[0] != "_"]
            yield from (f"{module}.{node.name}.{m.name}" for m in methods if ast.get_docstring(m) is None)


def test_everything_public_has_a_docstring() -> None:
    assert [name for module, tree in TREES.items() for name in undocumented(module, tree)] == []


def swallows_all(handler: ast.ExceptHandler) -> bool:
    """Whether a handler catches every exception and does not raise the very same again."""
    everything = {"Exception", "BaseException"}
    catches = handler.type is None or any(
        isinstance(node, ast.Name) and node.id in everything for node in ast.walk(handler.type)
    )
    last = handler.body[-1]
    return catches and not (isinstance(last, ast.Raise) and last.exc is None)


def test_everything_is_caught_at_the_boundaries_only() -> None:
    found = {
        MODULES[module].relative_to(PACKAGE).as_posix()
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and swallows_all(node)
    }
    assert found - set(BOUNDARIES) == set()


def test_no_file_outside_families_names_a_network_a_layer_or_a_constant_of_one_model() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix(): names
        for module, path in MODULES.items()
        if not module.startswith("sdcli.families.")
        and (names := sorted(set(NAMES_OF_MODELS.findall(path.read_text("utf-8")))))
    }
    assert {name: names for name, names in found.items() if name not in NAMING_ALLOWED} == {}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a UNet2DConditionModel of unet_config", ["UNet2DConditionModel", "unet"]),
        ("self.vae_tile = CLIPTextModel(text_encoder_2)", ["vae", "CLIPTextModel", "text_encoder"]),
        ("attn1.to_q, attn2 and 77 or 0.18215", ["attn1", "attn2", "77", "0.18215"]),
        ("clip_skip clip_sample clip_on clips eclipse unetwork _CLIPPED 1977 0.77 77.5 attn12", []),
    ],
)
def test_the_rule_of_names_knows_them_as_whole_words(text: str, names: list[str]) -> None:
    assert NAMES_OF_MODELS.findall(text) == names


def test_mps_never_falls_back_to_the_cpu_by_our_doing() -> None:
    warn = {PACKAGE / "app" / "troubles.py", PACKAGE.parent / "configs" / "troubles" / "known.toml"}
    for path in {*MODULES.values(), *(PACKAGE.parent / "configs").rglob("*.toml")} - warn:
        assert "MPS_FALLBACK" not in path.read_text("utf-8"), path


@pytest.mark.parametrize("arithmetic", ["torch", "numpy", "diffusers", "transformers", "safetensors", "accelerate"])
def test_the_host_loads_none_of_the_arithmetic(arithmetic: str, loaded_by_the_host: set[str]) -> None:
    assert arithmetic not in loaded_by_the_host


@pytest.fixture(scope="module")
def loaded_by_the_host() -> set[str]:
    """Top-level names of all modules that the host's side loads, every command included."""
    ours = [
        name
        for name in MODULES
        if room(name) in {"host", "app", "cli", "plan", "models", "families", "images", "machine"}
    ]
    assert "sdcli.app.run" in ours and "sdcli.cli.txt2img" in ours
    code = (
        f"import importlib, json, sys\nfor n in {ours}: importlib.import_module(n)\nprint(json.dumps([*sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert {"sdcli", "click", "psutil"} <= loaded
    return loaded
