"""The queue: every job once, whoever dies; nothing is said by one who has lost his claim."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
from collections import Counter
from pathlib import Path

import pytest
from fakes import fork, job, wait_until

from vkvdb.errors import AmbiguousJob, BadOption, NoSuchJob, QueueFailed
from vkvdb.processes import Process, this_process
from vkvdb.queue import Claim, Queue, Row, match


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(tmp_path: Path, clock: Clock) -> Queue:
    return Queue(tmp_path / "home" / "queue.sqlite", clock=clock)


def elsewhere(name: str) -> Process:
    """A worker of which nothing can be known here."""
    return Process(host=name, place="there", pid=1, began=1)


def claimed(queue: Queue, worker: Process | None = None) -> Claim:
    claim = queue.claim(worker)
    assert claim is not None
    return claim


# --- to do, doing, done ---


def test_a_job_is_queued_once(queue: Queue) -> None:
    assert queue.enqueue(job(1))
    assert not queue.enqueue(job(1))
    assert queue.enqueue(job(1, edition=1))
    claim = claimed(queue)
    assert not queue.enqueue(job(1))
    assert claim.job == job(1)
    assert [(r.state, r.edition) for r in queue.rows()] == [("doing", 0), ("todo", 1)]


def test_jobs_are_claimed_in_the_order_of_the_queue(queue: Queue) -> None:
    jobs = [job(n) for n in range(5)]
    for one in jobs:
        queue.enqueue(one)
    assert [claimed(queue).id for _ in jobs] == [one.id for one in jobs]
    assert queue.claim() is None


def test_one_job_is_asked_for(queue: Queue) -> None:
    for n in range(3):
        queue.enqueue(job(n))
    claim = queue.claim(only=job(2).id)
    assert claim is not None
    assert claim.id == job(2).id
    assert queue.claim(only=job(2).id) is None
    assert claimed(queue).id == job(0).id


def test_a_job_is_finished(queue: Queue, clock: Clock) -> None:
    queue.enqueue(job())
    claim = claimed(queue)
    assert queue.progress(claim, 3, 10)
    row = queue.row(job().id[:8])
    assert (row.state, row.progress, row.total, row.pid, row.attempt) == ("doing", 3, 10, os.getpid(), 1)
    clock.now += 5
    assert queue.finish(claim)
    row = queue.row(job().id)
    assert (row.state, row.pid, row.queued, row.finished) == ("done", None, 1000.0, 1005.0)
    for late in (queue.finish, queue.renew, queue.hand_back):
        assert not late(claim)


def test_a_job_fails_and_is_tried_again(queue: Queue) -> None:
    queue.enqueue(job())
    assert queue.fail(claimed(queue), "no such layer", "Traceback ...")
    row = queue.row(job().id)
    assert (row.state, row.error, row.traceback) == ("failed", "no such layer", "Traceback ...")
    assert queue.claim() is None
    row = queue.retry(job().id[:6])
    assert (row.state, row.error, row.traceback, row.attempt) == ("todo", None, None, 0)
    assert claimed(queue).attempt == 1


@pytest.mark.parametrize("end", ["done", "failed", "cancelled"])
def test_what_has_ended_may_be_queued_again(queue: Queue, end: str) -> None:
    """Done here but asked for: the store has it no more."""
    queue.enqueue(job())
    claim = claimed(queue)
    {"done": queue.finish, "failed": lambda c: queue.fail(c, "x"), "cancelled": lambda c: queue.cancel(c.id)}[end](
        claim
    )
    assert queue.row(job().id).state == end
    assert queue.enqueue(job())
    row = queue.row(job().id)
    assert (row.state, row.attempt, row.error, row.finished) == ("todo", 0, None, None)
    assert claimed(queue).fence == claim.fence + 1


def test_a_job_handed_back_has_not_been_tried(queue: Queue) -> None:
    queue.enqueue(job())
    for _ in range(5):
        claim = claimed(queue)
        assert claim.attempt == 1
        assert queue.hand_back(claim)
        assert (queue.row(job().id).state, queue.row(job().id).attempt) == ("todo", 0)


def test_cancelled_under_the_hands_of_its_worker(queue: Queue) -> None:
    queue.enqueue(job())
    claim = claimed(queue)
    assert queue.cancel(job().id[:4]).state == "cancelled"
    assert not queue.renew(claim)
    assert not queue.progress(claim, 1, 2)
    assert not queue.fail(claim, "late")
    assert queue.row(job().id).error is None
    assert queue.claim() is None
    with pytest.raises(BadOption, match="it is cancelled, not todo or doing"):
        queue.cancel(job().id)
    assert queue.retry(job().id).state == "todo"
    with pytest.raises(BadOption, match="it is todo, not failed or cancelled"):
        queue.retry(job().id)


# --- leases ---


def test_a_lease_is_kept_by_renewing_it(queue: Queue, clock: Clock) -> None:
    queue.enqueue(job())
    claim = claimed(queue, elsewhere("a"))
    clock.now += 119
    assert queue.claim(elsewhere("b")) is None
    assert queue.renew(claim)
    clock.now += 119
    assert queue.claim(elsewhere("b")) is None
    clock.now += 2
    assert claimed(queue, elsewhere("b")).attempt == 2


def test_who_was_silent_for_too_long_changes_nothing_any_more(queue: Queue, clock: Clock) -> None:
    queue.enqueue(job())
    first = claimed(queue, elsewhere("a"))
    clock.now += 121
    second = claimed(queue, elsewhere("b"))
    assert not queue.renew(first)
    assert not queue.progress(first, 1, 2)
    assert not queue.finish(first)
    assert not queue.fail(first, "late")
    assert not queue.hand_back(first)
    assert queue.row(job().id).host == "b"
    # Handing back takes the attempt's number back, but the fence only rises.
    assert queue.hand_back(second)
    third = claimed(queue, elsewhere("c"))
    assert third.attempt == second.attempt
    assert not queue.finish(second)
    assert queue.finish(third)


def test_a_dead_worker_is_not_waited_for(queue: Queue) -> None:
    queue.enqueue(job())
    pid = fork(lambda: claimed(queue) and None)
    wait_until(lambda: queue.row(job().id).state == "doing")
    os.waitpid(pid, 0)
    claim = claimed(queue)
    assert (claim.attempt, queue.row(job().id).pid) == (2, os.getpid())


@pytest.mark.parametrize(
    ("worker", "at_once"),
    [
        (dataclasses.replace(this_process(), began=1), True),
        (dataclasses.replace(this_process(), began=1, place="before the power went"), False),
        (dataclasses.replace(this_process(), began=1, host="another"), False),
        (this_process(), False),
    ],
    ids=["its number was given again", "another boot", "another host", "alive"],
)
def test_only_who_is_known_to_be_dead_is_not_waited_for(
    queue: Queue, clock: Clock, worker: Process, at_once: bool
) -> None:
    queue.enqueue(job())
    claimed(queue, worker)
    assert (queue.claim(elsewhere("b")) is not None) == at_once
    if not at_once:
        clock.now += 121
        claimed(queue, elsewhere("b"))


def test_a_job_that_kills_its_workers_is_given_up(queue: Queue, clock: Clock) -> None:
    queue.enqueue(job(1))
    queue.enqueue(job(2))
    for _ in range(3):
        assert claimed(queue, elsewhere("a")).id == job(1).id
        clock.now += 121
    given_up: list[Row] = []
    claim = queue.claim(elsewhere("a"), on_given_up=given_up.append)
    assert claim is not None
    assert claim.id == job(2).id
    row = queue.row(job(1).id)
    assert given_up == [row]
    assert row.state == "failed"
    assert row.error == "3 workers died at it or fell silent, the last was process 1"
    assert queue.retry(job(1).id).attempt == 0
    queue.finish(claim)
    assert claimed(queue).id == job(1).id


# --- names ---


def test_a_job_is_named_by_its_first_characters(queue: Queue) -> None:
    queue.enqueue(job(1))
    queue.enqueue(job(1, edition=3))
    assert queue.row(job(1).id[:4]).edition == 3
    assert match("abcd1", ["abcd12", "abcd23"]) == "abcd12"
    with pytest.raises(AmbiguousJob, match="'abcd' begins 2 jobs: abcd12…, abcd23…; type more of it"):
        match("abcd", ["abcd12", "abcd23", "abcd12"])
    with pytest.raises(NoSuchJob, match="no job starts with 'ffff'"):
        match("ffff", ["abcd12"])
    with pytest.raises(BadOption, match="at least 4 characters"):
        match("abc", ["abcd12"])


# --- the file ---


def test_a_queue_of_another_version_is_made_anew(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    queue.enqueue(job())
    assert capsys.readouterr().err == ""
    with sqlite3.connect(queue.path) as db:
        db.execute("PRAGMA user_version = 99")
    assert queue.rows() == []
    told = capsys.readouterr().err
    assert "another version" in told
    assert told.count("\n") == 1
    assert queue.enqueue(job())
    assert capsys.readouterr().err == ""


def test_what_is_no_queue_is_told_and_left(queue: Queue) -> None:
    queue.path.parent.mkdir()
    queue.path.write_bytes(b"something of value" * 100)
    with pytest.raises(QueueFailed, match=r"queue\.sqlite: file is not a database; it holds intentions only"):
        queue.enqueue(job())
    assert queue.path.read_bytes().startswith(b"something of value")
    with pytest.raises(QueueFailed, match="Not a directory"):
        Queue(queue.path / "below" / "queue.sqlite").rows()


def test_a_failed_change_changes_nothing(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    queue.enqueue(job())
    monkeypatch.setattr("vkvdb.queue._CLAIM", "UPDATE jobs SET state = 'doing'; SELECT")
    with pytest.raises(QueueFailed):
        queue.claim()
    assert [row.state for row in queue.rows()] == ["todo"]


def test_eight_processes_queue_and_do_two_hundred_jobs_once_each(tmp_path: Path) -> None:
    """They also make the file all at once, and hand some of the jobs back."""
    path, jobs = tmp_path / "queue.sqlite", [job(n) for n in range(200)]

    def fill(number: int) -> None:
        added = [one.id for one in jobs if Queue(path).enqueue(one)]
        (tmp_path / f"added-{number}").write_text("\n".join(added), encoding="utf-8")

    def work(number: int) -> None:
        queue, done = Queue(path), []
        while (claim := queue.claim()) is not None:
            if claim.fence == 1 and int(claim.id[0], 16) < 2:
                assert queue.hand_back(claim)
                continue
            assert queue.renew(claim)
            assert queue.finish(claim)
            done.append(claim.id)
        (tmp_path / f"done-{number}").write_text("\n".join(done), encoding="utf-8")

    for body, name in ((fill, "added"), (work, "done")):
        pids = [fork(lambda n=n, body=body: body(n)) for n in range(8)]
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 8
        ids = Counter(i for n in range(8) for i in (tmp_path / f"{name}-{n}").read_text().split())
        assert ids == Counter(one.id for one in jobs)
    assert {(row.state, row.attempt) for row in Queue(path).rows()} == {("done", 1)}
