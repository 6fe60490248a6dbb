"""The lean import: less memory and the same classes. The way back where it does not work: engine/test_worker.py."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from sdcli.domain import Request
from sdcli.engine.lean_imports import LEFT_OUT, UNOPENED, _Unopened
from tests.support import largest_difference, pictures, run_engine

SAVED_MIB_FLOOR = 105

HEAVY = (
    "sympy",
    "mpmath",
    "cuda.bindings.driver",
    "torch._inductor",
    "torch.optim.adam",
    "torch.export.exported_program",
    "httpx2",
    "requests",
    "torch.distributed.rpc",
    "transformers.processing_utils",
)
"""What some version of a library imports by way of something else, some 1 to 30 MiB each, or a tenth of a second."""

MEASURE = """
import json, sys
def anonymous():
    return int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]) / 1024
def state(name):
    module = sys.modules.get(name)
    return "absent" if module is None else "real" if getattr(module, "__file__", None) else "stand-in"
def dynamo():
    return state("torch._dynamo")
"""

REQUEST = Request("a fox", "", 64, 64, 2, 7.5, 1, 1)

WORK = f"""
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer
from pathlib import Path
from sdcli.domain import Plan, Request, Sources
from sdcli.messages import Job, PictureDone
from sdcli.devices import open_device
from sdcli.engine.count import count
from sdcli.engine.generate import generate
from sdcli.models.opened import open_model
from sdcli.plan.table import table_of
plan, request, device = Plan("resident", 2**40, "batched", 2**24, ()), {REQUEST}, open_device("cpu")
counts = count(open_model("m", Path(sys.argv[1])), request, device, torch.float32)
tables = dict((name, table_of(stage, "fp32", 2**40)) for name, stage in counts.items())
job = Job(request, plan, Sources(sys.argv[1]), "fp32", tables=tables)
picture = [event for event in generate(job, device) if isinstance(event, PictureDone)][0].payload.hex()
"""

LEAN = "from sdcli.engine.lean_imports import import_network\nimport_network('sdcli.families.sd.network')\n"

PLAIN = """
import diffusers.models.autoencoders.autoencoder_kl
import diffusers.models.unets.unet_2d_condition
import transformers.models.clip.modeling_clip
import transformers.models.clip.tokenization_clip
"""


def told(code: str, *arguments: str, **found: str) -> dict[str, Any]:
    """Run code in a process of its own and take expressions from it."""
    tell = ", ".join(f"{name!r}: {expression}" for name, expression in found.items())
    whole = f"{MEASURE}{code}\nprint(json.dumps({{{tell}}}))"
    done = subprocess.run([sys.executable, "-P", "-c", whole, *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture(scope="module")
def lean(tiny: Path) -> dict[str, Any]:
    code = f"import os\n{LEAN}mib, first = anonymous(), dynamo()\n{WORK}"
    environment = {"offline": "os.environ['HF_HUB_OFFLINE']", "threads": "os.environ['TOKENIZERS_PARALLELISM']"}
    heavy = f"[name for name in {HEAVY} if state(name) == 'real']"
    found = {"mib": "mib", "state": "first", "later": "dynamo()", "picture": "picture", "heavy": heavy}
    return told(code, str(tiny), **found, **environment)


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    return told(PLAIN, mib="anonymous()", state="dynamo()")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.full
def test_the_lean_import_takes_less_memory(lean: dict[str, Any], plain: dict[str, Any]) -> None:
    assert plain["mib"] - lean["mib"] >= SAVED_MIB_FLOOR


def test_the_compiler_is_not_loaded_not_even_by_a_whole_run(lean: dict[str, Any], plain: dict[str, Any]) -> None:
    assert lean["state"] in {"absent", "stand-in"} and lean["later"] in {"absent", "stand-in"}
    assert plain["state"] == "real", "the plain import does not load it either: this module is of no use any more"


def test_the_classes_are_real_and_draw_what_the_plain_ones_draw_here(tiny: Path, lean: dict[str, Any]) -> None:
    (picture,) = pictures(run_engine(tiny, REQUEST))
    drawn = torch.frombuffer(bytearray.fromhex(lean["picture"]), dtype=torch.uint8).view(picture.shape).int()
    assert largest_difference(drawn, picture) <= 1
    assert picture.unique().numel() > 10


def test_nothing_heavy_comes_by_another_way(lean: dict[str, Any]) -> None:
    assert lean["heavy"] == []


def test_a_package_that_is_not_opened_has_its_version_and_offers_classes_but_hides_no_module() -> None:
    package: Any = _Unopened("transformers")
    assert package.__version__ == version("transformers") and isinstance(package.AddedToken, type)
    assert not hasattr(package, "initialization") and not hasattr(_Unopened("transformers.models"), "CLIPModel")


def test_what_must_be_left_out_is_there_to_leave_out() -> None:
    missing = [name for name in (*LEFT_OUT, *UNOPENED) if importlib.util.find_spec(name) is None]
    assert not missing, "an entry that does nothing any more"


def test_nothing_reaches_for_the_network_or_for_threads_of_tokenizers(lean: dict[str, Any]) -> None:
    assert lean["offline"] == "1" and lean["threads"] == "false"


@pytest.mark.parametrize("family", ["sd", "flux2", "zimage"])
def test_packages_that_libraries_find_and_networks_do_without_are_not_imported(tmp_path: Path, family: str) -> None:
    """torchvision trips over what is left out, and transformers imports it where it is there."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "torchvision-0.28.0.dist-info").mkdir()
    (tmp_path / "torchvision-0.28.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n"
    )
    build = """
import importlib.util
from sdcli.weights.empty import without_memory
with without_memory():
    linear = torch.nn.Linear(2, 2)
"""
    code = f"sys.path.insert(0, sys.argv[1])\n{LEAN.replace('.sd.', f'.{family}.')}import torch\n{build}"
    seen = told(
        code,
        str(tmp_path),
        there="importlib.util.find_spec('torchvision') is not None",
        device="linear.weight.device.type",
    )
    assert seen == {"there": True, "device": "meta"}
