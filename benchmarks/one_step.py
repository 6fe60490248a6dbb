"""From the command to the PNG file of one step with a tiny decoder, start-up included: sdcli against OpenVINO.

    python -m benchmarks.one_step [--size 512x512] [--rounds 5] [--ceilings none,600MiB] [--runs sdcli,openvino]

The model is synthetic:sd15 without guidance (SD-Turbo is of about its size), the decoder of TAESD's architecture with
seeded random weights. OpenVINO has the same pieces in one process: text encoder, UNet, tiny decoder, PNG, each compiled
before and kept (benchmarks/theirs/one_step.py). Everyone has one run that does not count: it fills caches. Then all in
turn. Seconds are of a whole process from its start to its end; peaks are of its tree, sampled from this process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from benchmarks.trees import Watched, watched
from sdcli import machine
from sdcli.models.synthetic import find_synthetic
from sdcli.units import MIB

MODEL = "synthetic:sd15"


def main() -> None:
    """Run all in turn, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="512x512", help="WIDTHxHEIGHT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ceilings", default="none,600MiB", help="of sdcli, with commas")
    parser.add_argument("--runs", default="sdcli,openvino", help="with commas")
    options = parser.parse_args()
    names = options.runs.split(",")
    if unknown := {*names} - {"sdcli", "openvino"}:
        parser.error(f"nothing is called {min(unknown)}: sdcli, openvino")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        tiny = written_tiny(home / "taesd")
        commands = {f"sdcli, {limit}": ours(limit, options.size, tiny, home) for limit in options.ceilings.split(",")}
        commands = commands if "sdcli" in names else {}
        if "openvino" in names and find_spec("openvino") is None:
            print("  openvino is left out: it is not installed: pip install openvino")
        elif "openvino" in names:
            commands["openvino"] = theirs(options.size, tiny, home)
        runs: dict[str, list[Watched]] = {name: [] for name in commands}
        for turn in range(options.rounds + 1):
            for name, command in commands.items():
                done = run(name, command, home)
                if turn:
                    runs[name].append(done)
                    print(f"  {name:14} {done.seconds:.2f} s, {done.footprint_bytes / MIB:.0f} MiB", flush=True)
    print("\n| run | s, median of rounds (min-max) | footprint MiB | RSS MiB |\n| --- | --- | --- | --- |")
    for name, done in runs.items():
        seconds = [one.seconds for one in done]
        footprint, rss = (max(getattr(one, f"{count}_bytes") for one in done) for count in ("footprint", "rss"))
        print(
            f"| {name} | {statistics.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"
            f" | {footprint / MIB:.0f} | {rss / MIB:.0f} |"
        )


def written_tiny(folder: Path) -> Path:
    """A tiny autoencoder of the published sizes, with random weights."""
    import torch
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    AutoencoderTiny().save_pretrained(folder)
    return folder


def ours(limit: str, size: str, tiny: Path, home: Path) -> list[str]:
    """The command of sdcli under a ceiling."""
    words = ("a picture of an astronaut", "-m", MODEL, "--size", size, "-s", "1", "-g", "1", "--seed", "0")
    tiny_words = ("--decoder", "tiny", "--tiny-decoder", str(tiny))
    how = ("--mem-limit", limit, "--no-cache", "-q", "--force", "-o", str(home / "ours.png"))
    return [sys.executable, "-P", "-m", "sdcli", "txt2img", *words, *tiny_words, *how]


def theirs(size: str, tiny: Path, home: Path) -> list[str]:
    """The command of OpenVINO, whose networks are written first."""
    folder, _ = find_synthetic(MODEL, lambda *_: sys.exit(f"make it first: sdcli bench -m {MODEL} --steps 1"))
    sides, dtype = size.split("x"), machine.choose_dtype("cpu", "auto")[0]
    module = [sys.executable, "-m", "benchmarks.theirs.one_step"]
    run("openvino", [*module, "convert", str(folder), str(tiny), str(home), *sides], home)
    return [*module, "draw", str(home), *sides, dtype, str(home / "theirs.png")]


def run(name: str, command: list[str], scratch: Path) -> Watched:
    """One run, which has to work."""
    done = watched(command, scratch)
    if done.code:
        sys.exit(f"{name}: {done.trouble}")
    return done


if __name__ == "__main__":
    main()
