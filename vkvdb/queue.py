"""The queue: which jobs are wanted, and who is at which. A small SQLite file that holds intentions only.

Results and the fact that a job is done are in the store, so this file may be deleted. Whoever claims a job holds it for
the length of a lease, and renews the lease while at work. A job whose lease ran out, or whose process is known to have
ended, may be claimed by the next; `fence` counts the claims, and a worker whose number has passed changes nothing more.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vkvdb.errors import AmbiguousJob, BadOption, NoSuchJob, QueueFailed
from vkvdb.jobs import Job, Provenance, canonical, from_json, to_json
from vkvdb.processes import Process, this_process

VERSION = 1  # PRAGMA user_version; a file of another version is made anew
LEASE = 120.0
ATTEMPTS = 3
SHORTEST_PREFIX = 4
_BUSY = 60.0

_TABLE = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY,       -- the order of the queue
    job TEXT NOT NULL,
    edition INTEGER NOT NULL,
    spec TEXT NOT NULL,
    provenance TEXT NOT NULL,
    state TEXT NOT NULL,              -- todo, doing, done, failed or cancelled
    attempt INTEGER NOT NULL,         -- claims since it was queued or retried, without those that were handed back
    fence INTEGER NOT NULL,           -- claims ever
    host TEXT, place TEXT, pid INTEGER, began INTEGER,  -- whose it is: a Process
    lease REAL,                       -- until when; all times are seconds since 1970
    progress INTEGER, total INTEGER,
    error TEXT, traceback TEXT,
    queued REAL NOT NULL, started REAL, finished REAL,
    UNIQUE (job, edition)
)
"""
_ENQUEUE = """
INSERT INTO jobs (job, edition, spec, provenance, state, attempt, fence, queued) VALUES (?, ?, ?, ?, 'todo', 0, 0, ?)
ON CONFLICT DO UPDATE
SET state = 'todo', attempt = 0, provenance = excluded.provenance, queued = excluded.queued,
    progress = NULL, total = NULL, error = NULL, traceback = NULL, started = NULL, finished = NULL
WHERE state NOT IN ('todo', 'doing')
"""
_CLAIM = """
UPDATE jobs
SET state = 'doing', attempt = attempt + 1, fence = fence + 1, started = :now, progress = NULL, total = NULL,
    host = :host, place = :place, pid = :pid, began = :began, lease = :until
WHERE number = (
    SELECT number FROM jobs
    WHERE state = 'todo' AND job = coalesce(:only, job)
    ORDER BY number LIMIT 1
)
RETURNING job AS id, edition, attempt, fence, spec, provenance
"""
_NOBODY = "host = NULL, place = NULL, pid = NULL, began = NULL, lease = NULL"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A job of the queue as people see it. Times are seconds since 1970; `progress` counts samples or images."""

    job: str
    edition: int
    state: str
    attempt: int
    spec: dict[str, Any]
    provenance: dict[str, Any]
    host: str | None
    pid: int | None
    progress: int | None
    total: int | None
    error: str | None
    traceback: str | None
    queued: float
    started: float | None
    finished: float | None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The right to do a job, until another claims it."""

    id: str
    edition: int
    attempt: int
    fence: int
    spec: str
    provenance: str

    @property
    def job(self) -> Job:
        """What to do. Raises what a specification of another version of the code raises."""
        provenance = Provenance(**json.loads(self.provenance))
        return Job(spec=from_json(json.loads(self.spec)), provenance=provenance, edition=self.edition)


def _ignore(row: Row) -> None:
    pass


