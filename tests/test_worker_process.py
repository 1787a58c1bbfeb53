"""Workers as processes that die: at every named step and at any moment; another finishes, and nothing shows it.

Children are forked from this one process, so that each begins at once.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fakes import SHARDS, Bodies, fork, install, job, tree, wait_until

from vkvdb.paths import Home
from vkvdb.queue import Queue
from vkvdb.store import Store
from vkvdb.verification import problems
from vkvdb.worker import Worker, sigterm_as_interrupt

STEPS = ["claimed", "shard computed", "shard published", "job published", "finished"]
JOBS = [job(0), job(1)]


@pytest.fixture
def bodies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bodies:
    return install(monkeypatch, tmp_path / "log")


@pytest.fixture
def queue(home: Home) -> Queue:
    queue = Queue(home.queue)
    for one in JOBS:
        queue.enqueue(one)
    return queue


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes | None]:
    """The scores that a run without any death publishes."""
    alone = Home(tmp_path_factory.mktemp("undisturbed"))
    queue, store = Queue(alone.queue), Store(alone.root / "store")
    for one in JOBS:
        queue.enqueue(one)
    with pytest.MonkeyPatch.context() as patch:
        install(patch, alone.root / "log")
        assert len(Worker(alone, store, queue).run_until_empty()) == len(JOBS)
    return tree(store.root / "scores")


def work(home: Home, dies_at: str = "", count: int = 1) -> None:
    """What a child does; with `dies_at` it kills itself when it reaches that step for the `count`-th time."""
    reached: Counter[str] = Counter()

    def step(name: str) -> None:
        reached[name] += 1
        if name == dies_at and reached[name] == count:
            os.kill(os.getpid(), signal.SIGKILL)

    Worker(home, Store(home.store), Queue(home.queue), on_step=step).run_until_empty()


def assert_as_if_nothing_had_happened(
    home: Home, bodies: Bodies, undisturbed: dict[str, bytes | None], deaths: int
) -> None:
    store = Store(home.store)
    assert tree(store.root / "scores") == undisturbed
    assert list(problems(store)) == []
    assert not list(store.root.rglob(".*"))
    assert [row.state for row in Queue(home.queue).rows()] == ["done"] * len(JOBS)
    assert {(m["job"], len(m["shards"])) for m in store.jobs()} == {(one.id, SHARDS) for one in JOBS}
    # A death costs at most the shard that was at hand.
    assert len(JOBS) * SHARDS <= len(bodies.computed) <= len(JOBS) * SHARDS + deaths


@pytest.mark.parametrize("step", [(s, 1) for s in STEPS] + [(s, 2) for s in STEPS] + [("shard published", 3)])
def test_killed_at_a_step(
    home: Home, queue: Queue, bodies: Bodies, undisturbed: dict[str, bytes | None], step: tuple[str, int]
) -> None:
    pid = fork(lambda: work(home, *step))
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    pid = fork(lambda: work(home))
    assert os.waitpid(pid, 0)[1] == 0
    assert_as_if_nothing_had_happened(home, bodies, undisturbed, deaths=1)


@pytest.mark.parametrize("seed", range(10))
def test_killed_at_any_moment(
    home: Home, queue: Queue, bodies: Bodies, undisturbed: dict[str, bytes | None], seed: int
) -> None:
    bodies.during = lambda shard: time.sleep(0.01)
    pid = fork(lambda: work(home))
    wait_until(lambda: any(row.state == "doing" for row in queue.rows()))
    # Not a share of a time that was measured: what the child has done by then is as random as it should be.
    time.sleep(random.Random(seed).uniform(0, 0.4))
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # dead, but a zombie: as when its parent does not care
    other = fork(lambda: work(home))
    assert os.waitpid(other, 0)[1] == 0
    os.waitpid(pid, 0)
    assert_as_if_nothing_had_happened(home, bodies, undisturbed, deaths=1)


@pytest.mark.parametrize("at", list(itertools.product(["link", "unlink", "fsync"], [1, 2, 6, 7])), ids=str)
def test_killed_while_publishing(
    home: Home, queue: Queue, bodies: Bodies, undisturbed: dict[str, bytes | None], at: tuple[str, int]
) -> None:
    """Right after a system call has had its effect: a shard's two names are 1 and 2, the job's manifest is 7."""
    call, count = at
    calls = itertools.count(1)

    def child() -> None:
        real = getattr(os, call)

        def deadly(*arguments: Any) -> None:
            real(*arguments)
            if next(calls) == count:
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(os, call, deadly)
        work(home)

    pid = fork(child)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    work(home)
    assert_as_if_nothing_had_happened(home, bodies, undisturbed, deaths=1)


def test_one_dies_while_another_works_on(
    home: Home, queue: Queue, bodies: Bodies, undisturbed: dict[str, bytes | None]
) -> None:
    """The second begins before the first dies, and takes its job over."""
    bodies.during = lambda shard: time.sleep(0.05)
    first = fork(lambda: work(home, "shard computed", 2))
    second = fork(lambda: work(home))
    assert os.WTERMSIG(os.waitpid(first, 0)[1]) == signal.SIGKILL
    assert os.waitpid(second, 0)[1] == 0
    work(home)  # if the second had done all the rest before
    assert_as_if_nothing_had_happened(home, bodies, undisturbed, deaths=1)


def test_three_workers_side_by_side(
    home: Home, queue: Queue, bodies: Bodies, undisturbed: dict[str, bytes | None]
) -> None:
    pids = [fork(lambda: work(home)) for _ in range(3)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    assert_as_if_nothing_had_happened(home, bodies, undisturbed, deaths=0)


def test_two_at_one_job(home: Home, bodies: Bodies, undisturbed: dict[str, bytes | None], queue: Queue) -> None:
    """One was silent for longer than its lease, but lives: both publish, one wins each shard, and both are right."""

    def silent() -> None:
        # Its heart beats never, and it is thought to be elsewhere.
        bodies.during = lambda shard: time.sleep(0.2)
        Worker(home, Store(home.store), Queue(home.queue, lease=0.05), beat=60).run_until_empty()

    first = fork(silent)
    wait_until(lambda: any(row.state == "doing" for row in queue.rows()))
    time.sleep(0.1)
    bodies.during = lambda shard: time.sleep(0.05)
    second = fork(lambda: work(home))
    assert os.waitpid(first, 0)[1] == 0
    assert os.waitpid(second, 0)[1] == 0
    work(home)
    assert_as_if_nothing_had_happened(home, bodies, undisturbed, deaths=len(JOBS) * SHARDS)


def test_sigterm_hands_the_job_back(home: Home, queue: Queue, bodies: Bodies) -> None:
    bodies.during = lambda shard: time.sleep(30)

    def child() -> None:
        with sigterm_as_interrupt():
            work(home)

    pid = fork(child)
    wait_until(lambda: any(row.progress == 2 or row.state == "doing" for row in queue.rows()))
    os.kill(pid, signal.SIGTERM)
    os.waitpid(pid, 0)
    assert {(row.state, row.attempt) for row in queue.rows()} <= {("todo", 0), ("todo", 1)}
    bodies.during = lambda shard: None
    work(home)
    assert [row.state for row in queue.rows()] == ["done"] * len(JOBS)
