"""The second stage: the denoiser, and with it the text encoder, on ready latents of captioned scenes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers.models.clip.modeling_clip import CLIPTextModel

from training import state
from training.autoencoder import encode, load_vae
from training.networks import (
    LATENTS,
    SCALING_FACTOR,
    follow,
    make_scheduler,
    make_text_encoder,
    make_unet,
    shadow,
    side,
)
from training.recipes import caption_words
from training.setting import Setting, autocast, compiled, fast_layout, finish
from training.words import LENGTH, open_tokenizer, token_ids, write_tokenizer

PEAK, WARMUP, REWARM, HOLD = 8e-4, 300, 50, 0.5
BATCH = 512
DROPPED = 0.1
"""Share of captions that are emptied, for guidance (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598)."""

REFRESH_EVERY, REFRESHED = 16, 512
"""After so many steps so many scenes of the pool are drawn anew."""


class Pool:
    """Scaled latents (scenes, LATENTS, h, w) in FP16 and their captions' tokens (scenes, LENGTH), on the device."""

    def __init__(self, setting: Setting, tokenizer: Any, scenes: int, seed: int) -> None:
        device, cells = setting.device, side(setting.size) // 8
        self.setting, self.tokenizer = setting, tokenizer
        self.latents = torch.zeros(scenes, LATENTS, cells, cells, dtype=torch.float16, device=device)
        self.ids = torch.zeros(scenes, LENGTH, dtype=torch.long, device=device)
        self.planner, self.composer = setting.planner(), setting.composer()
        self.vae = load_vae(setting.out, setting.size, device)
        self.generator, self.chance = torch.Generator().manual_seed(seed), random.Random(seed)  # noqa: S311 - not secret
        self.at = 0
        step = min(256, scenes)
        for begin in range(0, scenes, step):
            self.renew(min(step, scenes - begin))

    def renew(self, count: int) -> None:
        """Draw the next `count` scenes anew."""
        recipe = self.planner.draw(count, self.generator)
        ids = token_ids(self.tokenizer, self.planner.captions(recipe, self.chance))
        self.at = self.at if self.at + count <= len(self.latents) else 0
        place = slice(self.at, self.at + count)
        self.latents[place] = (encode(self.vae, self.composer(recipe)) * SCALING_FACTOR).half()
        self.ids[place] = ids.to(self.setting.device, non_blocking=True)
        self.at += count

    def pick(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`count` of the scenes at random: latents in FP32, tokens."""
        chosen = torch.randint(len(self.latents), (count,), device=self.latents.device)
        return self.latents[chosen].float(), self.ids[chosen]


def noised(
    latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, alphas: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The noisy latents x = a z + s e and the target v = a e - s z, with a² the cumulative alpha and a² + s² = 1.

    Salimans and Ho 2022, https://arxiv.org/abs/2202.00512, appendix D. `timesteps` (b,), `alphas` (1000,).
    """
    kept = alphas[timesteps][:, None, None, None]
    a, s = kept.sqrt(), (1 - kept).sqrt()
    return a * latents + s * noise, a * noise - s * latents


def spread_timesteps(count: int, device: torch.device) -> torch.Tensor:
    """(count,) timesteps of 0…999, one in each of `count` equal spans: uniform, with less chance in it."""
    spans = torch.randperm(count, device=device) + torch.rand(count, device=device)
    return (spans * (1000 / count)).long().clamp_(0, 999)


class Student:
    """The denoiser and the text encoder, the means of their weights, and the optimizer, as they learn."""

    def __init__(self, setting: Setting, tokenizer: Any) -> None:
        device = setting.device
        self.setting, self.folder = setting, setting.out
        self.unet = fast_layout(make_unet(setting.size).to(device), device)
        self.text = make_text_encoder(len(tokenizer), setting.size).to(device)
        exact = state.load_exactly(setting.resume / "denoiser.pt", device) if setting.resume else None
        if exact:
            self.unet.load_state_dict(exact["unet"])
            self.text.load_state_dict(exact["text"])
        elif setting.resume:
            load_means(setting.resume, self.unet, self.text)
        self.means: list[nn.Module] = [shadow(self.unet), shadow(self.text)]
        self.parameters = [*self.unet.parameters(), *self.text.parameters()]
        fused = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(self.parameters, PEAK, betas=(0.9, 0.99), weight_decay=0.01, fused=fused)
        if exact:
            self.means[0].load_state_dict(exact["mean_unet"])
            self.means[1].load_state_dict(exact["mean_text"])
            self.optimizer.load_state_dict(exact["optimizer"])
        facts = state.facts_of(setting.resume).get("denoiser", {}) if setting.resume else {}
        self.step, self.seconds = int(facts.get("steps", 0)), float(facts.get("seconds", 0.0))
        self.warmup = REWARM if exact else WARMUP
        self.alphas = make_scheduler().alphas_cumprod.to(device)
        self.empty = token_ids(tokenizer, [""])[0].to(device)
        self.run = compiled(self.unet, setting)

    def learn(self, latents: torch.Tensor, ids: torch.Tensor, rate: float) -> torch.Tensor:
        """One step on (b, LATENTS, h, w) scaled latents and their captions' tokens (b, LENGTH); returns the loss."""
        device, count = latents.device, len(latents)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        ids = torch.where(torch.rand(count, 1, device=device) < DROPPED, self.empty, ids)
        timesteps = spread_timesteps(count, device)
        noisy, target = noised(latents, torch.randn_like(latents), timesteps, self.alphas)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        with autocast(device):
            context = self.text(ids).last_hidden_state
            guess = self.run(noisy, timesteps, context, return_dict=False)[0]
        loss = F.mse_loss(guess.float(), target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        follow(self.means, [self.unet, self.text], self.step)
        return loss.detach()

    def save(self, seconds: float) -> None:
        """Write the means for use, and the state to go on from on this machine."""
        state.save_weights(self.means[0], self.folder, "unet", torch.float16)
        state.save_weights(self.means[1], self.folder, "text_encoder", torch.float16)
        weights = {"unet": self.unet.state_dict(), "text": self.text.state_dict()}
        means = {"mean_unet": self.means[0].state_dict(), "mean_text": self.means[1].state_dict()}
        table = {**weights, **means, "optimizer": self.optimizer.state_dict()}
        state.save_exactly(table, self.folder / "denoiser.pt")
        state.note(self.folder, "denoiser", steps=self.step, seconds=round(seconds, 1), seed=self.setting.seed)


def train_denoiser(setting: Setting, deadline: float, total: float | None) -> None:
    """Train until `deadline` (time.monotonic); writes `unet-*` and `text_encoder-*`, and the state to go on."""
    torch.manual_seed(setting.seed)
    tokenizer = _tokenizer(setting)
    student = Student(setting, tokenizer)
    torch.manual_seed(setting.seed + student.step)
    size, begun_at, rate = setting.batch or BATCH, student.step, 0.0
    pool = Pool(setting, tokenizer, max(size, setting.pool), setting.seed + student.step)
    finish(setting.device)
    millions = sum(value.numel() for value in student.parameters) / 1e6
    print(f"denoiser: {millions:.2f} M parameters, {len(pool.latents)} latents", flush=True)
    clock = state.Clock(student.seconds if setting.done is None else setting.done, total, deadline)
    trail = state.Trail(setting.out, "denoiser", clock, setting.device)
    state.note(setting.out, "denoiser", batch=size, peak=setting.rate or PEAK)
    while not clock.over() and student.step - begun_at < setting.most_steps:
        rate = state.learning_rate(setting.rate or PEAK, clock.share, student.step - begun_at, student.warmup, HOLD)
        trail.add(student.learn(*pool.pick(size), rate))
        if clock.began is None:
            finish(setting.device)
            clock.start()
        if student.step % REFRESH_EVERY == 0:
            pool.renew(min(REFRESHED, len(pool.latents)))
        if clock.time_to_say():
            trail.say(student.step, rate)
        if clock.time_to_save():
            student.save(clock.seconds)
    trail.say(student.step, rate)
    student.save(clock.seconds)


def rehearse(setting: Setting) -> None:
    """Make a few of the denoiser's steps on noise and write nothing: it fills the compiler's cache for a later run."""
    tokenizer = _tokenizer(setting)
    student = Student(setting, tokenizer)
    cells, size = side(setting.size) // 8, setting.batch or BATCH
    ids = token_ids(tokenizer, ["a"]).repeat(size, 1).to(setting.device)
    for _ in range(2):
        student.learn(torch.randn(size, LATENTS, cells, cells, device=setting.device), ids, PEAK)
    finish(setting.device)


def _tokenizer(setting: Setting) -> Any:
    write_tokenizer(caption_words(setting.glyphs.names), setting.out / "tokenizer")
    return open_tokenizer(setting.out / "tokenizer")


def load_means(folder: Path, unet: UNet2DConditionModel, text: CLIPTextModel) -> None:
    """Load the saved means of the weights. Raises SystemExit if there are none."""
    for module, stem in ((unet, "unet"), (text, "text_encoder")):
        tensors = state.load_weights(folder, stem)
        if not tensors:
            raise SystemExit(f"no {stem}-*.safetensors in {folder}: run --stage denoiser first")
        module.load_state_dict({name: value.float() for name, value in tensors.items()})
