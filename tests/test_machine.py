"""What this computer has, on computers that are not this one."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from sdcli import machine
from sdcli.domain import DtypeName
from sdcli.errors import BadRequest
from sdcli.machine import Choice
from sdcli.units import GIB, MIB

Files = Callable[[dict[str, str]], None]


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Files:
    """Gives the machine these files, by absolute path, and no others; it is Linux and has 16 GiB."""
    root = tmp_path / "root"
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(machine, "Path", lambda *parts: root.joinpath(*(str(part).lstrip("/") for part in parts)))
    monkeypatch.setattr(machine, "physical_memory_bytes", lambda: 16 * GIB)

    def put(table: dict[str, str]) -> None:
        for name, text in table.items():
            file = root / name.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    return put


# Memory


def test_the_physical_memory_is_the_system_s() -> None:
    assert machine.physical_memory_bytes() == psutil.virtual_memory().total > GIB // 4


V1 = "12:pids:/docker/abc\n4:cpu,memory:/docker/abc\n1:name=systemd:/\n0::/system.slice\n"


@pytest.mark.parametrize(
    ("table", "limit"),
    [
        pytest.param({}, None, id="no control groups"),
        pytest.param({"/proc/self/cgroup": "0::/user.slice/a\n"}, None, id="v2 without a limit file"),
        pytest.param(
            {"/proc/self/cgroup": "0::/user.slice/a\n", "/sys/fs/cgroup/user.slice/a/memory.max": "max\n"},
            None, id="v2 max",
        ),
        pytest.param(
            {"/proc/self/cgroup": "0::/user.slice/a\n", "/sys/fs/cgroup/user.slice/a/memory.max": "536870912\n"},
            512 * MIB, id="v2 its own",
        ),
        pytest.param(
            {
                "/proc/self/cgroup": "0::/user.slice/a\n",
                "/sys/fs/cgroup/user.slice/a/memory.max": "4294967296\n",
                "/sys/fs/cgroup/user.slice/memory.max": "1073741824\n",
            },
            GIB, id="v2 tighter around it",
        ),
        pytest.param(
            {"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": "2147483648\n"}, 2 * GIB, id="v2 as the root"
        ),
        pytest.param(
            {"/proc/self/cgroup": "0::/kubepods/x\n", "/sys/fs/cgroup/memory.max": "2147483648\n"},
            2 * GIB, id="v2 seen as the root from inside",
        ),
        pytest.param(
            {"/proc/self/cgroup": "0::/a\n", "/sys/fs/cgroup/a/memory.max": str(32 * GIB)}, None, id="v2 above physical"
        ),
        pytest.param(
            {"/proc/self/cgroup": V1, "/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "3221225472\n"},
            3 * GIB, id="v1",
        ),
        pytest.param(
            {"/proc/self/cgroup": V1, "/sys/fs/cgroup/memory/memory.limit_in_bytes": "3221225472\n"},
            3 * GIB, id="v1 seen as the root from inside",
        ),
        pytest.param(
            {"/proc/self/cgroup": V1, "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"},
            None, id="v1 unlimited",
        ),
        pytest.param(
            {"/proc/self/cgroup": "0::/a\n", "/sys/fs/cgroup/a/memory.max": "junk\n"}, None, id="junk in the file"
        ),
        pytest.param(
            {"/proc/self/cgroup": "0::/a:b\n", "/sys/fs/cgroup/a:b/memory.max": "1048576\n"}, MIB, id="a colon"
        ),
    ],
)  # fmt: skip
def test_the_tightest_limit_of_the_control_groups_is_found(
    files: Files, table: dict[str, str], limit: int | None
) -> None:
    files(table)
    assert machine.container_limit_bytes() == limit


def test_other_systems_have_no_control_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("darwin", "win32"):
        monkeypatch.setattr(sys, "platform", name)
        assert machine.container_limit_bytes() is None


@pytest.mark.parametrize(("memory", "share"), [(4 * GIB, 2 * GIB), (6 * GIB, int(2.8 * GIB)), (1 * GIB, GIB // 2)])
def test_the_share_of_an_app_on_ios(memory: int, share: int) -> None:
    assert abs(machine.iphone_share_bytes(memory) - share) <= 2


# Devices


@pytest.fixture
def computer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this a computer of the given kind."""

    def make(system: str, processor: str, cuda: str | None = None, gpu: int | None = None) -> None:
        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setattr(platform, "machine", lambda: processor)
        monkeypatch.setattr(machine, "torch_cuda_version", lambda: cuda)
        monkeypatch.setattr(machine, "gpu_memory_bytes", lambda: gpu)

    return make


