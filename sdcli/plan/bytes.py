"""How many bytes each stage will take: arithmetic over headers and the request. No torch, no psutil.

Weights come from the files' headers, exactly. Activations are a number of times the largest tensor of their
stage; those numbers, and what the libraries keep for themselves, were measured (benchmarks/RESULTS.md) and
are rounded up, so that a prediction errs to the safe side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from sdcli.domain import DTYPE_BYTES, DtypeName, Plan, Request, StageName, StageNeed
from sdcli.models.folder import Component, Model
from sdcli.plan.remainder import WITH_AVX512, Overhead, along
from sdcli.units import MIB

ONE_SAMPLE = 0.6
"""One sample at a time is as two of so much the size."""

TOKENIZER_BYTES = 12 * MIB
"""CLIP's vocabulary and merges in memory."""

ENCODER_KERNELS_BYTES = 14 * MIB
"""What the encoder takes besides weights and whole maps: bands, oneDNN's kernels and scratch, the heap's gaps."""

ENCODER_LEAVES_BYTES = 12 * MIB
"""What the encoder's kernels keep, which the denoiser finds there."""

AUTOENCODER_SCRATCH_BYTES = 8 * MIB
"""Its attention's scratch, the same in every plan."""

BAND_TENSORS = 5
"""So many times what a band is larger than BAND_BYTES comes on top."""

MAKING_BYTES = 16 * MIB
"""What making a prepared copy takes besides the largest weight twice: padded layouts, kernels, the heap's gaps."""

HANDED_TIMES = 3
"""A second worker is handed all pictures' latents before it loads anything: so many times they are there, on both sides
of the pipe, with what a checkpoint has besides (2.3 times, measured)."""

HALF_BYTES = 2
"""A number of a map that lasts from block to block: FP32 lies in FP16 there."""

BAND_BYTES, BAND_ROWS = 4 * MIB, 16
"""Bytes of a band's widest tensor in the autoencoder, and rows that a band has at least: the rows around it are
computed besides. Two rows of latents make such a band of pixels."""


@dataclass(frozen=True, slots=True)
class Weights:
    """One component's weights as they will lie in memory: bytes in the arithmetic's type.

    `matrices` may stream. `vectors_bytes` are always resident.
    """

    matrices: tuple[int, ...]
    vectors_bytes: int

    @property
    def matrices_bytes(self) -> int:
        """All matrices."""
        return sum(self.matrices)

    @property
    def largest_bytes(self) -> int:
        """The largest matrix, 0 if there is none."""
        return max(self.matrices, default=0)


@lru_cache(maxsize=64)
def weights_of(component: Component, dtype: DtypeName, parts: tuple[str, ...] = ("",)) -> Weights:
    """Sizes from the headers. Embedding tables stay mapped and count nothing."""
    item = DTYPE_BYTES[dtype]
    matrices, vectors = [], 0
    for name, (_, _, info) in component.weights().items():
        if not name.startswith(parts) or (component.name == "text_encoder" and "_embedding." in name):
            continue
        if len(info.shape) < 2:
            vectors += info.numel * item
        else:
            matrices.append(info.numel * item)
    return Weights(tuple(matrices), vectors)


def stage_needs(
    model: Model,
    request: Request,
    plan: Plan,
    dtype: DtypeName,
    baseline_bytes: int,
    overhead: Overhead = WITH_AVX512,
    making: bool = False,
) -> tuple[StageNeed, ...]:
    """The predicted peak footprint of each stage of the run, in order; `making` is of the prepared copy."""
    needs: list[tuple[StageName, int]] = [("encode_prompt", _encode_prompt(model, request, dtype))]
    if request.strength is not None:
        needs.append(("encode_image", _autoencoder(model, request, plan, dtype, "encoder.", overhead)))
    needs.append(("denoise", denoise_bytes(model, request, plan, dtype, overhead, making)))
    decoding = 2 * latents_bytes(model, request) + _autoencoder(model, request, plan, dtype, "decoder.", overhead)
    handing = HANDED_TIMES * request.count * latents_bytes(model, request) if plan.fresh_decode else 0
    needs.append(("decode", max(decoding, handing)))
    return tuple(StageNeed(name, baseline_bytes + extra) for name, extra in needs)


def latents_bytes(model: Model, request: Request) -> int:
    """One picture's latents in FP32. The worker and the host have one's in memory, the others' lie in files."""
    height, width = model.latent_shape(request)
    return model.latent_channels * height * width * DTYPE_BYTES["fp32"]


def _encode_prompt(model: Model, request: Request, dtype: DtypeName) -> int:
    weights = weights_of(model.text_encoder, dtype)
    config = model.text_encoder.config
    tokens = 2 * config.get("max_position_embeddings", 77) * prompt_chunks(request)
    channels = 3 * config.get("intermediate_size", 3072) + 8 * config.get("hidden_size", 768)
    activations = tokens * channels * DTYPE_BYTES[dtype]
    return TOKENIZER_BYTES + weights.vectors_bytes + weights.largest_bytes + activations


