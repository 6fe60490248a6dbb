"""`python -m tests.fuzz [TARGET ...] [--inputs N] [--seconds S] [--seed K]`: feed parsers until one does what none may.

Guided by which code has run, by atheris (`pip install -e .[test,fuzz]`): inputs that reach something new are kept and
changed further. Without it inputs are only those of the tests, more of them. Each parser has a process of its own, and
a line of figures; what was found lies in the folder that is named.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import psutil

WORKER = ("checkpoint", "encodings", "float8", "tokenizer", "prepared-copy")
"""Parsers for which torch must be imported."""

HANG_S = 10
"""An input that takes longer is a hang."""

WARM = 2000
"""After so many inputs what lazily comes into memory is there, and growth is counted."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help="all, if none is named")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="a parser, at most")
    parser.add_argument("--seconds", type=int, default=600, help="a parser, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--found", default="fuzz-found", help="folder for inputs that were found")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--home", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        feed(asked)
        return
    from tests.fuzz.targets import HOST

    names = asked.targets or [*(target.name for target in HOST), *WORKER]
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: inputs are not guided by what has run")
    begun, total, failed = time.monotonic(), 0, 0
    for name in names:
        told = figures(name, asked)
        total, failed = total + told["inputs"], failed + (told["ended"] != "whole")
        print(
            "{name:16} {inputs:9,} inputs, {seconds:4.0f} s, seed {seed}, growth {growth_mib:.1f} MiB, {ended}".format(
                **told
            )
        )
        sys.stdout.flush()
    print(f"{total:,} inputs, {(time.monotonic() - begun) / 3600:.2f} hours, {failed} parsers crashed, hung or grew")
    sys.exit(failed > 0)


def figures(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Of one parser, from its process."""
    found = Path(asked.found).absolute() / name
    found.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "tests.fuzz",
        "--child",
        name,
        "--inputs",
        str(asked.inputs),
        "--found",
        str(found),
    ]
    command += ["--seconds", str(asked.seconds), "--seed", str(asked.seed)]
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with (found / "log").open("wb") as log, tempfile.TemporaryDirectory(prefix="sdcli-fuzz-", dir=memory) as home:
        code = subprocess.run([*command, "--home", home], stdout=log, stderr=log, check=False).returncode
    told = {"name": name, "inputs": 0, "seconds": 0.0, "seed": asked.seed, "growth_mib": 0.0}
    if (found / "figures.json").exists():
        told |= json.loads((found / "figures.json").read_text())
    kept = sorted(
        path.name for path in found.iterdir() if path.name.startswith(("crash-", "timeout-", "oom-", "slow-"))
    )
    bad = [one for one in kept if not one.startswith("slow-")]
    told["ended"] = f"{bad[0]} in {found}" if bad else "whole" if code == 0 else f"exit code {code}, see {found}/log"
    if not told["inputs"] and told["ended"] == "whole":
        told["ended"] = f"nothing was fed, see {found}/log"
    if told["growth_mib"] > 50 and told["ended"] == "whole":
        told["ended"] = "growth"
    return told


class Fed:
    """Feeds one parser and counts."""

    def __init__(self, target: Any, place: Path, found: Path) -> None:
        self.target, self.place, self.found = target, place, found
        self.run, self.begin = target.prepare(place), target.seeds()
        self.count, self.started, self.warm_bytes = 0, time.monotonic(), 0

    def __call__(self, data: bytes) -> None:
        from tests.fuzz.harness import Escaped, fed

        self.count += 1
        if self.count == WARM:
            self.warm_bytes = psutil.Process().memory_info().rss
        if self.count % 100 == 1:
            self.tell()
        try:
            fed(self.run, data, self.place)
        except Escaped as error:
            raise RuntimeError(f"escaped: {error}") from error

    def tell(self) -> None:
        """Put the figures down."""
        growth = psutil.Process().memory_info().rss - self.warm_bytes if self.warm_bytes else 0
        told = {"inputs": self.count, "seconds": time.monotonic() - self.started, "growth_mib": growth / 2**20}
        (self.found / "figures.json").write_text(json.dumps(told))

    def changed(self, data: bytes, random: Random) -> bytes:
        """Another input."""
        from tests.fuzz.mutations import mutated

        return mutated(data, self.target.structure, random, self.begin)


def feed(asked: argparse.Namespace) -> None:
    """The process of one parser."""
    guided = importlib.util.find_spec("atheris") is not None
    if guided:
        import atheris

        with atheris.instrument_imports(include=["sdcli"]):
            fed = _prepared(asked)
    else:
        fed = _prepared(asked)
    if not guided:
        random, pool = Random(asked.seed), list(fed.begin)
        while fed.count < asked.inputs and time.monotonic() - fed.started < asked.seconds:
            data = fed.changed(random.choice(pool), random)
            try:
                fed(data)
            except BaseException:
                (Path(asked.found) / f"crash-{fed.count}").write_bytes(data)
                raise
        fed.tell()
        return

    def mutator(data: bytes, most_bytes: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.3:
            return bytes(atheris.Mutate(data, most_bytes))
        return fed.changed(data if random.random() < 0.95 else random.choice(fed.begin), random)[:most_bytes]

    corpus = fed.place.parent / "corpus"
    corpus.mkdir()
    for at, data in enumerate(fed.begin):
        (corpus / str(at)).write_bytes(data)
    options = [f"-runs={asked.inputs}", f"-max_total_time={asked.seconds}", f"-seed={asked.seed}", f"-timeout={HANG_S}"]
    options += ["-max_len=65536", "-rss_limit_mb=4096", f"-artifact_prefix={asked.found}/", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], fed, custom_mutator=mutator)
    atheris.Fuzz()


def _prepared(asked: argparse.Namespace) -> Fed:
    from tests.fuzz.targets import HOST

    targets = {target.name: target for target in HOST}
    if asked.child in WORKER:
        from tests.fuzz.worker_targets import WORKER as torch_targets

        targets |= {target.name: target for target in torch_targets}
    place = Path(asked.home) / "place"
    place.mkdir()
    fed = Fed(targets[asked.child], place, Path(asked.found))
    for data in fed.begin:  # so that all that it imports is looked at
        with suppress(Exception):
            fed.run(data, place)
    return fed


if __name__ == "__main__":
    main()
