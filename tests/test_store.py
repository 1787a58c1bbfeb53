"""The store: what was written comes back, and what was changed or lost is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import job, rows, tree

from vkvdb.errors import DamagedStore, OldVersion
from vkvdb.samples import Clip, Image, ImagePair, Mask
from vkvdb.store import ImageRow, ScoreRows, Store
from vkvdb.types import Site, TokenGrid
from vkvdb.verification import problems

KEY = Site("decoder", 3, "key")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# --- manifests ---


def test_a_manifest_reads_well_and_never_varies(store: Store) -> None:
    body = {"zebra": [1, 2, 3], "kind": "job", "apple": {"d": None, "c": "[\\n 1 ]"}, "words": ["b", "a"]}
    store.publish_json(store.root / "one.json", body)
    store.publish_json(store.root / "two.json", dict(reversed(body.items())))
    assert (store.root / "one.json").read_text() == (
        '{\n "format": 1,\n "kind": "job",\n "apple": {\n  "c": "[\\\\n 1 ]",\n  "d": null\n },\n'
        ' "words": [\n  "b",\n  "a"\n ],\n "zebra": [1, 2, 3]\n}\n'
    )
    assert (store.root / "one.json").read_bytes() == (store.root / "two.json").read_bytes()
    assert store.read_json(store.root / "one.json") == {"format": 1, **body}
    with pytest.raises(ValueError, match="JSON"):
        store.publish_json(store.root / "nan.json", {"value": float("nan")})


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": "x"}', "\udcff"])
def test_a_damaged_manifest_is_told(store: Store, content: str) -> None:
    store.publish_json(store.root / "models" / "good.json", {"kind": "model"})
    bad = store.model_path("bad")
    bad.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DamagedStore, match=r"can't read .*bad\.json: it is no manifest"):
        list(store.models())
    with pytest.raises(DamagedStore, match=r"none\.json: No such file"):
        store.model("none")


def test_a_newer_manifest_is_told(store: Store) -> None:
    store.publish_json(store.model_path("new"), {"kind": "model"})
    path = store.model_path("new")
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'), encoding="utf-8")
    with pytest.raises(OldVersion, match=r"newer vkvdb \(format 2, this one reads up to 1\)"):
        store.model("new")


def test_jobs_and_their_editions(store: Store) -> None:
    one = job()
    assert store.job(one.id, 0) is None
    assert store.newest_edition(one.id) is None
    for edition in (2, 10, 0):
        store.publish_json(store.job_path(one.id, edition), {"kind": "job", "edition": edition})
    assert store.newest_edition(one.id) == 10
    assert store.job(one.id, 2) == {"format": 1, "kind": "job", "edition": 2}
    assert len(list(store.jobs())) == 3


# --- datasets ---

MASK = Mask(4, 3, "abc")
IMAGES = [
    ImageRow(
        image=n, name=f"i{n}", path=f"é/{n}.jpg", width=4 + n, height=3, sha256="0" * 64, bytes=2**40, recipe=recipe
    )
    for n, recipe in enumerate(["", '{"warp": 1}', ""])
]
SAMPLES = [
    Image(id="a", group="g", cluster="i0", image="i0", category="dog", mask=MASK),
    ImagePair(
        id="b",
        group="h",
        cluster="i2",
        source="i2",
        target="i0",
        source_points=((0.5, 1.25),),
        target_points=((2.0, 0.1),),
        target_box=(0.0, 0.0, 4.0, 3.0),
        names=("nose",),
    ),
    Clip(id="c", group="", cluster="v", frames=("i0", "i1"), objects=((MASK, None),)),
]


def test_a_dataset_comes_back(store: Store, tmp_path: Path) -> None:
    facts = {"name": "made-up", "created": "2026-01-01", "files": {"images/x.png": "00"}}
    assert store.write_dataset("abc", IMAGES, SAMPLES, facts)
    assert not store.write_dataset("abc", IMAGES, SAMPLES, facts)
    assert store.images("abc") == IMAGES
    assert store.samples("abc") == list(enumerate(SAMPLES))
    manifest = store.dataset("abc")
    assert (manifest["hash"], manifest["kind"], manifest["name"]) == ("abc", "dataset", "made-up")
    assert sorted(manifest["files"]) == ["images.parquet", "images/x.png", "samples.parquet"]
    again = Store(tmp_path / "again")
    again.write_dataset("abc", IMAGES, SAMPLES, facts)
    assert tree(again.root) == tree(store.root)


def test_columns_are_narrow_and_tell_images_by_number(store: Store) -> None:
    import pyarrow.parquet as pq

    store.write_dataset("abc", IMAGES, SAMPLES, {})
    folder = store.dataset_folder("abc")
    samples = pq.read_table(folder / "samples.parquet")
    assert samples["images"].to_pylist() == [[0], [2, 0], [0, 1]]
    assert str(pq.read_schema(folder / "images.parquet").field("bytes").type) == "int64"
    store.write_scores("j", 0, 0, rows(0), {})
    types = {f.name: str(f.type) for f in pq.read_schema(store.root / "scores/j/0/0000.parquet")}
    assert types["site"] == "int16"
    assert types["head"] == "int8"
    assert types["metric"].startswith("dictionary<values=string")


def test_the_newest_dataset_of_a_name(store: Store) -> None:
    for name, created in (("old", "2026-01-01"), ("new", "2026-02-01"), ("older", "2025-01-01")):
        store.write_dataset(name, [], [], {"name": "coco-val", "created": created})
    assert (store.dataset_named("coco-val") or {})["hash"] == "new"
    assert store.dataset_named("spair-test") is None


# --- scores ---


def test_scores_come_back_in_the_order_of_their_shards(store: Store) -> None:
    first = rows(1)
    first.value[3] = np.nan
    body = store.write_scores("j", 0, 1, first, {"seconds": 1.5})
    store.write_scores("j", 0, 0, rows(0), {})
    assert store.write_scores("j", 0, 1, rows(0), {}) == body
    assert {k: body[k] for k in ("shard", "rows", "first", "last", "seconds", "file")} == {
        "shard": 1,
        "rows": 30,
        "first": 5,
        "last": 9,
        "seconds": 1.5,
        "file": "scores/j/0/0001.parquet",
    }
    assert store.score_shards("j", 0).keys() == {0, 1}
    table = store.read_scores("j", 0)
    for name in ("sample", "site", "head", "value", "weight"):
        wanted = np.concatenate([getattr(rows(0), name), getattr(first, name)])
        assert table[name].to_numpy().tobytes() == wanted.tobytes()
    assert table["metric"].to_pylist() == ["pck"] * 60
    assert store.read_scores("j", 1).num_rows == 0
    assert store.score_shards("j", 1) == {}


def test_no_scores_are_a_shard_too(store: Store) -> None:
    none = ScoreRows(**{name: [] if name == "metric" else getattr(rows(0), name)[:0] for name in vars(rows(0))})
    body = store.write_scores("j", 0, 0, none, {})
    assert (body["rows"], body["first"]) == (0, None)
    assert store.read_scores("j", 0).num_rows == 0


# --- verify ---


def test_verify_finds_what_was_changed_lost_or_left(store: Store) -> None:
    assert list(problems(store)) == []
    store.write_dataset("abc", IMAGES, SAMPLES, {"name": "x", "created": ""})
    store.write_capture("cap", 0, [0], [TokenGrid(1, 1, (0, 0, 1, 1))], {KEY: [torch.zeros(1, 1, 1, 4)]}, {})
    for shard in (0, 1):
        store.write_scores("j", 0, shard, rows(shard), {})
    store.publish_json(store.model_path("m"), {"kind": "model", "files": {"model.safetensors": "00"}})
    shards = list(store.score_shards("j", 0).values())
    store.publish_json(store.job_path("j", 0), {"kind": "job", "shards": [*shards, {"files": {"cleared": "00"}}]})
    assert list(problems(store)) == []

    changed = store.root / "scores/j/0/0000.parquet"
    changed.write_bytes(bytes([changed.read_bytes()[0] ^ 1]) + changed.read_bytes()[1:])
    missing = store.dataset_folder("abc") / "samples.parquet"
    missing.unlink()
    (unlisted,) = store.root.glob("captures/cap/*.json")
    unlisted.unlink()
    orphan = next(store.root.glob("captures/cap/*/*")).relative_to(store.root)
    store.publish_json(store.job_path("k", 0), {"kind": "job", "shards": [{**shards[1], "sha256": "00"}]})
    (store.root / "models" / "broken.json").write_text("{", encoding="utf-8")
    assert sorted(problem.replace(f"{store.root}/", "") for problem in problems(store)) == sorted(
        [
            "scores/j/0/0000.parquet is not what was published: its SHA-256 differs",
            "datasets/abc/samples.parquet is missing",
            f"{orphan} belongs to no manifest: a worker died there, and the job's next run will take it",
            "jobs/k/0.json tells another SHA-256 of scores/j/0/0001.parquet than the manifest beside it",
            "can't read models/broken.json: it is no manifest; see: vkvdb db verify",
        ]
    )
