"""SPair-71k: the real layout, and what is wrong with it told in a line each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vkvdb.datasets.spair import CATEGORIES, Spair
from vkvdb.errors import BadDataset, UnsoundDataset
from vkvdb.ingestion import ingest
from vkvdb.paths import Home
from vkvdb.samples import ImagePair
from vkvdb.soundness import fault
from vkvdb.store import Store
from vkvdb.types import Reading

WIDTH, HEIGHT = 60, 40
FIRST = "000001-a-b:cat"
PAIRS = {FIRST: ("cat", "a", "b"), "000002-a-c:cat": ("cat", "a", "c"), "000003-a-b:dog": ("dog", "a", "b")}


def make(root: Path) -> Path:
    """Three pairs in the published layout, two of them of one source."""
    rng = np.random.default_rng(0)
    (root / "Layout" / "large").mkdir(parents=True)
    (root / "Layout" / "large" / "test.txt").write_text("".join(f"{name}\n" for name in PAIRS))
    (root / "PairAnnotation" / "test").mkdir(parents=True)
    for name, (category, source, target) in PAIRS.items():
        body = {
            "filename": name,
            "category": category,
            "src_imname": f"{source}.jpg",
            "trg_imname": f"{target}.jpg",
            "src_imsize": [WIDTH, HEIGHT, 3],
            "trg_imsize": [WIDTH, HEIGHT, 3],
            "src_bndbox": [1, 2, 50, 39],
            "trg_bndbox": [5, 5, 60, 40],
            "src_kps": [[0, 0], [59, 39]],
            "trg_kps": [[10, 20], [30, 12]],
            "kps_ids": ["1", "4"],
        }
        annotation(root, name).write_text(json.dumps(body))
        for image in (source, target):
            path = root / "JPEGImages" / category / f"{image}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)
    return root


def annotation(root: Path, name: str = FIRST) -> Path:
    return root / "PairAnnotation" / "test" / f"{name}.json"


def read(root: Path) -> tuple[Reading, list[ImagePair]]:
    reading = Spair().read(root, "test")
    return reading, [sample for sample in reading.samples if isinstance(sample, ImagePair)]


def test_photographs(shared: Path, home: Home) -> None:
    root = shared / "data/SPair-71k"
    reading, pairs = read(root)
    assert reading.problems == []
    assert (len(reading.images), len(pairs)) == (10, 9)
    listed = (root / "Layout/large/test.txt").read_text().split()
    assert [pair.id for pair in pairs] == listed
    for pair in pairs:
        body = json.loads(annotation(root, pair.id).read_text())
        assert pair.group == body["category"] in CATEGORIES
        assert pair.cluster == body["src_imname"]
        assert (pair.source, pair.target) == (
            f"{pair.group}/{body['src_imname']}",
            f"{pair.group}/{body['trg_imname']}",
        )
        assert pair.names == tuple(body["kps_ids"])
        for points, told in ((pair.source_points, body["src_kps"]), (pair.target_points, body["trg_kps"])):
            np.testing.assert_array_equal(np.array(points) - 0.5, told)
        left, top, right, bottom = pair.target_box
        box = body["trg_bndbox"]
        # DIFT's threshold.
        assert max(right - left, bottom - top) == max(box[3] - box[1], box[2] - box[0])
    assert len({pair.cluster for pair in pairs}) == 5
    store = Store(home.store)
    done = ingest("spair-test", root, home, store)
    assert done.manifest["samples"] == {"image_pair": 9}
    sizes = {row.name: (row.width, row.height) for row in store.images(done.manifest["hash"])}
    assert not [pair.id for pair in pairs if fault(pair, sizes)]


def test_a_sound_tree(tmp_path: Path, home: Home) -> None:
    root = make(tmp_path / "spair")
    reading, pairs = read(root)
    assert reading.problems == []
    # A photograph of two categories is two images, and one cluster.
    assert [(i.name, i.path) for i in reading.images] == [
        (f"{name}.jpg", f"JPEGImages/{name}.jpg") for name in ("cat/a", "cat/b", "cat/c", "dog/a", "dog/b")
    ]
    assert [(p.id, p.group, p.cluster) for p in pairs] == [
        (n, c, f"{source}.jpg") for n, (c, source, _) in PAIRS.items()
    ]
    assert pairs[0].source_points == ((0.5, 0.5), (59.5, 39.5))
    assert (pairs[0].source_box, pairs[0].target_box) == ((1, 2, 50, 39), (5, 5, 60, 40))
    assert ingest("spair-test", root, home, Store(home.store)).manifest["problems"] == []


def edit(**values: Any) -> Callable[[Path], None]:
    """A change of the first pair's annotation; a value of None takes the field away."""

    def change(root: Path) -> None:
        body = {**json.loads(annotation(root).read_text()), **values}
        annotation(root).write_text(json.dumps({key: value for key, value in body.items() if value is not None}))

    return change


