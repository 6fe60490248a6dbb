"""Draw what benchmarks/peers.py and predictions.py saved: docs/curve.png and benchmarks/predictions.png.

python benchmarks/charts.py (needs `pip install matplotlib`)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from sdcli.units import MIB

HERE = Path(__file__).parent

TITLES = {
    "diffusers": "diffusers",
    "compile": "diffusers, torch.compile",
    "openvino": "OpenVINO (UNet alone)",
    "stable-diffusion.cpp": "stable-diffusion.cpp",
}


def main() -> None:
    """Both pictures."""
    peers = json.loads((HERE / "peers.json").read_text("utf-8"))
    curve(peers["runs"], "Stable Diffusion 1.5, 512x512, BF16, two CPU cores", HERE.parent / "docs" / "curve.png")
    predictions(json.loads((HERE / "predictions.json").read_text("utf-8")))


def curve(runs: dict[str, dict[str, float]], title: str, path: Path) -> None:
    """Seconds a step against peak memory, ours as a line and the peers as points."""
    figure, axes = plt.subplots(figsize=(7.5, 4.2), dpi=130)
    points = {name: (run["footprint_bytes"] / MIB, run["step_s"]) for name, run in runs.items()}
    ours = {name: at for name, at in points.items() if name not in TITLES}
    if ours:
        axes.plot(*zip(*sorted(ours.values()), strict=True), "o-", color="tab:blue", label="sdcli, by ceiling")
    for name, at in ours.items():
        above = {"xytext": (0, 6), "rotation": 40, "ha": "left"}
        below = {"xytext": (0, -28), "rotation": -40, "ha": "left"}
        axes.annotate(name, at, textcoords="offset points", fontsize=8, **(below if name == "2.8GiB" else above))
    for name in TITLES.keys() & runs.keys():
        at = points[name]
        axes.plot(*at, "s", color="tab:red")
        axes.annotate(TITLES[name], at, textcoords="offset points", xytext=(0, -16), ha="right", fontsize=8)
    axes.set(xlabel="peak footprint of the whole process tree, MiB", ylabel="seconds a step")
    axes.set_xlim(0, None)
    axes.set_ylim(0, 1.2 * max(step_s for _, step_s in points.values()))
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    if ours:
        axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path)


def predictions(cells: list[dict[str, Any]]) -> None:
    """Predicted against measured: on the line is exact, above it is too much, below it is a broken promise."""
    figure, axes = plt.subplots(figsize=(6, 5.4), dpi=130)
    most = max(cell["predicted_bytes"] for cell in cells) / MIB * 1.1
    least = min(cell["measured_bytes"] for cell in cells) / MIB * 0.9
    axes.plot([least, most], [least, most], "-", color="black", linewidth=1, label="exact")
    axes.plot([least, most], [least * 1.08, most * 1.08], "--", color="grey", linewidth=1, label="8 % over")
    for size in dict.fromkeys(cell["size"] for cell in cells):
        some = [cell for cell in cells if cell["size"] == size]
        axes.plot(
            [cell["measured_bytes"] / MIB for cell in some],
            [cell["predicted_bytes"] / MIB for cell in some],
            "o",
            markersize=5,
            label=size,
        )
    axes.set(xscale="log", yscale="log", xlabel="measured peak, MiB", ylabel="predicted peak, MiB")
    ticks = [tick for tick in (300, 400, 600, 800, 1000, 1500, 2000, 2500) if least < tick < most]
    axes.set_xticks(ticks, labels=map(str, ticks))
    axes.set_yticks(ticks, labels=map(str, ticks))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(HERE / "predictions.png")


if __name__ == "__main__":
    main()
