"""Pascal-5i: hsnet's episodes, the real layout, and what is wrong with it told in a line each."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image as Pillow

from vkvdb import masks
from vkvdb.datasets import pascal
from vkvdb.datasets.pascal import CLASSES, SUPPORTS, VOC, Line, Pascal, draw
from vkvdb.errors import BadDataset, UnsoundDataset
from vkvdb.ingestion import ingest
from vkvdb.paths import Home
from vkvdb.samples import Episode, Image
from vkvdb.soundness import fault
from vkvdb.store import Store
from vkvdb.types import Reading

WIDTH, HEIGHT = 30, 20
BIRDS = [f"2007_00000{n}" for n in range(1, 5)]
LIST = Path("splits/pascal/val/fold0.txt")

# What hsnet's own DatasetPASCAL (commit 6b1bc12, `sample_episode` after `np.random.seed(0)`, 5 shots, 1,000 queries)
# gives on its lists: sha256 of the lines `NUMBER CLASS QUERY SUPPORTS`.
HSNET = {
    0: "f839d128160dc689633093dc115a7f2bb78a7b6bb14ede54832e1224f853958d",
    1: "471ec1bbf86bbe47f1691587b1aa3f14ac28d8b39e328807616e52b391bce715",
    2: "ae0b3d874af40b5c01fc315b9e27e5f037b6bb98c353729aab95d27b9aec118f",
    3: "387366dc7a98718f85eaf90c5b7002e2b4ca1f9bbf233fa656fee6173507ab28",
}


def lines_of(file: Path) -> list[Line]:
    return [Line(image, int(label)) for image, label in (line.split("__") for line in file.read_text().split())]


@pytest.mark.parametrize("fold", HSNET)
def test_episodes_are_hsnets(shared: Path, fold: int) -> None:
    drawn = draw(lines_of(shared / f"data/voc2012/splits/pascal/val/fold{fold}.txt"))
    text = "\n".join(f"{n} {query.label} {query.image} {' '.join(s.image for s in of)}" for n, query, of in drawn)
    assert hashlib.sha256(text.encode()).hexdigest() == HSNET[fold]


def test_episodes_of_a_short_list_are_drawn_as_hsnet_draws() -> None:
    """Queries in turn; a support is drawn from the class's list, again where it is the query."""
    lines = [Line("a", 1), Line("b", 2), Line("c", 1), Line("d", 2), Line("e", 1), Line("f", 3)]
    np.random.seed(0)  # noqa: NPY002 - as hsnet does
    expected = []
    for number in range(1000):
        query = lines[number % 6]
        names = [line.image for line in lines if line.label == query.label]
        supports: list[str] = []
        while len(supports) < 5 and len(names) > 1:
            name = np.random.choice(names, 1, replace=False)[0]  # noqa: NPY002
            supports += [name] if name != query.image else []
        if supports:
            expected.append((number, query.image, supports))
    assert [(n, query.image, [s.image for s in of]) for n, query, of in draw(lines)] == expected
    assert draw([]) == []


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes enough for every fault."""
    monkeypatch.setattr(pascal, "EPISODES", 40)


@pytest.fixture
def photographs(shared: Path, tmp_path: Path) -> Path:
    """The sample's images beside the lists that are cut to them."""
    root = tmp_path / "voc"
    (root / "splits").mkdir(parents=True)
    (root / "VOCdevkit").symlink_to(shared / "data/voc2012/VOCdevkit")
    (root / "splits/pascal").symlink_to(shared / "data/voc2012/splits_subset/pascal")
    return root


def episodes(reading: Reading) -> list[Episode]:
    return [sample for sample in reading.samples if isinstance(sample, Episode)]


