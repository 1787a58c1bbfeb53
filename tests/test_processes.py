"""Whether a process still lives is told by more than its number."""

from __future__ import annotations

import dataclasses
import os
import signal
import time

from fakes import wait_until

from vkvdb.processes import is_dead, this_process


def test_a_process_is_told_by_more_than_its_number() -> None:
    me = this_process()
    assert me.pid == os.getpid()
    assert not me.is_dead()
    assert dataclasses.replace(me, began=me.began + 1).is_dead()  # the number was given again
    assert not dataclasses.replace(me, began=me.began + 1, place="another boot").is_dead()
    assert not dataclasses.replace(me, began=me.began + 1, host="another").is_dead()
    assert not dataclasses.replace(me, began=me.began + 1, place="").is_dead()


def test_a_process_dies() -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, this_process().signature().encode())
        time.sleep(60)
    signature = os.read(read, 100).decode()
    assert signature.split("-")[1] == str(pid)
    assert not is_dead(signature)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_dead(signature))  # as a zombie, which nobody has waited for
    os.waitpid(pid, 0)
    assert is_dead(signature)
    assert not is_dead(f"elsewhere-{pid}-0")
