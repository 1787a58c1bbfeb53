"""A score job in the shape of SPair-71k's test split: 12,234 pairs over 1,800 images of 18 classes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vkvdb.ingestion import ingest
from vkvdb.paths import Home
from vkvdb.planning import Choices, score_jobs
from vkvdb.queue import Queue
from vkvdb.store import Store
from vkvdb.worker import Worker

DATASET = '''"""Pairs in the shape of SPair-71k's test split."""

import random

from vkvdb.samples import ImagePair
from vkvdb.types import ImageFile, Reading


class Many:
    version = 1
    splits = ("test",)
    layout = ""

    def read(self, root, split):
        from PIL import Image

        found, draw = Reading(), random.Random(0)
        (root / "images").mkdir()
        for n in range(1800):
            Image.frombytes("RGB", (4, 4), draw.randbytes(48)).save(root / "images" / f"{n:04d}.png")
            found.images.append(ImageFile(name=f"{n:04d}", path=f"images/{n:04d}.png"))
        for n in range(12234):
            c = n % 18
            a, b = (c * 100 + m for m in draw.sample(range(100), 2))
            found.samples.append(ImagePair(
                id=str(n), group=str(c), cluster=str(a), source=f"{a:04d}", target=f"{b:04d}",
                source_points=((1.0, 1.0), (3.0, 2.0)), target_points=((2.0, 1.0), (3.0, 3.0)),
                target_box=(0, 0, 4, 4)))
        return found


DATASET = Many
'''


@pytest.mark.slow
def test_an_image_is_captured_once(
    home: Home,
    small_onevision: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plugin = tmp_path / "plugins" / "datasets" / "many.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(DATASET)
    monkeypatch.setenv("VKVDB_PLUGINS", str(tmp_path / "plugins"))
    store, queue = Store(home.store), Queue(home.queue)
    ingest("many-test", None, home, store)
    # Memory for ten blocks of eight images, where a class has thirteen: a 7B model's keys and values on 3.3 GB.
    plan = score_jobs(
        home,
        store,
        task="correspondence",
        model=str(small_onevision),
        dataset="many-test",
        parameters={},
        choices=Choices(parts=("key", "value"), cache_gb=1.5e-3),
        controls=False,
    )[0]
    assert 9 <= 1.5e6 / (plan.bytes_per_image * 8) <= 11
    queue.enqueue(plan.job)
    (outcome,) = Worker(home, store, queue).run_until_empty()
    assert outcome.state == "done"
    facts = store.job(plan.job.id, 0)
    assert facts is not None
    assert facts["n"] == 12234
    with capsys.disabled():
        sys.stdout.write(f"\n12,234 pairs over 1,800 images: {facts['captured']['per_image']} captures an image\n")
    assert facts["captured"]["per_image"] == 1