@pytest.mark.parametrize(
    ("kind", "devices"),
    [
        pytest.param(("linux", "x86_64"), ["cpu"], id="plain"),
        pytest.param(("linux", "x86_64", "13.0", 8 * GIB), ["cuda", "cpu"], id="GPU"),
        pytest.param(("linux", "x86_64", None, 8 * GIB), ["cpu"], id="GPU, but torch without CUDA"),
        pytest.param(("linux", "x86_64", "13.0", None), ["cpu"], id="torch with CUDA, but no GPU"),
        pytest.param(("win32", "AMD64", "13.0", 8 * GIB), ["cuda", "cpu"], id="GPU on Windows"),
        pytest.param(("darwin", "arm64"), ["mps", "cpu"], id="Apple silicon"),
        pytest.param(("darwin", "x86_64"), ["cpu"], id="Intel Mac"),
        pytest.param(("linux", "aarch64"), ["cpu"], id="Arm"),
    ],
)
def test_e6_the_devices_are_found_and_auto_takes_the_best(
    computer: Callable[..., None], kind: tuple[str, str], devices: list[str]
) -> None:
    computer(*kind)
    found = machine.available_devices()
    assert list(found) == devices and all(found.values())
    best = machine.choose_device("auto")
    assert best.value == devices[0] and best.reason
    if devices == ["cpu"]:
        assert best.reason == "no GPU that torch could use"
    for name in ("cuda", "mps", "cpu"):
        if name in devices:
            assert machine.choose_device(name) == Choice(name, "asked for")
        else:
            with pytest.raises(BadRequest, match=f"'{name}' is not available here: there is {', '.join(devices)}"):
                machine.choose_device(name)


@pytest.mark.parametrize(
    ("device", "asked", "bf16", "dtype", "reason"),
    [
        ("cpu", "auto", True, "bf16", "this processor computes in bf16"),
        ("cpu", "auto", False, "fp32", "no bf16"),
        ("cuda", "auto", False, "fp16", "GPUs compute in fp16"),
        ("mps", "auto", True, "fp16", "GPUs compute in fp16"),
        ("cpu", "fp16", False, "fp16", "asked for"),
        ("cuda", "bf16", False, "bf16", "asked for"),
        ("mps", "fp32", True, "fp32", "asked for"),
    ],
)
def test_the_type_is_half_precision_wherever_it_is_fast(
    monkeypatch: pytest.MonkeyPatch, device: str, asked: str, bf16: bool, dtype: str, reason: str
) -> None:
    monkeypatch.setattr(machine, "cpu_has_bf16", lambda: bf16)
    chosen, why = machine.choose_dtype(device, asked)
    assert chosen == dtype and reason in why


