"""Names of Arm's processor cores, which Linux tells by number only: implementer and part of register MIDR_EL1.

The numbers are those of Linux's arch/arm64/include/asm/cputype.h and of lscpu.
"""

from __future__ import annotations

import re

IMPLEMENTERS = {
    0x41: "Arm",
    0x43: "Cavium",
    0x46: "Fujitsu",
    0x48: "HiSilicon",
    0x4E: "NVIDIA",
    0x51: "Qualcomm",
    0x61: "Apple",
    0x6D: "Microsoft",
    0xC0: "Ampere",
}

CORES = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse N1",
    (0x41, 0xD0D): "Cortex-A77",
    (0x41, 0xD40): "Neoverse V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD44): "Cortex-X1",
    (0x41, 0xD46): "Cortex-A510",
    (0x41, 0xD47): "Cortex-A710",
    (0x41, 0xD48): "Cortex-X2",
    (0x41, 0xD49): "Neoverse N2",
    (0x41, 0xD4B): "Cortex-A78C",
    (0x41, 0xD4D): "Cortex-A715",
    (0x41, 0xD4E): "Cortex-X3",
    (0x41, 0xD4F): "Neoverse V2",
    (0x41, 0xD80): "Cortex-A520",
    (0x41, 0xD81): "Cortex-A720",
    (0x41, 0xD82): "Cortex-X4",
    (0x41, 0xD84): "Neoverse V3",
    (0x41, 0xD85): "Cortex-X925",
    (0x41, 0xD8E): "Neoverse N3",
    (0x43, 0x0AF): "Cavium ThunderX2",
    (0x46, 0x001): "Fujitsu A64FX",
    (0x48, 0xD01): "HiSilicon TSV110",
    (0x51, 0x001): "Qualcomm Oryon",
    (0x61, 0x022): "Apple M1 (Icestorm)",
    (0x61, 0x023): "Apple M1 (Firestorm)",
    (0x61, 0x032): "Apple M2 (Blizzard)",
    (0x61, 0x033): "Apple M2 (Avalanche)",
    (0x6D, 0xD49): "Microsoft Azure Cobalt 100",
    (0xC0, 0xAC3): "Ampere-1",
    (0xC0, 0xAC4): "Ampere-1a",
}


def cores_of(cpuinfo: str) -> str:
    """Each kind of core that /proc/cpuinfo lists, once, in its order; empty if it names none."""
    found = re.findall(
        r"^CPU implementer\s*:\s*(0x[0-9a-f]+)$.*?^CPU part\s*:\s*(0x[0-9a-f]+)$", cpuinfo, re.MULTILINE | re.DOTALL
    )
    return " + ".join(dict.fromkeys(core_name(int(implementer, 16), int(part, 16)) for implementer, part in found))


def core_of(midr: str) -> str:
    """The core of the text of MIDR_EL1 in sysfs: implementer in bits 31 to 24, part in bits 15 to 4."""
    value = int(midr, 16) if re.fullmatch(r"0x[0-9a-f]{1,16}", midr.strip()) else 0
    return core_name(value >> 24 & 0xFF, value >> 4 & 0xFFF) if value else ""


def core_name(implementer: int, part: int) -> str:
    """`Cortex-A76`, or the numbers where the name is not known."""
    maker = IMPLEMENTERS.get(implementer, "Arm")
    return CORES.get((implementer, part), f"{maker} implementer {implementer:#04x} part {part:#05x}")
