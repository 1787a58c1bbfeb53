"""The worker: claim a job, do it shard by shard, publish, finish; then the next.

A shard that is published is never done again, and the job's manifest is published last, so a worker may die anywhere:
at most one shard is repeated, and nothing is doubled. The worker knows neither the catalog nor MLflow.
"""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType
from typing import Any, Protocol, Self

from vkvdb.errors import QueueFailed, VkvdbError
from vkvdb.jobs import Job, to_json
from vkvdb.paths import Home
from vkvdb.processes import this_process
from vkvdb.queue import Claim, Queue, Row
from vkvdb.store import Store

BEAT = 40.0  # seconds between renewals of the lease
_BODIES = {"extract": "extraction", "score": "scoring", "ask": "asking", "calibrate": "calibrating"}
TELL = 1.0  # seconds between two words to the queue on how far a job is


class Run(Protocol):
    """A job under way: what `extraction.open` and `scoring.open` give. `total` counts samples or images."""

    @property
    def shards(self) -> int: ...

    def units(self, shard: int) -> int: ...

    def done(self, shard: int) -> bool: ...

    def run_shard(self, shard: int, advance: Callable[[int], None]) -> None: ...

    def finish(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


class Terminated(KeyboardInterrupt):
    """SIGTERM, taken like Ctrl-C."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a claimed job: done, failed (`line` says why), or lost to another worker or to `jobs cancel`."""

    job: str
    edition: int
    state: str
    line: str = ""
    seconds: float = 0.0
    n: int = 0


class Report:
    """What a worker tells while at work; the command line overrides what it shows."""

    def started(self, claim: Claim, job: Job, total: int) -> None:
        """A job begins; `total` samples or images are to do (those of finished shards left out)."""

    def advanced(self, steps: int) -> None:
        """So many more of them are done."""

    def ended(self, outcome: Outcome) -> None:
        """The job is done, failed or lost."""

    def handed_back(self, claim: Claim) -> None:
        """The worker was interrupted, and gave the job back."""


class _LostError(Exception):
    """The claim has passed to another."""


def _no_step(name: str) -> None:
    pass


class Worker:
    """Does the jobs of a queue, one at a time.

    `on_step` is called at each named step of a job: "claimed", "shard computed" and "shard published" for each shard,
    "job published", "finished". `beat` is the time in seconds between renewals of the lease.
    """

    def __init__(
        self,
        home: Home,
        store: Store,
        queue: Queue,
        *,
        on_step: Callable[[str], None] = _no_step,
        report: Report | None = None,
        beat: float = BEAT,
    ) -> None:
        self._home = home
        self._store = store
        self._queue = queue
        self._on_step = on_step
        self._report = report or Report()
        self._beat = beat

    def run_until_empty(
        self,
        *,
        limit: int | None = None,
        wait: float | None = None,
        after_each: Callable[[], None] = lambda: None,
    ) -> list[Outcome]:
        """Do jobs until `limit` are done or none is left to claim; with `wait`, look again every so many seconds.

        `after_each` is called after every job. A failed job does not stop the next. Raises KeyboardInterrupt after the
        job at hand was given back.
        """
        outcomes: list[Outcome] = []
        while limit is None or len(outcomes) < limit:
            outcome = self.run_one()
            if outcome is not None:
                outcomes.append(outcome)
                after_each()
            elif wait is None:
                break
            else:
                time.sleep(wait)
        return outcomes

    def run_one(self, only: str | None = None) -> Outcome | None:
        """Claim one job and do it, or the one whose id is `only`; None when there is none to claim.

        What goes wrong in the job is the job's, and is kept in the queue. Raises KeyboardInterrupt after giving the job
        back, and QueueFailed.
        """
        claim = None
        try:
            claim = self._queue.claim(this_process(), only, self._given_up)
            if claim is None:
                return None
            self._on_step("claimed")
            outcome = self._attempt(claim)
        except KeyboardInterrupt:
            if claim is not None and self._queue.hand_back(claim):
                self._report.handed_back(claim)
            raise
        self._report.ended(outcome)
        return outcome

    def _given_up(self, row: Row) -> None:
        self._report.ended(Outcome(job=row.job, edition=row.edition, state="failed", line=row.error or ""))

    def _attempt(self, claim: Claim) -> Outcome:
        """Do a claimed job, and note in the queue how it ended."""
        start = time.monotonic()
        outcome = Outcome(job=claim.id, edition=claim.edition, state="lost")
        try:
            with _Heartbeat(self._queue, claim, self._beat) as heart:
                n = self._do(claim, heart)
            kept = self._queue.finish(claim)
            self._on_step("finished")
            outcome = dataclasses.replace(outcome, state="done" if kept else "lost", n=n)
        except _LostError:
            pass  # whoever has the job now says how it ends
        except QueueFailed:
            raise  # not the job's fault, and there is nowhere to note it
        except VkvdbError as error:
            outcome = self._failed(claim, outcome, str(error))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a job does, the next one gets its turn
            first = (str(error).strip() or "no message").splitlines()[0]
            outcome = self._failed(claim, outcome, f"{type(error).__name__}: {first}", traceback.format_exc())
        return dataclasses.replace(outcome, seconds=time.monotonic() - start)

    def _failed(self, claim: Claim, outcome: Outcome, line: str, trace: str = "") -> Outcome:
        kept = self._queue.fail(claim, line, trace)
        return dataclasses.replace(outcome, state="failed", line=line) if kept else outcome

    def _do(self, claim: Claim, heart: _Heartbeat) -> int:
        """Run the shards that are not published, then publish the job's manifest; gives its number of units."""
        job = claim.job
        if claim.attempt > 1:  # the worker before us died
            self._store.sweep()
        if (manifest := self._store.job(job.id, job.edition)) is not None:
            return int(manifest["n"])  # a worker died between publishing it and saying so
        started = datetime.now(UTC)
        with closing(_open(job, self._home, self._store, self._on_step)) as run:
            left = [n for n in range(run.shards) if not run.done(n)]
            total = sum(run.units(n) for n in left)
            self._report.started(claim, job, total)
            heart.start(total)

            def advance(steps: int) -> None:
                heart.advance(steps)
                self._report.advanced(steps)

            for shard in left:
                heart.check()
                if not run.done(shard):  # of two workers, one silent for long, the other may have done it meanwhile
                    run.run_shard(shard, advance)
                    self._on_step("shard published")
            facts = run.finish()
        heart.check()
        finished = datetime.now(UTC)
        body = {
            "kind": "job",
            "job": job.id,
            "edition": job.edition,
            "spec": to_json(job.spec),
            "provenance": dataclasses.asdict(job.provenance),
            "attempt": claim.attempt,
            "started": started.isoformat(timespec="milliseconds"),
            "finished": finished.isoformat(timespec="milliseconds"),
            "seconds": round((finished - started).total_seconds(), 3),
            "host": this_process().host,
            **facts,
        }
        self._store.publish_json(self._store.job_path(job.id, job.edition), body)
        self._on_step("job published")
        return int(facts["n"])


def _open(job: Job, home: Home, store: Store, on_step: Callable[[str], None]) -> Run:
    """Begin or go on with a job, by its kind."""
    from importlib import import_module

    body = import_module(f"vkvdb.{_BODIES[job.spec.kind]}")
    run: Run = body.open(job, home, store, on_step)
    return run


class _Heartbeat:
    """Renews the lease from a thread of its own while a job is done; notes when the claim has passed to another."""

    def __init__(self, queue: Queue, claim: Claim, every: float) -> None:
        self._queue = queue
        self._claim = claim
        self._every = every
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._error: QueueFailed | None = None
        self._thread = threading.Thread(target=self._renew, name="heartbeat", daemon=True)
        self._done = self._total = 0
        self._told = -TELL

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._stop.set()
        self._thread.join()

    def _renew(self) -> None:
        while not self._stop.wait(self._every):
            try:
                if not self._queue.renew(self._claim):
                    self._lost.set()
                    return
            except QueueFailed as error:
                self._error = error  # raised by the next `check`
                return

    def start(self, total: int) -> None:
        """So many samples or images are to do."""
        self._total = total
        self._tell()

    def advance(self, steps: int) -> None:
        """So many more are done. Raises as `check` does."""
        self._done += steps
        if time.monotonic() - self._told >= TELL:
            self._tell()
        self.check()

    def _tell(self) -> None:
        self._told = time.monotonic()
        if not self._queue.progress(self._claim, self._done, self._total):
            self._lost.set()

    def check(self) -> None:
        """Raises _LostError when the claim has passed to another, QueueFailed when the lease could not be renewed."""
        if self._error is not None:
            raise self._error
        if self._lost.is_set():
            raise _LostError


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Take SIGTERM like Ctrl-C while the block runs, so that the job at hand is given back."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
