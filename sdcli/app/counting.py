"""A worker that makes outlines of synthetic models and counts what jobs take: one for all that is asked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from sdcli.app.counts import Uncounted
from sdcli.app.means import Prospect
from sdcli.domain import DeviceName
from sdcli.families.registry import family_of
from sdcli.host.worker import Worker
from sdcli.messages import Counted, Finished, Message, Start, Synthesize
from sdcli.models.synthetic import family_of_configs
from sdcli.settings import read_config


class Counting:
    """A context manager: the worker is started when it is first needed, and anew where it ended."""

    def __init__(self, debug: bool = False) -> None:
        self.debug, self._workers, self._ends = debug, dict[DeviceName, Worker](), ExitStack()

    def __enter__(self) -> Counting:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ends.close()

    def count(self, prospect: Prospect, lack: Uncounted) -> None:
        """Have counted what a prospect lacks. Raises the SdcliError that it ends in."""
        task, book = prospect.task, prospect.book
        worker = self._worker(task.device, family_of(task.model).network, task.ceiling.limit_bytes)
        worker.send(book.ask(lack))
        self._hear(task.device, lambda message: isinstance(message, Counted) and not book.learn(message.payload))

    def outline(self, name: str, folder: Path) -> None:
        """Make the outline of a synthetic model in a folder. Raises the SdcliError that it ends in."""
        worker = self._worker("cpu", family_of_configs(read_config("models", name)).network, None)
        worker.send(Synthesize(name, str(folder), outline=True))
        self._hear("cpu", lambda message: isinstance(message, Finished))

    def _worker(self, device: DeviceName, network: str, limit_bytes: int | None) -> Worker:
        """The one for the device, which has imported the network that was first asked for, and will import others."""
        if device not in self._workers:
            self._workers[device] = self._ends.enter_context(Worker(network, self.debug))
            self._workers[device].send(Start(device, limit_bytes))
        return self._workers[device]

    def _hear(self, device: DeviceName, is_last: Callable[[Message], bool]) -> None:
        worker, done = self._workers[device], False
        try:
            for message in worker.messages():
                if done := is_last(message):
                    return
            raise worker.end()
        finally:
            if not done:
                del self._workers[device]
