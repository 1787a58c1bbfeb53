"""The main job with its real body: ingest, score, extract, kill, resume; what is published and what is not."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import plugins
import pytest
from fakes import fork, tree

from vkvdb import extraction, scoring
from vkvdb.errors import BadDataset, BadOption, NotIngested, UnknownName
from vkvdb.ingestion import ingest
from vkvdb.paths import Home
from vkvdb.planning import Choices, Planned, extract_job, score_jobs
from vkvdb.queue import Queue
from vkvdb.store import Store
from vkvdb.types import Site
from vkvdb.worker import Worker


@pytest.fixture
def store(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store in which the plug-in dataset is ingested."""
    monkeypatch.setenv("VKVDB_PLUGINS", str(plugins.write(tmp_path / "plugins")))
    monkeypatch.setattr(scoring, "SHARD_SAMPLES", 8)
    monkeypatch.setattr(extraction, "SHARD_IMAGES", 16)
    made = Store(home.store)
    ingest("dots-test", None, home, made)
    return made


def planned(home: Home, store: Store, model: Path | str, task: str = "correspondence", **more: Any) -> Planned:
    """The score job of a model on the plug-in dataset, without controls."""
    choices = more.pop("choices", Choices())
    jobs = score_jobs(
        home,
        store,
        task=task,
        model=str(model),
        dataset="dots-test",
        parameters=more.pop("parameters", {}),
        choices=choices,
        controls=False,
        **more,
    )
    return jobs[0]


def run(home: Home, store: Store, *plans: Planned) -> None:
    """Queue jobs and do them, here."""
    queue = Queue(home.queue)
    for plan in plans:
        queue.enqueue(plan.job)
    outcomes = Worker(home, store, queue).run_until_empty()
    assert [o.state for o in outcomes] == ["done"] * len(plans), outcomes


def bytes_of(store: Store, plan: Planned) -> list[bytes]:
    """A job's published scores, shard by shard."""
    shards = store.score_shards(plan.job.id, plan.job.edition)
    return [(store.root / shards[n]["file"]).read_bytes() for n in sorted(shards)]


