"""One process of sdcli at a time changes a model in the Hub's cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sdcli.app.asked import Note, Tell
from sdcli.errors import SdcliError, echo
from sdcli.locks import Held, lock
from sdcli.models.hub_ids import HubRef, hub_cache

LOCK = "sdcli.lock"


@contextmanager
def the_only_one(ref: HubRef, tell: Tell | None) -> Iterator[None]:
    """Inside, no other process of sdcli changes this model in the cache. Without `tell` nobody waits for another."""
    try:
        ref.locks.mkdir(parents=True, exist_ok=True)
        try:
            held = lock(ref.locks / LOCK, 0)
        except Held as error:
            if tell is None:
                raise SdcliError(f"{ref.repo} is being pulled just now: wait for that, or end it") from error
            tell(Note(f"another process is at {ref.repo}: waiting for it"))
            held = lock(ref.locks / LOCK)
    except OSError as error:
        what = f"cannot lock {echo(hub_cache())}: {error.strerror or echo(error)}"
        raise SdcliError(f"{what}; set HF_HUB_CACHE to a folder that can be written") from error
    try:
        yield
    finally:
        held.release()
