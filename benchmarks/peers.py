"""Seconds a step of synthetic:sd15 on the CPU: sdcli under each ceiling against its peers, in turn, in one run.

    python benchmarks/peers.py [--rounds 3] [--steps 8] [--size 512] [--runs diffusers,compile,openvino,2GiB,…]
        [--save benchmarks/peers.json]

Peers run as their users would run them for speed, in the type that sdcli chooses on this processor (BF16 or FP32):
diffusers' own pipeline in channels_last, plain and with torch.compile (frozen weights); OpenVINO with the UNet
converted from diffusers', both halves of guidance at once (needs `pip install openvino`; text encoder, scheduler and
decoder are left out, in its favour). A median of steps is without the first one, which compiles kernels; ours is the
program's own median, the first one among them.
Peaks are footprints of whole process trees, sampled by sdcli's own meter from this process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from sdcli import machine
from sdcli.models.synthetic import find_synthetic
from sdcli.plan.meter import TreeMeter
from sdcli.units import MIB

DTYPE, _ = machine.choose_dtype("cpu", "auto")

RUNS = ("diffusers", "compile", "openvino", "2.8GiB", "2GiB", "1GiB", "600MiB", "450MiB")

PIPELINE = """
import json, sys, time, torch
from diffusers import StableDiffusionPipeline
folder, steps, size, compiled = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "compile"
dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[sys.argv[5]]
pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=dtype, safety_checker=None, local_files_only=True)
pipe.unet.to(memory_format=torch.channels_last)
pipe.vae.to(memory_format=torch.channels_last)
if compiled:
    import torch._inductor.config
    torch._inductor.config.freezing = True
    pipe.unet = torch.compile(pipe.unet)
pipe.set_progress_bar_config(disable=True)
times, last = [], None
def tick(pipe, step, timestep, tensors):
    times.append(time.perf_counter())
    return tensors
with torch.inference_mode(False), torch.no_grad():
    pipe("astronaut", num_inference_steps=steps, height=size, width=size, callback_on_step_end=tick)
ended = time.perf_counter()
print(json.dumps({"steps": [b - a for a, b in zip(times, times[1:])], "decode": ended - times[-1]}))
"""

CONVERT = """
import sys, torch, openvino
from diffusers import UNet2DConditionModel
unet = UNet2DConditionModel.from_pretrained(sys.argv[1], subfolder="unet", dtype=torch.float32).eval()
class Step(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.unet = unet
    def forward(self, sample, timestep, context):
        return self.unet(sample, timestep, context, return_dict=False)[0]
side = int(sys.argv[3]) // 8
example = (torch.randn(2, 4, side, side), torch.tensor(981), torch.randn(2, 77, 768))
with torch.no_grad():
    model = openvino.convert_model(Step(), example_input=example)
openvino.save_model(model, sys.argv[2], compress_to_fp16=True)
"""

OPENVINO = """
import json, sys, time, numpy as np, openvino
side = int(sys.argv[3]) // 8
model = openvino.Core().read_model(sys.argv[1])
model.reshape({0: [2, 4, side, side], 2: [2, 77, 768]})
how = {"INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(sys.argv[4], sys.argv[4]), "PERFORMANCE_HINT": "LATENCY"}
request = openvino.Core().compile_model(model, "CPU", how).create_infer_request()
draw = np.random.default_rng(0).standard_normal
sample, context, times = draw((2, 4, side, side), "f4"), draw((2, 77, 768), "f4"), []
for step in range(int(sys.argv[2])):
    started = time.perf_counter()
    request.infer({0: sample, 1: np.array(981 - step), 2: context})
    times.append(time.perf_counter() - started)
print(json.dumps({"steps": times[1:], "decode": 0}))
"""


def main() -> None:
    """Run all in turn, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--runs", default=",".join(RUNS))
    parser.add_argument("--save", type=Path, help="Keep peaks and seconds a step for benchmarks/charts.py.")
    options = parser.parse_args()
    names = options.runs.split(",")
    folder, _ = find_synthetic("synthetic:sd15", lambda *_: sys.exit("make it first: sdcli bench --steps 1"))
    steps: dict[str, list[float]] = defaultdict(list)
    decodes: dict[str, list[float]] = defaultdict(list)
    peaks: dict[str, int] = defaultdict(int)
    with tempfile.TemporaryDirectory() as home:
        converted = Path(home) / "unet.xml"
        if "openvino" in names:
            python(CONVERT, folder, converted, options.size)
        for _ in range(options.rounds):
            for name in names:
                step_s, decode_s, peak = run(name, folder, converted, options.steps, options.size)
                steps[name].append(step_s)
                decodes[name].append(decode_s)
                peaks[name] = max(peaks[name], peak)
                print(f"  {name:10} {step_s:.2f} s/step, decode {decode_s:.1f} s, {peak / MIB:.0f} MiB", flush=True)
    if options.save:
        table = {name: (peaks[name], statistics.median(steps[name])) for name in names}
        options.save.write_text(json.dumps(table, indent=1) + "\n", "utf-8")
    first = "openvino" if "openvino" in names else names[0]
    base = statistics.median(steps[first])
    print(f"| run | s/step, median of rounds (min-max) | against {first} | decode s | peak MiB |")
    print("| --- | --- | --- | --- | --- |")
    for name, times in steps.items():
        print(
            f"| {name} | {statistics.median(times):.2f} ({min(times):.2f}-{max(times):.2f})"
            f" | {statistics.median(times) / base:.2f} x | {statistics.median(decodes[name]):.1f}"
            f" | {peaks[name] / MIB:.0f} |"
        )


def run(name: str, folder: Path, converted: Path, steps: int, size: int) -> tuple[float, float, int]:
    """One run of one of them: seconds a step, seconds of decoding, and the peak of its tree."""
    if name in ("diffusers", "compile"):
        told, peak = python(PIPELINE, folder, steps, size, name, DTYPE)
    elif name == "openvino":
        told, peak = python(OPENVINO, converted, steps, size, DTYPE)
    else:
        command = f"{sys.executable} -P -m sdcli bench --no-warmup -q --json --mem-limit {name} --steps {steps}"
        out, peak = measure([*command.split(), "-W", str(size), "-H", str(size)])
        (report,) = json.loads(out)["runs"]
        if report["outcome"] != "ok":
            sys.exit(f"{name}: {report['outcome']}")
        decode = next(stage["run_s"] for stage in report["stages"] if stage["name"] == "decode")
        return report["steps"]["median_s"], decode, peak
    return statistics.median(told["steps"]), told["decode"], peak


def python(program: str, *arguments: object) -> tuple[dict[str, Any], int]:
    """Run a program of a peer; its last line of output, and its peak."""
    out, peak = measure([sys.executable, "-c", program, *map(str, arguments)])
    lines = out.splitlines()
    return (json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}), peak


def measure(command: list[str]) -> tuple[str, int]:
    """Run a command: what it printed, and the peak footprint of its tree."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    meter, peak = TreeMeter(process.pid), 0
    while process.poll() is None:
        peak = max(peak, meter.footprint_bytes())
        time.sleep(0.02)
    out, _ = process.communicate()
    return out, peak


if __name__ == "__main__":
    main()
