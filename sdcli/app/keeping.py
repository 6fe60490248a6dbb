"""Keeping pictures: each as it comes, and one that cannot be kept is no reason to lose the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sdcli import interrupts
from sdcli.app.record import RunRecord
from sdcli.errors import SdcliError
from sdcli.messages import PictureDone

Save = Callable[[PictureDone, RunRecord], str | None]
"""Puts one picture where it should be; returns where, or None for standard output."""

Trouble = SdcliError | OSError | ValueError | MemoryError
"""What encoders and disks raise."""


class Keeper:
    """Keeps the pictures of a run, or drops them where nobody wants any.

    `trouble` is what went wrong first; what else went wrong is told as it comes.
    """

    def __init__(self, record: RunRecord, save: Save | None, tell: Callable[[str], None]) -> None:
        self.trouble: Trouble | None = None
        self.wanted = save is not None
        self._record, self._save, self._tell = record, save, tell

    def keep(self, picture: PictureDone) -> None:
        """Save a picture, once: no second try, not of one that was cut off either."""
        with interrupts.deferred():
            try:
                picture = self._on_canvas(picture)
                path = None
                if self._save is not None:
                    self._record.folder.saving(picture.image)
                    path = self._save(picture, self._record)
                    self._record.folder.note_saved(picture.image, path)
                self._record.pictures.append((path, replace(picture, payload=b"")))
            except BrokenPipeError as error:  # nobody reads it
                self._fail(error)
            except (SdcliError, OSError, ValueError, MemoryError) as error:  # of disks and encoders
                self._record.folder.set_aside(picture.image)
                self._fail(error)
            finally:
                self._record.finished.drop(picture.image)

    def _on_canvas(self, picture: PictureDone) -> PictureDone:
        """The whole picture, where a part of one was drawn."""
        canvas = self._record.task.canvas
        if canvas is None:
            return picture
        whole = canvas.with_drawn(picture.payload, picture.width, picture.height)
        return replace(picture, width=canvas.width, height=canvas.height, payload=whole)

    def _fail(self, error: Trouble) -> None:
        if self.trouble is not None:
            self._tell(str(error))
        self.trouble = self.trouble or error
