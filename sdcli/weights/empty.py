"""Modules without memory, to be lent their weights later."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar
from unittest.mock import patch

from torch import nn
from transformers.initialization import no_init_weights

from sdcli.domain import Component
from sdcli.errors import SdcliError, echo

Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules built inside have parameters on the meta device and are not initialised; buffers are real."""
    transformers = "transformers.modeling_utils" in sys.modules  # which its own way would import: 10 MiB for nothing
    with _on_meta(), no_init_weights() if transformers else nullcontext():
        yield


@contextmanager
def _on_meta() -> Iterator[None]:
    """Parameters are moved to the meta device as soon as a module has them: before they are initialised."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    with patch.object(nn.Module, "register_parameter", register_on_meta):
        yield


def build(component: Component, make: Callable[[], Module]) -> Module:
    """The module that a component's config describes, without memory, ready to be asked.

    Raises SdcliError naming the config where the constructor takes it for none.
    """
    try:
        with without_memory():
            return make().eval()
    except Exception as error:  # a constructor raises whatever it stumbles over
        raise SdcliError(
            f"{echo(component.config_file)} describes nothing that can be built ({echo(error, 100)}): fetch it again"
        ) from error
