"""The worker as the host sees it: a process that takes messages, sends messages, and ends in some way."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import BinaryIO, cast

from sdcli.errors import BY_NAME, SdcliError, echo, shortage
from sdcli.host.control_group import ControlGroup
from sdcli.messages import Failed, Message, read_message, write_message

COMPACT_HEAP = "glibc.malloc.tcache_count=0"
"""glibc before 2.39 keeps what aligning an allocation leaves over, some 48 bytes, in a cache for its size, where it
parts the free memory on both sides: the next tensor of the same size does not fit there, and the heap grows by a fifth
(https://sourceware.org/bugzilla/show_bug.cgi?id=30723). Without that cache 2.36, 2.39 and 2.41 leave the same gaps.
It can only be set before a process starts; the heap's other dials are in devices/cpu.py."""

_DEATHS = {
    "SIGILL": "the installed torch uses instructions that this processor lacks (signal 4): install its CPU build,"
    " pip install torch --index-url https://download.pytorch.org/whl/cpu",
    "SIGBUS": "the model's file changed or its disk failed while it was read: check it, run again",
    "SIGFPE": "the worker crashed in arithmetic of a library (signal 8): run with --debug and report it",
    "SIGKILL": "the worker was killed, by the system's out-of-memory killer perhaps: lower --mem-limit",
    "SIGSEGV": "the worker crashed in native code (signal 11): run with --debug and report it",
    "SIGTERM": "the worker was terminated by somebody (signal 15): run again",
    "SIGXCPU": "the worker used up the processor time that it may have (ulimit -t): raise it",
}
"""What a signal that killed a worker most likely was, and what to do."""


def worker_environment(ours: Mapping[str, str]) -> dict[str, str]:
    """A worker's environment: ours, UTF-8, and a compact heap unless the user has set that very dial."""
    tunables = [COMPACT_HEAP, ours.get("GLIBC_TUNABLES", "")]
    return {**ours, "PYTHONUTF8": "1", "GLIBC_TUNABLES": ":".join(filter(None, tunables))}


def _working_folder() -> str | None:
    """None to stay in our working folder, the root where that has been deleted: libraries fail without one."""
    try:
        os.getcwd()
    except OSError:
        return os.sep
    return None


class Worker:
    """A running worker process, in a session of its own so that the terminal's Ctrl-C does not reach it.

    A context manager: whatever happens inside, no worker is left behind.
    """

    def __init__(self, network: str, debug: bool = False, group: ControlGroup | None = None) -> None:
        """It imports the module of the network that it will run, and is in the control group if there is one."""
        command = [sys.executable, "-P", "-m", "sdcli.engine", network]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  closed in __exit__; a pipe would have to be drained
        self._process = subprocess.Popen(
            command if group is None else group.entered(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if debug else self._stderr,
            start_new_session=True,
            cwd=_working_folder(),
            env=worker_environment(os.environ),
        )
        self._stdin = cast("BinaryIO", self._process.stdin)
        self._stdout = cast("BinaryIO", self._process.stdout)
        self._outbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send_all, daemon=True)
        self.traceback = ""

    def __enter__(self) -> Worker:
        try:
            self._sender.start()
        except RuntimeError:  # no thread is left
            self._process.kill()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        self._outbox.put(None)
        self._sender.join(1)
        for pipe in (self._stdin, self._stdout, self._stderr):
            try:
                pipe.close()
            except BrokenPipeError:
                continue

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, message: Message) -> None:
        """Have something said. Nobody waits for that: a large job takes its time, and the watchdog speaks as well.

        A worker that is gone hears nothing, and `messages` will tell how it ended.
        """
        self._outbox.put(message)

    def _send_all(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                write_message(self._stdin, message)
            except (OSError, ValueError):  # it is gone
                pass
            except MemoryError:  # it would wait for ever
                self._process.kill()
            del message  # a job's payload must not stay while the next message is waited for

    def messages(self) -> Iterator[Message]:
        """What the worker says, until it ends. Raises the SdcliError that it reports."""
        while (message := read_message(self._stdout)) is not None:
            if isinstance(message, Failed):
                self.traceback = message.traceback
                kind = BY_NAME.get(message.kind)
                if kind is None:
                    if lack := shortage(message.message):
                        raise SdcliError(lack)
                    raise SdcliError(f"the worker failed: {echo(message.message, 160)}; --debug shows more")
                raise kind(message.message)
            yield message

    def end(self) -> SdcliError:
        """What to say of a worker that ended without a word."""
        code = self._process.wait()
        for name, meaning in _DEATHS.items():
            if -code == getattr(signal, name, None):
                return SdcliError(meaning)
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - 4096))
        last = self._stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
        if lack := shortage(last):
            return SdcliError(lack)
        said = f": {echo(last, 120)}" if last else ""
        return SdcliError(f"the worker ended with code {code}{said}; --debug shows more")