def unlink(root: Path) -> None:
    annotation(root).unlink()


def no_json(root: Path) -> None:
    annotation(root).write_text("{")


def repeat(root: Path) -> None:
    with (root / "Layout/large/test.txt").open("a") as file:
        file.write(f"{FIRST}\n")


def list_another(root: Path) -> None:
    with (root / "Layout/large/test.txt").open("a") as file:
        file.write("../x\n")


def resize(root: Path) -> None:
    Image.new("RGB", (30, 30)).save(root / "JPEGImages/cat/b.jpg")


@pytest.mark.parametrize(
    ("change", "what", "kept"),
    [
        (unlink, "there is no file .*000001-a-b:cat.json", 2),
        (no_json, "is no JSON", 2),
        (repeat, "it is listed twice", 3),
        (list_another, "no name of a pair", 3),
        (resize, "cat/b.jpg is 30 x 30, the annotation is for 60 x 40", 2),
        (edit(category="unicorn"), "there is no category 'unicorn'", 2),
        (edit(category=None), "no str 'category'", 2),
        (edit(trg_kps=None), "no list 'trg_kps'", 2),
        (edit(trg_kps=[[10, 20]]), "2 source points and 1 target points", 2),
        (edit(trg_kps=[], src_kps=[]), "0 source points and 0 target points", 2),
        (edit(trg_kps=[[10, 20], [60, 3]]), r"point \[60, 3\] lies outside an image of 60 x 40", 2),
        (edit(src_kps=[[-1, 0], [3, 3]]), r"point \[-1, 0\] lies outside", 2),
        (edit(src_kps=[[1, 0, 3], [3, 3]]), "is not 2 numbers", 2),
        (edit(src_kps=[["a", 0], [3, 3]]), "is not 2 numbers", 2),
        (edit(src_kps=[[float("nan"), 0], [3, 3]]), "is not finite", 2),
        (edit(kps_ids=["1"]), "does not name each of its 2 points", 2),
        (edit(trg_bndbox=[5, 5, 61, 40]), r"box \[5, 5, 61, 40\] lies outside an image of 60 x 40", 2),
        (edit(src_bndbox=[5, 5, 5, 40]), "is empty", 2),
        (edit(src_bndbox=[5, 5]), "is not 4 numbers", 2),
        (edit(src_imsize=[0, 40, 3]), r"the size \[0, 40, 3\]", 2),
        (edit(trg_imname="../../secret.jpg"), "which is no file name", 2),
    ],
)
def test_every_problem_is_told_and_the_rest_is_ingested(
    home: Home, tmp_path: Path, change: Callable[[Path], None], what: str, kept: int
) -> None:
    store = Store(home.store)
    root = make(tmp_path / "spair")
    change(root)
    with pytest.raises(UnsoundDataset, match=what) as caught:
        ingest("spair-test", root, home, store)
    assert "\n" not in str(caught.value)
    assert not store.root.exists()
    done = ingest("spair-test", root, home, store, skip_bad=True)
    assert len(done.manifest["problems"]) == 1
    assert done.manifest["samples"] == {"image_pair": kept}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(("spoil", "why"), [(truncate, "[Tt]runcated"), (Path.unlink, "there is no such file")])
def test_a_bad_image_takes_its_pairs_along(home: Home, tmp_path: Path, spoil: Callable[[Path], None], why: str) -> None:
    root = make(tmp_path / "spair")
    spoil(root / "JPEGImages/cat/b.jpg")
    with pytest.raises(UnsoundDataset, match=f"JPEGImages/cat/b.jpg.*{why}"):
        ingest("spair-test", root, home, Store(home.store))
    manifest = ingest("spair-test", root, home, Store(home.store), skip_bad=True).manifest
    assert (manifest["samples"], manifest["left_out"]) == ({"image_pair": 2}, {"image_pair": 1})


def test_what_is_missing_is_said_and_where_it_is_published(tmp_path: Path) -> None:
    root = make(tmp_path / "spair")
    with pytest.raises(BadDataset, match=r"no file .*large/trn.txt; expected Layout/large/trn.txt.*cvlab.postech"):
        Spair().read(root, "trn")
    (root / "JPEGImages").rename(root / "images")
    with pytest.raises(BadDataset, match=r"no folder .*JPEGImages;"):
        read(root)
    (root / "PairAnnotation/test").rename(root / "test")
    with pytest.raises(BadDataset, match=r"no folder .*PairAnnotation/test;"):
        read(root)
    listed = root / "Layout/large/test.txt"
    for content, why in ((b"\n", "is empty"), (b"\xff\xfe", "is no text")):
        listed.write_bytes(content)
        with pytest.raises(BadDataset, match=why):
            read(root)
