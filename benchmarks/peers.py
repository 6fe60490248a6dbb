"""Seconds a step of a synthetic model on the CPU: sdcli under each ceiling against its peers, in turn, in one run.

    python -m benchmarks.peers [--model sd15|sdxl|klein|z-image] [--size 512x512] [--steps 8] [--rounds 3]
        [--ceilings 2.8GiB,2GiB,1GiB,…] [--runs diffusers,compile,openvino,stable-diffusion.cpp]
        [--save FILE.json] [--chart FILE.png]

Peers run as their users would run them for speed, on the same weights. diffusers: its own pipeline in the type that
sdcli chooses on this processor (BF16 or FP32), plain and with torch.compile (frozen weights);
benchmarks/theirs/by_diffusers.py says where it begins. OpenVINO: in that type, the denoiser converted from diffusers',
a UNet with both halves of guidance at once; text encoder, scheduler and decoder are left out, in its favour.
stable-diffusion.cpp: the program `sd-cli` or `sd` of PATH, which reads the same files in their type. A peer that is not
installed or has no way to run the model is said and left out, and so is a run that fails.

With few steps ours uses a prepared copy where it lies under every ceiling: 30 steps and more load what fits.

A median of steps is without the first one, which compiles kernels; ours is the program's own median, the first one
among them, and stable-diffusion.cpp's a mean of all. Peaks are footprints and resident sets of whole process trees,
sampled by sdcli's own meter from this process.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from benchmarks.trees import Watched, watched
from sdcli import machine
from sdcli.models.synthetic import SYNTHETIC, find_synthetic
from sdcli.units import MIB

MODELS = ("sd15", "sdxl", "klein", "z-image")
CEILINGS = {
    "sd15": "2.8GiB,2GiB,1GiB,600MiB,450MiB",
    "sdxl": "6GiB,4GiB,2GiB,1GiB",
    "klein": "10GiB,4GiB,2GiB",
    "z-image": "14GiB,6GiB,3GiB",
}
PEERS = ("diffusers", "compile", "openvino", "stable-diffusion.cpp")
PARTS = {
    "--diffusion-model": "transformer/diffusion_pytorch_model.safetensors",
    "--llm": "text_encoder/model.safetensors",
    "--vae": "vae/diffusion_pytorch_model.safetensors",
}
"""Z-Image's files as stable-diffusion.cpp wants them named, one by one."""

PUBLISHED = re.compile("^(?=(embeddings|encoder|final_layer_norm)[.])")
"""Where a text encoder's names lack their first word."""

SAMPLED = re.compile(r"sampling completed, taking ([\d.]+)s")
DECODED = re.compile(r"decode_first_stage completed, taking ([\d.]+)s")


@dataclass(frozen=True)
class Job:
    """What everyone draws."""

    model: str
    folder: Path
    width: int
    height: int
    steps: int
    dtype: str
    scratch: Path


@dataclass
class Figures:
    """Of one kind of run, over all rounds."""

    step_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)
    footprint_bytes: int = 0
    rss_bytes: int = 0


class LeftOutError(Exception):
    """Why a run has no figures."""


