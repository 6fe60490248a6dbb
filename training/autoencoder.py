"""The first stage: an autoencoder that keeps a composed scene in 8 numbers an 8x8 square."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn

from training import state
from training.compose import Composer, psnr
from training.networks import LATENTS, NOISE, SCALING_FACTOR, follow, make_vae, normalise_latents, quiet_encoder, shadow
from training.recipes import Planner, Recipe
from training.setting import Setting, autocast, compiled, fast_layout, finish

PEAK, WARMUP, HOLD = 1.5e-3, 150, 0.25
BATCH, SERVED = 16, 8
"""Scenes a step; steps whose scenes are composed together."""

LATENT_WEIGHT, DECIBEL_WEIGHT = 0.02, 0.05


class Reconstruct(nn.Module):
    """Pixels and noise to pixels and latents, in one call that compiles as one graph."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(b, 3, s, s) in -1…1 and (b, LATENTS, s/8, s/8) to pixels of the first shape and the latents' mean."""
        mean = self.vae.quant_conv(self.vae.encoder(pixels)).chunk(2, 1)[0]
        return self.vae.decoder(self.vae.post_quant_conv(mean + noise)), mean


class Student:
    """The autoencoder, the mean of its weights, and the optimizer, as they learn.

    For the stage "decoder" the encoder, and so what the denoiser learned, stays as it is; the latents are those
    that were normalised then, of the deviation `unit`.
    """

    def __init__(self, setting: Setting, stage: str) -> None:
        device = setting.device
        self.setting, self.stage, self.folder = setting, stage, setting.out
        self.step, self.seconds, self.unit = 0, 0.0, 1.0
        self.vae = fast_layout(make_vae(setting.size).to(device), device)
        exact = state.load_exactly(setting.resume / f"{stage}.pt", device) if setting.resume else None
        if stage == "decoder":
            self.unit = 1 / SCALING_FACTOR
            self.vae.load_state_dict(load_vae(self.folder, setting.size, device).state_dict())
            for part in (self.vae.encoder, self.vae.quant_conv):
                part.requires_grad_(False)
        if exact:
            self.vae.load_state_dict(exact["vae"])
        self.mean = shadow(self.vae)
        self.parameters = [value for value in self.vae.parameters() if value.requires_grad]
        fused = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(self.parameters, PEAK, betas=(0.9, 0.99), weight_decay=0.0, fused=fused)
        if exact:
            self.mean.load_state_dict(exact["mean"])
            self.optimizer.load_state_dict(exact["optimizer"])
            self.step, self.seconds = exact["step"], exact["seconds"]
        self.run = compiled(Reconstruct(self.vae), setting)

    def learn(self, pixels: torch.Tensor, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        """One step on (b, 3, s, s) pixels; returns the loss and the mean square error of the pixels."""
        device = pixels.device
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        count, height, width = len(pixels), pixels.shape[2] // 8, pixels.shape[3] // 8
        strength = NOISE * self.unit * 2 * torch.rand(count, 1, 1, 1, device=device)
        with autocast(device):
            drawn, latents = self.run(pixels, strength * torch.randn(count, LATENTS, height, width, device=device))
        drawn, latents = drawn.float(), latents.float()
        loss = picture_loss(drawn, pixels)
        if self.stage == "autoencoder":
            loss = loss + LATENT_WEIGHT * latent_loss(latents)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        follow([self.mean], [self.vae], self.step)
        return loss.detach(), F.mse_loss(drawn.detach(), pixels)

    def save(self, seconds: float) -> None:
        """Write the state to go on from, on this machine."""
        weights = {"vae": self.vae.state_dict(), "mean": self.mean.state_dict()}
        table = {**weights, "optimizer": self.optimizer.state_dict(), "step": self.step, "seconds": seconds}
        state.save_exactly(table, self.folder / f"{self.stage}.pt")
        state.note(self.folder, self.stage, steps=self.step, seconds=round(seconds, 1), seed=self.setting.seed)


def train_autoencoder(setting: Setting, deadline: float, total: float | None, stage: str = "autoencoder") -> None:
    """Train until `deadline` (time.monotonic); writes `vae-*` with normalised latents, and the state to go on.

    The stage "decoder" goes on with the decoder alone, after the denoiser has learned.
    """
    torch.manual_seed(setting.seed)
    student = Student(setting, stage)
    clock = state.Clock(student.seconds if setting.done is None else setting.done, total, deadline)
    trail = state.Trail(setting.out, stage, clock, setting.device)
    planner, composer = setting.planner(), setting.composer()
    generator = torch.Generator().manual_seed(setting.seed + student.step)
    size, begun_at, rate = setting.batch or BATCH, student.step, 0.0
    errors = torch.ones(1, device=setting.device)
    served: list[torch.Tensor] = []
    while not clock.over() and student.step - begun_at < setting.most_steps:
        rate = state.learning_rate(PEAK, clock.share, student.step - begun_at, WARMUP, HOLD)
        served = served or _scenes(planner, composer, size, generator)
        loss, error = student.learn(served.pop(), rate)
        errors[0] = error
        trail.add(loss)
        if clock.began is None:
            finish(setting.device)
            clock.start()
        if clock.time_to_say():
            trail.say(student.step, rate, errors)
        if clock.time_to_save():
            student.save(clock.seconds)
    trail.say(student.step, rate, errors)
    student.save(clock.seconds)
    finished = shadow(student.mean)
    if stage == "autoencoder":
        quiet_encoder(finished)
        state.save_weights(finished, setting.out, "vae", torch.float32)  # should the next line fail, this is there
        _normalise(finished, planner, composer, generator, setting)
    state.save_weights(finished, setting.out, "vae", torch.float32)
    count = 256 if setting.size == "full" and setting.device.type == "cuda" else 32
    decibels = measure(finished, planner, composer, count, setting.seed + 10**6)
    state.note(setting.out, stage, psnr=round(decibels, 2), batch=size)
    print(f"{stage}: PSNR of the mean weights {decibels:.2f} dB on composed scenes", flush=True)


def picture_loss(drawn: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Absolute and squared differences of pixels, absolute ones of their gradients, and the PSNR of each picture.

    The gradients keep edges crisp; the logarithm of the error keeps its weight when the error is small already.
    """
    squares = ((drawn - wanted) ** 2).flatten(1).mean(1)
    across = F.l1_loss(drawn.diff(dim=-1), wanted.diff(dim=-1))
    down = F.l1_loss(drawn.diff(dim=-2), wanted.diff(dim=-2))
    edges = 0.5 * (across + down)
    return F.l1_loss(drawn, wanted) + 2 * squares.mean() + edges + DECIBEL_WEIGHT * (squares + 1e-5).log().mean()


def latent_loss(latents: torch.Tensor) -> torch.Tensor:
    """Keeps each channel of (b, LATENTS, h, w) near mean 0 and deviation 1: the noise has a known share then."""
    return (latents.mean((0, 2, 3)) ** 2 + (latents.std((0, 2, 3)) - 1) ** 2).mean()


def _scenes(planner: Planner, composer: Composer, count: int, generator: torch.Generator) -> list[torch.Tensor]:
    """SERVED batches (count, 3, s, s), half of them as captions tell them, half crowded with objects anywhere."""
    half = SERVED * count // 2
    pixels = torch.cat([composer(planner.draw(half, generator)), composer(planner.scatter(half, generator))])
    mixed = pixels[torch.randperm(len(pixels), device=pixels.device)].contiguous(memory_format=torch.channels_last)
    return list(mixed.split(count))


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    """(b, 3, s, s) in -1…1 to the mean of their latents, unscaled, FP32; arithmetic in FP16 on a GPU."""
    with autocast(pixels.device, torch.float16):
        mean: torch.Tensor = vae.encode(pixels.contiguous(memory_format=torch.channels_last)).latent_dist.mode()
    return mean.float()


def told_scenes(planner: Planner, count: int, seed: int) -> Recipe:
    """The same scenes every time for the same seed, for measuring."""
    return planner.draw(count, torch.Generator().manual_seed(seed))


def _normalise(
    vae: AutoencoderKL, planner: Planner, composer: Composer, generator: torch.Generator, setting: Setting
) -> None:
    count = 1024 if setting.size == "full" and setting.device.type == "cuda" else 32
    parts = [planner.draw(min(64, count), generator) for _ in range(-(-count // 64))]
    with torch.no_grad():
        latents = torch.cat([vae.encode(composer(part)).latent_dist.mode() for part in parts])
    if not torch.isfinite(latents).all():
        raise SystemExit("autoencoder: the latents are not finite; the weights are saved as they were")
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    print(f"latents: mean {mean.tolist()}, deviation {deviation.tolist()}, now 0 and 1/{SCALING_FACTOR}", flush=True)
    normalise_latents(vae, mean, deviation)


@torch.no_grad()
def measure(vae: AutoencoderKL, planner: Planner, composer: Composer, count: int, seed: int) -> float:
    """Mean PSNR in dB of `count` composed scenes through the autoencoder, in the weights' own type."""
    recipe = told_scenes(planner, count, seed)
    pixels = [composer(part) for part in split(recipe, 32)]
    dtype = next(vae.parameters()).dtype
    drawn = [vae.decode(vae.encode(part.to(dtype)).latent_dist.mode()).sample for part in pixels]
    return float(torch.cat([psnr(a, b) for a, b in zip(drawn, pixels, strict=True)]).mean())


def split(recipe: Recipe, size: int) -> list[Recipe]:
    """A recipe in parts of `size` scenes."""
    fields = [getattr(recipe, name).split(size) for name in Recipe.__dataclass_fields__]
    return [Recipe(*part) for part in zip(*fields, strict=True)]


def load_vae(folder: Path, setting_size: str, device: torch.device) -> AutoencoderKL:
    """The autoencoder as the denoiser meets it, in FP32, frozen. Raises SystemExit if there is none."""
    tensors = state.load_weights(folder, "vae")
    if not tensors:
        raise SystemExit(f"no vae-*.safetensors in {folder}: run --stage autoencoder first")
    vae = make_vae(setting_size)
    vae.load_state_dict({name: value.float() for name, value in tensors.items()})
    return fast_layout(vae.to(device).eval().requires_grad_(False), device)
