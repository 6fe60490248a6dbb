"""Import torch and a family's network, of diffusers' and transformers' classes, without what is never used here.

The worker never compiles, trains, quantizes or talks to other machines, yet importing a UNet class brings torch's
compiler and distributed packages, the Hub's client and every other model of both libraries: 273 MiB of anonymous memory
and 4.0 s in all, against 135 MiB and 1.1 s this way (torch alone: 143 MiB plainly, 112 so). Modules use what is left
out only in decorators, base classes and type checks at import; a stand-in whose decorators do nothing is enough. Every
figure in benchmarks/RESULTS.md.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Sequence
from importlib import metadata
from typing import Any
from unittest.mock import patch

LEFT_OUT = (
    # torch's compiler, and what tells it of shapes
    "torch._dynamo",
    "torch._higher_order_ops",
    "torch._meta_registrations",
    "torch.export",
    "torch.fx.passes",
    "torch.nn.attention.flex_attention",
    # other machines
    "torch.distributed._functional_collectives",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.rpc",
    "torch.distributed.tensor",
    "transformers.distributed.expert_parallel",
    "transformers.distributed.fsdp",
    "transformers.distributed.pipeline_parallel",
    "transformers.distributed.tensor_parallel",
    # training and its data
    "torch.distributions",
    "torch.masked",
    "torch.optim",
    "torch.testing",
    "torch.utils.data",
    "transformers.loss.loss_d_fine",
    "transformers.loss.loss_deformable_detr",
    "transformers.loss.loss_for_object_detection",
    "transformers.loss.loss_grounding_dino",
    "transformers.loss.loss_rt_detr",
    # weights of eight bits and less
    "diffusers.quantizers",
    "torch.ao",
    "torch.nn.intrinsic",
    "torch.nn.qat",
    "torch.nn.quantizable",
    "torch.nn.quantized",
    "torch.quantization",
    "transformers.quantizers",
    # other people's adapters and kernels, the Hub, other exchange formats, files other than ours
    "diffusers.loaders",
    "diffusers.utils.dynamic_modules_utils",
    "diffusers.utils.export_utils",
    "diffusers.utils.hub_utils",
    "diffusers.utils.loading_utils",
    "diffusers.utils.pil_utils",
    "diffusers.utils.remote_utils",
    "huggingface_hub._snapshot_download",
    "huggingface_hub._tree_cache",
    "huggingface_hub.errors",
    "huggingface_hub.file_download",
    "huggingface_hub.hf_api",
    "huggingface_hub.repocard",
    "huggingface_hub.serialization",
    "huggingface_hub.utils",
    "torch.hub",
    "torch.onnx",
    "transformers.conversion_mapping",
    "transformers.core_model_loading",
    "transformers.integrations.hub_kernels",
    # texts that go on, many at a time; pictures and sounds beside a text
    "transformers.generation.continuous_batching",
    "transformers.integrations.eager_paged",
    "transformers.integrations.flash_attention",
    "transformers.processing_utils",
    # hooks around modules, docstrings made as modules load
    "diffusers.hooks",
    "transformers.utils.auto_docstring",
    "transformers.utils.chat_parsing",
    "transformers.utils.chat_template_utils",
)
"""Modules that a stand-in takes the place of, with all below them."""

MISSED = ("cuda",)
"""Packages that torch looks for and does without: cuda.bindings is for its profiler and for shares of a GPU."""

UNOPENED = (
    "diffusers.models.autoencoders",
    "diffusers.models.transformers",
    "diffusers.models.unets",
    "transformers",
    "transformers.models",
)
"""Packages whose own `__init__` would import or read every model there is: only the modules asked for are."""


class _Anything:
    """Stands for a function or a decorator: given a function it hands it back, else it hands back itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args and callable(args[0]) else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __bool__(self) -> bool:
        """What is left out is not available."""
        return False


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Does nothing."""


def _class_named(name: str) -> type:
    return type(name, (), {"__init__": _nothing, "__class_getitem__": classmethod(_nothing)})


class _StandIn(types.ModuleType):
    """A module that has whatever is asked of it: a class for a capitalised name, else `_Anything`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name[0].isupper() or name[:2].lstrip("_")[:1].isupper():
            return _class_named(name)
        return _Anything()


class _Unopened(types.ModuleType):
    """A package of which only the modules are there, at the top its version and stand-ins for its classes besides."""

    def __getattr__(self, name: str) -> Any:
        if "." not in self.__name__ and name == "__version__":
            return metadata.version(self.__name__)
        if "." not in self.__name__ and name[0].isupper():  # modules have small letters
            return _class_named(name)
        raise AttributeError(name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers for what is left out, for what is missed and for what is not opened."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname in MISSED:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        if any(fullname == name or fullname.startswith(name + ".") for name in LEFT_OUT):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        if fullname in UNOPENED and (found := importlib.machinery.PathFinder.find_spec(fullname, path)):
            spec = importlib.machinery.ModuleSpec(fullname, self, is_package=True)
            spec.submodule_search_locations = found.submodule_search_locations
            return spec
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Unopened(spec.name) if spec.name in UNOPENED else _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def import_network(module: str, plainly: bool = False) -> Any:
    """Import torch and a family's network, lean unless told otherwise. Call it once, before anything imports torch.

    It is tried out while the stand-ins are new, so that whatever needs more is found out at once. Raises whatever a
    library of another version does without what was left out. torch loads once in a process, so a plain import after
    that takes a new one.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if not plainly:
        sys.meta_path.insert(0, _Finder())
    import torch  # first: the libraries below look at what it can do

    if not plainly and hasattr(torch._C, "_set_generator_metaclass"):  # which torch's compiler would have done
        torch._C._set_generator_metaclass(_generator_metaclass())
    # diffusers asks which package each module of the environment is from, which takes every package's list of files
    with patch.object(metadata, "packages_distributions", dict):
        import diffusers.utils.import_utils as availability
    # diffusers imports every text model that transformers makes possible, and accelerate, unless told not to
    availability._transformers_available = availability._accelerate_available = False
    # transformers imports these where they are there; torchvision needs of torch what is left out
    import transformers.utils as transformers

    for library in (transformers, transformers.import_utils):
        library.is_torchvision_available = library.is_accelerate_available = lambda *args: False
    torch.Generator("cpu").manual_seed(0)
    network = importlib.import_module(module)
    network.try_out()
    return network


def _generator_metaclass() -> Any:
    """Of random number generators, under its name since torch 2.14: to import the one before prints a warning."""
    if importlib.util.find_spec("torch._custom_class_base"):
        return importlib.import_module("torch._custom_class_base").CustomClassBaseMeta
    return importlib.import_module("torch._opaque_base").OpaqueBaseMeta
