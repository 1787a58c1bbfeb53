"""RefCOCO: references read without unpickling, and what is wrong with them told in a line each."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vkvdb import masks
from vkvdb.datasets._pickled import plain_data
from vkvdb.datasets.refcoco import RefCoco
from vkvdb.errors import BadDataset, UnsoundDataset
from vkvdb.ingestion import ingest
from vkvdb.paths import Home
from vkvdb.samples import Expression
from vkvdb.store import Store

WIDTH, HEIGHT = 64, 48
Content = dict[str, Any]


def box(left: int, top: int, side: int = 10) -> list[list[int]]:
    return [[left, top, left + side, top, left + side, top + side, left, top + side]]


def name(image: int) -> str:
    return f"COCO_train2014_{image:012d}.jpg"


def make(
    root: Path, change: Callable[[Content], None] | None = None, *, folder: str = "refcoco", of: str = "unc"
) -> Path:
    """Two images; the first has a dog (11), two cats (10, 12) and a crowd of cats (13), the second a cat (20)."""
    (root / "train2014").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for image in (1, 2):
        pixels = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "train2014" / name(image))
    crowd = {"size": [HEIGHT, WIDTH], "counts": [0, 480, WIDTH * HEIGHT - 480]}
    parts = [(11, 1, 18, 0, box(0, 0)), (12, 1, 17, 0, box(20, 0)), (10, 1, 17, 0, box(40, 20)), (13, 1, 17, 1, crowd)]
    parts.append((20, 2, 17, 0, box(5, 5)))
    keys = ("id", "image_id", "category_id", "iscrowd", "segmentation")
    content: Content = {
        "images": [{"id": image, "file_name": name(image), "width": WIDTH, "height": HEIGHT} for image in (1, 2)],
        "annotations": [dict(zip(keys, part, strict=True)) for part in parts],
        "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
        "refs": [reference(0, 12, 1, "val"), reference(1, 20, 2, "val"), reference(2, 11, 1, "testA")],
    }
    if change:
        change(content)
    (root / folder).mkdir()
    (root / folder / f"refs({of}).p").write_bytes(pickle.dumps(content.pop("refs"), protocol=2))
    (root / folder / "instances.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def reference(key: int, annotation: int, image: int, split: str) -> Content:
    sentences = [
        {"tokens": ["a", "cat"], "raw": "A cat!", "sent_id": 10 * key + n, "sent": f"cat {key} {n}"} for n in (0, 1)
    ]
    facts = {"sent_ids": [10 * key, 10 * key + 1], "file_name": f"COCO_train2014_{image:012d}_{key}.jpg"}
    ids = {"ann_id": annotation, "ref_id": key, "image_id": image, "category_id": 17}
    return {**facts, **ids, "split": split, "sentences": sentences}


def test_a_sound_tree(tmp_path: Path) -> None:
    reading = RefCoco().read(make(tmp_path / "data"), "unc-val")
    assert reading.problems == []
    assert [image.path for image in reading.images] == [f"train2014/{name(1)}", f"train2014/{name(2)}"]
    found = [sample for sample in reading.samples if isinstance(sample, Expression)]
    assert [(one.id, one.text, one.image) for one in found] == [
        ("0/0", "cat 0 0", name(1)),
        ("0/1", "cat 0 1", name(1)),
        ("1/10", "cat 1 0", name(2)),
        ("1/11", "cat 1 1", name(2)),
    ]
    assert {one.group for one in found} == {"unc-val"}
    assert found[0].cluster == name(1)
    assert masks.decode(found[0].mask)[0:10, 20:30].all()
    # The other cat comes before the dog; the crowd is no object.
    assert [masks.decode(other)[25, 45] for other in found[0].others] == [True, False]
    assert [masks.decode(other)[5, 5] for other in found[0].others] == [False, True]
    assert found[2].others == ()


@pytest.mark.parametrize(
    ("split", "folder", "of"),
    [
        ("plus-testA", "refcoco+", "unc"),
        ("google-val", "refcoco", "google"),
        ("g-umd-val", "refcocog", "umd"),
        ("g-google-val", "refcocog", "google"),
    ],
)
def test_partitions(tmp_path: Path, split: str, folder: str, of: str) -> None:
    root = make(tmp_path / "data", folder=folder, of=of)
    reading = RefCoco().read(root, split)
    assert reading.problems == []
    assert {sample.group for sample in reading.samples} == {split}


def test_json_gives_the_same_and_so_does_the_folder_of_refer(home: Home, tmp_path: Path) -> None:
    pickled, converted = make(tmp_path / "a"), make(tmp_path / "b")
    refs = plain_data((converted / "refcoco/refs(unc).p").read_bytes())
    (converted / "refcoco/refs(unc).p").unlink()
    (converted / "refcoco/refs(unc).json").write_text(json.dumps(refs))
    hashes = {
        ingest("refcoco-unc-val", root, home, Store(home.store)).manifest["hash"] for root in (pickled, converted)
    }
    assert len(hashes) == 1
    (pickled / "images/mscoco/images").mkdir(parents=True)
    (pickled / "train2014").rename(pickled / "images/mscoco/images/train2014")
    assert ingest("refcoco-unc-val", pickled, home, Store(home.store)).manifest["problems"] == []


def test_the_genuine_record(shared: Path, tmp_path: Path) -> None:
    """One record as published, in its containers; its photograph is not at hand, so it is drawn."""
    root = tmp_path / "data"
    shutil.copytree(shared / "data/refcoco/one_record_rebuilt", root)
    (root / "train2014").mkdir()
    Image.new("RGB", (427, 640)).save(root / "train2014" / name(581857))
    refs = plain_data((root / "refcoco/refs(unc).p").read_bytes())
    assert [list(refs[0]), refs[0]["sentences"][0]["tokens"]] == [
        ["sent_ids", "file_name", "ann_id", "ref_id", "image_id", "split", "sentences", "category_id"],
        ["the", "lady", "with", "the", "blue", "shirt"],
    ]
    reading = RefCoco().read(root, "unc-train")
    assert reading.problems == []
    found = [sample for sample in reading.samples if isinstance(sample, Expression)]
    assert [one.text for one in found] == ["the lady with the blue shirt", "lady with back to us", "blue shirt"]
    area = json.loads((root / "refcoco/instances.json").read_text())["annotations"][0]["area"]
    assert masks.area(found[0].mask) == pytest.approx(area, rel=0.02)


def edit(place: str, index: int, **values: Any) -> Callable[[Content], None]:
    """A change of an entry; a value of None takes the field away."""

    def change(content: Content) -> None:
        content[place][index] = {k: v for k, v in {**content[place][index], **values}.items() if v is not None}

    return change


def repeat(place: str) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        content[place].append(dict(content[place][0]))

    return change


@pytest.mark.parametrize(
    ("change", "where", "what", "kept"),
    [
        (repeat("refs"), "reference 0", "its id is there twice", 4),
        (repeat("annotations"), "annotation 11", "its id is there twice", 4),
        (repeat("images"), "image 1", "its id is there twice", 4),
        (edit("refs", 0, ann_id=99), "reference 0", "there is no annotation 99", 2),
        (edit("refs", 0, ann_id=20), "reference 0", "annotation 20 is of image 2, not of 1", 2),
        (edit("refs", 0, ann_id=13), "reference 0", "is a crowd", 2),
        (edit("refs", 0, image_id=99), "reference 0", "there is no image 99", 2),
        (edit("refs", 0, sentences=None), "reference at place 0", "has no list 'sentences'", 2),
        (edit("refs", 0, sentences=[{"sent_id": 0}]), "sentence 0 of reference 0", "has no str 'sent'", 2),
        (edit("refs", 0, sentences=[{"sent_id": 0, "sent": " "}]), "sentence 0 of reference 0", "no words", 2),
        (edit("annotations", 0, image_id=99), "annotation 11", "there is no image 99", 4),
        (edit("annotations", 0, category_id=99), "annotation 11", "there is no category 99", 2),
        (edit("annotations", 0, segmentation=[[0, 0, 120, 0, 9, 9]]), "annotation 11", "outside the image", 2),
        (edit("annotations", 0, segmentation={"size": [9, 9], "counts": [81]}), "annotation 11", "run lengths are", 2),
        (edit("annotations", 0, segmentation={"size": [48, 64], "counts": [8]}), "annotation 11", "do not add up", 2),
    ],
)
def test_every_problem_is_told_and_the_rest_is_ingested(
    home: Home, tmp_path: Path, *, change: Callable[[Content], None], where: str, what: str, kept: int
) -> None:
    root = make(tmp_path / "data", change)
    with pytest.raises(UnsoundDataset, match=what) as caught:
        ingest("refcoco-unc-val", root, home, Store(home.store))
    assert where in str(caught.value)
    done = ingest("refcoco-unc-val", root, home, Store(home.store), skip_bad=True)
    assert any(where in one["where"] and one["what"] for one in done.manifest["problems"])
    assert done.manifest["samples"] == {"expression": kept}


def test_a_truncated_photograph(home: Home, tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    path = root / "train2014" / name(1)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(UnsoundDataset, match=name(1)):
        ingest("refcoco-unc-val", root, home, Store(home.store))
    done = ingest("refcoco-unc-val", root, home, Store(home.store), skip_bad=True)
    assert (done.manifest["samples"], done.manifest["left_out"]) == ({"expression": 2}, {"expression": 2})


def test_what_is_missing_is_said_and_where_it_is_published(tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    for path, what in (
        ("refcoco/instances.json", r"no file .*instances\.json; expected .*github\.com/lichengunc/refer"),
        ("refcoco/refs(unc).p", r"no file .*refs\(unc\)\.p; expected"),
        ("train2014", r"no folder .*train2014; expected .*cocodataset\.org"),
        ("refcoco", r"no folder .*refcoco; expected"),
    ):
        (root / path).rename(tmp_path / "away")
        with pytest.raises(BadDataset, match=what):
            RefCoco().read(root, "unc-val")
        (tmp_path / "away").rename(root / path)
    with pytest.raises(BadDataset, match="no sound reference of split 'testB'"):
        RefCoco().read(root, "unc-testB")
    (root / "refcoco/refs(unc).p").write_bytes(pickle.dumps({"refs": []}, protocol=2))
    with pytest.raises(BadDataset, match="no list of references"):
        RefCoco().read(root, "unc-val")


# --- pickles ----------------------------------------------------------------------------------------------------------

KEYS = st.text() | st.integers()
DATA = st.recursive(
    st.text() | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(data=DATA, protocol=st.integers(0, 2))
def test_plain_data_is_what_unpickling_gives(data: Any, protocol: int) -> None:
    assert plain_data(pickle.dumps(data, protocol=protocol)) == data


def test_what_python_2_wrote() -> None:
    written = b"(lp0\n(dp1\nS'sent'\np2\nS'a cat'\np3\nsS'n'\nL7L\nsS'u'\nV\\u00e9\nsS't'\n(I1\nI2\ntsa."
    assert plain_data(written) == [{"sent": "a cat", "n": 7, "u": "\u00e9", "t": (1, 2)}]
    assert plain_data(b"(I1\nI2\nl.") == [1, 2]
    assert plain_data(b"(S'a'\nI2\nd.") == {"a": 2}


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("it ran",)


@pytest.mark.parametrize("protocol", [0, 1, 2])
@pytest.mark.parametrize("thing", [Runs(), OrderedDict(a=1), {1, 2}, 1.5, None, print], ids=lambda t: type(t).__name__)
def test_nothing_else_is_read_nor_run(capsys: pytest.CaptureFixture[str], thing: Any, protocol: int) -> None:
    with pytest.raises(ValueError, match="it holds the opcode"):
        plain_data(pickle.dumps([thing], protocol=protocol))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "exhausted"),
        (b"]", "exhausted"),
        (pickle.dumps(["a cat"], protocol=2)[:-4], "exhausted"),
        (b"a.", "opcode APPEND at byte 0 finds nothing to work on"),
        (b"h\x07.", "opcode BINGET at byte 0 finds nothing"),
        (b"q\x07.", "opcode BINPUT at byte 0 finds nothing"),
        (b"e.", "opcode APPENDS at byte 0 finds nothing"),
        (b"K\x01K\x02a.", "opcode APPEND at byte 4 finds nothing"),
        (b"}]K\x01s.", "opcode SETITEM at byte 4 finds nothing"),
        (b"}(K\x01u.", "opcode SETITEMS at byte 4 finds nothing"),
        (b"K\x01\x87.", "opcode TUPLE3 at byte 2 finds nothing"),
        (b"K\x01K\x02.", "ends with 2 things"),
        (b"(.", "ends with 1 things"),
        (b"\xff.", "opcode"),
        (pickle.dumps(["a"], protocol=4), "it holds the opcode FRAME|it holds the opcode SHORT_BINUNICODE"),
    ],
)
def test_a_damaged_pickle_is_one_line(tmp_path: Path, data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        plain_data(data)
    root = make(tmp_path / "data")
    (root / "refcoco/refs(unc).p").write_bytes(data)
    with pytest.raises(BadDataset, match=r"refs\(unc\)\.p is no pickle of references: .*; expected") as caught:
        RefCoco().read(root, "unc-val")
    assert "\n" not in str(caught.value)
