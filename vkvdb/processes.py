"""Which process is at work, and whether it still lives: what leases and temporary files are signed with.

A process id alone says little: it is given again after its owner's death, and means another process in another
container. So a process is told by its host, its place (this boot, this PID namespace), its id and the moment it began.
"""

from __future__ import annotations

import hashlib
import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process. Without /proc, `place` is empty and `began` 0: then nobody is known to be dead."""

    host: str
    place: str
    pid: int
    began: int

    def is_dead(self) -> bool:
        """Whether it is known to have ended: it ran in this place, and its id is now free, a zombie's or another's."""
        if not self.place or (self.host, self.place) != (socket.gethostname(), _place()):
            return False
        began = _began(self.pid)
        return began != self.began if began is not None else not _exists(self.pid)

    def signature(self) -> str:
        """It as a piece of a file name."""
        place = hashlib.sha256(f"{self.host} {self.place}".encode()).hexdigest()[:8] if self.place else "elsewhere"
        return f"{place}-{self.pid}-{self.began}"


def this_process() -> Process:
    """The calling process; asked anew each time, so that it is right after a fork."""
    return Process(socket.gethostname(), _place(), os.getpid(), _began(os.getpid()) or 0)


def is_dead(signature: str) -> bool:
    """Whether the process that signed so is known to have ended."""
    place, pid, began = signature.split("-")
    signed = Process(socket.gethostname(), _place(), int(pid), int(began))
    return signed.signature() == f"{place}-{pid}-{began}" and signed.is_dead()


@cache
def _place() -> str:
    """This boot and this PID namespace: where process ids have one meaning."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _began(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; 0 for a zombie, None for one that can't be seen."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field is the program's name in parentheses, which may itself hold spaces and parentheses.
    fields = line.rpartition(")")[2].split()
    return 0 if fields[0] in "ZX" else int(fields[19])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another person's process, which /proc may hide
    return True
