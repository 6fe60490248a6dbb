"""What importing costs: anonymous memory and seconds, each row in a fresh process (Linux).

python benchmarks/imports.py
"""

from __future__ import annotations

import subprocess
import sys

ROWS = {
    "python": "",
    "the host: everything that the parent process imports": "import sdcli.cli.txt2img",
    "torch": "import torch",
    "torch + transformers' CLIP": "import torch; from transformers.models.clip.modeling_clip import CLIPTextModel",
    "torch + diffusers' UNet and autoencoder": (
        "import torch; from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel;"
        "from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL"
    ),
    "all three, plainly": (
        "import torch; from transformers.models.clip.modeling_clip import CLIPTextModel;"
        "from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel;"
        "from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL"
    ),
    "torch, as the worker imports it": (
        "import sys; from sdcli.engine import lean_imports; sys.meta_path.insert(0, lean_imports._Finder());"
        "import torch"
    ),
    "all three, lean, and the engine: the worker": (
        "from sdcli.engine.lean_imports import import_network; import_network('sdcli.families.sd.network');"
        "from sdcli.engine import count, generate, synthesize"
    ),
}

MEASURE = """
import sys, time
started = time.perf_counter()
exec(sys.argv[1])
seconds = time.perf_counter() - started
anon = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
print(f"{anon / 1024:.0f} | {seconds:.2f}")
"""


def main() -> None:
    """Print the table; every row runs twice, the second time with its files in the page cache."""
    print("| imported | MiB, anonymous | s |\n| --- | --- | --- |")
    for name, statement in ROWS.items():
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-c", MEASURE, statement], capture_output=True, text=True, check=True
            )
        print(f"| {name} | {done.stdout.strip()} |", flush=True)


if __name__ == "__main__":
    main()
