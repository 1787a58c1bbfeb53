"""Do the jobs of the queue, several processes at once if you like.

Between jobs the catalog absorbs what was published. Ctrl-C gives the job at hand back; what it has published stays.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing

import click

from vkvdb.errors import BadOption
from vkvdb.jobs import Job
from vkvdb.paths import Home, find_home
from vkvdb.queue import Claim, Queue
from vkvdb.store import Store
from vkvdb.worker import Outcome, Report, Terminated, Worker, sigterm_as_interrupt
from vkvdb_cli._jobs import describe, find
from vkvdb_cli.main import INTERRUPTED
from vkvdb_cli.progress import Advance, progress

WAIT = 2.0  # seconds between two looks into an empty queue
TERMINATED = 143  # what a shell reports for a process that SIGTERM ended


@click.command()
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Stop after N jobs.")
@click.option("--forever", is_flag=True, help="Wait for more when the queue is empty.")
@click.option("--only", multiple=True, metavar="JOB", hidden=True, help="Only this job; the caller absorbs.")
@click.pass_context
def command(ctx: click.Context, limit: int | None, forever: bool, only: tuple[str, ...]) -> None:
    """Do the jobs of the queue until none is left; exit with 1 if any failed.

    Start it in several terminals to work side by side (CUDA_VISIBLE_DEVICES chooses the GPU of each).
    """
    if only:
        ctx.exit(run_jobs(find_home(), only, absorb=False))
    ctx.exit(run_jobs(find_home(), None, limit=limit, forever=forever))


def run_jobs(
    home: Home,
    ids: Sequence[str] | None = None,
    *,
    limit: int | None = None,
    forever: bool = False,
    absorb: bool = True,
) -> int:
    """Do these jobs, or those of the queue, and tell how each ended; gives the exit code.

    A job of `ids` that another worker is at is waited for. Without `absorb` the catalog is left to the caller.
    """
    from vkvdb_cli._after import absorb_and_mirror

    store, queue = Store(home.store), Queue(home.queue)
    told = _Told(queue)
    try:
        with sigterm_as_interrupt(), closing(told):
            worker = Worker(home, store, queue, report=told)
            if ids is None:
                wait = WAIT if forever else None
                done = worker.run_until_empty(limit=limit, wait=wait, after_each=lambda: absorb_and_mirror(home))
                if not done and not told.failed:
                    click.echo(_nothing(queue))
            for job in ids or ():
                _run(job, worker, queue, store)
                if absorb:
                    absorb_and_mirror(home)
    except Terminated:
        return TERMINATED
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        return INTERRUPTED
    return 1 if told.failed else 0


def run_side_by_side(home: Home, ids: Sequence[str], workers: int) -> int:
    """Do these jobs in several processes of one thread each, then absorb; gives the exit code.

    For small models, whose operations are too short for threads to be worth their while.
    """
    from vkvdb_cli._after import absorb_and_mirror

    command = [sys.executable, "-m", "vkvdb_cli.main", "work"]
    environment = {**os.environ, "VKVDB_HOME": str(home.root), "OMP_NUM_THREADS": "1"}
    shares = [ids[n::workers] for n in range(min(workers, len(ids)))]
    with ExitStack() as running:
        children = [
            running.enter_context(
                subprocess.Popen(  # noqa: S603 - of our making
                    [*command, *(word for job in share for word in ("--only", job))],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
            for share in shares
        ]
        tellers = [threading.Thread(target=_relay, args=(child,)) for child in children]
        for teller in tellers:
            teller.start()
        for teller in tellers:
            teller.join()
        codes = [child.wait() for child in children]
    absorb_and_mirror(home)
    return next((code for code in codes if code), 0)


def _relay(child: subprocess.Popen[str]) -> None:
    """Tell what a worker tells, line by line."""
    assert child.stdout is not None
    for line in child.stdout:
        click.echo(line.rstrip())


def _run(job: str, worker: Worker, queue: Queue, store: Store) -> None:
    """Do one job; while another worker is at it, wait for that, and take over should it die."""
    waited = False
    while worker.run_one(only=job) is None:
        now = find(job, queue.rows(), store)
        if now.state == "done":
            click.echo(f"done    {job[:8]}  {describe(now.spec, now.provenance)}  by another worker")
            return
        if now.state != "doing":
            raise BadOption(option="job", value=job[:8], why=f"it is {now.state}; see: vkvdb jobs show {job[:8]}")
        if not waited and now.row is not None:
            click.echo(f"waiting for process {now.row.pid} on {now.row.host}, which is at {job[:8]}", err=True)
            waited = True
        time.sleep(WAIT)


def _nothing(queue: Queue) -> str:
    others = sum(row.state == "doing" for row in queue.rows())
    if others:
        return f"nothing to do: {others} job{'s are' if others > 1 else ' is'} being done by other workers"
    return "nothing to do: the queue is empty"


class _Told(Report):
    """Tells people: a bar while a job is done (where stderr is a terminal), and a line when it has ended."""

    def __init__(self, queue: Queue) -> None:
        self.failed = 0
        self._queue = queue
        self._bar = ExitStack()
        self._advance: Advance | None = None

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()
        self._advance = None

    def started(self, claim: Claim, job: Job, total: int) -> None:
        self._advance = self._bar.enter_context(progress(self._label(job.id), total))

    def advanced(self, steps: int) -> None:
        if self._advance is not None:
            self._advance(steps)

    def ended(self, outcome: Outcome) -> None:
        self.close()
        short, label = outcome.job[:8], self._label(outcome.job)
        if outcome.state == "failed":
            self.failed += 1
            click.echo(f"failed  {short}  {label}: {outcome.line} (vkvdb jobs show {short})", err=True)
        elif outcome.state == "lost":
            click.echo(f"left    {short}  {label}: it was cancelled, or another worker has it", err=True)
        else:
            click.echo(f"done    {short}  {label}  n={outcome.n}  {outcome.seconds:.1f} s")

    def handed_back(self, claim: Claim) -> None:
        self.close()
        click.echo(f"handed back  {claim.id[:8]}  {self._label(claim.id)}; go on with: vkvdb work", err=True)

    def _label(self, job: str) -> str:
        row = self._queue.row(job)
        return describe(row.spec, row.provenance)