def prompt_chunks(request: Request) -> int:
    """At most how many chunks of 75 tokens the prompts take: a token is at least one byte, and 8 chunks are the cap."""
    longest = max(len(request.prompt.encode()), len(request.negative.encode()))
    return min(8, 1 + longest // 75)


def denoise_bytes(
    model: Model, request: Request, plan: Plan, dtype: DtypeName, overhead: Overhead, making: bool = False
) -> int:
    """Bytes of the denoise stage over the baseline."""
    weights = weights_of(model.unet, dtype)
    resident = min(plan.resident_bytes, weights.matrices_bytes)
    if plan.residency == "resident":
        resident = int(resident * overhead.padding)
    # laying out what stays, or goes to a prepared copy, has the largest weight there twice; using a copy not at all
    laying_out = 2 * weights.largest_bytes if making or not plan.prepared else 0
    copying = MAKING_BYTES if making and plan.prepared else 0
    return max(
        resident + step_bytes(model, request, plan, dtype, overhead),
        weights.vectors_bytes + laying_out + copying,
    )


def step_bytes(model: Model, request: Request, plan: Plan, dtype: DtypeName, overhead: Overhead) -> int:
    """Bytes that a denoise step takes over the baseline and resident weights."""
    weights = weights_of(model.unet, dtype)
    # the model's own weights are there twice while they are used, cast and as the kernel lays them out
    streaming = 0 if plan.prepared or plan.residency == "resident" else 2 * weights.largest_bytes
    kept = 2 * latents_bytes(model, request) + (ENCODER_LEAVES_BYTES if request.strength is not None else 0)
    return weights.vectors_bytes + streaming + kept + _denoise_activations(model, request, plan, dtype, overhead)


def _denoise_activations(model: Model, request: Request, plan: Plan, dtype: DtypeName, overhead: Overhead) -> int:
    """And whatever else a step takes besides weights."""
    share = 1.0 if request.guided and plan.guidance == "batched" else ONE_SAMPLE
    tensor = first_tensor_bytes(model, request, dtype)
    return plan.attention_scratch_bytes + along(overhead.denoise[plan.give_back], share * tensor)


def first_tensor_bytes(model: Model, request: Request, dtype: DtypeName) -> int:
    """The first level's tensor of one sample: base channels x latents."""
    height, width = model.latent_shape(request)
    channels: int = model.unet.config.get("block_out_channels", [320])[0]
    return channels * height * width * DTYPE_BYTES[dtype]


def _autoencoder(model: Model, request: Request, plan: Plan, dtype: DtypeName, half: str, overhead: Overhead) -> int:
    """Bytes of one half of the autoencoder over the baseline, as families/sd/autoencoder.py goes about it."""
    item, pixels = DTYPE_BYTES[dtype], request.height * request.width
    weights = weights_of(model.vae, dtype, (half,))
    widths: list[int] = model.vae.config.get("block_out_channels", [128, 256, 512, 512])
    maps = (_decoder_maps if half == "decoder." else _encoder_maps)(widths, plan.vae_tile is None, item)
    picture = 3 * pixels * DTYPE_BYTES["fp32"]
    smallest = pixels // 4 ** (len(widths) - 1)
    attention = AUTOENCODER_SCRATCH_BYTES + 6 * widths[-1] * smallest * item
    row = max(widths[:2]) * request.width * item
    wide = BAND_TENSORS * max(0, BAND_ROWS * row - BAND_BYTES)
    lent = weights.vectors_bytes + 3 * weights.largest_bytes  # two convolutions, and one being cast
    kernels = ENCODER_KERNELS_BYTES
    if half == "decoder.":
        kernels = along(overhead.fresh_decode if plan.fresh_decode else overhead.decode, pixels * item)
    return kernels + lent + max(attention, int(maps * pixels) + picture + wide)


def _decoder_maps(widths: list[int], keep: bool, item: int) -> float:
    """The decoder's whole maps at their most, bytes for each pixel of the picture; `item` of a number.

    Each level begins with a residual block from the smaller map before it, and goes on in place.
    """
    lasting = min(item, HALF_BYTES)
    most, area, before = 0.0, 0.25 ** (len(widths) - 1), 0
    for width in reversed(widths):
        map_ = width * area
        if keep:  # the map before, doubled, half of the block and its sum; later half of a block, and the sum in place
            most = max(most, before * area * item + map_ * item + map_ * lasting)
        else:  # what is doubled when asked for, and the sum
            most = max(most, before * area / 4 * lasting + map_ * lasting)
        area, before = area * 4, width
    return most


def _encoder_maps(widths: list[int], keep: bool, item: int) -> float:
    """The same for the encoder, whose levels end with a smaller map."""
    lasting = min(item, HALF_BYTES)
    most, area, before = 0.0, 1.0, widths[0]
    for width in widths:
        changed = before * area if width != before else 0
        half = width * area * item if keep else 0
        most = max(most, (changed + width * area) * lasting + half, 1.25 * width * area * lasting)
        area, before = area / 4, width
    return most
