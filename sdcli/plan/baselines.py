"""What the program weighs before it loads anything, as measured by earlier runs of these very versions.

Remembered in the cache, so that a request that cannot fit is refused at once and with the right figures. A
memory that is missing or cannot be written only means that a worker is asked, which takes seconds.
"""

from __future__ import annotations

import sys
from importlib import metadata

from sdcli import __version__, machine
from sdcli.plan.remembered import Table, change_table, number, read_table
from sdcli.units import GIB, MIB, format_size

CPU_BUILD_BYTES, GPU_BUILD_BYTES = 167 * MIB, 299 * MIB
"""Of a first run, which finds out how fast the machine is. Measured on Linux, x86, torch 2.13 for CPUs (165 to 167, and
161 in later runs: 16 MiB of host, 117 of Python and torch, the rest the model classes); torch 2.14.1 for CUDA takes 132
more (tables that its libraries allocate as they are loaded, GPU or not)."""

CUDA_CONTEXT_BYTES = 922 * MIB
"""What the driver and the kernels take on a GPU (H200, benchmarks/RESULTS.md)."""

VARYING_BYTES = 4 * MIB
"""By so much the same baseline differs from run to run."""

UNCERTAIN_BYTES = 16 * MIB
"""By so much the baseline of another machine, or with other versions, may differ from what is typical."""

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""Of torch's wheels for CPUs. Their versions end in +cpu, without which pip takes the build that is there for it."""

BELIEVED_BYTES = 50 * MIB, 4 * GIB
"""No less and no more is ever believed of a file."""

_FILE = "baseline.json"


def typical_bytes(device: str) -> int:
    """Before a first run has measured it."""
    if device == "cuda":
        return CUDA_CONTEXT_BYTES
    return GPU_BUILD_BYTES if machine.torch_gpu_build() else CPU_BUILD_BYTES


def hopeless_bytes(device: str) -> int:
    """Under a ceiling like this no worker need be asked."""
    return typical_bytes(device) * 5 // 6


def build_note(device: str) -> str:
    """What a torch that was built for GPUs costs where none is used, and what to do if there is none; else nothing."""
    build = machine.torch_gpu_build()
    if device != "cpu" or build is None:
        return ""
    more = f"{format_size(GPU_BUILD_BYTES - CPU_BUILD_BYTES)} more" if build.startswith("CUDA") else "more memory"
    cpu_build = f"torch=={machine.torch_version().partition('+')[0]}+cpu"
    how = f": pip install {cpu_build} --index-url {CPU_INDEX}" if machine.gpu_memory_bytes() is None else ""
    return f"your torch is built for {build} and takes {more} than the CPU build{how}"


def remembered_baseline(device: str) -> int | None:
    """Bytes measured last on this device with these versions, or None."""
    measured = number(read_table(_FILE).get(_key(device)), *BELIEVED_BYTES)
    return measured if isinstance(measured, int) else None


def remember_baseline(device: str, baseline_bytes: int) -> None:
    """Keep the least that was measured, until one differs by more than they vary; other versions' are forgotten."""

    def change(table: Table) -> Table:
        known = {_key(name): number(table.get(_key(name)), *BELIEVED_BYTES) for name in ("cpu", "cuda", "mps")}
        before = known[_key(device)]
        if before is None or not before <= baseline_bytes <= before + VARYING_BYTES:
            known[_key(device)] = baseline_bytes
        return {name: measured for name, measured in known.items() if measured}

    change_table(_FILE, change)


def _key(device: str) -> str:
    libraries = " ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers", "transformers"))
    return f"{device}: sdcli {__version__} python {sys.version.split()[0]} {libraries}"
