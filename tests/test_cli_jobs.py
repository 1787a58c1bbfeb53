"""`vkvdb work` and `vkvdb jobs`: a line for each job, exit codes, and one list of queue and store."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import Bodies, install, job

from vkvdb.errors import BadOption
from vkvdb.paths import Home
from vkvdb.queue import Queue
from vkvdb.store import Store
from vkvdb.worker import Worker
from vkvdb_cli.main import main


@pytest.fixture
def bodies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bodies:
    return install(monkeypatch, tmp_path / "log")


@pytest.fixture
def store(home: Home) -> Store:
    return Store(home.store)


@pytest.fixture
def queue(home: Home) -> Queue:
    return Queue(home.queue)


@pytest.fixture
def worker(home: Home, store: Store, queue: Queue, bodies: Bodies) -> Worker:
    return Worker(home, store, queue)


def raising(error: BaseException) -> Callable[[int], None]:
    def during(shard: int) -> None:
        raise error

    return during


@pytest.fixture
def absorbed(monkeypatch: pytest.MonkeyPatch) -> list[Home]:
    """What is done between jobs; the catalog has its own tests."""
    calls: list[Home] = []
    module = types.ModuleType("vkvdb_cli._after")
    module.absorb_and_mirror = calls.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vkvdb_cli._after", module)
    return calls


def test_work_tells_a_line_each_and_fails_if_any_did(
    home: Home, queue: Queue, bodies: Bodies, absorbed: list[Home], capsys: pytest.CaptureFixture[str]
) -> None:
    bodies.during = lambda shard: raising(ValueError("odd"))(shard) if bodies.runs[-1].job == job(2) else None
    for n in (1, 2, 3):
        queue.enqueue(job(n))
    assert main(["work", "--limit", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"done    {job(1).id[:8]}  correspondence  pixels  toyworld-test  n=15  ")
    assert (out.count("\n"), err) == (1, "")
    assert main(["work"]) == 1
    out, err = capsys.readouterr()
    short = job(2).id[:8]
    assert err == f"failed  {short}  correspondence  pixels  toyworld-test: ValueError: odd (vkvdb jobs show {short})\n"
    assert job(3).id[:8] in out
    assert absorbed == [home] * 3
    assert main(["work"]) == 0
    assert capsys.readouterr().out == "nothing to do: the queue is empty\n"


def test_work_is_interrupted(
    queue: Queue, bodies: Bodies, absorbed: list[Home], capsys: pytest.CaptureFixture[str]
) -> None:
    queue.enqueue(job())
    bodies.during = raising(KeyboardInterrupt())
    assert main(["work"]) == 130
    err = capsys.readouterr().err
    assert err.startswith(
        f"handed back  {job().id[:8]}  correspondence  pixels  toyworld-test; go on with: vkvdb work\n"
    )
    bodies.during = lambda shard: os.kill(os.getpid(), signal.SIGTERM)
    assert main(["work", "--forever"]) == 143
    assert (queue.row(job().id).state, queue.row(job().id).attempt) == ("todo", 0)


def test_now_waits_for_another_worker_and_takes_over_when_it_dies(
    home: Home, queue: Queue, bodies: Bodies, absorbed: list[Home], capsys: pytest.CaptureFixture[str]
) -> None:
    from vkvdb_cli.commands import work

    def end(how: str) -> None:
        with sqlite3.connect(queue.path) as db:
            db.execute("UPDATE jobs SET lease = 0 WHERE job = ?", (how,))

    queue.enqueue(job(1))
    queue.enqueue(job(2))
    assert queue.claim(only=job(1).id) is not None
    timer = threading.Timer(0.2, end, [job(1).id])
    timer.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "WAIT", 0.02)
        assert work.run_jobs(home, [job(1).id]) == 0
    timer.join()
    out, err = capsys.readouterr()
    assert err.count("waiting for process") == 1
    assert out.startswith(f"done    {job(1).id[:8]}")
    assert queue.row(job(2).id).state == "todo"
    assert work.run_jobs(home, [job(1).id]) == 0
    assert "by another worker" in capsys.readouterr().out
    queue.cancel(job(2).id)
    with pytest.raises(BadOption, match="it is cancelled; see: vkvdb jobs show"):
        work.run_jobs(home, [job(2).id])


def test_jobs_list_merges_queue_and_store(
    store: Store, queue: Queue, worker: Worker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["jobs", "list"]) == 0
    assert capsys.readouterr().out == "no jobs\n"
    for n in range(3):
        queue.enqueue(job(n))
    worker.run_until_empty(limit=2)
    store.job_path(job(1).id, 0).unlink()
    with sqlite3.connect(queue.path) as db:
        db.execute("DELETE FROM jobs WHERE job = ?", (job(0).id,))
    assert main(["jobs", "list", "--json"]) == 0
    found = {row["job"]: row for row in json.loads(capsys.readouterr().out)}
    assert [found[job(n).id]["state"] for n in range(3)] == ["done", "gone", "todo"]
    assert (found[job(0).id]["n"], found[job(0).id]["what"], found[job(0).id]["model"]) == (
        15,
        "correspondence",
        "pixels",
    )
    assert main(["jobs", "list", "--state", "todo"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2
    assert out[1].startswith(f"{job(2).id[:8]} ")
    assert main(["jobs", "list", "--csv"]) == 0
    assert capsys.readouterr().out.startswith("job,edition,state,what,")


def test_jobs_show_retry_and_cancel(
    store: Store, queue: Queue, worker: Worker, bodies: Bodies, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies.during = raising(ValueError("odd"))
    queue.enqueue(job(1))
    worker.run_one()
    short = job(1).id[:6]
    assert main(["jobs", "show", short]) == 0
    out = capsys.readouterr().out
    for line in (
        r"job  .*" + job(1).id,
        r"state  .*failed",
        r"capture\.model\.family  .*pixels",
        r"error  .*ValueError: odd",
        r"seed  .*1",
    ):
        assert re.search(line, out), line
    assert "Traceback" not in out
    assert main(["jobs", "show", short, "--traceback"]) == 0
    assert "Traceback (most recent call last)" in capsys.readouterr().out
    assert main(["jobs", "retry", short]) == 0
    assert main(["jobs", "cancel", short]) == 0
    assert queue.row(job(1).id).state == "cancelled"
    bodies.during = lambda shard: None
    assert main(["jobs", "retry", short]) == 0
    worker.run_one()
    capsys.readouterr()
    assert main(["jobs", "show", short]) == 0
    out = capsys.readouterr().out
    assert str(store.root / "scores" / job(1).id / "0") in out
    assert str(store.job_path(job(1).id, 0)) in out
    assert main(["jobs", "show", short, "--traceback"]) == 0
    assert capsys.readouterr().out.endswith("there is no traceback\n")
    assert main(["jobs", "cancel", short]) == 1
    assert capsys.readouterr().err == (
        f"vkvdb: job {job(1).id[:8]}: it is done; to run it once more, add --again to the command that queued it\n"
    )
    assert main(["jobs", "show", "0000"]) == 1
    assert capsys.readouterr().err == "vkvdb: no job starts with '0000'; see: vkvdb jobs list\n"
    queue.path.unlink()
    assert main(["jobs", "show", short]) == 0
    assert "done" in capsys.readouterr().out