def test_photographs(photographs: Path) -> None:
    reading = Pascal().read(photographs, "fold1")
    listed = lines_of(photographs / "splits/pascal/val/fold1.txt")
    # The cut lists hold one bus.
    assert [problem.where for problem in reading.problems] == ["class bus of fold1"]
    first = {line.image: line.label for line in sorted(listed, key=lambda line: -line.label)}
    assert [i.name for i in reading.images] == [f"{i}.jpg" for i in sorted(first, key=lambda i: (first[i], i))]
    images = [sample for sample in reading.samples if isinstance(sample, Image)]
    assert [(i.image, i.category) for i in images] == [(f"{x.image}.jpg", CLASSES[x.label - 1]) for x in listed]
    found = episodes(reading)
    counts = Counter(line.label for line in listed)
    assert len(found) == len(draw(listed)) > 900
    assert {episode.group for episode in found} == {CLASSES[label - 1] for label in counts if counts[label] > 1}
    assert all(e.cluster == e.query.image and len(e.supports) == SUPPORTS for e in found)
    for labelled in {x.image: x for e in found for x in (e.query, *e.supports)}.values():
        path = photographs / VOC / "SegmentationClass" / labelled.image.replace(".jpg", ".png")
        labels = np.array(Pillow.open(path))
        label = next(CLASSES.index(e.group) + 1 for e in found if labelled in (e.query, *e.supports))
        np.testing.assert_array_equal(masks.decode(labelled.mask), labels == label)
        assert labelled.ignore
        np.testing.assert_array_equal(masks.decode(labelled.ignore), labels == 255)
    sizes = {image.name: Pillow.open(photographs / image.path).size for image in reading.images}
    assert not [sample.id for sample in [*images, *found[:50]] if fault(sample, sizes)]


def test_photographs_of_full_lists_are_ingested_as_far_as_they_are_there(shared: Path, home: Home) -> None:
    store = Store(home.store)
    root = shared / "data/voc2012"
    with pytest.raises(UnsoundDataset, match=r"2007_000042.jpg: it has no mask: .* 9 episodes are left out .*more\)"):
        ingest("pascal-fold3", root, home, store)
    manifest = ingest("pascal-fold3", root, home, store, skip_bad=True).manifest
    listed = lines_of(root / "splits/pascal/val/fold3.txt")
    assert manifest["images"] + len(manifest["problems"]) == len({line.image for line in listed})
    assert manifest["samples"]["image"] == 35
    kept = [sample for _, sample in store.samples(manifest["hash"]) if isinstance(sample, Episode)]
    expected = {number: query.image for number, query, _ in draw(listed)}
    assert all(expected[int(e.id.split("/")[1])] == e.query.image.removesuffix(".jpg") for e in kept)


def make(root: Path) -> Path:
    """Four images of birds, a boat beside one of them; fold 1 has one bottle too few for an episode."""
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass"):
        (root / VOC / folder).mkdir(parents=True)
    for name in BIRDS:
        pixels = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Pillow.fromarray(pixels).save(root / VOC / "JPEGImages" / f"{name}.jpg")
        save(root, name, mask_of(name))
    (root / LIST).parent.mkdir(parents=True)
    (root / LIST).write_text("".join(f"{name}__03\n" for name in BIRDS))
    return root


def mask_of(name: str) -> np.ndarray:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[5:15, 5 : 10 + int(name[-1])] = 3
    if name != BIRDS[3]:
        labels[4, 4:12] = 255
    return labels


def save(root: Path, name: str, labels: np.ndarray, folder: str = "SegmentationClass") -> None:
    picture = Pillow.fromarray(labels)
    picture.putpalette(list(range(256)) * 3)
    (root / VOC / folder).mkdir(exist_ok=True)
    picture.save(root / VOC / folder / f"{name}.png")


def test_a_sound_tree(home: Home, tmp_path: Path) -> None:
    root = make(tmp_path / "voc")
    reading = Pascal().read(root, "fold0")
    assert reading.problems == []
    found = episodes(reading)
    assert (len(found), len(reading.samples)) == (1000, 1004)
    assert (found[7].id, found[7].group, found[7].cluster) == (f"fold0/007/bird/{BIRDS[3]}", "bird", f"{BIRDS[3]}.jpg")
    assert found[7].query.ignore is None
    assert found[0].query.ignore
    assert masks.area(found[0].query.ignore) == 8
    assert masks.area(found[0].query.mask) == 60


