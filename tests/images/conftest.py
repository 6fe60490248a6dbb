"""What the tests of pictures share: a provenance to vary, and a user without root's powers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sdcli.images.metadata import Provenance

NOBODY = 65534


@pytest.fixture
def provenance() -> Provenance:
    return Provenance(
        prompt="a red cat",
        negative="blurry",
        steps=20,
        sampler="EulerDiscreteScheduler",
        guidance=7.5,
        seed=42,
        width=16,
        height=8,
        model="demo",
        model_sha256="0123456789abcdef" * 4,
        model_digest="fedcba9876543210" * 4,
        parts={},
        embeddings=[],
        prediction=None,
        clip_skip=None,
        strength=None,
        device="cpu",
        dtype="bf16",
        sdcli_version="0.1.0",
        torch_version="2.13.0",
        init_sha256=None,
    )


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can reach; tmp_path is the owner's alone."""
    folder = Path(tempfile.mkdtemp(prefix="sdcli-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def run_powerless() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python code with arguments as a user whom file permissions bind."""
    prefix: list[str] = []
    if sys.platform == "win32":
        pytest.skip("no POSIX permissions here")
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("root ignores permissions, and there is no setpriv to become somebody else")
        prefix = [setpriv, f"--reuid={NOBODY}", "--clear-groups"]
        if subprocess.run([*prefix, sys.executable, "-c", "import sdcli.images.read"], capture_output=True).returncode:
            pytest.skip("this installation cannot be read by the user nobody")

    def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [*prefix, sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=60, check=False)

    return run
