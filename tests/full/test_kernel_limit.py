"""Under a limit that the kernel itself enforces, with a cold page cache: the nearest thing here to iOS."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from sdcli.units import MIB
from tests.full.conftest import Program
from tests.full.outside import evict, kernel_limit

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]

CEILING_BYTES = 2048 * MIB
DENOISER_BYTES = 1640 * MIB


def test_a_run_at_the_ceiling_survives_and_without_the_denoisers_room_it_does_not(program: Program, sd15: Path) -> None:
    with kernel_limit() as limit:
        if limit is None:
            pytest.skip("needs root and a memory control group")
        evict(sd15.parent.parent)
        line = program.line("txt2img", "--mem-limit", "2GiB", "-o", "kept.png")
        seen, kills = limit.run(line, program.environment, CEILING_BYTES)
        assert (seen.code, kills) == (0, 0), seen.err
        assert json.loads(seen.out)["plan"]["resident_bytes"] > 0.9 * DENOISER_BYTES
        assert Path("kept.png").exists()

    with kernel_limit() as limit:
        assert limit is not None
        evict(sd15.parent.parent)
        # without a ceiling of ours: with one, the container's limit would be seen and the run refused
        line = program.line("txt2img", "--mem-limit", "none", "-o", "lost.png")
        seen, kills = limit.run(line, program.environment, CEILING_BYTES - DENOISER_BYTES)
        assert kills >= 1
        assert seen.code == 1
        assert "out-of-memory killer" in seen.err
        assert not Path("lost.png").exists()


def test_a_small_container_with_a_cold_page_cache_survives(program: Program, sd15: Path) -> None:
    with kernel_limit() as limit:
        if limit is None:
            pytest.skip("needs root and a memory control group")
        evict(sd15.parent.parent)
        line = program.line("txt2img", "--mem-limit", "600MiB", "-o", "kept.png")
        seen, kills = limit.run(line, program.environment, 700 * MIB)
        assert (seen.code, kills) == (0, 0), seen.err
        assert Path("kept.png").exists()


def test_a_container_too_small_is_seen_and_the_run_refused_before_it_starts(program: Program) -> None:
    with kernel_limit() as limit:
        if limit is None:
            pytest.skip("needs root and a memory control group")
        line = program.line("txt2img", "--mem-limit", "2GiB", "-o", "refused.png")
        seen, kills = limit.run(line, program.environment, 240 * MIB)
        assert (seen.code, kills) == (4, 0)
        assert "the ceiling is 240 MiB" in seen.err


KINDS = {
    "img2img": ["--size", "256x256", "--init", "init.png", "--strength", "0.6"],
    "inpainting": ["--size", "256x256", "--init", "init.png", "--mask", "mask.png", "--strength", "0.6"],
    "a count of 8": ["--size", "128x128", "--count", "8", "-s", "1"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_survives_where_one_without_a_ceiling_dies(program: Program, sd15: Path, kind: str) -> None:
    Image.radial_gradient("L").convert("RGB").save("init.png")
    Image.linear_gradient("L").point(lambda level: 255 * (level > 127)).save("mask.png")
    command = "txt2img" if kind == "a count of 8" else "img2img"
    # one step without a ceiling would use a prepared copy where it lies, and live
    in_memory = ["none", "--no-prepare"]
    for ceiling, limit_bytes, name in ((["600MiB"], 700 * MIB, "kept"), (in_memory, 500 * MIB, "lost")):
        with kernel_limit() as limit:
            if limit is None:
                pytest.skip("needs root and a memory control group")
            evict(sd15.parent.parent)
            line = program.line(command, "--mem-limit", *ceiling, *KINDS[kind], "-o", f"{name}.png")
            seen, kills = limit.run(line, program.environment, limit_bytes)
            assert (seen.code, kills > 0) == ((0, False) if name == "kept" else (1, True)), seen.err
    assert len(list(Path().glob("kept*.png"))) == (8 if kind == "a count of 8" else 1)
    assert not list(Path().glob("lost*.png"))
