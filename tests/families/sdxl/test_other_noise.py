"""SDXL with noise levels of its own: Playground 2.5, whose latents go by their deviation from a mean, and CosXL."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline

from sdcli.domain import Sources
from sdcli.engine.preview import preview, seen_in
from sdcli.engine.schedulers import build_scheduler
from sdcli.errors import SdcliError
from sdcli.families.colours import SDXL
from sdcli.families.sd.autoencoder import from_denoiser, to_denoiser
from sdcli.families.sdxl.parts import SCALING_FACTOR
from sdcli.models.opened import open_model
from tests.engine.test_same_picture import gradient
from tests.families.sdxl.test_pictures import REQUEST, opened, theirs
from tests.families.sdxl.test_single_file import with_tokenizers, write_single
from tests.families.sdxl.tiny import WIDE
from tests.folders import made
from tests.support import STREAMED, draw, geometry_of, largest_difference

MEAN, DEVIATION = [-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299]
PLAYGROUND: dict[str, Any] = {
    "_class_name": "EDMDPMSolverMultistepScheduler",
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "euler_at_final": False,
    "prediction_type": "epsilon",
}
COSXL: dict[str, Any] = {
    "_class_name": "EDMEulerScheduler",
    "sigma_min": 0.003,
    "sigma_max": 100.0,
    "sigma_data": 1.0,
    "sigma_schedule": "exponential",
    "prediction_type": "v_prediction",
}
STATISTICS: dict[str, Any] = {"latents_mean": MEAN, "latents_std": DEVIATION, "scaling_factor": 0.5}

Folder = Callable[..., Path]


@pytest.fixture
def folder(xl: Path, tmp_path: Path) -> Folder:
    """The tiny model with another scheduler, and other settings of its autoencoder."""

    def copy(scheduler: dict[str, Any], **vae: Any) -> Path:
        shutil.copytree(xl, tmp_path / "m")
        (tmp_path / "m" / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
        index = {"scheduler": ["diffusers", scheduler["_class_name"]]}
        for name, changes in (("vae/config.json", vae), ("model_index.json", index)):
            config = tmp_path / "m" / name
            config.write_text(json.dumps(json.loads(config.read_text()) | changes))
        return tmp_path / "m"

    return copy


KINDS = pytest.mark.parametrize(
    ("scheduler", "vae"), [(PLAYGROUND, STATISTICS), (COSXL, {})], ids=["Playground 2.5", "CosXL"]
)


@KINDS
def test_a_picture_is_the_pipeline_s(folder: Folder, scheduler: dict[str, Any], vae: dict[str, Any]) -> None:
    model, request = folder(scheduler, **vae), replace(REQUEST, steps=5)
    pipeline = opened(model)
    ours = draw(model, request=request)
    assert ours.float().std() > 10
    assert largest_difference(ours, theirs(pipeline, request)) <= 1
    assert torch.equal(draw(model, request=request, plan=replace(STREAMED, guidance="sequential")), ours)
    edit, init = replace(request, width=64, strength=0.6, steps=10), gradient(64, 64)
    other = StableDiffusionXLImg2ImgPipeline(**pipeline.components, add_watermarker=False)
    other.set_progress_bar_config(disable=True)
    expected = theirs(other, edit, image=init, strength=edit.strength)
    assert largest_difference(draw(model, request=edit, payload=init.tobytes()), expected) <= 1


def test_latents_that_go_by_their_deviation_come_back(folder: Folder) -> None:
    vae = open_model("m", folder(PLAYGROUND, **STATISTICS)).parts["vae"]
    latents = torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(to_denoiser(vae, from_denoiser(vae, latents)), latents)
    assert not torch.allclose(from_denoiser(vae, latents), latents / 0.5)


@pytest.mark.parametrize(
    "vae",
    [
        {"latents_mean": MEAN[:3], "latents_std": DEVIATION},
        {"latents_mean": MEAN, "latents_std": [0.0, *DEVIATION[1:]]},
        {"latents_mean": MEAN, "latents_std": 2.0},
        {"latents_mean": ["a"] * 4, "latents_std": DEVIATION},
    ],
    ids=["three channels", "none", "no list", "words"],
)
def test_statistics_that_do_not_fit_are_refused(folder: Folder, vae: dict[str, Any]) -> None:
    with pytest.raises(SdcliError, match="latents_"):
        open_model("m", folder(PLAYGROUND, **vae))


def test_one_of_both_statistics_has_no_say_as_in_the_pipeline(folder: Folder, xl: Path) -> None:
    assert open_model("m", folder(PLAYGROUND, latents_mean=MEAN)).parts["vae"].settings.statistics is None


@KINDS
def test_a_preview_sees_what_the_scheduler_does(folder: Folder, scheduler: dict[str, Any], vae: dict[str, Any]) -> None:
    model = open_model("m", folder(scheduler, **vae))
    made, generator = build_scheduler(model.parts["scheduler"], 8), torch.Generator().manual_seed(1)
    step = made.timesteps[3]
    made._init_step_index(step)
    latents, output = torch.randn(2, 1, 4, 8, 8, generator=generator)
    expected = made.precondition_outputs(latents, output, made.sigmas[made.step_index])
    torch.testing.assert_close(seen_in(made, None, latents, output, step), expected, rtol=1e-4, atol=1e-4)


def test_a_preview_s_colours_are_sdxl_s(folder: Folder) -> None:
    model = open_model("m", folder(PLAYGROUND, **STATISTICS))
    geometry = geometry_of(model)
    assert geometry.colours is not None and geometry.defaults is not None and geometry.defaults.guidance == 3.0
    latents = torch.randn(1, 4, 6, 7, generator=torch.Generator().manual_seed(1)) * 0.5
    ours = preview(0, geometry.colours, latents)
    known = preview(0, SDXL, from_denoiser(model.parts["vae"], latents) * SCALING_FACTOR)
    assert ours is not None and known is not None
    apart = [abs(one - other) for one, other in zip(ours.payload, known.payload, strict=True)]
    assert max(apart) <= 1 and 0 < sum(ours.payload) / len(ours.payload) < 255


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tokenizers(made(tmp_path_factory.mktemp("models") / "wide", {}, WIDE))


SINGLE = {
    "Playground 2.5": (
        {"edm_mean": torch.tensor(MEAN).view(1, 4, 1, 1), "edm_std": torch.tensor(DEVIATION).view(1, 4, 1, 1)},
        PLAYGROUND,
        STATISTICS,
    ),
    "CosXL": ({"edm_vpred.sigma_min": torch.tensor(0.003), "edm_vpred.sigma_max": torch.tensor(100.0)}, COSXL, {}),
}


@pytest.mark.parametrize("kind", SINGLE)
def test_a_single_file_says_it_by_its_tensors(wide: Path, tmp_path: Path, kind: str) -> None:
    more, scheduler, vae = SINGLE[kind]
    single = open_model("m", write_single(wide, tmp_path / "m.safetensors", more))
    settings = {key: value for key, value in single.parts["scheduler"].config.items() if value != "none"}
    assert {"_class_name": single.parts["scheduler"].class_name, **settings} == pytest.approx(scheduler)
    has = single.parts["vae"].settings
    expected = {"latents_mean": None, "latents_std": None, "scaling_factor": SCALING_FACTOR} | vae
    for key, value in expected.items():
        assert getattr(has, key) == (None if value is None else pytest.approx(value))
    assert not any("--prediction" in note for note in single.notes)
    told = open_model("m", Sources(str(tmp_path / "m.safetensors"), prediction="v"))
    assert told.parts["scheduler"].config["prediction_type"] == "v_prediction"
    assert draw(tmp_path / "m.safetensors", request=REQUEST).float().std() > 5


@pytest.mark.parametrize(
    "more",
    [
        {"edm_vpred.sigma_min": torch.tensor(0.003), "edm_vpred.sigma_max": torch.zeros(0)},
        {"edm_vpred.sigma_min": torch.tensor(0.003), "edm_vpred.sigma_max": torch.tensor(100.0).double()},
        {"edm_vpred.sigma_min": torch.tensor(0.0), "edm_vpred.sigma_max": torch.tensor(100.0)},
        {"edm_vpred.sigma_min": torch.tensor(0.003), "edm_vpred.sigma_max": torch.tensor(torch.inf)},
        {"edm_vpred.sigma_min": torch.tensor(0.003), "edm_vpred.sigma_max": torch.tensor(torch.nan)},
        {"edm_mean": torch.zeros(4), "edm_std": torch.zeros(4)},
        {"edm_mean": torch.zeros(3), "edm_std": torch.ones(4)},
        {"edm_mean": torch.zeros(0), "edm_std": torch.ones(4)},
        {"edm_mean": torch.full((4,), torch.nan), "edm_std": torch.ones(4)},
    ],
    ids=["empty", "FP64", "none", "infinite", "NaN", "no deviation", "three channels", "no means", "means of NaN"],
)
def test_numbers_that_are_none_are_refused_by_name(wide: Path, tmp_path: Path, more: dict[str, torch.Tensor]) -> None:
    with pytest.raises(SdcliError, match=r"edm_vpred|latents_"):
        open_model("m", write_single(wide, tmp_path / "m.safetensors", more))


def test_another_autoencoder_takes_over_the_statistics_that_the_denoiser_was_made_for(
    folder: Folder, xl: Path, wide: Path, tmp_path: Path
) -> None:
    model, other = folder(PLAYGROUND, **STATISTICS), str(xl / "vae")
    replaced = open_model("m", Sources(str(model), parts={"vae": other}))
    assert replaced.parts["vae"].folder != model / "vae"
    assert replaced.parts["vae"].settings.statistics == (MEAN, DEVIATION)
    given = draw(Sources(str(model), parts={"vae": other}), request=REQUEST)
    assert torch.equal(given, draw(model, request=REQUEST)), "which has the same weights"
    (model / "vae" / "config.json").write_text("{")
    assert open_model("m", Sources(str(model), parts={"vae": other})).parts["vae"].settings.statistics is None
    (model / "vae" / "config.json").write_text(
        json.dumps({"_class_name": "AutoencoderKL", **replaced.parts["vae"].config})
    )
    plain = open_model("m", Sources(str(xl), parts={"vae": str(model / "vae")}))
    assert plain.parts["vae"].settings.statistics == (MEAN, DEVIATION), "what is given says so itself"