@pytest.mark.usefixtures("few")
def test_a_sound_tree_is_ingested(home: Home, tmp_path: Path) -> None:
    done = ingest("pascal-fold0", make(tmp_path / "voc"), home, Store(home.store))
    assert (done.manifest["samples"], done.manifest["problems"]) == ({"image": 4, "episode": 40}, [])


def test_all_folds_at_once(tmp_path: Path) -> None:
    root = make(tmp_path / "voc")
    for fold, label in ((1, 8), (2, 13), (3, 20)):
        (root / LIST).with_name(f"fold{fold}.txt").write_text(f"{BIRDS[0]}__{label:02d}\n{BIRDS[1]}__{label:02d}\n")
    labels = [mask_of(name) for name in BIRDS[:2]]
    for name, each in zip(BIRDS, labels, strict=False):
        each[16] = np.repeat([8, 13, 20], 10)
        save(root, name, each)
    reading = Pascal().read(root, "val")
    assert reading.problems == []
    found = episodes(reading)
    assert Counter(episode.group for episode in found) == dict.fromkeys(("bird", "cat", "horse", "tvmonitor"), 1000)
    assert len({sample.id for sample in reading.samples}) == len(reading.samples) == 4000 + 4 + 3 * 2
    assert len(reading.images) == 4
    # A class of two images: all supports of one are the other.
    cat = next(episode for episode in found if episode.group == "cat")
    assert {support.image for support in cat.supports} == {f"{BIRDS[1]}.jpg"}


def test_masks_of_sbd_and_of_the_augmented_folder(tmp_path: Path) -> None:
    root = make(tmp_path / "voc")
    (root / VOC / "SegmentationClass" / f"{BIRDS[1]}.png").unlink()
    folder = root / "benchmark_RELEASE/dataset/cls"
    folder.mkdir(parents=True)
    for name in BIRDS[:2]:  # VOC's own mask of the first one wins
        labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        labels[0, 0] = 3
        truth = {"Boundaries": np.zeros(1), "Segmentation": labels, "CategoriesPresent": np.array([3])}
        scipy.io.savemat(folder / f"{name}.mat", {"GTcls": truth}, do_compression=True)
    augmented = mask_of(BIRDS[2])
    augmented[0] = 3
    save(root, BIRDS[2], augmented, "SegmentationClassAug")
    reading = Pascal().read(root, "fold0")
    assert reading.problems == []
    areas = [masks.area(sample.mask) for sample in reading.samples if isinstance(sample, Image) and sample.mask]
    assert areas == [60, 1, 80 + WIDTH, 90]
    for bad, why in ((b"", "can't be read"), (b"x" * 300, "can't be read")):
        (folder / f"{BIRDS[1]}.mat").write_bytes(bad)
        assert why in Pascal().read(root, "fold0").problems[0].what
    for content, why in (({"GTinst": labels}, "KeyError"), ({"GTcls": {"Segmentation": labels / 2}}, "no array of")):
        scipy.io.savemat(folder / f"{BIRDS[1]}.mat", content)
        assert why in Pascal().read(root, "fold0").problems[0].what


Change = Callable[[Path], None]


def listing(line: str) -> Change:
    return lambda root: (root / LIST).write_text((root / LIST).read_text() + f"{line}\n") and None


def repaint(labels: np.ndarray) -> Change:
    return lambda root: save(root, BIRDS[0], labels)


def strange(root: Path) -> None:
    labels = mask_of(BIRDS[0])
    labels[0] = 21
    save(root, BIRDS[0], labels)


def colours(root: Path) -> None:
    Pillow.new("RGB", (WIDTH, HEIGHT)).save(root / VOC / "SegmentationClass" / f"{BIRDS[0]}.png")


