"""Predicted against measured peaks on networks that the prediction was not fitted to.

python benchmarks/networks.py [--only NAME,NAME] [--steps 2] [--save FILE.json]

Each network is a Stable Diffusion of odd widths, levels, depths or head sizes with seeded random weights, written
into a temporary folder (it follows TMPDIR) and run twice, each run a command of its own: without a ceiling, and under
the least ceiling that `sdcli plan` tells. The built-in model is run at its own size as well. A row a run: the peak of
the run and of each stage, predicted and measured, in MiB. Exit code 1 if a run fails or takes more than was predicted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcli.units import MIB

HEADER = "| network | size | ceiling | predicted MiB | measured MiB | over | stages: predicted / measured MiB |"


@dataclass(frozen=True)
class Network:
    """One odd network and the size of its picture. Levels go from the finest to the coarsest."""

    name: str
    channels: tuple[int, ...]
    heads: int | tuple[int, ...]
    size: str
    attends: str
    """A letter a level: `a` for one with attention, `-` for one without."""
    layers: int = 1
    depth: int = 1
    """Transformer blocks in each attention."""
    autoencoder: tuple[int, ...] = (16, 16, 32, 32)
    norm_groups: int = 32

    def config(self) -> dict[str, Any]:
        """Configs of its components, as `write_model` takes them."""
        tiny = tiny_config()
        down = ["CrossAttnDownBlock2D" if letter == "a" else "DownBlock2D" for letter in self.attends]
        up = ["CrossAttnUpBlock2D" if letter == "a" else "UpBlock2D" for letter in reversed(self.attends)]
        unet = {
            "block_out_channels": list(self.channels),
            "down_block_types": down,
            "up_block_types": up,
            "attention_head_dim": self.heads if isinstance(self.heads, int) else list(self.heads),
            "layers_per_block": self.layers,
            "transformer_layers_per_block": self.depth,
            "norm_num_groups": self.norm_groups,
        }
        vae = {
            "block_out_channels": list(self.autoencoder),
            "down_block_types": ["DownEncoderBlock2D"] * len(self.autoencoder),
            "up_block_types": ["UpDecoderBlock2D"] * len(self.autoencoder),
        }
        return tiny | {"unet": tiny["unet"] | unet, "vae": tiny["vae"] | vae}


NETWORKS = (
    Network("32-1024", (32, 1024), (4, 16), "1024x1024", "--"),
    Network("32-1024-attends", (32, 1024), (4, 16), "512x512", "-a"),
    Network("64-128", (64, 128), 8, "512x512", "aa"),
    Network("96-192-384", (96, 192, 384), (12, 24, 48), "512x384", "aaa", layers=3),
    Network("320-640-one-layer", (320, 640), 8, "512x512", "aa"),
    Network("five-levels", (64, 128, 192, 256, 320), 8, "768x512", "-aaaa"),
    Network("transformers-2", (128, 256, 512), 8, "512x512", "aaa", depth=2),
    Network("transformers-4", (64, 256), (1, 4), "640x384", "aa", depth=4),
    Network("heads-of-8", (64, 192), (8, 24), "384x640", "aa"),
    Network("heads-of-64", (128, 256), (2, 4), "512x512", "aa", layers=3),
    Network("heads-of-160", (320, 640), (2, 4), "256x448", "aa"),
    Network("top-without-attention", (160, 320, 640), (4, 8, 16), "768x768", "-aa", layers=2),
    Network("two-level-autoencoder", (64, 128), 4, "128x192", "aa", autoencoder=(32, 64)),
    Network("three-level-autoencoder", (64, 128, 256), 8, "256x256", "aaa", autoencoder=(64, 128, 128)),
    Network("five-level-autoencoder", (128, 256), 8, "1024x1024", "aa", autoencoder=(32, 64, 64, 128, 128)),
    Network("smallest-picture", (96, 192), 12, "64x64", "aa", autoencoder=(128, 256, 512, 512)),
)


def tiny_config() -> dict[str, Any]:
    """The tests' tiny model: text encoder, tokenizer and scheduler are its own."""
    root = str(Path(__file__).parent.parent)
    if root not in sys.path:
        sys.path.insert(0, root)
    from tests.conftest import TINY

    return TINY


