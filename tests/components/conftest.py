"""Quick tests: one thread, as models this small only wait for a second one, and no search through what is imported."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def quick() -> Iterator[None]:
    """For all tests of this folder: every stage ends in two collections, which need not look at all before them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    yield
    torch.set_num_threads(threads)
