"""Apple's GPU through MPS. Written from documents and public reports; it has not been run on a Mac yet.

CPU and GPU share one memory, so the host's footprint covers both and offloading would free nothing.
Floor torch 2.13: older ones leak future tokens in causal half-precision attention.
"""

from __future__ import annotations

import gc
import os
from contextlib import AbstractContextManager, nullcontext

import torch

from sdcli.devices.base import AHEAD_BYTES, SeparateWeights, WeightStore
from sdcli.domain import DeviceName
from sdcli.errors import SdcliError, echo

HIGHEST = 2.0
"""The highest ratio that the allocator takes."""

LOW_TO_HIGH = 0.8
"""The allocator begins to collect garbage at this part of the ceiling."""


def watermarks(limit_bytes: int, physical_bytes: int) -> dict[str, str]:
    """Environment for the allocator, read at its first use: the ceiling as a ratio of Metal's recommended maximum.

    Metal recommends about two thirds of physical memory; `prepare` corrects the high mark once it is known.
    """
    high = min(HIGHEST, limit_bytes / (physical_bytes * 2 / 3))
    return {
        "PYTORCH_MPS_HIGH_WATERMARK_RATIO": f"{high:.4f}",
        "PYTORCH_MPS_LOW_WATERMARK_RATIO": f"{high * LOW_TO_HIGH:.4f}",
    }


class MpsDevice:
    """Arithmetic on Apple's GPU."""

    name: DeviceName = "mps"
    torch_device = torch.device("mps")
    memory_format = torch.contiguous_format  # convolutions with channels_last weights are wrong in torch 2.13
    ahead_bytes = AHEAD_BYTES

    def describe(self) -> str:
        """The GPU, in words."""
        return "Apple GPU (MPS)"

    def prepare(self, limit_bytes: int | None) -> None:
        """Set the allocator's ceiling before its first use, then compare a small product with the CPU."""
        if not torch.backends.mps.is_available():
            raise SdcliError("MPS is not available in this torch or on this macOS; try --device cpu")
        if limit_bytes is not None:
            physical_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            os.environ.update(watermarks(limit_bytes, physical_bytes))  # both: they are checked against each other
            recommended = torch.mps.recommended_max_memory()
            torch.mps.set_per_process_memory_fraction(min(HIGHEST, limit_bytes / recommended))
        try:
            self._self_test()
        except RuntimeError as error:
            raise SdcliError(f"MPS cannot be used: {echo(error)}; try --device cpu") from error

    def _self_test(self) -> None:
        """A convolution and an in-place softmax against the CPU: both have been silently wrong in some release."""
        generator = torch.Generator().manual_seed(0)
        picture = torch.randn(1, 8, 16, 16, generator=generator)
        kernel = torch.randn(8, 8, 3, 3, generator=generator)

        def compute(device: torch.device) -> torch.Tensor:
            scores = torch.conv2d(picture.to(device), kernel.to(device), padding=1).flatten(2)
            torch.softmax(scores, dim=-1, out=scores)
            return torch.bmm(scores, scores.transpose(1, 2)).cpu()

        if not torch.allclose(compute(self.torch_device), compute(torch.device("cpu")), atol=1e-3):
            raise SdcliError(
                "MPS computes a wrong result in this version of torch: install 2.14.1, or use --device cpu"
            )

    def fused_attention(self, dtype: torch.dtype) -> bool:
        """Never: its fast kernels miss head sizes of Stable Diffusion 1.x, and some releases had them wrong."""
        return False

    def weight_store(self, dtype: torch.dtype, numels: list[int]) -> WeightStore:
        """A buffer a tensor: Metal limits the size of one."""
        return SeparateWeights(self.torch_device, dtype)

    def repeating(self) -> AbstractContextManager[None]:
        """The allocator keeps what is freed anyway."""
        return nullcontext()

    def exact(self) -> AbstractContextManager[None]:
        """The allocator keeps what is freed anyway."""
        return nullcontext()

    def between_blocks(self) -> None:
        """Wait: a tensor freed while its commands still run is not free."""
        torch.mps.synchronize()

    def synchronize(self) -> None:
        """Wait for the GPU."""
        torch.mps.synchronize()

    def release(self) -> None:
        """Drop, wait, empty: in this order, or the memory stays."""
        gc.collect()
        torch.mps.synchronize()
        torch.mps.empty_cache()

    def peak_bytes(self) -> int:
        """Memory is shared: the footprint has it."""
        return 0

    def reset_peak(self) -> None:
        """Nothing to reset."""
