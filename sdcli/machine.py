"""What this computer has, found out without torch: memory, the container's limit, processor and GPUs.

Every answer that decides something comes as a Choice, with its reason.
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from uuid import UUID

import psutil

from sdcli import arm
from sdcli.domain import DeviceName, DtypeName
from sdcli.errors import BadRequest, printable
from sdcli.units import GIB
from sdcli.uses import MapShape

DEVICES: tuple[DeviceName, ...] = ("cuda", "mps", "cpu")
"""In the order in which `auto` takes them."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A decision and why it fell that way."""

    value: str
    reason: str


def physical_memory_bytes() -> int:
    """All memory of this machine."""
    return int(psutil.virtual_memory().total)


def container_limit_bytes() -> int | None:
    """The tightest memory limit of the control groups around this process (Linux), or None."""
    if not sys.platform.startswith("linux"):
        return None
    files = (folder / name for folder in memory_groups() for name in ("memory.max", "memory.limit_in_bytes"))
    limits = [limit for path in files if (limit := _read_limit(path)) is not None]
    return min((limit for limit in limits if limit < physical_memory_bytes()), default=None)


def memory_groups() -> Iterator[Path]:
    """Folders of the memory control groups of this process, versions 1 and 2, and of all groups around them."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup/memory" if controllers else "/sys/fs/cgroup")
        group = root / name.lstrip("/")
        while group != root and root in group.parents:
            yield group
            group = group.parent
        yield root  # a container may see its own group as the root


def _read_limit(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def iphone_share_bytes(memory_bytes: int) -> int:
    """What iOS lets one app have of a device's memory: 2.0 of 4 GiB, 2.8 of 6 GiB, half of less, and on that line."""
    return min(memory_bytes // 2, memory_bytes * 2 // 5 + GIB * 2 // 5)


def available_devices() -> dict[DeviceName, str]:
    """The devices that can be used here, best first, each with what shows it."""
    found: dict[DeviceName, str] = {}
    if (cuda := torch_cuda_version()) and gpu_memory_bytes() is not None:
        found["cuda"] = f"an NVIDIA GPU and a torch built for CUDA {cuda}"
    if sys.platform == "darwin" and platform.machine() == "arm64":
        found["mps"] = "an Apple GPU"
    found["cpu"] = "always there"
    return found


def choose_device(asked: str) -> Choice:
    """The device for `auto` or a name. Raises BadRequest for one that is not here."""
    found = available_devices()
    if asked == "auto":
        best = next(iter(found))
        return Choice(best, found[best] if best != "cpu" else "no GPU that torch could use")
    if asked not in found:
        raise BadRequest(f"the device '{asked}' is not available here: there is {', '.join(found)}")
    return Choice(asked, "asked for")


def choose_dtype(device: str, asked: str) -> tuple[DtypeName, str]:
    """The arithmetic's type and why: half precision wherever it is fast."""
    if asked != "auto":
        named: DtypeName = "fp16" if asked == "fp16" else "bf16" if asked == "bf16" else "fp32"
        return named, "asked for"
    if device != "cpu":
        return "fp16", "GPUs compute in fp16"
    if cpu_has_bf16():
        return "bf16", "this processor computes in bf16"
    return "fp32", "this processor has no bf16, and fp16 on a CPU is hundreds of times slower"


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16: AVX512_BF16 or AMX on x86, FEAT_BF16 on Arm."""
    if sys.platform == "darwin":
        return _sysctl("hw.optional.arm.FEAT_BF16") == "1"
    return bool(_cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


def cpu_is_measured(dtype: DtypeName) -> bool:
    """Whether plan/remainder.py was measured on this kind of processor: x86, in bf16 if it multiplies that."""
    return _on_x86() and (cpu_has_bf16() if dtype == "bf16" else dtype == "fp32")


def cpu_has_amx() -> bool:
    """Whether the processor has Intel's matrix unit for bf16."""
    return "amx_bf16" in _cpu_flags()


def attends_fused(device: str, dtype: str) -> bool:
    """Whether the library's fused attention is the faster one: on CUDA, on x86 in fp32, in bf16 with a matrix unit.

    Or the only one that gives the same bits whatever the plan: products in bf16 on a processor that has none.
    """
    if device == "cpu":
        return _on_x86() if dtype == "fp32" else dtype == "bf16" and (cpu_has_amx() or not cpu_has_bf16())
    return device == "cuda"


_PACKING_UNITS: dict[DtypeName, tuple[set[str], ...]] = {
    "fp32": (set(),),
    "bf16": ({"avx512bw", "avx512vl", "avx512dq"}, {"avx_ne_convert"}),
    "fp16": ({"avx512_fp16"}, {"avx_ne_convert"}),
}
"""Vector units that torch's kernels for packed weights of a type need (its CPU checks, and what their errors say)."""


def cpu_packs_weights(dtype: DtypeName) -> bool:
    """Whether packed weights are worth a copy on disk: measured on x86 and Linux only, and in types it computes in."""
    return sys.platform == "linux" and _on_x86() and any(units <= _cpu_flags() for units in _PACKING_UNITS[dtype])


def _on_x86() -> bool:
    return platform.machine() in ("x86_64", "AMD64")


def _on_x86_without_avx512() -> bool:
    return _on_x86() and "avx512bw" not in _cpu_flags()


def cpu_packs_for(height: int, width: int, dtype: str) -> MapShape:
    """Samples, height and width of latents that weights are best laid out for, where these are the picture's.

    With Intel's matrix unit the library wants the same layout for nearly every size, else another one for each size:
    given the wrong one, it lays the weights out again in every call (a fifth of a step's time with AVX2; with AVX-512
    three fifths of one at 256x256, in bf16 three quarters). Both samples of guidance are served by the layout for one,
    with AVX-512 also both at a time.
    """
    return (1, height, width) if _on_x86() and (dtype == "fp32" or not cpu_has_amx()) else ANY_SIZE


def cpu_gains_by_winograd() -> bool:
    """Whether convolutions with fewer multiplications and more additions are faster in fp32: with AVX2, by half."""
    return _on_x86_without_avx512() and "avx2" in _cpu_flags()


def cpu_batches() -> bool:
    """Whether both samples of guidance may go together: with AVX2 weights laid out for one sample suit one sample."""
    return not _on_x86_without_avx512()


ANY_SIZE: MapShape = (2, 64, 64)
"""A 512x512 picture with guidance."""


def cpu_vector_flags() -> list[str]:
    """The vector and matrix units that kernels choose their layouts by."""
    return sorted(flag for flag in _cpu_flags() if flag.startswith(("sse4", "avx", "amx", "fma")))


def torch_version() -> str:
    """Of the torch that is installed; importing it takes a second."""
    return metadata.version("torch")


def _cpu_flags() -> set[str]:
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", _text_of("/proc/cpuinfo"), re.MULTILINE)
    return set(found[1].split()) if found else set()


def _sysctl(name: str) -> str:
    try:
        return subprocess.run(
            ["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def cpu_name() -> str:
    """The processor's name, for reports."""
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    cpuinfo = _text_of("/proc/cpuinfo")
    if cores := arm.cores_of(cpuinfo) or arm.core_of(_text_of(_MIDR)):
        board = printable(_text_of("/proc/device-tree/model").rstrip("\0\n"))
        return f"{board} ({cores})" if board else cores
    found = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


_MIDR = "/sys/devices/system/cpu/cpu0/regs/identification/midr_el1"


def _text_of(path: str) -> str:
    """Of a file that the system makes up; empty where there is none."""
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:
        return ""


def torch_cuda_version() -> str | None:
    """The CUDA version that the installed torch was built for."""
    return _torch_built_for().get("cuda")


def torch_gpu_build() -> str | None:
    """The GPUs that the installed torch was built for, `CUDA 13.0` say; None for a build for CPUs, or for Apple's."""
    names = {"cuda": "CUDA", "hip": "ROCm", "xpu": "XPU"}
    return next((f"{names[kind]} {version}" for kind, version in _torch_built_for().items()), None)


def _torch_built_for() -> dict[str, str]:
    """Kinds of GPU and versions, read from torch's files: importing it takes a second."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return {}
    try:
        text = (Path(spec.submodule_search_locations[0]) / "version.py").read_text()
    except OSError:
        return {}
    return dict(re.findall(r"^(cuda|hip|xpu)\b[^=]*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE))


def trim_heap() -> None:
    """Give what was freed back to the system, where the C library does not by itself: pictures leave large gaps."""
    with suppress(OSError, AttributeError, TypeError):  # of systems that have no such library, or no such call
        ctypes.CDLL(None).malloc_trim(0)


class _NvmlMemory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def gpu_memory_bytes() -> int | None:
    """All memory of the GPU that CUDA takes first, or None without one."""
    memory = _gpu_memory()
    return int(memory.total) if memory else None


def gpu_used_bytes() -> int:
    """Memory of that GPU in use by anyone, 0 without one."""
    memory = _gpu_memory()
    return int(memory.used) if memory else 0


def _gpu_memory() -> _NvmlMemory | None:
    """From the driver's management library (NVML): asking CUDA would make a context of half a GiB."""
    uuid = _gpu_uuid()
    if uuid is None:
        return None
    try:
        nvml = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except OSError:
        return None
    handle, memory = ctypes.c_void_p(), _NvmlMemory()
    if nvml.nvmlInit_v2() != 0:
        return None
    try:
        names = (f"{kind}-{uuid}".encode() for kind in ("GPU", "MIG"))
        if all(nvml.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)) != 0 for name in names):
            return None
        if nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) != 0:
            return None
        return memory
    finally:
        nvml.nvmlShutdown()


def _gpu_uuid() -> UUID | None:
    """Of CUDA's device 0. NVML counts every GPU in the order of their slots; CUDA the fastest first, and only those of
    CUDA_VISIBLE_DEVICES. Asking this makes no context."""
    device, raw = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        if driver.cuInit(0) != 0 or driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
            return None
        if driver.cuDeviceGetUuid_v2(ctypes.byref(raw), device) != 0:
            return None
    except (OSError, AttributeError):  # no driver, or one from before CUDA 11.4
        return None
    return UUID(bytes=bytes(raw))