@pytest.mark.parametrize(
    ("cpuinfo", "has"),
    [
        ("processor\t: 0\nmodel name\t: Xeon\nflags\t\t: fpu sse avx512f avx512_bf16 amx_tile\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("flags\t\t: fpu sse2 avx2 avx512f\n", False),
        ("flags\t\t: not_bf16 xbf16x\n", False),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("Features\t: fp asimd svebf16\n", True),
        ("Features\t: fp asimd\n", False),
        ("processor\t: 0\n", False),
        ("", False),
    ],
)
def test_bf16_is_read_from_the_processor_s_flags(files: Files, cpuinfo: str, has: bool) -> None:
    files({"/proc/cpuinfo": cpuinfo})
    assert machine.cpu_has_bf16() is has


@pytest.mark.parametrize(
    ("flags", "types"),
    [
        ("avx2 fma", {"fp32"}),
        ("avx2 avx512bw avx512vl", {"fp32"}),
        ("avx512bw avx512vl avx512dq", {"fp32", "bf16"}),
        ("avx512bw avx512vl avx512dq avx512_fp16 amx_bf16", {"fp32", "bf16", "fp16"}),
        ("avx2 avx_ne_convert", {"fp32", "bf16", "fp16"}),
    ],
)
def test_weights_are_packed_in_the_types_that_the_processor_has_kernels_for(
    files: Files, monkeypatch: pytest.MonkeyPatch, flags: str, types: set[str]
) -> None:
    files({"/proc/cpuinfo": f"flags\t\t: fpu {flags}\n"})
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sys, "platform", "linux")
    all_types: tuple[DtypeName, ...] = ("fp32", "bf16", "fp16")
    assert {dtype for dtype in all_types if machine.cpu_packs_weights(dtype)} == types
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert not any(map(machine.cpu_packs_weights, all_types))


@pytest.mark.parametrize(
    ("device", "dtype", "flags", "architecture", "fused"),
    [
        ("cuda", "fp16", "avx2", "x86_64", True),
        ("cpu", "fp32", "avx2", "x86_64", True),
        ("cpu", "fp32", "asimd", "aarch64", False),
        ("cpu", "bf16", "avx512_bf16", "x86_64", False),
        ("cpu", "bf16", "amx_bf16", "x86_64", True),
        ("cpu", "fp16", "amx_bf16", "x86_64", False),
        ("mps", "fp16", "asimd", "arm64", False),
    ],
)
def test_attention_is_fused_where_it_was_measured_to_be_faster(
    files: Files, monkeypatch: pytest.MonkeyPatch, device: str, dtype: str, flags: str, architecture: str, fused: bool
) -> None:
    files({"/proc/cpuinfo": f"flags\t\t: {flags}\n"})
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    assert machine.attends_fused(device, dtype) is fused


