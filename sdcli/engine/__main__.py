"""The worker process: reads what to do from standard input, says what happens on standard output.

`python -m sdcli.engine` is started by the host and by nobody else. It dies with the host: standard input
ends then, and on Linux the kernel sends SIGKILL besides, even while a C call holds the interpreter. It stands still
while the host does, since nobody would watch its memory.
"""

from __future__ import annotations

import ctypes
import gc
import os
import queue
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sdcli.errors import CeilingCrossed, SdcliError, echo
from sdcli.messages import (
    Count,
    Failed,
    Job,
    Message,
    Notice,
    Ready,
    Relieve,
    SelfTest,
    Start,
    Synthesize,
    Watched,
    read_message,
    write_message,
)

if TYPE_CHECKING:
    from sdcli.devices.base import Device  # brings torch, which comes when the pipes are safe and failures are told

PLAINLY = "--plain-imports"
"""The worker's only option, which it gives itself, with what the lean import tripped over. Its argument is the module
of the network that it runs."""

LOOK_S, LOOKS = 0.2, 3
"""A worker that has not heard of its watchdog at so many looks, so long apart, stops itself."""

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve one host until it is gone."""
    pipe_in, pipe_out = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between our messages
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # or they would be the last words of a worker that dies
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the host's to answer
    _die_with_parent()
    gc.disable()  # what is imported is nearly all there to stay: looking through it again and again takes 0.1 s
    try:
        tripped = _import_network(pipe_out)
        start = read_message(pipe_in)
        if not isinstance(start, Start):
            return
        device = _open(start)
        write_message(pipe_out, _ready(device, start, tripped))
        jobs: queue.SimpleQueue[Message] = queue.SimpleQueue()
        watched = threading.Event()
        threading.Thread(target=_stand_still_unless, args=(watched,), daemon=True).start()
        threading.Thread(target=_listen, args=(pipe_in, jobs, device, watched), daemon=True).start()
        while True:
            for event in _work(jobs.get(), device):
                write_message(pipe_out, event)
    except BrokenPipeError:
        os._exit(1)
    except Exception as error:  # the one boundary of this process: whatever it is, the host hears of it
        with suppress(OSError):  # if it still listens
            write_message(pipe_out, _failure(error))
        os._exit(1)  # an ordinary exit would wait for the lock on standard input, which the listener holds, and abort


def _die_with_parent() -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with suppress(OSError):  # should the system run out of memory, the host must be left to tell of it
            Path("/proc/self/oom_score_adj").write_text("900", "ascii")


def _import_network(pipe_out: BinaryIO) -> str:
    """Lean; where an unknown version of a library cannot be imported so, plainly, in this process begun anew.

    Nothing has been read from standard input yet, so nothing is lost. Returns what the lean import tripped over.
    """
    from sdcli.engine.lean_imports import import_network

    network, plainly = sys.argv[1], PLAINLY in sys.argv
    try:
        import_network(network, plainly)
    except Exception as error:  # whatever it trips over
        if plainly:
            raise
        os.dup2(pipe_out.fileno(), 1)
        again = [sys.executable, "-P", "-m", "sdcli.engine", network, PLAINLY, f"{type(error).__name__}: {echo(error)}"]
        os.execv(sys.executable, again)  # noqa: S606  this very program
    return sys.argv[-1] if plainly else ""


def _open(start: Start) -> Device:
    """Make the device ready, and import the rest of what the work needs."""
    import torch

    from sdcli.devices import open_device

    device = open_device(start.device)
    device.prepare(start.limit_bytes)
    if start.threads is not None:
        torch.set_num_threads(start.threads)
    from sdcli.engine import count, generate, synthesize  # noqa: F401  imported now, so that the baseline is the whole of it

    device.release()  # and what of the imports does not stay
    gc.freeze()  # the rest does: later collections need not look at it, and take 1 ms instead of 300
    gc.enable()
    return device


def _ready(device: Device, start: Start, tripped: str) -> Ready:
    import torch

    flops = None
    if start.measure is not None:
        from sdcli.devices.base import DTYPES
        from sdcli.engine.pace import operations_a_second

        with suppress(torch.OutOfMemoryError):  # the ceiling is a GPU's, and too small for any run
            flops = operations_a_second(device, DTYPES[start.measure])
        device.release()
    return Ready(device.describe(), torch.__version__, device.peak_bytes(), flops, tripped, torch.get_num_threads())


def _stand_still_unless(watched: threading.Event) -> None:
    """Stop this whole process when the watchdog is not heard of any more; the watchdog lets it go on.

    From the first time on that it is heard of: a worker that makes a model is not watched. On Linux alone: elsewhere
    nothing would end a stopped worker whose host is killed.
    """
    watched.wait()
    missed = 0
    while sys.platform.startswith("linux"):
        time.sleep(LOOK_S)
        missed = 0 if watched.is_set() else missed + 1  # it counts its own looks: whatever held it up held up the other
        watched.clear()
        if missed == LOOKS:
            missed = 0
            os.kill(os.getpid(), signal.SIGSTOP)


def _listen(pipe: BinaryIO, jobs: queue.SimpleQueue[Message], device: Device, watched: threading.Event) -> None:
    """Queue jobs; answer a call for relief at once, whatever the main thread is doing; leave with the host.

    Leave as well when what comes is no message: nobody would hear the host any more.
    """
    try:
        while (message := read_message(pipe)) is not None:
            if isinstance(message, Watched):
                watched.set()
            elif isinstance(message, Relieve):
                device.release()
            else:
                jobs.put(message)
            del message  # a job's payload must not stay while the next message is waited for
    except Exception:  # this thread's end of the same boundary
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _work(message: Message, device: Device) -> Iterator[Message]:
    from sdcli.engine.count import count_all
    from sdcli.engine.generate import generate
    from sdcli.engine.synthesize import synthesize

    if isinstance(message, Job):
        return generate(message, device)
    if isinstance(message, Count):
        return count_all(message, device)
    if isinstance(message, SelfTest):
        from sdcli.engine.self_test import self_test  # here, because no run needs it

        return self_test(message, device)
    if isinstance(message, Synthesize):
        return synthesize(message.name, Path(message.folder), message.outline)
    return iter([Notice(f"unknown message {type(message).__name__}")])


def _failure(error: Exception) -> Failed:
    """The error by the name that the host knows it by."""
    text = "".join(traceback.format_exception(error))
    if isinstance(error, SdcliError):
        return Failed(type(error).__name__, str(error), text)
    if isinstance(error, RuntimeError) and "out of memory" in str(error):  # of CUDA and of MPS
        return Failed(CeilingCrossed.__name__, "the device has no memory left under the ceiling", text)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return Failed("SdcliError", "the system has no memory left: close something, or lower --mem-limit", text)
    return Failed("", f"{type(error).__name__}: {error}", text)


if __name__ == "__main__":
    main()
