"""All parsers that are fed."""

from __future__ import annotations

from tests.fuzz.targets import HOST
from tests.fuzz.worker_targets import WORKER

TARGETS = (*HOST, *WORKER)
