"""Stages that run once a job: words and pictures to what the denoiser goes by."""

from __future__ import annotations

from collections.abc import Generator

from sdcli.engine.encodings import Given, keep, read_kept
from sdcli.engine.stage import Clock, is_finite, not_finite
from sdcli.engine.work import State, Work
from sdcli.families.contract import Stage
from sdcli.messages import Message, Notice


def once(work: Work, stage: Stage, state: State) -> Generator[Message, None, State]:
    """Yields events; returns what the stage gives, or gave another run."""
    clock, borrow = Clock(stage.name, work.device), work.borrow(stage)
    yield clock.began()
    kept = read_kept(work, stage)
    if kept is not None:
        yield from map(Notice, kept.notices)
        yield clock.loaded(kept=True)
        yield clock.ended()
        return kept.state
    with getattr(work.network, stage.function)(work.model, work.request, borrow) as run:
        for notice in borrow.notices:
            yield Notice(notice)
        yield clock.loaded()
        given: State = run(state)
    if not all(is_finite(tensor) for tensors in given.values() for tensor in tensors.values()):
        raise not_finite(stage.name, work.dtype, f"{stage.title}'s weights are damaged")
    yield clock.ended()
    keep(work, stage, Given(given, tuple(borrow.notices)))  # now that its files are known to be those that were opened
    return given
