"""Both stages for a few steps, resuming, and what they leave."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from training import state
from training.denoiser import noised, spread_timesteps
from training.networks import LATENTS, NOISE, SCALING_FACTOR, make_scheduler, make_vae, normalise_latents, quiet_encoder
from training.train import main

OPTIONS = ["--size", "tiny", "--device", "cpu", "--batch", "4", "--pool", "8", "--most-steps", "5", "--minutes", "2"]


def test_a_sitting_leaves_weights_losses_and_facts(sitting: Path) -> None:
    facts = json.loads((sitting / "state.json").read_text("utf-8"))
    assert facts["autoencoder"]["steps"] == facts["denoiser"]["steps"] == 5
    assert math.isfinite(facts["autoencoder"]["psnr"])
    for stem in ("vae", "unet", "text_encoder"):
        assert state.load_weights(sitting, stem)
    begun = dict.fromkeys(line.split(",")[0] for line in (sitting / "losses.csv").read_text("utf-8").split())
    assert list(begun) == ["stage", "autoencoder", "denoiser"]  # a slow machine writes more than one line of each
    assert not list(sitting.glob(".*"))


@pytest.mark.parametrize("exact", [True, False])
def test_a_sitting_goes_on(sitting: Path, glyphs_file: Path, tmp_path: Path, exact: bool) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(sitting, old)
    if not exact:
        (old / "denoiser.pt").unlink()
    main(["--stage", "denoiser", "--resume", str(old), "--out", str(new), "--glyphs", str(glyphs_file), *OPTIONS])
    facts = state.facts_of(new)["denoiser"]
    assert facts["steps"] == 10 and facts["seconds"] > state.facts_of(old)["denoiser"]["seconds"]
    before, after = state.load_weights(old, "unet"), state.load_weights(new, "unet")
    change = max(float((after[name].float() - before[name].float()).abs().max()) for name in before)
    assert 0 < change < 0.1
    assert state.load_weights(new, "vae").keys() == state.load_weights(old, "vae").keys()


def test_the_decoder_alone_leaves_the_encoder(sitting: Path, glyphs_file: Path, tmp_path: Path) -> None:
    main(
        ["--stage", "decoder", "--resume", str(sitting), "--out", str(tmp_path), "--glyphs", str(glyphs_file), *OPTIONS]
    )
    before, after = state.load_weights(sitting, "vae"), state.load_weights(tmp_path, "vae")
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"decoder", "post_quant_conv"}


def test_the_autoencoder_goes_on(sitting: Path, glyphs_file: Path, tmp_path: Path) -> None:
    options = ["--resume", str(sitting), "--out", str(tmp_path), "--glyphs", str(glyphs_file), *OPTIONS]
    main(["--stage", "autoencoder", *options])
    assert state.facts_of(tmp_path)["autoencoder"]["steps"] == 10


def test_a_rehearsal_writes_nothing(glyphs_file: Path, tmp_path: Path) -> None:
    main(["--stage", "rehearse", "--out", str(tmp_path), "--glyphs", str(glyphs_file), *OPTIONS])
    assert list(tmp_path.rglob("*.*")) == []


def test_normalising_the_latents_keeps_the_pictures() -> None:
    torch.manual_seed(0)
    vae, pixels = make_vae("tiny"), torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode()
        before = vae.decode(latents).sample
        normalise_latents(vae, latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
        posterior = vae.encode(pixels).latent_dist
        after = vae.decode(posterior.mode()).sample
    assert torch.allclose(before, after, atol=1e-3)
    scaled = posterior.mode() * SCALING_FACTOR
    assert torch.allclose(scaled.mean((0, 2, 3)), torch.zeros(LATENTS), atol=1e-4)
    assert torch.allclose(scaled.std((0, 2, 3)), torch.ones(LATENTS), atol=1e-3)
    assert torch.allclose(posterior.std * SCALING_FACTOR, torch.tensor(NOISE), atol=1e-4)


def test_noise_and_target_are_the_scheduler_s() -> None:
    scheduler = make_scheduler()
    latents, noise, timesteps = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0, 500, 999])
    noisy, target = noised(latents, noise, timesteps, scheduler.alphas_cumprod)
    assert torch.allclose(noisy, scheduler.add_noise(latents, noise, timesteps), atol=1e-6)
    assert torch.allclose(target, scheduler.get_velocity(latents, noise, timesteps), atol=1e-6)
    assert torch.allclose(noisy[2], noise[2], atol=1e-6)  # zero terminal SNR: nothing of the picture is left


def test_timesteps_are_spread() -> None:
    drawn = spread_timesteps(100, torch.device("cpu")).sort().values
    assert torch.equal(drawn // 10, torch.arange(100))


def test_large_weights_are_split_and_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "LARGEST", 2**17 + 3000)
    module = torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(5)))
    state.save_weights(module, tmp_path, "unet", torch.float32)
    files = sorted(path.name for path in tmp_path.glob("*.*"))
    assert files[0] == f"unet-00001-of-{len(files):05}.safetensors" and len(files) > 1
    assert all(
        torch.equal(value, module.state_dict()[name]) for name, value in state.load_weights(tmp_path, "unet").items()
    )


def test_the_learning_rate_rises_holds_and_falls() -> None:
    rates = [state.learning_rate(1.0, share, 10**6, 100, 0.5) for share in (0.0, 0.5, 0.75, 1.0)]
    assert rates == pytest.approx([1.0, 1.0, 0.5, 0.0])
    assert state.learning_rate(1.0, 0.0, 49, 100, 0.5) == pytest.approx(0.5)


def test_a_quieter_encoder_gives_the_same_latents() -> None:
    torch.manual_seed(0)
    vae, pixels = make_vae("tiny"), torch.rand(2, 3, 64, 64) * 2 - 1
    sums: list[torch.Tensor] = []
    vae.encoder.mid_block.register_forward_hook(lambda module, given, output: sums.append(output))
    with torch.no_grad():
        before = vae.encode(pixels).latent_dist.mode()
        quiet_encoder(vae, 1 / 4)
        after = vae.encode(pixels).latent_dist.mode()
    assert torch.allclose(before, after, atol=1e-3)
    assert torch.allclose(sums[0] / 4, sums[1], atol=1e-3)
