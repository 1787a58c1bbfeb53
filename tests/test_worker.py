"""The worker: a job's failure is the job's, an interruption gives it back, and what another has is left alone."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import SAMPLES, SHARDS, Bodies, install, job, rows, tree, wait_until

from vkvdb.errors import BadOption, QueueFailed
from vkvdb.jobs import to_json
from vkvdb.paths import Home
from vkvdb.queue import Claim, Queue
from vkvdb.store import Store
from vkvdb.verification import problems
from vkvdb.worker import Outcome, Report, Terminated, Worker, sigterm_as_interrupt


@pytest.fixture
def bodies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bodies:
    return install(monkeypatch, tmp_path / "log")


@pytest.fixture
def store(home: Home) -> Store:
    return Store(home.store)


@pytest.fixture
def queue(home: Home) -> Queue:
    return Queue(home.queue)


class Told(Report):
    def __init__(self) -> None:
        self.lines: list[object] = []

    def started(self, claim: Claim, job: object, total: int) -> None:
        self.lines.append(total)

    def advanced(self, steps: int) -> None:
        self.lines.append(steps)

    def ended(self, outcome: Outcome) -> None:
        self.lines.append(outcome.state)

    def handed_back(self, claim: Claim) -> None:
        self.lines.append("handed back")


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def worker(home: Home, store: Store, queue: Queue, told: Told, bodies: Bodies) -> Worker:
    return Worker(home, store, queue, report=told)


def raising(error: BaseException) -> Callable[[int], None]:
    def during(shard: int) -> None:
        raise error

    return during


# --- done ---


def test_a_job_is_done(home: Home, store: Store, queue: Queue, told: Told, bodies: Bodies) -> None:
    steps: list[str] = []
    queue.enqueue(job())
    outcome = Worker(home, store, queue, on_step=steps.append, report=told).run_one()
    assert outcome is not None
    assert (outcome.job, outcome.state, outcome.n) == (job().id, "done", 15)
    assert steps == ["claimed", *["shard computed", "shard published"] * SHARDS, "job published", "finished"]
    assert told.lines == [15, 2, 3, 2, 3, 2, 3, "done"]
    assert bodies.runs[0].closed
    manifest = store.job(job().id, 0)
    assert manifest is not None
    assert manifest["spec"] == to_json(job().spec)
    assert manifest["provenance"]["dataset"] == "toyworld-test"
    assert (manifest["attempt"], manifest["n"], len(manifest["shards"])) == (1, 15, SHARDS)
    assert manifest["started"] <= manifest["finished"]
    assert queue.row(job().id).state == "done"
    assert store.read_scores(job().id, 0).num_rows == 90
    assert list(problems(store)) == []


def test_what_the_store_has_is_not_done_again(store: Store, queue: Queue, worker: Worker, bodies: Bodies) -> None:
    queue.enqueue(job())
    worker.run_one()
    before = tree(store.root)
    queue.path.unlink()
    queue.enqueue(job())
    outcome = worker.run_one()
    assert outcome is not None
    assert (outcome.state, outcome.n) == ("done", 15)
    assert queue.row(job().id).state == "done"
    assert tree(store.root) == before
    assert len(bodies.runs) == 1


def test_another_edition_is_another_job(store: Store, queue: Queue, worker: Worker) -> None:
    for edition in (0, 1):
        queue.enqueue(job(edition=edition))
        worker.run_one()
    assert store.newest_edition(job().id) == 1
    assert store.read_scores(job().id, 0).equals(store.read_scores(job().id, 1))


def test_jobs_follow_each_other(queue: Queue, worker: Worker) -> None:
    after: list[int] = []
    for n in range(4):
        queue.enqueue(job(n))
    first = worker.run_until_empty(limit=3, after_each=lambda: after.append(1))
    assert [o.job for o in first] == [job(n).id for n in range(3)]
    assert len(after) == 3
    assert [o.job for o in worker.run_until_empty()] == [job(3).id]
    assert worker.run_until_empty() == []


def test_a_worker_waits_for_more(queue: Queue, worker: Worker) -> None:
    later = threading.Timer(0.2, lambda: queue.enqueue(job()))
    later.start()
    assert [o.state for o in worker.run_until_empty(wait=0.02, limit=1)] == ["done"]
    later.join()


def test_a_shard_that_another_published_meanwhile_is_not_computed(
    home: Home, store: Store, queue: Queue, worker: Worker, bodies: Bodies
) -> None:
    bodies.during = lambda shard: store.write_scores(job().id, 0, 1, rows(1), {}) and None
    queue.enqueue(job())
    worker.run_one()
    assert bodies.computed == [(job().id, 0), (job().id, 2)]
    assert store.read_scores(job().id, 0).num_rows == 90


# --- failed ---


def test_a_mistake_fails_its_job_in_one_line_and_the_next_goes_on(queue: Queue, worker: Worker, bodies: Bodies) -> None:
    def during(shard: int) -> None:
        if len(bodies.runs) == 1 and shard == 1:
            raise BadOption(option="--layers", value=99, why="too high")

    bodies.during = during
    queue.enqueue(job(1))
    queue.enqueue(job(2))
    assert [o.state for o in worker.run_until_empty()] == ["failed", "done"]
    row = queue.row(job(1).id)
    assert (row.state, row.error, row.traceback) == ("failed", "--layers 99: too high", "")
    assert bodies.runs[0].closed


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nmore"), "RuntimeError: CUDA out of memory. Tried"),
        (MemoryError(), "MemoryError: no message"),
        (SystemExit(3), "SystemExit: 3"),
        (AssertionError(), "AssertionError: no message"),
    ],
)
def test_a_bug_fails_its_job_and_its_traceback_is_kept(
    queue: Queue, worker: Worker, bodies: Bodies, error: BaseException, line: str
) -> None:
    bodies.during = raising(error)
    queue.enqueue(job())
    outcome = worker.run_one()
    assert outcome is not None
    assert outcome.line.startswith(line)
    assert "\n" not in outcome.line
    row = queue.row(job().id)
    assert row.error == outcome.line
    assert "in run_shard" in (row.traceback or "")
    bodies.during = lambda shard: None
    queue.retry(job().id)
    assert worker.run_until_empty()[0].state == "done"


def test_a_specification_of_another_version_fails_its_job(queue: Queue, worker: Worker) -> None:
    for n in (1, 2):
        queue.enqueue(job(n))
    with sqlite3.connect(queue.path) as db:
        db.execute("UPDATE jobs SET spec = json_set(spec, '$.unheard', 1) WHERE job = ?", (job(1).id,))
    assert [o.state for o in worker.run_until_empty()] == ["failed", "done"]
    assert "unheard" in (queue.row(job(1).id).error or "")


def test_a_full_disk_fails_the_job(
    store: Store, queue: Queue, worker: Worker, bodies: Bodies, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies.during = lambda shard: monkeypatch.setattr(os, "fsync", lambda f: (_ for _ in ()).throw(OSError(28, "")))
    queue.enqueue(job())
    outcome = worker.run_one()
    assert outcome is not None
    assert "No space left on device; nothing of this step was kept" in outcome.line
    assert not store.root.exists()


def test_a_queue_that_fails_stops_the_worker(queue: Queue, worker: Worker, bodies: Bodies) -> None:
    bodies.during = lambda shard: queue.path.write_bytes(b"not a database" * 1000) and None
    queue.enqueue(job())
    with pytest.raises(QueueFailed):
        worker.run_one()


# --- interrupted ---


def test_ctrl_c_hands_the_job_back(queue: Queue, worker: Worker, bodies: Bodies, told: Told) -> None:
    bodies.during = lambda shard: signal.raise_signal(signal.SIGINT) if shard == 1 else None
    queue.enqueue(job())
    with pytest.raises(KeyboardInterrupt):
        worker.run_until_empty()
    row = queue.row(job().id)
    assert (row.state, row.attempt, row.pid) == ("todo", 0, None)
    assert told.lines[-1] == "handed back"
    assert bodies.runs[0].closed
    bodies.during = lambda shard: None
    told.lines.clear()
    assert [o.state for o in worker.run_until_empty()] == ["done"]
    assert told.lines[0] == (SHARDS - 1) * SAMPLES  # what is published is not done again
    assert bodies.computed == [(job().id, n) for n in range(SHARDS)]


def test_sigterm_does_too(queue: Queue, worker: Worker, bodies: Bodies) -> None:
    bodies.during = lambda shard: os.kill(os.getpid(), signal.SIGTERM)
    queue.enqueue(job())
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), sigterm_as_interrupt():
        worker.run_one()
    assert signal.getsignal(signal.SIGTERM) == before
    assert (queue.row(job().id).state, queue.row(job().id).attempt) == ("todo", 0)


@pytest.mark.parametrize("step", ["claimed", "shard computed", "shard published", "job published", "finished"])
def test_an_interruption_at_any_step_loses_nothing(
    home: Home, store: Store, queue: Queue, bodies: Bodies, step: str
) -> None:
    def interrupt(name: str) -> None:
        if name == step:
            raise KeyboardInterrupt

    queue.enqueue(job())
    with pytest.raises(KeyboardInterrupt):
        Worker(home, store, queue, on_step=interrupt).run_one()
    assert queue.row(job().id).state == ("done" if step == "finished" else "todo")
    assert not list(store.root.rglob(".*"))
    Worker(home, store, queue).run_until_empty()
    assert queue.row(job().id).state == "done"
    assert store.read_scores(job().id, 0).num_rows == 90


# --- leases ---


def test_the_lease_is_renewed_while_the_job_is_done(home: Home, store: Store, bodies: Bodies) -> None:
    queue = Queue(home.queue, lease=2.0)
    seen = []

    def during(shard: int) -> None:
        if shard > 0:
            return
        time.sleep(2.2)
        with sqlite3.connect(queue.path) as db:  # another host, which can't know whether we live
            db.execute("UPDATE jobs SET host = 'elsewhere'")
        seen.append(queue.claim())

    bodies.during = during
    queue.enqueue(job())
    outcome = Worker(home, store, queue, beat=0.05).run_one()
    assert outcome is not None
    assert outcome.state == "done"
    assert seen == [None]
    assert not any(t.name == "heartbeat" for t in threading.enumerate())


@pytest.mark.parametrize("beat", [0.02, 60.0], ids=["noticed by the heartbeat", "noticed by the progress"])
def test_who_lost_his_claim_stops_quietly(
    home: Home, queue: Queue, bodies: Bodies, monkeypatch: pytest.MonkeyPatch, beat: float
) -> None:
    monkeypatch.setattr("vkvdb.worker.TELL", 0.01 if beat == 60 else 60)

    def during(shard: int) -> None:
        if len(bodies.runs) == 1:
            while not claims:  # the heartbeat may renew the lease in between
                with sqlite3.connect(queue.path) as db:
                    db.execute("UPDATE jobs SET lease = 0")
                claims.extend(claim for claim in [queue.claim()] if claim)
            if beat < 1:  # the heartbeat ends when it has noticed
                wait_until(lambda: not any(t.name == "heartbeat" for t in threading.enumerate()))
            time.sleep(0.02)

    claims: list[Claim] = []
    bodies.during = during
    queue.enqueue(job())
    outcome = Worker(home, Store(home.store), queue, beat=beat).run_one()
    assert outcome is not None
    assert (outcome.state, outcome.line) == ("lost", "")
    assert bodies.computed == []
    row = queue.row(job().id)
    assert (row.state, row.attempt, row.error) == ("doing", 2, None)
    assert queue.finish(claims[0])


def test_a_late_failure_does_not_undo_anothers_result(queue: Queue, worker: Worker, bodies: Bodies) -> None:
    def during(shard: int) -> None:
        with sqlite3.connect(queue.path) as db:
            db.execute("UPDATE jobs SET lease = 0")
        claim = queue.claim()
        assert claim is not None
        queue.finish(claim)
        raise RuntimeError("late")

    bodies.during = during
    queue.enqueue(job())
    outcome = worker.run_one()
    assert outcome is not None
    assert outcome.state == "lost"
    assert (queue.row(job().id).state, queue.row(job().id).error) == ("done", None)


def test_a_job_that_kills_its_workers_is_reported(queue: Queue, worker: Worker, told: Told) -> None:
    queue.enqueue(job())
    for _ in range(3):
        assert queue.claim() is not None
        with sqlite3.connect(queue.path) as db:
            db.execute("UPDATE jobs SET lease = 0")
    assert worker.run_one() is None
    assert told.lines == ["failed"]
