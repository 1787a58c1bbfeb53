"""COCO: the real layout, and what is wrong with it told in a line each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coco_tree
import numpy as np
import pytest

from vkvdb import masks
from vkvdb.datasets.coco import Coco
from vkvdb.errors import BadDataset, UnsoundDataset
from vkvdb.ingestion import ingest
from vkvdb.paths import Home
from vkvdb.samples import Episode, ImagePair
from vkvdb.soundness import fault
from vkvdb.store import Store
from vkvdb.types import Reading


def read(root: Path) -> Reading:
    return Coco().read(root, "val")


def episodes(reading: Reading) -> list[Episode]:
    return [sample for sample in reading.samples if isinstance(sample, Episode)]


def test_photographs(shared: Path) -> None:
    reading = read(shared / "data/coco")
    assert reading.problems == []
    assert len(reading.images) == 160
    names = [image.name for image in reading.images[:80]]
    assert names == sorted(names)
    assert [image.name for image in reading.images[80:]] == [f"{name}#warp" for name in names]
    pairs = [sample for sample in reading.samples if isinstance(sample, ImagePair)]
    assert [pair.cluster for pair in pairs] == names
    assert {pair.group for pair in pairs} == {"self-warp"}
    found = episodes(reading)
    assert len(found) > 40
    for episode in found:
        images = [episode.query.image, *(support.image for support in episode.supports)]
        assert len(set(images)) == 6
        assert episode.cluster == episode.query.image
        for labelled in (episode.query, *episode.supports):
            assert masks.area(labelled.mask) >= 0.01 * labelled.mask.width * labelled.mask.height
    assert max(sum(e.group == group for e in found) for group in {e.group for e in found}) == 10
    assert any(labelled.ignore for e in found for labelled in (e.query, *e.supports))


def test_masks_of_photographs_have_cocos_areas(shared: Path) -> None:
    """The annotation file's `area` is that of the polygon: COCO's masks agree with it within some pixels of outline."""
    content = json.loads((shared / "data/coco/annotations/instances_val2017.json").read_text())
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    checked = 0
    for annotation in content["annotations"]:
        width, height = sizes[annotation["image_id"]]
        if annotation["iscrowd"]:
            runs = annotation["segmentation"]["counts"]
            assert masks.area(masks.from_rle(annotation["segmentation"], width, height)) == sum(runs[1::2])
        elif len(annotation["segmentation"]) == 1 and annotation["area"] > 2000:
            area = masks.area(masks.from_polygons(annotation["segmentation"], width, height))
            assert area == pytest.approx(annotation["area"], rel=0.06)
            checked += 1
    assert checked > 200


def test_photographs_are_ingested(shared: Path, home: Home) -> None:
    store = Store(home.store)
    done = ingest("coco-val", shared / "data/coco", home, store)
    assert done.manifest["samples"]["image_pair"] == 80
    sizes = {row.name: (row.width, row.height) for row in store.images(done.manifest["hash"])}
    assert not [sample.id for _, sample in store.samples(done.manifest["hash"]) if fault(sample, sizes)]


def test_a_sound_tree(tmp_path: Path) -> None:
    reading = read(coco_tree.make(tmp_path / "coco"))
    assert reading.problems == []
    # A dog is in one image only, so episodes are of cats; seven images give seven queries.
    found = episodes(reading)
    assert [(episode.group, episode.query.image) for episode in found] == [
        ("cat", coco_tree.name(n)) for n in range(1, 8)
    ]
    box = masks.decode(found[0].query.mask)
    assert box[8:50, 8:60].all()
    assert box.sum() == 42 * 52
    # The crowd is the left half without the cat that lies over it.
    assert found[0].query.ignore
    crowd = masks.decode(found[0].query.ignore)
    assert crowd[:, :48].sum() == crowd.sum()
    np.testing.assert_array_equal(crowd[:, :48], ~box[:, :48])
    assert found[1].query.ignore is None


def test_reading_twice_gives_the_same(tmp_path: Path) -> None:
    first, second = read(coco_tree.make(tmp_path / "a")), read(coco_tree.make(tmp_path / "b"))
    assert first.samples == second.samples
    assert first.images == second.images


def small(content: dict[str, Any]) -> None:
    for annotation in content["annotations"][:2]:
        annotation["segmentation"] = [[0, 0, 6, 0, 6, 6, 0, 6]]


def test_a_category_needs_six_images_that_it_covers(tmp_path: Path) -> None:
    assert episodes(read(coco_tree.make(tmp_path / "coco", small))) == []


def edit(place: str, index: int, **values: Any) -> Callable[[dict[str, Any]], None]:
    """A change of an entry; a value of None takes the field away."""

    def change(content: dict[str, Any]) -> None:
        entry = content[place][index]
        entry.update(values)
        for key in [key for key, value in entry.items() if value is None]:
            del entry[key]

    return change


def repeat(place: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content[place].append(dict(content[place][0]))

    return change


def crowd(**rle: Any) -> Callable[[dict[str, Any]], None]:
    return edit("annotations", 7, segmentation={"size": [64, 96], "counts": [6144], **rle})


@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        (repeat("annotations"), "annotation 101", "its id is there twice"),
        (repeat("categories"), "category 17", "its id is there twice"),
        (repeat("images"), "image 7", "its id is there twice"),
        (edit("annotations", 0, image_id=99), "annotation 101", "there is no image 99"),
        (edit("annotations", 0, category_id=99), "annotation 101", "there is no category 99"),
        (edit("annotations", 0, image_id=None), "annotation at place 0", "no int 'image_id'"),
        (edit("annotations", 0, segmentation=None), "annotation 101", "neither polygons nor run lengths"),
        (edit("annotations", 0, segmentation=[["a"] * 6]), "annotation 101", "neither polygons nor run lengths"),
        (
            edit("annotations", 0, segmentation=[[0, 0, 120, 0, 9, 9]]),
            "annotation 101",
            r"outside the image of 96 x 64",
        ),
        (edit("annotations", 0, segmentation=[[0, 0, 9, 9]]), "annotation 101", "polygon of 4 numbers"),
        (edit("annotations", 0, segmentation=[]), "annotation 101", "no polygon"),
        (crowd(size=[96, 64]), "annotation 200", "size"),
        (crowd(counts=[6143]), "annotation 200", "do not add up"),
        (crowd(counts="04"), "annotation 200", "do not add up"),
        (edit("images", 0, width="wide"), "image at place 0", "no int 'width'"),
        (edit("images", 0, height=0), "image 7", "its size is 96 x 0"),
        (edit("categories", 0, name=None), "category at place 0", "no str 'name'"),
    ],
)
def test_every_problem_is_told_and_the_rest_is_ingested(
    home: Home, tmp_path: Path, change: Callable[[dict[str, Any]], None], where: str, what: str
) -> None:
    store = Store(home.store)
    root = coco_tree.make(tmp_path / "coco", change)
    with pytest.raises(UnsoundDataset, match=what) as caught:
        ingest("coco-val", root, home, store)
    assert where in str(caught.value)
    assert not store.root.exists()
    done = ingest("coco-val", root, home, store, skip_bad=True)
    assert any(where in problem["where"] for problem in done.manifest["problems"])
    assert done.manifest["images"] >= 12
    # A mask that lacks an instance is no ground truth: the image is in no episode of its category.
    if where == "annotation 101" and "there is no" not in what and "twice" not in what:
        assert "episode" in done.manifest["samples"]
        kept = [s for _, s in store.samples(done.manifest["hash"]) if isinstance(s, Episode)]
        assert not any(coco_tree.name(1) in sample.images() for sample in kept)


def test_two_images_of_one_name(home: Home, tmp_path: Path) -> None:
    root = coco_tree.make(tmp_path / "coco", edit("images", 0, file_name=coco_tree.name(1)))
    with pytest.raises(UnsoundDataset, match=f"two images are called {coco_tree.name(1)}"):
        ingest("coco-val", root, home, Store(home.store))


def test_a_path_that_leaves_the_folder(home: Home, tmp_path: Path) -> None:
    root = coco_tree.make(tmp_path / "coco", edit("images", 0, file_name="../../secret.jpg"))
    with pytest.raises(UnsoundDataset, match="leaves the dataset's folder"):
        ingest("coco-val", root, home, Store(home.store))


def test_what_is_missing_is_said_and_where_it_is_published(tmp_path: Path) -> None:
    root = coco_tree.make(tmp_path / "coco")
    annotations = root / "annotations" / "instances_val2017.json"
    text = annotations.read_text()
    for bad, why in (("{", "is no JSON"), ("[]", "is no JSON object"), ('{"images": []}', "no list 'annotations'")):
        annotations.write_text(bad)
        with pytest.raises(BadDataset, match=why):
            read(root)
    annotations.unlink()
    with pytest.raises(BadDataset, match=r"no file .*instances_val2017\.json; expected .*cocodataset\.org"):
        read(root)
    annotations.mkdir()
    with pytest.raises(BadDataset, match="is a folder, where a file is needed"):
        read(root)
    annotations.rmdir()
    annotations.write_text(text)
    with pytest.raises(BadDataset, match=r"no folder .*train2017; expected train2017/.*train2017\.zip"):
        Coco().read(root, "train")
    (root / "train2017").write_text("")
    with pytest.raises(BadDataset, match="is a file, where a folder is needed"):
        Coco().read(root, "train")
