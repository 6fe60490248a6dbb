"""Import diffusers' and transformers' model classes without torch's compiler and distributed packages.

The worker never compiles and never talks to other machines, yet importing a UNet class pulls in
torch._dynamo, torch.distributed.tensor and every other model of both libraries: 273 MiB of anonymous
memory and 3.4 s in all, against 205 MiB and 2.2 s this way (torch alone: 143 MiB). Their modules use those
packages only in decorators and type checks at import; a stand-in whose decorators do nothing is enough.
Every figure in benchmarks/RESULTS.md.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import types
from collections.abc import Sequence
from typing import Any

ABSENT = ("torch._dynamo", "torch.distributed.tensor", "torch.distributed.fsdp", "torch.distributed.checkpoint")


class _Anything:
    """Stands for a function or a decorator: given a function it hands it back, else it hands back itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args and callable(args[0]) else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self


class _Absent(types.ModuleType):
    """A module that has whatever is asked of it: a class for a capitalised name, else `_Anything`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name[0].isupper() or name[:2].lstrip("_")[:1].isupper():
            return type(name, (), {"__init__": lambda self, *args, **kwargs: None})
        return _Anything()


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers for ABSENT and everything below it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if any(fullname == name or fullname.startswith(name + ".") for name in ABSENT):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Absent(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def import_models() -> None:
    """Import torch and the model classes, lean. Call it once, first thing in the worker.

    Falls back to plain imports where a library of another version needs what was left out.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch  # noqa: F401  its own use of the compiler is lazy; the stand-ins come after it

    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        _import_all()
    except Exception:  # whatever an unknown version of a library trips over
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.startswith((*ABSENT, "diffusers", "transformers"))]:
            del sys.modules[name]
        _import_all()


def _import_all() -> None:
    # diffusers imports every autoencoder and text model that transformers makes possible, unless told not to
    import diffusers.utils.import_utils as availability

    availability._transformers_available = False
    import diffusers.models.autoencoders.autoencoder_kl
    import diffusers.models.unets.unet_2d_condition  # noqa: F401  loaded while the stand-ins are there