class Queue:
    """The queue at a path; made when it is not there.

    Every method opens the file and closes it again, so a queue may be used from any thread and after a fork. Each
    raises QueueFailed when SQLite can't go on (the disk is full, the file is no queue). `lease` is in seconds.
    """

    def __init__(self, path: Path, lease: float = LEASE, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.lease = lease
        self._clock = clock

    # --- what people do ---

    def enqueue(self, job: Job) -> bool:
        """Queue a job. True when this call made it one to do; False when it is waiting, or being done, already.

        One that failed, was cancelled, or is done here but not in the store, is to do again.
        """
        values = (job.id, job.edition, canonical(to_json(job.spec)), canonical(dataclasses.asdict(job.provenance)))
        with self._transaction() as db:
            return db.execute(_ENQUEUE, (*values, self._clock())).rowcount == 1

    def rows(self) -> list[Row]:
        """All jobs in the order of the queue."""
        with self._open() as db:
            return [_row(r) for r in db.execute("SELECT * FROM jobs ORDER BY number")]

    def row(self, prefix: str) -> Row:
        """The job whose id begins so, in its newest edition. Raises NoSuchJob, AmbiguousJob or BadOption."""
        rows = self.rows()
        job = match(prefix, [r.job for r in rows])
        return max((r for r in rows if r.job == job), key=lambda r: r.edition)

    def retry(self, prefix: str) -> Row:
        """Make a failed or cancelled job one to do. Raises BadOption when it is neither."""
        return self._set(prefix, "todo", ("failed", "cancelled"))

    def cancel(self, prefix: str) -> Row:
        """Take a job out of the queue; whoever is at it stops soon. Raises BadOption when it is not to do."""
        return self._set(prefix, "cancelled", ("todo", "doing"))

    def _set(self, prefix: str, state: str, only: tuple[str, str]) -> Row:
        row = self.row(prefix)
        with self._transaction() as db:
            changed = db.execute(
                f"UPDATE jobs SET state = ?, attempt = 0, error = NULL, traceback = NULL, {_NOBODY}"  # noqa: S608
                " WHERE job = ? AND edition = ? AND state IN (?, ?)",
                (state, row.job, row.edition, *only),
            ).rowcount
        if not changed:
            raise BadOption(option="job", value=row.job[:8], why=f"it is {row.state}, not {' or '.join(only)}")
        return self.row(row.job)

    # --- what a worker does ---

    def claim(
        self, worker: Process | None = None, only: str | None = None, on_given_up: Callable[[Row], None] = _ignore
    ) -> Claim | None:
        """Take the oldest job that is to do, or that its worker left; None when there is none.

        `only` is the id of the one job that is wanted. `on_given_up` is told of jobs that are given up at this moment,
        because they ended every worker that tried.
        """
        now = self._clock()
        facts = {**vars(worker or this_process()), "now": now, "until": now + self.lease, "only": only}
        with self._transaction() as db:
            given_up = self._release(db)
            row = db.execute(_CLAIM, facts).fetchone()
        for lost in given_up:
            on_given_up(lost)
        return None if row is None else Claim(**{f.name: row[f.name] for f in dataclasses.fields(Claim)})

    def _release(self, db: sqlite3.Connection) -> list[Row]:
        """Free the jobs that their workers left; give up, and return, those that did so for the last time."""
        given_up = []
        for row in db.execute("SELECT * FROM jobs WHERE state = 'doing'").fetchall():
            worker = Process(row["host"], row["place"], row["pid"], row["began"])
            if row["lease"] > self._clock() and not worker.is_dead():
                continue
            state, error = "todo", None
            if row["attempt"] >= ATTEMPTS:
                state = "failed"
                error = f"{row['attempt']} workers died at it or fell silent, the last was process {row['pid']}"
            released = db.execute(
                f"UPDATE jobs SET state = ?, error = ?, finished = ?, {_NOBODY} WHERE number = ? RETURNING *",  # noqa: S608
                (state, error, self._clock() if error else None, row["number"]),
            ).fetchone()
            if error:
                given_up.append(_row(released))
        return given_up

    def renew(self, claim: Claim) -> bool:
        """Extend the lease. False when the claim has passed to another: stop."""
        return self._update(claim, "lease = ?", self._clock() + self.lease)

    def progress(self, claim: Claim, done: int, total: int) -> bool:
        """Say how far it is. False when the claim has passed to another: stop."""
        return self._update(claim, "progress = ?, total = ?", done, total)

    def finish(self, claim: Claim) -> bool:
        """Note that it is done. False when the claim has passed to another."""
        return self._update(claim, f"state = 'done', finished = ?, {_NOBODY}", self._clock())

    def fail(self, claim: Claim, line: str, traceback: str = "") -> bool:
        """Note that it failed, and why. False when the claim has passed to another."""
        change = f"state = 'failed', error = ?, traceback = ?, finished = ?, {_NOBODY}"
        return self._update(claim, change, line, traceback, self._clock())

    def hand_back(self, claim: Claim) -> bool:
        """Give it back undone; the attempt does not count. False when the claim has passed to another."""
        return self._update(claim, f"state = 'todo', attempt = attempt - 1, {_NOBODY}")

    def _update(self, claim: Claim, change: str, *values: Any) -> bool:
        with self._transaction() as db:
            return (
                db.execute(
                    f"UPDATE jobs SET {change} WHERE job = ? AND edition = ? AND fence = ? AND state = 'doing'",  # noqa: S608
                    (*values, claim.id, claim.edition, claim.fence),
                ).rowcount
                == 1
            )

    # --- the file ---

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction; others wait for its end."""
        with self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        db = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(self.path, timeout=_BUSY, isolation_level=None)
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA synchronous = NORMAL")  # a power cut may take the last intentions, never the file
            self._prepare(db)
            yield db
        except (sqlite3.Error, OSError) as error:
            raise QueueFailed(path=self.path, why=" ".join(str(error).split())) from error
        finally:
            if db is not None:
                db.close()  # takes back what was not committed

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Make the table where there is none, or one of another version."""
        if db.execute("PRAGMA user_version").fetchone()[0] == VERSION:
            return
        _to_wal(db)
        db.execute("BEGIN IMMEDIATE")
        found = db.execute("PRAGMA user_version").fetchone()[0]  # another process may just have made it
        tables = [r["name"] for r in db.execute("SELECT name FROM sqlite_master WHERE name = 'jobs'")]
        if found != VERSION:
            db.execute("DROP TABLE IF EXISTS jobs")
            db.execute(_TABLE)
            db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")
        if found != VERSION and tables:
            print(  # noqa: T201 - nobody asked for it, so it is said
                f"the queue {self.path} was of another version of vkvdb and was made anew:"
                " jobs that waited must be queued again; results are not touched",
                file=sys.stderr,
            )


def _to_wal(db: sqlite3.Connection) -> None:
    """Switch the file to a write-ahead log, in which readers need not wait.

    SQLite does not wait its turn for this one, so several processes that make the file at once must ask again.
    """
    deadline = time.monotonic() + _BUSY
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def match(prefix: str, ids: Iterable[str]) -> str:
    """The one id that begins so. Raises NoSuchJob, AmbiguousJob, or BadOption when the prefix is short."""
    if len(prefix) < SHORTEST_PREFIX:
        raise BadOption(option="job", value=f"'{prefix}'", why=f"type at least {SHORTEST_PREFIX} characters of its id")
    found = sorted({i for i in ids if i.startswith(prefix)})
    if not found:
        raise NoSuchJob(job=prefix)
    if len(found) > 1:
        shown = ", ".join(i[: len(prefix) + 4] + "…" for i in found[:5])
        raise AmbiguousJob(job=prefix, count=len(found), matches=shown)
    return found[0]


def _row(found: sqlite3.Row) -> Row:
    values = {f.name: found[f.name] for f in dataclasses.fields(Row)}
    return Row(**{**values, "spec": json.loads(values["spec"]), "provenance": json.loads(values["provenance"])})
