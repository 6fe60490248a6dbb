"""One process of sdcli at a time changes a model in the Hub's cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sdcli.app.asked import Note, Tell
from sdcli.errors import SdcliError, echo
from sdcli.models.hub_ids import HubRef, hub_cache

LOCK = "sdcli.lock"


@contextmanager
def the_only_one(ref: HubRef, tell: Tell | None) -> Iterator[None]:
    """Inside, no other process of sdcli changes this model in the cache. Without `tell` nobody waits for another."""
    from filelock import FileLock, Timeout  # here, because it costs 2 MiB and is seldom needed

    try:
        ref.locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(ref.locks / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            if tell is None:
                raise SdcliError(f"{ref.repo} is being pulled just now: wait for that, or end it") from error
            tell(Note(f"another process is at {ref.repo}: waiting for it"))
            lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter is filelock's where a file system has no locks
        what = f"cannot lock {echo(hub_cache())}: {getattr(error, 'strerror', None) or echo(error)}"
        raise SdcliError(f"{what}; set HF_HUB_CACHE to a folder that can be written") from error
    try:
        yield
    finally:
        lock.release()
