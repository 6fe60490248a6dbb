"""How many bytes each stage will take: arithmetic over headers and the request. No torch, no psutil.

Weights come from the files' headers, exactly. Activations are a number of times the largest tensor of their
stage; those numbers, and what the libraries keep for themselves, were measured (benchmarks/RESULTS.md) and
are rounded up, so that a prediction errs to the safe side.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdcli.domain import DTYPE_BYTES, DtypeName, Plan, Request, StageName, StageNeed
from sdcli.models.folder import Component, Model
from sdcli.units import MIB

KERNELS_BYTES = 96 * MIB
"""What a denoise step takes besides tensors: oneDNN's compiled kernels and scratch, and the heap's gaps."""

DENOISE_TENSORS = 20
"""Peak activations of a sample, as a multiple of the first level's tensor (base channels x latents)."""

TOKENIZER_BYTES = 24 * MIB
"""CLIP's vocabulary and merges in memory."""

DECODER_KERNELS_BYTES, DECODER_TENSORS = 64 * MIB, 7.2
ENCODER_KERNELS_BYTES, ENCODER_TENSORS = 16 * MIB, 5.2
"""The same for the autoencoder's halves: tensors are of base channels x pixels. The encoder runs before the
denoiser has left its kernels behind."""


@dataclass(frozen=True, slots=True)
class Weights:
    """One component's weights as they will lie in memory: bytes in the arithmetic's type.

    `matrices` are in the order of use; they may stream. `vectors_bytes` are always resident.
    """

    matrices: tuple[int, ...]
    vectors_bytes: int

    @property
    def matrices_bytes(self) -> int:
        """All matrices."""
        return sum(self.matrices)

    def streamed(self, resident_bytes: int) -> list[int]:
        """The matrices that stream when `resident_bytes` of them may stay, as components/weights.py splits them."""
        streams, left = [], resident_bytes
        for size in self.matrices:
            if size <= left:
                left -= size
            else:
                streams.append(size)
        return streams


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
    model: Model, request: Request, plan: Plan, dtype: DtypeName, baseline_bytes: int
) -> tuple[StageNeed, ...]:
    """The predicted peak footprint of each stage of the run, in order."""
    needs: list[tuple[StageName, int]] = [("encode_prompt", _encode_prompt(model, request, dtype))]
    if request.strength is not None:
        needs.append(("encode_image", ENCODER_KERNELS_BYTES + _autoencoder(model, request, plan, dtype, "encoder.")))
    needs.append(("denoise", denoise_bytes(model, request, plan, dtype)))
    needs.append(("decode", DECODER_KERNELS_BYTES + _autoencoder(model, request, plan, dtype, "decoder.")))
    return tuple(StageNeed(name, baseline_bytes + extra) for name, extra in needs)


def _encode_prompt(model: Model, request: Request, dtype: DtypeName) -> int:
    weights = weights_of(model.text_encoder, dtype)
    config = model.text_encoder.config
    tokens = 2 * config.get("max_position_embeddings", 77) * prompt_chunks(request)
    channels = 3 * config.get("intermediate_size", 3072) + 8 * config.get("hidden_size", 768)
    activations = tokens * channels * DTYPE_BYTES[dtype]
    return TOKENIZER_BYTES + weights.vectors_bytes + max(weights.matrices, default=0) + activations


def prompt_chunks(request: Request) -> int:
    """At most how many chunks of 75 tokens the prompts take: a token is at least one byte, and 8 chunks are the cap."""
    longest = max(len(request.prompt.encode()), len(request.negative.encode()))
    return min(8, 1 + longest // 75)


def denoise_bytes(model: Model, request: Request, plan: Plan, dtype: DtypeName) -> int:
    """Bytes of the denoise stage over the baseline."""
    weights = weights_of(model.unet, dtype)
    streamed = weights.streamed(plan.resident_bytes)
    resident = weights.matrices_bytes - sum(streamed)
    # a streamed weight is there twice, cast and as the kernel lays it out; so is a resident one while it is packed
    twice = 2 * max(streamed, default=0)
    loading = 2 * max(weights.matrices, default=0) if resident else 0
    computing = KERNELS_BYTES + twice + plan.attention_scratch_bytes + _denoise_activations(model, request, plan, dtype)
    return weights.vectors_bytes + resident + max(computing, loading)


def _denoise_activations(model: Model, request: Request, plan: Plan, dtype: DtypeName) -> int:
    height, width = request.latent_shape
    base = model.unet.config.get("block_out_channels", [320])[0]
    samples = 2 if request.guided and plan.guidance == "batched" else 1
    return samples * DENOISE_TENSORS * base * height * width * DTYPE_BYTES[dtype]


def _autoencoder(model: Model, request: Request, plan: Plan, dtype: DtypeName, half: str) -> int:
    weights = weights_of(model.vae, dtype, (half,))
    base = model.vae.config.get("block_out_channels", [128])[0]
    tensors = ENCODER_TENSORS if half == "encoder." else DECODER_TENSORS
    activations = int(tensors * base * request.height * request.width * DTYPE_BYTES[dtype])
    buffer = max(weights.matrices, default=0)
    return weights.vectors_bytes + buffer + plan.attention_scratch_bytes + activations
