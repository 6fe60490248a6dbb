"""One thread and few collections for all tests of this folder."""

from __future__ import annotations

from tests.support import quick

__all__ = ["quick"]
