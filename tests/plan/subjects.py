"""Something to plan for: a model of about the size and shape of Stable Diffusion 1.5, of counts alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from sdcli.domain import DTYPE_BYTES, DtypeName, Model, Plan, Request, StageNeed
from sdcli.families.contract import Geometry
from sdcli.families.sd.family import StableDiffusion
from sdcli.models.reference import DEMO, resolve_model
from sdcli.plan.bytes import Subject, stage_need
from sdcli.plan.counts import Counts, StageCount, WayCount
from sdcli.plan.remainder import WITH_AVX512, Remainder
from sdcli.plan.ways import SCRATCHES, way_of_steps
from sdcli.units import MIB
from sdcli.uses import Use, WeightUse

GEOMETRY = Geometry(latent_channels=4, latent_factor=8, native_size=(512, 512), prompt_tokens=77)
LARGE_BYTES = 32 * MIB
"""From this size on a map is a mapping of its own."""


def layers(part: str, use: Use, *counted: tuple[int, tuple[int, ...], int]) -> tuple[WeightUse, ...]:
    """So many weights of a shape, each with its bias, at every so many pixels."""
    uses, shapes = [], [(shape, pixels) for count, shape, pixels in counted for _ in range(count)]
    for index, (shape, pixels) in enumerate(shapes):
        uses.append(WeightUse(part, f"{index}.weight", shape, use, (1, 1), 512 * 512 // pixels))
        uses.append(WeightUse(part, f"{index}.bias", shape[:1], "vector", (1, 1), 0))
    return tuple(uses)


@cache
def _any_model() -> Model:
    """One whose stages are those of all others that are told of no mask."""
    return resolve_model(DEMO, lambda *_: None)


UNET = layers(
    "unet", "matrix", (20, (320, 320, 3, 3), 64), (20, (640, 640, 3, 3), 256), (40, (1280, 1280, 3, 3), 4096),
    (2, (10240, 1280), 1024), (60, (1280, 1280), 1024), (4, (1280, 2560, 3, 3), 4096),
)  # fmt: skip
TEXT = (
    WeightUse("text_encoder", "embedding", (49408, 768), "table", (1, 1), 0),
    *layers("text_encoder", "matrix", (48, (768, 768), 64), (12, (3072, 768), 64), (12, (768, 3072), 64)),
)
VAE = layers("vae", "copied", (14, (512, 512, 3, 3), 64), (8, (128, 128, 3, 3), 1))


def counts_in(dtype: DtypeName) -> Callable[[Request], Counts]:
    """Counts as a dry run might have made them, of any request."""
    item = DTYPE_BYTES[dtype]

    def way(live: float, flops: float, kernels: int, maps: int = 10) -> WayCount:
        """Of `maps` maps of one size."""
        heap = live if live / maps < LARGE_BYTES else LARGE_BYTES
        return WayCount(int(live), int(heap), flops, kernels)

    def counts_of(request: Request) -> Counts:
        pixels, longest = request.width * request.height, max(len(request.prompt), len(request.negative))
        words = 77 * min(8, 1 + longest // 75)
        first = 320 * pixels // 64 * item
        steps = {
            way_of_steps(samples, scratch): way(
                (10 * samples + 4) * first + scratch + words, 1.2e7 * samples * pixels / 4, 60
            )
            for samples in ((1, 2) if request.guided else (1,))
            for scratch in (0, *SCRATCHES)
        }
        maps = {
            "whole": way(320 * pixels * item, 8e6 * pixels, 20, 3),
            "recomputed": way(160 * pixels * item, 16e6 * pixels, 20, 3),
            "unkept": way(120 * pixels * item, 28e6 * pixels, 30, 3),
        }
        words_way = {"": way(2 * words * 12 * 768 * item, 1e10, 8)}
        counts = {"encode_prompt": StageCount(TEXT, words_way), "denoise": StageCount(UNET, steps)}
        counts["decode"] = StageCount(VAE, maps)
        return counts | ({} if request.strength is None else {"encode_image": StageCount(VAE, maps)})

    return counts_of


def subject_of(request: Request, dtype: DtypeName) -> Subject:
    """The request with this model."""
    stages = StableDiffusion().stages(_any_model(), request)
    return Subject(request, dtype, stages, GEOMETRY, counts_in(dtype))


def needs_of(
    subject: Subject, plan: Plan, baseline_bytes: int, making: bool = False, remainder: Remainder = WITH_AVX512
) -> tuple[StageNeed, ...]:
    """What each stage is predicted to take."""
    return tuple(stage_need(subject, plan, stage, baseline_bytes, remainder, making) for stage in subject.stages)
