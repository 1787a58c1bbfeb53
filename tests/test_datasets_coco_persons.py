"""Pairs of persons by COCO's keypoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vkvdb.datasets import _persons
from vkvdb.datasets.coco import Coco
from vkvdb.errors import BadDataset, UnsoundDataset
from vkvdb.ingestion import ingest
from vkvdb.paths import Home
from vkvdb.samples import ImagePair
from vkvdb.store import Store

WIDTH, HEIGHT = 96, 64
NAMES = [f"part {n}" for n in range(17)]
Content = dict[str, Any]


def name(image: int) -> str:
    return f"{image:012d}.jpg"


def person(key: int, image: int, **values: Any) -> Content:
    """A person of 30 x 40 pixels; keypoint n lies at (10 + n, 20 + n), and all but the first are visible."""
    flat = [0, 0, 0]
    for n in range(1, 17):
        flat += [10 + n, 20 + n, 2]
    facts = {"id": key, "image_id": image, "category_id": 1, "iscrowd": 0, "num_keypoints": 16}
    return {**facts, "bbox": [8.0, 15.0, 30.0, 40.0], "keypoints": flat, **values}


def make(root: Path, change: Callable[[Content], object] | None = None) -> Path:
    (root / "val2017").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for image in range(1, 7):
        pixels = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "val2017" / name(image))
    content: Content = {
        "images": [{"id": n, "file_name": name(n), "width": WIDTH, "height": HEIGHT} for n in range(1, 7)],
        "annotations": [person(100 + n, n) for n in range(1, 7)],
        "categories": [{"id": 1, "name": "person", "keypoints": NAMES}],
    }
    if change:
        change(content)
    (root / "annotations").mkdir()
    (root / "annotations/person_keypoints_val2017.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def pairs(root: Path) -> list[ImagePair]:
    reading = Coco().read(root, "val-persons")
    assert reading.problems == []
    return [sample for sample in reading.samples if isinstance(sample, ImagePair)]


def test_each_image_is_in_one_pair(tmp_path: Path) -> None:
    reading = Coco().read(make(tmp_path / "coco"), "val-persons")
    assert [image.path for image in reading.images] == [f"val2017/{name(n)}" for n in range(1, 7)]
    found = pairs(make(tmp_path / "again"))
    assert found == reading.samples
    assert len(found) == 3
    assert len({image for pair in found for image in pair.images()}) == 6
    assert len({pair.cluster for pair in found}) == 3
    assert {pair.group for pair in found} == {"person"}
    first = found[0]
    assert first.names == tuple(NAMES[1:])
    assert first.source_points[0] == (11.5, 21.5)  # the centre of pixel (11, 21)
    assert first.target_box == (8.0, 15.0, 38.0, 55.0)


def test_only_keypoints_that_both_show_are_matched(tmp_path: Path) -> None:
    def hide(content: Content) -> None:
        del content["annotations"][2:]
        for place, part in ((0, 3), (1, 5)):
            content["annotations"][place]["keypoints"][3 * part + 2] = 1

    (pair,) = pairs(make(tmp_path / "coco", hide))
    assert pair.names == tuple(each for each in NAMES[1:] if each not in ("part 3", "part 5"))
    assert len(pair.source_points) == len(pair.target_points) == 14


@pytest.mark.parametrize(
    "values",
    [
        {"bbox": [8, 15, 10, 12]},  # too small
        {"bbox": [0, 0, 90, 64]},  # more than half as large again
        {"iscrowd": 1, "keypoints": None},
        {"keypoints": [0, 0, 0] * 10 + [20, 20, 2] * 7},
        {"keypoints": [30, 30, 1] * 17},
    ],
)
def test_who_takes_no_part(tmp_path: Path, values: Content) -> None:
    def change(content: Content) -> None:
        content["annotations"][0].update(values)

    found = pairs(make(tmp_path / "coco", change))
    assert len(found) == 2
    assert name(1) not in {image for pair in found for image in pair.images()}


def test_the_largest_person_of_an_image(tmp_path: Path) -> None:
    found = pairs(make(tmp_path / "coco", lambda c: c["annotations"].append(person(90, 1, bbox=[8, 15, 30, 45]))))
    boxes = {pair.source: pair.source_box for pair in found} | {pair.target: pair.target_box for pair in found}
    assert boxes[name(1)] == (8.0, 15.0, 38.0, 60.0)


def test_not_more_than_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "coco")
    all_of_them = pairs(root)
    monkeypatch.setattr(_persons, "PAIRS", 2)
    assert pairs(root) == all_of_them[:2]


def edit(**values: Any) -> Callable[[Content], object]:
    return lambda content: content["annotations"][0].update(values)


@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        (edit(image_id=99), "annotation 101", "there is no image 99"),
        (edit(category_id=9), "annotation 101", "there is no category 9"),
        (edit(id=102), "annotation 102", "its id is there twice"),
        (edit(keypoints=[1, 2, 2]), "annotation 101", "its keypoints are not 17 times"),
        (edit(keypoints=None), "annotation 101", "its keypoints are not 17 times"),
        (edit(keypoints=[1, 2, 3] * 17), "annotation 101", "has visibility 3"),
        (
            edit(keypoints=[WIDTH, 2, 2] * 17),
            "annotation 101",
            r"part 0 lies at \(96, 2\), outside the image of 96 x 64",
        ),
        (edit(bbox=[1, 2, 3]), "annotation 101", "its box is not four numbers"),
        (edit(bbox=[1, 2, -3, 4]), "annotation 101", "its box is not four numbers"),
    ],
)
def test_every_problem_is_told_and_the_rest_is_ingested(
    home: Home, tmp_path: Path, change: Callable[[Content], object], where: str, what: str
) -> None:
    root = make(tmp_path / "coco", change)
    with pytest.raises(UnsoundDataset, match=what) as caught:
        ingest("coco-val-persons", root, home, Store(home.store))
    assert where in str(caught.value)
    done = ingest("coco-val-persons", root, home, Store(home.store), skip_bad=True)
    assert done.manifest["samples"] == {"image_pair": 2}


def test_a_truncated_photograph(home: Home, tmp_path: Path) -> None:
    root = make(tmp_path / "coco")
    path = root / "val2017" / name(1)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UnsoundDataset, match=name(1)):
        ingest("coco-val-persons", root, home, Store(home.store))
    done = ingest("coco-val-persons", root, home, Store(home.store), skip_bad=True)
    assert (done.manifest["samples"], done.manifest["left_out"]) == ({"image_pair": 2}, {"image_pair": 1})


def test_a_category_without_keypoints(tmp_path: Path) -> None:
    reading = Coco().read(make(tmp_path / "coco", lambda c: c["categories"][0].pop("keypoints")), "val-persons")
    assert {problem.what for problem in reading.problems} == {"its category has no list of keypoints"}
    assert reading.samples == []


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    root = make(tmp_path / "coco")
    with pytest.raises(
        BadDataset, match=r"no folder .*train2017; expected train2017/ and annotations/person_keypoints_tr"
    ):
        Coco().read(root, "train-persons")
    (root / "annotations/person_keypoints_val2017.json").unlink()
    with pytest.raises(BadDataset, match=r"no file .*person_keypoints_val2017\.json; expected .*cocodataset\.org"):
        Coco().read(root, "val-persons")