def test_without_a_matrix_unit_weights_are_laid_out_for_the_size_and_for_one_sample(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    files({"/proc/cpuinfo": "flags\t\t: fpu avx2 fma\n"})
    for dtype in ("fp32", "bf16"):
        assert machine.cpu_packs_for(48, 64, dtype) == (1, 48, 64) and not machine.cpu_batches()
    assert machine.cpu_gains_by_winograd()
    for units in ("avx512bw", "avx512bw avx512_bf16"):
        files({"/proc/cpuinfo": f"flags\t\t: fpu avx2 fma {units}\n"})
        for dtype in ("fp32", "bf16"):
            assert machine.cpu_packs_for(48, 64, dtype) == (1, 48, 64) and machine.cpu_batches()
        assert not machine.cpu_gains_by_winograd()
    files({"/proc/cpuinfo": "flags\t\t: fpu avx2 fma avx512bw avx512_bf16 amx_bf16\n"})
    assert machine.cpu_packs_for(48, 64, "bf16") == machine.cpu_packs_for(9, 13, "bf16") and machine.cpu_batches()
    assert machine.cpu_packs_for(48, 64, "fp32") == (1, 48, 64), "in fp32 it is the size's as well"
    files({"/proc/cpuinfo": "Features\t: fp asimd bf16\n"})
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert machine.cpu_batches() and not machine.cpu_gains_by_winograd(), "nothing is packed there"


def test_without_any_cpuinfo_there_is_no_bf16_and_some_name(files: Files) -> None:
    assert machine.cpu_has_bf16() is False
    assert machine.cpu_name() == platform.processor() or platform.machine()


def test_the_processor_s_name_is_read(files: Files) -> None:
    files({"/proc/cpuinfo": "processor\t: 0\nmodel name\t: A Fast One @ 3 GHz\n\nprocessor\t: 1\n"})
    assert machine.cpu_name() == "A Fast One @ 3 GHz"


def core(implementer: str, part: str, number: int = 0) -> str:
    """One processor of /proc/cpuinfo on Arm."""
    return (
        f"processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd bf16\nCPU implementer\t: {implementer}\n"
        f"CPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: {part}\nCPU revision\t: 1\n\n"
    )


MIDR = "/sys/devices/system/cpu/cpu0/regs/identification/midr_el1"


@pytest.mark.parametrize(
    ("table", "name"),
    [
        ({"/proc/cpuinfo": core("0x41", "0xd0b") * 4}, "Cortex-A76"),
        (
            {"/proc/cpuinfo": core("0x41", "0xd08") * 4, "/proc/device-tree/model": "Raspberry Pi 4 Model B\0"},
            "Raspberry Pi 4 Model B (Cortex-A72)",
        ),
        ({"/proc/cpuinfo": core("0x41", "0xd05") * 4 + core("0x41", "0xd41") * 2}, "Cortex-A55 + Cortex-A78"),
        ({"/proc/cpuinfo": core("0x41", "0xd0c")}, "Neoverse N1"),
        ({"/proc/cpuinfo": core("0x41", "0xd4f")}, "Neoverse V2"),
        ({"/proc/cpuinfo": core("0xc0", "0xac3")}, "Ampere-1"),
        ({"/proc/cpuinfo": core("0x61", "0x23") + core("0x61", "0x33")}, "Apple M1 (Firestorm) + Apple M2 (Avalanche)"),
        ({"/proc/cpuinfo": core("0x41", "0xdff")}, "Arm implementer 0x41 part 0xdff"),
        ({"/proc/cpuinfo": core("0x7f", "0x1")}, "Arm implementer 0x7f part 0x001"),
        ({"/proc/cpuinfo": "model name\t: ARMv8 Processor rev 3 (v8l)\n" + core("0x41", "0xd08")}, "Cortex-A72"),
        ({"/proc/cpuinfo": "processor\t: 0\n", MIDR: "0x00000000410fd0b1\n"}, "Cortex-A76"),
        ({MIDR: "0x00000000414fd0c1"}, "Neoverse N1"),
        ({MIDR: "junk\n", "/proc/device-tree/model": "A Board\0"}, "aarch64"),
        ({"/proc/cpuinfo": core("0x41", "0xd03"), "/proc/device-tree/model": "A\x1b[2J\0"}, r"A\x1b[2J (Cortex-A53)"),
    ],
)  # fmt: skip
def test_cores_of_arm_are_named(
    files: Files, monkeypatch: pytest.MonkeyPatch, table: dict[str, str], name: str
) -> None:
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    files(table)
    assert machine.cpu_name() == name
    assert not any(machine.cpu_is_measured(dtype) for dtype in DTYPES)


DTYPES: tuple[DtypeName, ...] = ("fp32", "bf16", "fp16")


@pytest.mark.parametrize(
    ("flags", "measured"),
    [
        ("avx2 fma", {"fp32"}),
        ("avx2 fma avx512bw", {"fp32"}),
        ("avx2 fma avx512bw avx512_bf16", {"fp32", "bf16"}),
        ("avx2 fma avx512bw avx512_bf16 amx_bf16", {"fp32", "bf16"}),
        ("avx2 fma avx_ne_convert", {"fp32"}),
    ],
)
def test_which_kinds_of_processor_were_measured(
    files: Files, monkeypatch: pytest.MonkeyPatch, flags: str, measured: set[str]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    files({"/proc/cpuinfo": f"flags\t\t: fpu {flags}\n"})
    assert {dtype for dtype in DTYPES if machine.cpu_is_measured(dtype)} == measured


@pytest.mark.parametrize(("answer", "has"), [("1\n", True), ("0\n", False), ("", False)])
def test_on_macos_sysctl_tells_both(monkeypatch: pytest.MonkeyPatch, answer: str, has: bool) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        asked.append(command)
        return SimpleNamespace(stdout=answer)

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", run)
    assert machine.cpu_has_bf16() is has
    assert machine.cpu_name() == (answer.strip() or platform.machine())
    assert asked == [["sysctl", "-n", "hw.optional.arm.FEAT_BF16"], ["sysctl", "-n", "machdep.cpu.brand_string"]]


@pytest.mark.parametrize("error", [FileNotFoundError(), subprocess.TimeoutExpired("sysctl", 5)], ids=repr)
def test_a_sysctl_that_fails_says_nothing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def run(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", run)
    assert machine.cpu_has_bf16() is False and machine.cpu_name() == platform.machine()


# torch and the GPU, without importing the one or having the other


def test_torch_s_cuda_is_read_from_its_files() -> None:
    import torch

    assert machine.torch_cuda_version() == torch.version.cuda


@pytest.mark.parametrize(
    ("text", "version", "build"),
    [
        ("cuda: Optional[str] = '13.0'\nhip = None\n", "13.0", "CUDA 13.0"),
        ("cuda = '12.8'\n", "12.8", "CUDA 12.8"),
        ('cuda = "12.8"\n', "12.8", "CUDA 12.8"),
        ("cuda: str | None = None\n", None, None),
        ("cuda_toolkit = '9'\n", None, None),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4.43482'\nrocm = '6.4'\n", None, "ROCm 6.4.43482"),
        ("cuda = None\nhip = None\nxpu: Optional[str] = '20250101'\n", None, "XPU 20250101"),
        ("", None, None),
    ],
)
def test_every_form_of_torch_s_version_file_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, version: str | None, build: str | None
) -> None:
    (tmp_path / "version.py").write_text(text)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda _: spec)
    assert machine.torch_cuda_version() == version and machine.torch_gpu_build() == build
    os.unlink(tmp_path / "version.py")
    assert machine.torch_cuda_version() is None
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda _: None)
    assert machine.torch_cuda_version() is None


