"""Questions, answers and readings of them with planted truths, published as the real ones are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import synthetic

from vkvdb.jobs import Ask, CaptureSpec, Job, Provenance, Score, digest
from vkvdb.samples import Question
from vkvdb.store import ImageRow, ScoreRows
from vkvdb.types import Site

# (site, head) -> whether each question is read right there
Reading = Callable[[Site, int], Any]

DATASET = "blink-val"


def questions(world: synthetic.World, groups: Mapping[str, int], *, name: str = DATASET) -> str:
    """A dataset of so many questions of each group, each on images of its own; the dataset's hash."""
    samples, images = [], []
    for group, count in groups.items():
        for n in range(count):
            own = f"{group}{n}"
            images.append(
                ImageRow(image=len(images), name=own, path=f"{own}.jpg", width=64, height=48, sha256=own, bytes=1)
            )
            samples.append(
                Question(id=own, group=group, cluster=own, shown=(own,), text="which?", answer="A", options=("A", "B"))
            )
    facts = {
        "name": name,
        "adapter": name.partition("-")[0],
        "adapter_version": 1,
        "split": name.partition("-")[2],
        "root": "/data",
        "images": len(images),
        "samples": {"question": len(samples)},
        "problems": [],
        "created": synthetic.WHEN,
        "host": "here",
        "versions": {"python": "3.11"},
    }
    world.datasets[name] = digest([name, dict(groups)])
    world.store.write_dataset(world.datasets[name], images, samples, facts)
    return world.datasets[name]


def _publish(world: synthetic.World, job: Job, n: int) -> str:
    world.publish_job(job, n=n, of=n, notes={"title": "", "metrics": ["correct", "chosen"]})
    return job.id


def _scores(world: synthetic.World, job: Job, model: str, reading: Reading, samples: Sequence[int]) -> None:
    columns: dict[str, list[Any]] = {k: [] for k in ("sample", "site", "head", "value")}
    for site, heads in world.models[model].sites:
        for head in [*range(heads), -1] if site.stage == "decoder" else [-1]:
            columns["sample"].append(samples)
            columns["site"].append(np.full(len(samples), site.number))
            columns["head"].append(np.full(len(samples), head))
            columns["value"].append(np.asarray(reading(site, head), dtype=np.float64))
    kinds = {"sample": np.int32, "site": np.int16, "head": np.int8, "value": np.float32}
    arrays: dict[str, Any] = {k: np.concatenate(columns[k]).astype(t) for k, t in kinds.items()}
    weight = np.ones(len(arrays["value"]), np.float32)
    world.store.write_scores(
        job.id, job.edition, 0, ScoreRows(**arrays, weight=weight, metric=["correct"] * len(weight)), {"seconds": 1}
    )


def read(world: synthetic.World, model: str, reading: Reading, samples: Sequence[int], **capture: Any) -> str:
    """A finished job of the task choices on these samples; its id."""
    made = world.models[model]
    spec = Score(
        capture=CaptureSpec(model=made.spec, dataset=world.datasets[DATASET], **capture),
        task="choices",
        task_version=1,
    )
    job = Job(spec=spec, provenance=Provenance(model=made.name, dataset=DATASET))
    _scores(world, job, model, reading, samples)
    return _publish(world, job, len(samples))


def ask(
    world: synthetic.World,
    model: str,
    right: Any,
    *,
    reading: Reading | None = None,
    samples: Sequence[int] = (),
    unread: Sequence[int] = (),
    **capture: Any,
) -> str:
    """A finished ask job: each question answered right or wrong, in words and by likelihood alike; its id.

    `reading` of `samples` is of the pass that answered; answers of `unread` can't be read.
    """
    made = world.models[model]
    spec = Ask(
        capture=CaptureSpec(model=made.spec, dataset=world.datasets[DATASET], **capture),
        asking_version=1,
        task="choices" if reading else "",
        task_version=1 if reading else 0,
    )
    job = Job(spec=spec, provenance=Provenance(model=made.name, dataset=DATASET))
    if reading:
        _scores(world, job, model, reading, samples)
    given = [0 if r else 1 for r in right]
    words = [None if n in unread else c for n, c in enumerate(given)]
    rows: dict[str, list[Any]] = {
        "sample": list(range(len(given))),
        "variant": [0] * len(given),
        "prompt": ["which?"] * len(given),
        "prompt_id": [digest(n) for n in range(len(given))],
        "raw": ["?" if c is None else "(A)" if c == 0 else "(B)" for c in words],
        "likelihoods": [[-0.1, -2.0] if c == 0 else [-2.0, -0.1] for c in given],
        "choice": words,
        "likeliest": given,
        "correct": [None if c is None else c == 0 for c in words],
        "answer": [0] * len(given),
    }
    world.store.write_rows("answers", job.id, 0, 0, rows, {"samples": len(given)})
    return _publish(world, job, len(given))
