"""Jobs that take no model: a specification by number, and a body that publishes real score shards, always the same."""

from __future__ import annotations

import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vkvdb
from vkvdb.jobs import CaptureSpec, Job, ModelSpec, Provenance, Score
from vkvdb.paths import Home
from vkvdb.store import ScoreRows, Store
from vkvdb.types import Site

SHARDS, SAMPLES = 3, 5


def job(number: int = 0, edition: int = 0) -> Job:
    """A score job; each number gives another."""
    model = ModelSpec(checkpoint="c" * 32, family="pixels", family_version=1)
    spec = Score(capture=CaptureSpec(model=model, dataset="d" * 32), task="correspondence", task_version=1, seed=number)
    return Job(spec=spec, provenance=Provenance(model="pixels", dataset="toyworld-test"), edition=edition)


def rows(shard: int, scale: int = 1) -> ScoreRows:
    """A shard's scores: SAMPLES x `scale` samples, two sites, two heads and their concatenation."""
    count = SAMPLES * scale
    sites = [Site("decoder", layer, "key").number for layer in (0, 1)]
    samples = np.arange(shard * count, (shard + 1) * count, dtype=np.int32)
    values = np.random.default_rng(shard).random(count * 6).astype(np.float32)
    return ScoreRows(
        sample=np.repeat(samples, 6),
        site=np.tile(np.repeat(np.array(sites, np.int16), 3), count),
        head=np.tile(np.array([0, 1, -1], np.int8), count * 2),
        metric=["pck"] * (count * 6),
        value=values,
        weight=np.ones(count * 6, np.float32),
    )


class FakeRun:
    """What `scoring.open` gives. `during` is called amid a shard; `log` gets a line for each shard computed."""

    shards = SHARDS

    def __init__(
        self, job: Job, store: Store, on_step: Callable[[str], None], during: Callable[[int], None], log: Path
    ):
        self.job, self.store, self.on_step, self.during, self.log = job, store, on_step, during, log
        self.closed = False

    def units(self, shard: int) -> int:
        return SAMPLES

    def done(self, shard: int) -> bool:
        return shard in self.store.score_shards(self.job.id, self.job.edition)

    def run_shard(self, shard: int, advance: Callable[[int], None]) -> None:
        advance(2)
        self.during(shard)
        advance(SAMPLES - 2)
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"{self.job.id} {shard} {os.getpid()}\n")
        self.on_step("shard computed")
        self.store.write_scores(self.job.id, self.job.edition, shard, rows(shard), {"samples": SAMPLES})

    def finish(self) -> dict[str, Any]:
        shards = self.store.score_shards(self.job.id, self.job.edition)
        return {
            "n": SHARDS * SAMPLES,
            "of": SHARDS * SAMPLES,
            "shards": [shards[n] for n in sorted(shards)],
            "captured": {},
            "device": "cpu",
            "versions": {"vkvdb": vkvdb.__version__},
            "notes": {},
        }

    def close(self) -> None:
        self.closed = True


class Bodies:
    """Stands in for `vkvdb.scoring` and `vkvdb.extraction`."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.during: Callable[[int], None] = lambda shard: None
        self.runs: list[FakeRun] = []

    def open(self, job: Job, home: Home, store: Store, on_step: Callable[[str], None]) -> FakeRun:
        self.runs.append(FakeRun(job, store, on_step, self.during, self.log))
        return self.runs[-1]

    @property
    def computed(self) -> list[tuple[str, int]]:
        """(job, shard) of every shard that was computed, in any process."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        return [(line.split()[0], int(line.split()[1])) for line in lines]


def install(monkeypatch: pytest.MonkeyPatch, log: Path) -> Bodies:
    """Let workers run fake bodies; neither torch nor a model is loaded."""
    bodies = Bodies(log)
    for name in ("scoring", "extraction"):
        monkeypatch.setitem(sys.modules, f"vkvdb.{name}", types.SimpleNamespace(open=bodies.open))
    return bodies


def wait_until(true: Callable[[], object], seconds: float = 240.0) -> None:
    """Wait for something that another process or thread does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def fork(body: Callable[[], None]) -> int:
    """Run something in a child and leave; gives its process id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        finally:
            os._exit(code)
    return pid


def tree(root: Path) -> dict[str, bytes | None]:
    """{path: content} of all files and folders (None) under a root."""
    return {str(p.relative_to(root)): None if p.is_dir() else p.read_bytes() for p in sorted(root.rglob("*"))}