def main() -> None:
    """Run all in turn, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="sd15")
    parser.add_argument("--size", default="512x512", help="WIDTHxHEIGHT")
    parser.add_argument("--steps", type=int, default=8, help="at least 2: the first one is no peer's figure")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ceilings", help="with commas; empty for none of ours")
    parser.add_argument("--runs", default=",".join(PEERS), help="peers, with commas; empty for none")
    parser.add_argument("--save", type=Path, help="Keep the figures for benchmarks/charts.py.")
    parser.add_argument("--chart", type=Path, help="Draw time against memory.")
    options = parser.parse_args()
    peers = [name for name in options.runs.split(",") if name]
    if unknown := [name for name in peers if name not in PEERS]:
        parser.error(f"no peer is called {unknown[0]}: {', '.join(PEERS)}")
    if options.steps < 2 and peers:
        parser.error("--steps 1 leaves peers no step to tell: 2 or more")
    ceilings = CEILINGS[options.model] if options.ceilings is None else options.ceilings
    ref = SYNTHETIC + options.model
    folder, _ = find_synthetic(ref, lambda *_: sys.exit(f"make it first: sdcli bench -m {ref} --steps 1"))
    dtype, _ = machine.choose_dtype("cpu", "auto")
    width, height = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(options.model, folder, width, height, options.steps, dtype, Path(scratch))
        runs = measured(job, [name for name in ceilings.split(",") if name], peers, options.rounds)
    if not runs:
        sys.exit("nothing has run")
    title = f"{ref}, {options.size}, {dtype.upper()}"
    print_table(runs, title)
    if options.save:
        options.save.write_text(json.dumps({"title": title, "runs": saved(runs)}, indent=1) + "\n", "utf-8")
    if options.chart:
        from benchmarks.charts import curve

        curve(saved(runs), title, options.chart)


def measured(job: Job, ceilings: list[str], peers: list[str], rounds: int) -> dict[str, Figures]:
    """Every run once a round, in turn; whoever fails has no further turn, and keeps what it has."""
    turns: dict[str, Callable[[], tuple[float, float, Watched]]] = {}
    for name in peers:
        try:
            turns[name] = ready(name, job)
        except LeftOutError as why:
            print(f"  {name} is left out: {why}", flush=True)
    turns |= {limit: lambda limit=limit: ours(limit, job) for limit in ceilings}  # type: ignore[misc]
    runs: dict[str, Figures] = {}
    for _ in range(rounds):
        for name, run in list(turns.items()):
            try:
                step_s, decode_s, tree = run()
            except LeftOutError as why:
                print(f"  {name} is left out: {why}", flush=True)
                del turns[name]
                continue
            figures = runs.setdefault(name, Figures())
            figures.step_s.append(step_s)
            figures.decode_s.append(decode_s)
            figures.footprint_bytes = max(figures.footprint_bytes, tree.footprint_bytes)
            figures.rss_bytes = max(figures.rss_bytes, tree.rss_bytes)
            peaks = f"footprint {tree.footprint_bytes / MIB:.0f} MiB, RSS {tree.rss_bytes / MIB:.0f} MiB"
            print(f"  {name:10} {step_s:.2f} s/step, decode {decode_s:.1f} s, {peaks}", flush=True)
    return runs


def ready(name: str, job: Job) -> Callable[[], tuple[float, float, Watched]]:
    """How to run a peer. Raises LeftOutError where there is no way."""
    size = (str(job.width), str(job.height))
    if name in ("diffusers", "compile"):
        more = ("--compile",) if name == "compile" else ()
        words = ("benchmarks.theirs.by_diffusers", str(job.folder), str(job.steps), *size, job.dtype, *more)
        return lambda: told(words, job.scratch)
    if name == "openvino":
        if find_spec("openvino") is None:
            raise LeftOutError("it is not installed: pip install openvino")
        denoiser = job.scratch / "denoiser.xml"
        module = "benchmarks.theirs.by_openvino"
        done = watched([sys.executable, "-m", module, "convert", str(job.folder), str(denoiser), *size], job.scratch)
        if done.code:
            raise LeftOutError(done.trouble)
        steps = (module, "steps", str(job.folder), str(denoiser), *size, str(job.steps), job.dtype)
        return lambda: told(steps, job.scratch)
    if job.model == "klein":
        raise LeftOutError(f"it does not know the names of tensors in {SYNTHETIC}{job.model}, which are diffusers'")
    program = shutil.which("sd-cli") or shutil.which("sd")
    if program is None:
        raise LeftOutError("neither sd-cli nor sd is on PATH")
    if job.model in ("sd15", "sdxl"):
        job = replace(job, folder=named_as_published(job.folder, job.scratch / "published"))
    return lambda: by_sd_cpp(program, job)


def told(words: tuple[str, ...], scratch: Path) -> tuple[float, float, Watched]:
    """One run of a program of benchmarks/theirs: seconds a step and of decoding, from its last line."""
    tree = watched([sys.executable, "-m", *words], scratch)
    if tree.code:
        raise LeftOutError(tree.trouble)
    report = json.loads(tree.out.splitlines()[-1])
    return statistics.median(report["steps"]), report["decode"], tree


def named_as_published(folder: Path, into: Path) -> Path:
    """The same model, whose text encoders' tensors have the names of published files: a newer transformers drops the
    first word of each, and stable-diffusion.cpp looks for it."""
    from safetensors.torch import load_file, save_file

    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        if not part.name.startswith("text_encoder"):
            into.mkdir(exist_ok=True)
            (into / part.name).symlink_to(part)
            continue
        (into / part.name).mkdir(parents=True)
        tensors = load_file(part / "model.safetensors")
        named = {PUBLISHED.sub("text_model.", name): tensor for name, tensor in tensors.items()}
        save_file(named, into / part.name / "model.safetensors")
    return into


def by_sd_cpp(program: str, job: Job) -> tuple[float, float, Watched]:
    """One run of stable-diffusion.cpp, options as in its examples/cli/README.md and docs/z_image.md."""
    model = ["-m", str(job.folder)]
    if job.model == "z-image":
        model = ["--cfg-scale", "1.0"]
        for option, file in PARTS.items():
            model += [option, str(job.folder / file)]
    size = ("-W", str(job.width), "-H", str(job.height), "--steps", str(job.steps))
    words = (*model, "-p", "astronaut", *size, "--sampling-method", "euler")
    tree = watched([program, *words, "-o", str(job.scratch / "sd.png")], job.scratch)
    sampled, decoded = (pattern.search(tree.out + tree.errors) for pattern in (SAMPLED, DECODED))
    if tree.code or not sampled or not decoded:
        raise LeftOutError(tree.trouble)
    return float(sampled[1]) / job.steps, float(decoded[1]), tree


def ours(limit: str, job: Job) -> tuple[float, float, Watched]:
    """One run of sdcli under a ceiling."""
    how = ("--no-warmup", "-q", "--json", "--mem-limit", limit, "--steps", str(job.steps))
    words = ("-m", SYNTHETIC + job.model, "--size", f"{job.width}x{job.height}")
    tree = watched([sys.executable, "-P", "-m", "sdcli", "bench", *how, *words], job.scratch)
    if tree.code:
        raise LeftOutError(tree.trouble)
    (report,) = json.loads(tree.out)["runs"]
    if report["outcome"] != "ok":
        raise LeftOutError(f"{report['outcome']}; {tree.errors.strip()}")
    decode_s = next(stage["run_s"] for stage in report["stages"] if stage["name"] == "decode")
    return report["steps"]["median_s"], decode_s, tree


def saved(runs: dict[str, Figures]) -> dict[str, dict[str, float]]:
    """Peaks, and medians of seconds."""
    return {
        name: {
            "footprint_bytes": one.footprint_bytes,
            "rss_bytes": one.rss_bytes,
            "step_s": statistics.median(one.step_s),
            "decode_s": statistics.median(one.decode_s),
        }
        for name, one in runs.items()
    }


def print_table(runs: dict[str, Figures], title: str) -> None:
    """In Markdown."""
    first = "openvino" if "openvino" in runs else next(iter(runs))
    base = statistics.median(runs[first].step_s)
    print(f"\n{title}\n")
    print(f"| run | s/step, median of rounds (min-max) | against {first} | decode s | footprint MiB | RSS MiB |")
    print("| --- " * 6 + "|")
    for name, one in runs.items():
        step_s = statistics.median(one.step_s)
        print(
            f"| {name} | {step_s:.2f} ({min(one.step_s):.2f}-{max(one.step_s):.2f}) | {step_s / base:.2f} x"
            f" | {statistics.median(one.decode_s):.1f} | {one.footprint_bytes / MIB:.0f} | {one.rss_bytes / MIB:.0f} |"
        )


if __name__ == "__main__":
    main()
