"""Compares two checkouts of this project from the outside: do they draw the same pixels, and how fast is each?

python benchmarks/checkouts.py --old OLD/bin/python --new NEW/bin/python [--only demo,tiny,sd15] [--steps 2]
python benchmarks/checkouts.py --old OLD/bin/python --new NEW/bin/python --time [--rounds 5] [--limits 2GiB,450MiB]

Each checkout is given as the Python of a virtual environment in which it is installed, and is run as
`PYTHON -P -m sdcli`. Pictures are decoded and compared by the digest of their pixels: a line a case, exit code 1 if
any differs. With --time, the two take turns (old, new, new, old, …) after a warm-up each, and the ratios new/old of
the median step and of the decode are printed, pair by pair and as a median.

Each checkout has a cache of its own, so that neither's plans go by what the other has learned. The synthetic models
are shared: they come from SDCLI_CACHE, or are made by the old checkout first. Temporary folders follow TMPDIR; the
prepared copies of synthetic:sd15 take up to 3.3 GB there for each checkout.

For example, before a branch is merged:

python benchmarks/checkouts.py --old ../main/.venv/bin/python --new .venv/bin/python --only demo,tiny
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

PROMPTS = (
    "a fox on a blue background",
    "a heart above a star on a brown background",
    "a small cat",
    "two apples on a green background",
    "a rocket on a black background",
    "a big red car",
    "a cup to the left of a book",
    "",
)
PARTS = ("demo", "tiny", "sd15")


@dataclass(frozen=True)
class Checkout:
    """One checkout: its name in the table, its Python and a cache of its own."""

    name: str
    python: str
    cache: Path

    def ask(self, command: str, *options: str) -> dict[str, Any] | str:
        """The program's JSON report, or the last line of its error."""
        environment = os.environ | {"SDCLI_CACHE": str(self.cache), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [self.python, "-P", "-m", "sdcli", command, *options, "--json", "-q"],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        return json.loads(done.stdout) if done.returncode == 0 else (done.stderr.strip().splitlines() or ["?"])[-1]


def compare(both: tuple[Checkout, Checkout], home: Path, case: str, command: str, *options: str) -> bool:
    """Runs one case with both checkouts and prints how their pictures compare. Says whether they are the same."""
    pictures, errors = [], []
    for checkout in both:
        path = home / f"{checkout.name}.png"
        told = checkout.ask(command, *options, "--force", "-o", str(path))
        if isinstance(told, str):
            errors.append(f"{checkout.name}: {told}")
        else:
            with Image.open(path) as picture:
                pictures.append(picture.convert("RGB"))
    if errors:
        print(f"FAILED   {case}: {'; '.join(errors)}", flush=True)
        return False
    digests = [hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest() for picture in pictures]
    same = digests[0] == digests[1]
    verdict = f"same     {case}  {digests[0][:12]}" if same else f"DIFFERS  {case}: {difference(*pictures)}"
    print(verdict, flush=True)
    return same


def difference(old: Image.Image, new: Image.Image) -> str:
    """By how much, at most, and at how many pixels two pictures differ."""
    if old.size != new.size:
        return f"sizes {old.size} and {new.size}"
    bands = ImageChops.difference(old, new).split()
    largest = bands[0]
    for band in bands[1:]:
        largest = ImageChops.lighter(largest, band)
    counts = largest.histogram()
    most = max(value for value, count in enumerate(counts) if count)
    return f"by up to {most}/255 at {sum(counts[1:])} of {old.width * old.height} pixels"


def draw_init(path: Path, side: int) -> str:
    """Writes a picture to start img2img from: two gradients and their product."""
    ramp = Image.linear_gradient("L").resize((side, side))
    Image.merge("RGB", (ramp, ramp.rotate(90), ImageChops.multiply(ramp, ramp.rotate(90)))).save(path)
    return str(path)


def demo_cases(home: Path, steps: str) -> Iterator[tuple[str, ...]]:
    """The built-in model: each prompt as txt2img and as img2img."""
    init = draw_init(home / "init256.png", 256)
    for seed, prompt in enumerate(PROMPTS):
        job = ("-p", prompt, "-m", "demo", "-s", steps, "--seed", str(seed))
        yield f"demo txt2img {prompt!r}", "txt2img", *job
        yield f"demo img2img {prompt!r}", "img2img", *job, "--init", init


def tiny_cases(home: Path, steps: str) -> Iterator[tuple[str, ...]]:
    """The tests' tiny model with every scheduler."""
    from sdcli.models.schedulers import SCHEDULERS

    for name in sorted(SCHEDULERS):
        yield f"tiny {name}", "txt2img", "a fox", "-m", str(write_tiny(home, name)), "-s", steps, "--seed", "3"


def write_tiny(home: Path, scheduler: str) -> Path:
    """Writes the tiny model of the tests with another scheduler. Returns its folder."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from sdcli.engine.synthesize import write_model
    from tests.conftest import TINY

    folder = home / f"tiny-{scheduler}"
    folder.mkdir()
    for _ in write_model(TINY | {"scheduler": TINY["scheduler"] | {"_class_name": scheduler}}, folder):
        pass
    return folder


SD15 = ("a photograph of an astronaut riding a horse", "-m", "synthetic:sd15", "--size", "512x512", "--seed", "1")


def sd15_cases(both: tuple[Checkout, Checkout], limits: list[str], steps: str) -> Iterator[tuple[str, ...]]:
    """synthetic:sd15 at 512x512 under each ceiling; `least` is the larger of what the two say they need."""
    for limit in limits:
        size = least(both) if limit == "least" else limit
        yield f"sd15 {limit} ({size})", "txt2img", *SD15, "-s", steps, "--mem-limit", size


def least(both: tuple[Checkout, Checkout]) -> str:
    """The least ceiling that both checkouts accept for synthetic:sd15 at 512x512."""
    sizes = []
    for checkout in both:
        told = checkout.ask("plan", *SD15)
        if isinstance(told, str):
            raise SystemExit(f"{checkout.name} cannot plan: {told}")
        sizes.append(told["smallest_limit_bytes"])
    return f"{-(-max(sizes) // 2**20)}MiB"


def timed(checkout: Checkout, limit: str, steps: str, out: Path) -> tuple[float, float]:
    """Seconds of the median step, and of the decode, of one run of synthetic:sd15."""
    told = checkout.ask("txt2img", *SD15, "-s", steps, "--mem-limit", limit, "--force", "-o", str(out))
    if isinstance(told, str):
        raise SystemExit(f"{checkout.name} under {limit}: {told}")
    return told["steps"]["median_s"], next(stage["run_s"] for stage in told["stages"] if stage["name"] == "decode")


def race(both: tuple[Checkout, Checkout], home: Path, limit: str, steps: str, rounds: int) -> None:
    """Prints the ratios new/old of steps and decodes under one ceiling. The warm-up makes the prepared copies."""
    for checkout in both:
        timed(checkout, limit, "1", home / "warm.png")
    ratios: list[tuple[float, float]] = []
    for turn in range(rounds):
        order = both if turn % 2 == 0 else both[::-1]
        took = {checkout.name: timed(checkout, limit, steps, home / "time.png") for checkout in order}
        old, new = took["old"], took["new"]
        ratios.append((new[0] / old[0], new[1] / old[1]))
        print(
            f"{limit}  step {old[0]:.3f} s → {new[0]:.3f} s, {ratios[-1][0]:.3f} x;"
            f"  decode {old[1]:.2f} s → {new[1]:.2f} s, {ratios[-1][1]:.3f} x",
            flush=True,
        )
    step, decode = (statistics.median(pair[at] for pair in ratios) for at in (0, 1))
    print(f"{limit}  median of {rounds}: step {step:.3f} x, decode {decode:.3f} x", flush=True)


def prepare(both: tuple[Checkout, Checkout], shared: Path) -> None:
    """Makes each checkout's cache, with the synthetic models linked in from the folder `shared`."""
    shared.mkdir(parents=True, exist_ok=True)
    for checkout in both:
        checkout.cache.mkdir()
        (checkout.cache / "synthetic").symlink_to(shared.resolve())


def main() -> int:
    """Compare, or time, as asked. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", required=True, help="Python of the checkout that is the measure")
    parser.add_argument("--new", required=True, help="Python of the checkout that is compared with it")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--steps", help="4 for demo and tiny, 2 for sd15, 4 with --time")
    parser.add_argument("--limits", help="2GiB,600MiB,least; with --time 2GiB,450MiB")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only knows {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        both = (Checkout("old", options.old, home / "old"), Checkout("new", options.new, home / "new"))
        cache = os.environ.get("SDCLI_CACHE")
        prepare(both, Path(cache) / "synthetic" if cache else home / "synthetic")
        if options.time:
            for limit in (options.limits or "2GiB,450MiB").split(","):
                race(both, home, limit, options.steps or "4", options.rounds)
            return 0
        cases = itertools.chain(
            demo_cases(home, options.steps or "4") if "demo" in parts else (),
            tiny_cases(home, options.steps or "4") if "tiny" in parts else (),
            sd15_cases(both, (options.limits or "2GiB,600MiB,least").split(","), options.steps or "2")
            if "sd15" in parts
            else (),
        )
        same = [compare(both, home, *case) for case in cases]
    print(f"{sum(same)} of {len(same)} the same")
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
