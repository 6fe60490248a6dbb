"""Modules without memory, to be lent their weights later."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from accelerate import init_empty_weights
from torch import nn
from transformers.initialization import no_init_weights

from sdcli.domain import Component
from sdcli.errors import SdcliError, echo

Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules built inside have parameters on the meta device and are not initialised; buffers are real."""
    transformers = "transformers.modeling_utils" in sys.modules  # which its own way would import: 10 MiB for nothing
    with init_empty_weights(), no_init_weights() if transformers else nullcontext():
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