def test_scores_are_those_of_the_plain_loop(home: Home, store: Store, small_onevision: Path) -> None:
    """One number, worked out by hand from the model's own cache."""
    import torch

    from vkvdb.images import open_image

    plan = planned(home, store, small_onevision, parameters={"readout": "grid"})
    run(home, store, plan)
    rows = store.read_scores(plan.job.id, 0).to_pylist()
    (number, sample), *_ = store.samples(plan.job.spec.capture.dataset)
    site = Site("decoder", 1, "value")
    got = {
        r["head"]: r["value"]
        for r in rows
        if r["sample"] == number and r["site"] == site.number and r["metric"] == "pck_image"
    }
    manifest = store.dataset(plan.job.spec.capture.dataset)
    root = extraction.dataset_root(home, store, manifest)
    images = {r.name: open_image(root, r) for r in store.images(manifest["hash"])}
    model: Any = extraction.load_model(plan.job, home)
    block = [images[f"{n:02d}.png"] for n in range(8)]
    read = model.capture(block, [site])
    for head in (0, 1):
        a, b = (read[n][1][0].tokens[0, head].flatten(0, 1) for n in (0, 1))
        right = []
        for (x, y), (tx, ty) in zip(sample.source_points, sample.target_points, strict=True):
            source = a[int(y // 16) * 4 + int(x // 16)]
            best = int(torch.cosine_similarity(source[None], b, dim=1).argmax())
            px, py = best % 4 * 16 + 8, best // 4 * 16 + 8
            right.append(np.hypot(px - tx, py - ty) <= 6.4)
        assert got[head] == pytest.approx(np.mean(right), abs=1e-6)


def test_stream_and_store_agree_bit_for_bit(home: Home, store: Store, small_onevision: Path) -> None:
    choices = Choices(parts=("key", "value"))
    plan = planned(home, store, small_onevision, choices=choices)
    run(home, store, plan)
    streamed = bytes_of(store, plan)
    kept = extract_job(home, store, model=str(small_onevision), dataset="dots-test", choices=choices)
    run(home, store, kept)
    again = planned(home, store, small_onevision, choices=dataclasses.replace(choices, again=True))
    run(home, store, again)
    facts = store.job(again.job.id, again.job.edition)
    assert facts is not None
    assert (facts["captured"]["captures"], facts["captured"]["from_store"], facts["device"]) == (0, 5, "none")
    assert bytes_of(store, again) == streamed


def test_a_second_run_writes_nothing_and_loads_no_model(
    home: Home, store: Store, small_onevision: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(home, store, small_onevision)
    run(home, store, plan)
    before = tree(store.root)

    def never(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(extraction, "load_model", never)
    same = planned(home, store, small_onevision)
    assert same.job == plan.job
    assert store.job(same.job.id, same.job.edition) is not None
    assert not Worker(home, store, Queue(home.queue)).run_until_empty()
    assert tree(store.root) == before


def test_more_layers_join_a_capture_and_a_layer_of_it_is_found(home: Home, store: Store, small_onevision: Path) -> None:
    first = extract_job(home, store, model=str(small_onevision), dataset="dots-test", choices=Choices(layers=(0,)))
    more = extract_job(home, store, model=str(small_onevision), dataset="dots-test", choices=Choices(layers=(2,)))
    assert first.job.spec.capture.id == more.job.spec.capture.id
    run(home, store, first, more)
    both = planned(home, store, small_onevision, choices=Choices(layers=(0, 2), parts=("value",)))
    run(home, store, both)
    facts = store.job(both.job.id, 0)
    assert facts is not None
    assert facts["captured"]["captures"] == 0


def test_a_limit_captures_what_it_needs_and_says_n_of_all(home: Home, store: Store, small_onevision: Path) -> None:
    plan = planned(home, store, small_onevision, choices=Choices(limit=6))
    run(home, store, plan)
    facts = store.job(plan.job.id, 0)
    assert facts is not None
    assert (facts["n"], facts["of"]) == (6, 40)
    assert facts["captured"]["images"] <= 12
    assert {s.group for n, s in store.samples(plan.job.spec.capture.dataset) if n in _samples(store, plan)} == {
        "even",
        "odd",
    }


def _samples(store: Store, plan: Planned) -> set[int]:
    return set(store.read_scores(plan.job.id, 0).column("sample").to_pylist())


def test_an_image_is_captured_once_though_it_stands_in_many_samples(
    home: Home, store: Store, small_onevision: Path
) -> None:
    plan = planned(home, store, small_onevision)
    run(home, store, plan)
    facts = store.job(plan.job.id, 0)
    assert facts is not None
    assert facts["captured"]["per_image"] == 1.0


def test_a_task_of_a_plug_in_gets_text_vectors(home: Home, store: Store, small_onevision: Path) -> None:
    plan = planned(home, store, small_onevision, task="words", choices=Choices(parts=("value", "hidden")))
    run(home, store, plan)
    rows = store.read_scores(plan.job.id, 0).to_pylist()
    model: Any = extraction.load_model(plan.job, home)
    site = Site("decoder", 2, "value")
    vector = model.text("red cat", [site])[site]
    assert vector.shape == (2, 16)
    heads = {r["head"] for r in rows if r["site"] == site.number}
    assert heads == {0, 1, -1}
    assert {Site.from_number(r["site"]).part for r in rows} == {"value", "hidden"}
    other = planned(home, store, small_onevision, task="words", parameters={"words": "blue fish"})
    run(home, store, other)
    assert store.read_scores(other.job.id, 0).column("value") != store.read_scores(plan.job.id, 0).column("value")


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"task": "correspondance"}, UnknownName, "did you mean 'correspondence'"),
        ({"task": "foreground"}, BadDataset, "has no episode for task foreground"),
        ({"choices": Choices(layers=(9,))}, BadOption, "the model has layers 0 to 2"),
        ({"choices": Choices(block=0)}, BadOption, "at least one image"),
        ({"parameters": {"alpha": "2"}}, BadOption, "alpha"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_writes_nothing(  # noqa: PLR0917 - three of them are parameters
    home: Home, store: Store, small_onevision: Path, change: dict[str, Any], error: type[Exception], says: str
) -> None:
    before = tree(store.root)
    with pytest.raises(error, match=says) as caught:
        planned(home, store, small_onevision, **change)
    assert "\n" not in str(caught.value)
    assert tree(store.root) == before


def test_a_dataset_that_is_not_ingested(home: Home, store: Store, small_onevision: Path) -> None:
    with pytest.raises(NotIngested, match="type: vkvdb ingest coco-val --root DIR"):
        extract_job(home, store, model=str(small_onevision), dataset="coco-val", choices=Choices())


STEPS = ["claimed", "shard computed", "shard published", "job published", "finished"]


def die_at(home: Home, store: Store, wanted: str, count: int) -> None:
    """What a child does: work, and die when it reaches a step for the count-th time."""
    seen: list[str] = []

    def step(name: str) -> None:
        seen.append(name)
        if seen.count(wanted) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    Worker(home, Store(store.root), Queue(home.queue), on_step=step).run_until_empty()


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_step_another_finishes_with_the_same_bytes(
    home: Home, store: Store, small_onevision: Path, step: str, tmp_path: Path
) -> None:
    plan = planned(home, store, small_onevision, choices=Choices(parts=("value",)))
    extraction.load_model(plan.job, home)  # the parent is warm: children are forked with the model in memory
    Queue(home.queue).enqueue(plan.job)
    child = fork(lambda: die_at(home, store, step, 2 if "shard" in step else 1))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    Worker(home, store, Queue(home.queue)).run_until_empty()
    assert store.job(plan.job.id, 0) is not None
    assert bytes_of(store, plan) == undisturbed(home, store, plan)


def test_killed_at_ten_moments_the_result_is_the_undisturbed_one(
    home: Home, store: Store, small_onevision: Path
) -> None:
    plan = planned(home, store, small_onevision)
    extraction.load_model(plan.job, home)
    draw = random.Random(0)
    queue = Queue(home.queue)
    queue.enqueue(plan.job)
    for _ in range(10):
        child = fork(lambda: Worker(home, Store(store.root), Queue(home.queue)).run_until_empty())
        time.sleep(draw.uniform(0.01, 0.25))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        Worker(home, store, queue).run_one(only="nothing")  # a claim is when the dead are noticed
        if queue.row(plan.job.id).state == "failed":
            queue.retry(plan.job.id)  # three deaths fail a job: a person asks for it again
    Worker(home, store, queue).run_until_empty()
    assert bytes_of(store, plan) == undisturbed(home, store, plan)


def undisturbed(home: Home, store: Store, plan: Planned) -> list[bytes]:
    """The same job as another edition, in one go."""
    calm = dataclasses.replace(plan, job=dataclasses.replace(plan.job, edition=plan.job.edition + 1))
    run(home, store, calm)
    return bytes_of(store, calm)