def written(network: Network, home: Path) -> Path:
    """Writes a network's weights. Returns its folder."""
    from sdcli.engine.synthesize import write_model

    folder = home / network.name
    folder.mkdir()
    for _ in write_model(network.config(), folder):
        pass
    return folder


def ask(command: str, *options: str) -> dict[str, Any] | str:
    """The program's JSON report, or the last line of its error."""
    words = [sys.executable, "-P", "-m", "sdcli", command, "a fox", *options, "--json", "-q"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else (done.stderr.strip().splitlines() or ["?"])[-1]


def cells(name: str, size: str, model: str, steps: str, out: Path) -> Iterator[dict[str, Any]]:
    """Runs one network without a ceiling and under its least one: figures of each run, or its error."""
    job = ("-m", model, *(("--size", size) if size else ()))
    for ceiling in ("none", "least"):
        cell: dict[str, Any] = {"network": name, "size": size or "own", "ceiling": ceiling}
        told: dict[str, Any] | str = ask("plan", *job) if ceiling == "least" else {}
        if isinstance(told, dict):
            limit = f"{told['smallest_limit_bytes'] // MIB}MiB" if ceiling == "least" else "none"
            cell["limit"] = limit
            more = "--mem-limit", limit, "-s", steps, "--seed", "1", "--no-cache", "--force", "-o", str(out)
            told = ask("txt2img", *job, *more)
        yield cell | ({"error": told} if isinstance(told, str) else figures(told))


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """Predicted and measured peaks of a run and of its stages, in bytes."""
    memory = report["memory"]
    stages = {stage["name"]: [stage["predicted_peak_bytes"], stage["peak_bytes"]] for stage in report["stages"]}
    peaks = {"predicted_bytes": memory["predicted_peak_bytes"], "measured_bytes": memory["peak_bytes"]}
    return peaks | {"stages": stages, "plan": report["plan"]}


def over(cell: dict[str, Any]) -> float:
    """How much more was predicted than measured, as a share of what was measured; negative where it was under."""
    return float(cell["predicted_bytes"] / cell["measured_bytes"] - 1)


def row(cell: dict[str, Any]) -> str:
    """One line of the table."""
    begin = f"| {cell['network']} | {cell['size']} | {cell.get('limit', cell['ceiling'])} |"
    if "error" in cell:
        return f"{begin} | | | {cell['error']} |"
    stages = ", ".join(f"{name} {a / MIB:.0f} / {b / MIB:.0f}" for name, (a, b) in cell["stages"].items())
    peaks = f"{cell['predicted_bytes'] / MIB:.0f} | {cell['measured_bytes'] / MIB:.0f}"
    return f"{begin} {peaks} | {100 * over(cell):+.1f} % | {stages} |"


def main() -> int:
    """Print a row a run. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of networks, or demo, with commas")
    parser.add_argument("--steps", default="2")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    names = options.only.split(",") if options.only else [*(network.name for network in NETWORKS), "demo"]
    print(f"{HEADER}\n{'| --- ' * 7}|")
    kept: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for name in names:
            network = next((network for network in NETWORKS if network.name == name), None)
            if network is None and name != "demo":
                parser.error(f"no network is called {name}: {', '.join(network.name for network in NETWORKS)}, demo")
            model, size = (str(written(network, home)), network.size) if network else ("demo", "")
            for cell in cells(name, size, model, options.steps, home / "a.png"):
                print(row(cell), flush=True)
                kept.append(cell)
                if options.save:
                    options.save.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    return 1 if any("error" in cell or over(cell) < 0 for cell in kept) else 0


if __name__ == "__main__":
    sys.exit(main())
