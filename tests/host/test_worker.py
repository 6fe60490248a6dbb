"""What a worker is started with."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sdcli.domain import Sources
from sdcli.host.worker import COMPACT_HEAP, Worker, worker_environment
from sdcli.messages import Job, Notice, Relieve, Start
from tests.support import ASTRONAUT, RESIDENT

FREED = """
import ctypes
class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype, libc.free.argtypes = Mallinfo, ctypes.c_void_p, [ctypes.c_void_p]
kept = [libc.malloc(1000) for _ in range(12)]
before = libc.mallinfo2().uordblks
for chunk in kept[::2]:
    libc.free(chunk)
print(before - libc.mallinfo2().uordblks)
"""


def test_what_a_worker_frees_is_free() -> None:
    """And not kept for the next allocation of its size, where it parts the free memory around it."""
    if not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("glibc 2.33 and newer tell")
    plain = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    freed = [_printed(environment) for environment in (plain, worker_environment(plain))]
    assert freed[0] == 0, "the cache that is turned off was never there: this test shows nothing"
    assert freed[1] >= 6 * 1000


def _printed(environment: dict[str, str]) -> int:
    command = [sys.executable, "-c", FREED]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def test_the_users_own_tunables_come_after_ours() -> None:
    """The last of two settings of a dial holds."""
    assert worker_environment({})["GLIBC_TUNABLES"] == COMPACT_HEAP
    named = worker_environment({"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7", "HOME": "/root"})
    assert named["GLIBC_TUNABLES"] == f"{COMPACT_HEAP}:glibc.malloc.tcache_count=7"
    assert named["HOME"] == "/root" and named["PYTHONUTF8"] == "1"


LATE = """
print("up", file=open("up", "w"))
while not os.path.exists("said"):
    time.sleep(0.01)
job = hear()
say(Notice(str(len(job.payload))))
assert isinstance(read_message(sys.stdin.buffer), Relieve)
say(Notice("relieved"))
time.sleep(600)
"""


def test_nobody_waits_while_a_large_job_is_sent(script: Callable[[str], None]) -> None:
    """Nor does the watchdog: a worker that reads nothing yet is told two things, and hears both later."""
    script(LATE)
    with Worker("sdcli.families.sd.network") as worker:
        worker.send(Start("cpu", None))
        worker.send(Job(ASTRONAUT, RESIDENT, Sources("tiny"), "fp32", payload=bytes(50_000_000)))
        worker.send(Relieve())
        Path("said").touch()
        heard = worker.messages()
        assert [next(heard), next(heard)] == [Notice("50000000"), Notice("relieved")]