def cut(folder: str, suffix: str, keep: float = 0.5) -> Change:
    def change(root: Path) -> None:
        path = root / VOC / folder / f"{BIRDS[0]}{suffix}"
        data = path.read_bytes()
        path.unlink()
        if keep:
            path.write_bytes(data[: int(len(data) * keep)])

    return change


MASK, JPEG = ("SegmentationClass", ".png"), ("JPEGImages", ".jpg")


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("change", "what", "images"),
    [
        (listing(f"{BIRDS[0]}__03"), "fold0.txt, 2007_000001__03: it is listed twice", 4),
        (listing(f"{BIRDS[0]}__21"), "there is no class 21 in this fold, only 1 to 5", 4),
        (listing(f"{BIRDS[0]}__06"), "there is no class 06 in this fold", 4),
        (listing(f"{BIRDS[0]}"), "it is no IMAGE__CLASS", 4),
        (listing("../../x__03"), "it is no IMAGE__CLASS", 4),
        (listing("2007_000009__03"), "2007_000009.jpg: it has no mask: there is no file .*2007_000009.png", 4),
        (cut(*MASK, keep=0), "2007_000001.jpg: it has no mask", 3),
        (cut(*MASK), "the mask .*2007_000001.png can't be read", 3),
        (cut(*JPEG), "JPEGImages/2007_000001.jpg: .*[Tt]runcated", 3),
        (cut(*JPEG, keep=0), "JPEGImages/2007_000001.jpg: there is no such file", 3),
        (repaint(np.full((WIDTH, HEIGHT), 3, np.uint8)), "its mask is 20 x 30, the image is 30 x 20", 3),
        (repaint(np.zeros((HEIGHT, WIDTH), np.uint8)), "it is listed for bird, which its mask does not hold", 3),
        (strange, "its mask holds the class 21, which there is not", 3),
        (colours, r"holds colours \(RGB\)", 3),
    ],
)
def test_every_problem_is_told_and_the_rest_is_ingested(
    home: Home, tmp_path: Path, change: Change, what: str, images: int
) -> None:
    root = make(tmp_path / "voc")
    change(root)
    store = Store(home.store)
    with pytest.raises(UnsoundDataset, match=what) as caught:
        ingest("pascal-fold0", root, home, store)
    assert "\n" not in str(caught.value)
    assert not store.root.exists()
    manifest = ingest("pascal-fold0", root, home, store, skip_bad=True).manifest
    assert len(manifest["problems"]) == 1
    assert (manifest["images"], manifest["samples"]["image"]) == (images, images)
    kept = [sample for _, sample in store.samples(manifest["hash"]) if isinstance(sample, Episode)]
    assert kept
    assert all((f"{BIRDS[0]}.jpg" in episode.images()) <= (images == 4) for episode in kept)


def test_a_class_of_one_image_has_no_episode(tmp_path: Path) -> None:
    root = make(tmp_path / "voc")
    labels = mask_of(BIRDS[0])
    labels[18] = 4
    save(root, BIRDS[0], labels)
    listing(f"{BIRDS[0]}__04")(root)
    reading = Pascal().read(root, "fold0")
    assert [(problem.where, problem.what.split(",")[0]) for problem in reading.problems] == [
        ("class boat of fold0", "it is listed once only")
    ]
    assert {episode.group for episode in episodes(reading)} == {"bird"}
    assert len(episodes(reading)) == 800


def test_what_is_missing_is_said_and_where_it_is_published(tmp_path: Path) -> None:
    root = make(tmp_path / "voc")
    with pytest.raises(BadDataset, match=r"no file .*val/fold1.txt; expected .*github.com/juhongm999/hsnet"):
        Pascal().read(root, "val")
    for folder in ("SegmentationClass", "JPEGImages"):
        (root / VOC / folder).rename(root / folder)
        with pytest.raises(BadDataset, match=rf"no folder .*{folder}; expected .*VOCtrainval_11-May-2012"):
            Pascal().read(root, "fold0")
