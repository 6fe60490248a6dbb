"""Modules without memory, to be lent their weights later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import init_empty_weights
from transformers.initialization import no_init_weights


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules built inside have parameters on the meta device and are not initialised; buffers are real."""
    with init_empty_weights(), no_init_weights():
        yield
