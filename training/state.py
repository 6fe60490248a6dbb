"""What training leaves on disk: weights in files small enough to copy, the exact state for resuming, and the losses.

A folder of state holds `vae-*`, `unet-*`, `text_encoder-*` (safetensors, means of the weights), `losses.csv`,
`state.json`, and for resuming on the same machine `autoencoder.pt` and `denoiser.pt`.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

LARGEST = 15 * 2**20
"""Bytes of one file of weights at most."""

SAVE_SECONDS, SAY_SECONDS = 60.0, 10.0


def save_weights(module: nn.Module, folder: Path, stem: str, dtype: torch.dtype) -> None:
    """Write a module's weights as `stem-00001-of-0000n.safetensors`, each file whole or not at all."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    room = LARGEST - 2**17  # for the header
    for name, value in module.state_dict().items():
        kept = value.detach().to("cpu", dtype).contiguous() if value.is_floating_point() else value.cpu()
        size = kept.numel() * kept.element_size()
        if shards[-1] and size > room:
            shards.append({})
            room = LARGEST - 2**17
        shards[-1][name] = kept
        room -= size
    names = {f"{stem}-{index + 1:05}-of-{len(shards):05}.safetensors": shard for index, shard in enumerate(shards)}
    for name, shard in names.items():
        save_file(shard, folder / f".{name}", metadata={"format": "pt"})
    for stale in set(folder.glob(f"{stem}-?????-of-?????.safetensors")) - {folder / name for name in names}:
        stale.unlink()
    for name in names:
        os.replace(folder / f".{name}", folder / name)


def load_weights(folder: Path, stem: str) -> dict[str, torch.Tensor]:
    """What `save_weights` wrote, in its own type; empty if there is nothing."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob(f"{stem}-?????-of-?????.safetensors")):
        tensors |= load_file(path)
    return tensors


def save_exactly(table: dict[str, Any], path: Path) -> None:
    """Write a table of states for resuming on this machine."""
    half = path.with_name(f".{path.name}")
    torch.save(table, half)
    os.replace(half, path)


def load_exactly(path: Path, device: torch.device) -> dict[str, Any] | None:
    """What `save_exactly` wrote, or None if it is not there."""
    if not path.is_file():
        return None
    table: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return table


def note(folder: Path, stage: str, **facts: object) -> None:
    """Record facts of a stage (seconds, steps, seed …) in state.json."""
    table = facts_of(folder)
    table[stage] = {**table.get(stage, {}), **facts}
    half = folder / ".state.json"
    half.write_text(json.dumps(table, indent=2) + "\n", "utf-8")
    os.replace(half, folder / "state.json")


def facts_of(folder: Path) -> dict[str, Any]:
    """The table in state.json; empty if there is none."""
    path = folder / "state.json"
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


class Losses:
    """The losses of a stage, appended to losses.csv: stage, step, seconds, loss, PSNR or nothing."""

    def __init__(self, folder: Path, stage: str) -> None:
        self.path, self.stage = folder / "losses.csv", stage
        if not self.path.exists():
            self.path.write_text("stage,step,seconds,loss,psnr\n", "utf-8")

    def add(self, step: int, seconds: float, loss: float, psnr: float | None) -> None:
        """One line."""
        with self.path.open("a", encoding="utf-8", newline="") as file:
            shown = "" if psnr is None else f"{psnr:.2f}"
            csv.writer(file).writerow([self.stage, step, f"{seconds:.1f}", f"{loss:.5f}", shown])


class Clock:
    """The time of a stage: `done` seconds in earlier sittings, `total` in all of them, an end for this one.

    The stage's own time begins with `start`, after the first step, which compiles.
    """

    def __init__(self, done: float, total: float | None, deadline: float) -> None:
        self.done, self.deadline = done, deadline
        self.began: float | None = None
        self._total = total
        self._said = self._saved = time.monotonic()

    def start(self) -> None:
        """The first step has ended."""
        if self.began is None:
            self.began = self._said = self._saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent training, earlier sittings included."""
        return self.done + (time.monotonic() - self.began if self.began is not None else 0.0)

    @property
    def share(self) -> float:
        """How much of all the stage's time is over, 0…1."""
        remaining = self.deadline - time.monotonic()
        total = self._total if self._total is not None else self.seconds + max(0.0, remaining)
        return min(1.0, self.seconds / total) if total > 0 else 1.0

    def over(self) -> bool:
        """Whether this sitting's time is up."""
        return time.monotonic() >= self.deadline

    def time_to_say(self) -> bool:
        """True once every SAY_SECONDS."""
        if time.monotonic() - self._said < SAY_SECONDS:
            return False
        self._said = time.monotonic()
        return True

    def time_to_save(self) -> bool:
        """True once every SAVE_SECONDS."""
        if time.monotonic() - self._saved < SAVE_SECONDS:
            return False
        self._saved = time.monotonic()
        return True


def learning_rate(peak: float, share: float, step: int, warmup: int, hold: float) -> float:
    """Linear warm-up over `warmup` steps of this sitting, constant until `hold` of the time, then a cosine to 0."""
    over = max(0.0, share - hold) / max(1e-9, 1 - hold)
    return peak * min(1.0, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, over)))


class Trail:
    """Says and records every few seconds how a stage goes, without asking the device in between."""

    def __init__(self, folder: Path, stage: str, clock: Clock, device: torch.device) -> None:
        self.losses, self.stage, self.clock = Losses(folder, stage), stage, clock
        self.sum = torch.zeros((), device=device)
        self.count, self.since = 0, time.monotonic()

    def add(self, loss: torch.Tensor) -> None:
        """One step's loss, still on the device."""
        self.sum += loss.detach()
        self.count += 1

    def say(self, step: int, rate: float, error: torch.Tensor | None = None) -> None:
        """Print and record the mean loss since the last time, and the PSNR of a mean square `error` in -1…1.

        Raises SystemExit when the loss is no number.
        """
        if not self.count:
            return
        loss = float(self.sum) / self.count
        if not math.isfinite(loss):
            raise SystemExit(f"{self.stage}: the loss is {loss} at step {step}; the last saved state is whole")
        pace = self.count / max(1e-9, time.monotonic() - self.since)
        decibels = None if error is None else 10 * math.log10(4 / max(1e-12, float(error)))
        shown = "" if decibels is None else f"  PSNR {decibels:.2f} dB"
        print(
            f"{self.stage} step {step}  {self.clock.seconds:.0f} s ({self.clock.share:.0%})  loss {loss:.4f}{shown}"
            f"  rate {rate:.1e}  {pace:.1f} steps/s",
            flush=True,
        )
        self.losses.add(step, self.clock.seconds, loss, decibels)
        self.sum.zero_()
        self.count, self.since = 0, time.monotonic()


def carry_over(old: Path, new: Path) -> None:
    """Copy what later steps need from the folder of an earlier sitting, where the new one has nothing yet."""
    if old.resolve() == new.resolve():
        return
    for path in [*old.glob("vae-*.safetensors"), old / "losses.csv", old / "state.json"]:
        if path.is_file() and not (new / path.name).exists():
            shutil.copy2(path, new / path.name)