class FakeDriver:
    """The driver's two libraries for CUDA and for management, failing at the given call; `mig` for a share of a GPU."""

    def __init__(self, failing: str, mig: bool = False) -> None:
        self.failing, self.mig = failing, mig
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: object) -> int:
            self.calls.append(name)
            if name == self.failing:
                return 999
            if name == "cuDeviceGetUuid_v2":
                arguments[0]._obj[:] = bytes(range(16))
            if name == "nvmlDeviceGetHandleByUUID":
                kind = b"MIG" if self.mig else b"GPU"
                return int(arguments[0] != kind + b"-00010203-0405-0607-0809-0a0b0c0d0e0f")
            if name == "nvmlDeviceGetMemoryInfo":
                arguments[1]._obj.total = 24 * GIB
            return 0

        return call


@pytest.mark.parametrize(
    ("failing", "total", "shut_down"),
    [
        ("", 24 * GIB, True),
        ("nvmlInit_v2", None, False),
        ("nvmlDeviceGetHandleByUUID", None, True),
        ("cuInit", None, False),
        ("cuDeviceGet", None, False),
        ("cuDeviceGetUuid_v2", None, False),
        ("nvmlDeviceGetMemoryInfo", None, True),
    ],
)
@pytest.mark.parametrize("mig", [False, True])
def test_the_gpu_s_memory_comes_from_the_driver_by_the_uuid_of_cuda_s_first(
    monkeypatch: pytest.MonkeyPatch, failing: str, total: int | None, shut_down: bool, mig: bool
) -> None:
    library = FakeDriver(failing, mig)
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: library)
    assert machine.gpu_memory_bytes() == total
    assert ("nvmlShutdown" in library.calls) == shut_down


def test_without_the_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    monkeypatch.setattr(machine.ctypes, "CDLL", fail)
    assert machine.gpu_memory_bytes() is None
