"""Room for weights is given out in pieces, and all of it goes back."""

from __future__ import annotations

import mmap
import sys
import weakref

import pytest
import torch

from sdcli.units import MIB
from sdcli.weights.arena import ALIGN_BYTES, Arena
from tests.networks import anonymous_bytes


def test_pieces_are_apart_and_begin_at_cache_lines() -> None:
    arena = Arena(1000)
    pieces = [arena.take(nbytes) for nbytes in (1, 64, 100, 7)]
    assert [len(piece) for piece in pieces] == [1, 64, 100, 7]
    begins = [piece.data_ptr() for piece in pieces]
    assert begins == sorted(begins) and all(begin % ALIGN_BYTES == 0 for begin in begins)
    for value, piece in enumerate(pieces):
        piece.fill_(value)
    for value, piece in enumerate(pieces):
        assert piece.tolist() == [value] * len(piece)


def test_the_last_byte_is_given_and_no_more() -> None:
    arena = Arena(128)
    arena.take(65)
    with pytest.raises(MemoryError, match="no room for 1 bytes"):
        arena.take(1)
    assert len(Arena(128).take(128)) == 128
    with pytest.raises(MemoryError, match="no room"):
        Arena(128).take(129)
    assert len(Arena(0).take(0)) == 0


def test_the_memory_lives_as_long_as_its_last_piece() -> None:
    arena = Arena(4096)
    mapping = weakref.ref(arena._mapping)
    first, last = arena.take(10), arena.take(10).fill_(3)
    del arena, first
    assert mapping() is not None and last.tolist() == [3] * 10
    del last
    assert mapping() is None


@pytest.mark.skipif(sys.platform != "linux", reason="large pages are asked for on Linux only")
def test_a_kernel_without_large_pages_gives_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(mmap.mmap):
        def madvise(self, *advice: int) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr("sdcli.weights.arena.mmap.mmap", Small)
    assert len(Arena(4096).take(4096)) == 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_room_that_is_not_used_costs_nothing() -> None:
    before = anonymous_bytes()
    arena = Arena(256 * MIB)
    piece = arena.take(32 * MIB).fill_(1)
    used = anonymous_bytes() - before
    assert 28 * MIB < used < 64 * MIB
    assert torch.all(piece[:: 2**20] == 1)
    del arena, piece
    assert anonymous_bytes() - before < 16 * MIB
