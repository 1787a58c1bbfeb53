"""DAVIS 2016 and 2017: the real layouts, and what is wrong with them told in a line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vkvdb import masks
from vkvdb.datasets.davis import Davis
from vkvdb.errors import BadDataset, UnsoundDataset
from vkvdb.ingestion import adapter, ingest
from vkvdb.paths import Home
from vkvdb.samples import Clip
from vkvdb.store import Store
from vkvdb.types import Reading

WIDTH, HEIGHT, FRAMES = 24, 16, 3
SEQUENCES = {"2017": ("bear", "two-dogs"), "2016": ("bear", "goat")}


def make(root: Path, year: str) -> Path:
    """Two sequences of three frames in the published layout; in 2017 the second has two objects and void."""
    rng = np.random.default_rng(0)
    lines = []
    for sequence in SEQUENCES[year]:
        for kind in ("JPEGImages", "Annotations"):
            (root / kind / "480p" / sequence).mkdir(parents=True)
        for time in range(FRAMES):
            pixels = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(image(root, sequence, time))
            labels = np.zeros((HEIGHT, WIDTH), np.uint8)
            labels[2:8, time : time + 6] = 1
            if sequence == "two-dogs":
                labels[9:12, 3:9] = 2 if time < 2 else 0  # gone in the end
                labels[0] = 255
            save(mask(root, sequence, time), labels, palette=year == "2017")
            lines.append(f"/JPEGImages/480p/{sequence}/{time:05d}.jpg /Annotations/480p/{sequence}/{time:05d}.png\n")
    folder = root / "ImageSets" / {"2017": "2017", "2016": "480p"}[year]
    folder.mkdir(parents=True)
    listed = lines if year == "2016" else [f"{sequence}\n" for sequence in SEQUENCES[year]]
    (folder / "val.txt").write_text("".join(listed))
    return root


def image(root: Path, sequence: str, time: int) -> Path:
    return root / "JPEGImages" / "480p" / sequence / f"{time:05d}.jpg"


def mask(root: Path, sequence: str, time: int) -> Path:
    return root / "Annotations" / "480p" / sequence / f"{time:05d}.png"


def save(path: Path, labels: np.ndarray, *, palette: bool = True) -> None:
    picture = Image.fromarray(labels if palette else labels * np.uint8(255))
    if palette:
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, *[7] * 759])
    picture.save(path)


def read(root: Path, split: str) -> tuple[Reading, dict[str, Clip]]:
    reading = Davis().read(root, split)
    return reading, {sample.id: sample for sample in reading.samples if isinstance(sample, Clip)}


def test_the_names() -> None:
    assert adapter("davis-2017-val")[:2] == ("davis", "2017-val")
    assert adapter("davis-2016-train")[:2] == ("davis", "2016-train")


def test_videos_of_2017(shared: Path) -> None:
    root = shared / "data/DAVIS2017"
    reading, clips = read(root, "2017-train")
    assert reading.problems == []
    assert {name: np.shape(clip.objects) for name, clip in clips.items()} == {"bear": (2, 1), "tennis": (2, 2)}
    for time, objects in enumerate(clips["tennis"].objects):
        labels = np.array(Image.open(mask(root, "tennis", time)))
        assert (labels == 255).any()
        for number, region in enumerate(objects, 1):
            assert region
            np.testing.assert_array_equal(masks.decode(region), labels == number)


def test_videos_of_both_years_agree_and_are_ingested(shared: Path, home: Home) -> None:
    """The objects of both years are the same here, black on white in one and palette indices in the other."""
    older = read(shared / "data/DAVIS2016", "2016-val")[1]
    assert {name: np.shape(clip.objects) for name, clip in older.items()} == {"blackswan": (50, 1), "dog": (60, 1)}
    store = Store(home.store)
    done = ingest("davis-2017-val", shared / "data/DAVIS2017", home, store)
    assert (done.manifest["images"], done.manifest["samples"]) == (110, {"clip": 2})
    assert {clip.id: clip for _, clip in store.samples(done.manifest["hash"])} == older


def test_a_sound_tree_of_2017(tmp_path: Path) -> None:
    root = make(tmp_path / "davis", "2017")
    reading, clips = read(root, "2017-val")
    assert reading.problems == []
    assert [i.name for i in reading.images[:3]] == ["bear/00000.jpg", "bear/00001.jpg", "bear/00002.jpg"]
    assert reading.images[0].path == "JPEGImages/480p/bear/00000.jpg"
    dogs = clips["two-dogs"]
    assert (dogs.cluster, dogs.frames) == ("two-dogs", tuple(f"two-dogs/{time:05d}.jpg" for time in range(FRAMES)))
    assert [[masks.area(region) for region in frame if region] for frame in dogs.objects] == [[36, 18]] * 2 + [[36, 0]]
    assert {clip.group for clip in clips.values()} == {"clip"}


def test_a_frame_without_a_mask(tmp_path: Path) -> None:
    root = make(tmp_path / "davis", "2017")
    mask(root, "bear", 1).unlink()
    reading, clips = read(root, "2017-val")
    assert [(problem.where, problem.what.split(";")[0]) for problem in reading.problems] == [
        ("bear", "1 frames have no mask, first 00001.jpg")
    ]
    assert [objects == (None,) for objects in clips["bear"].objects] == [False, True, False]


def test_a_sound_tree_of_2016(tmp_path: Path, home: Home) -> None:
    root = make(tmp_path / "davis", "2016")
    # Some tools save a grey mask with colours, or as single bits: what counts is black and white.
    Image.open(mask(root, "goat", 0)).convert("RGBA").save(mask(root, "goat", 0))
    Image.open(mask(root, "goat", 1)).convert("1").save(mask(root, "goat", 1))
    reading, clips = read(root, "2016-val")
    assert reading.problems == []
    assert [[masks.area(region) for region in frame if region] for frame in clips["goat"].objects] == [[36]] * 3
    assert ingest("davis-2016-val", root, home, Store(home.store)).manifest["samples"] == {"clip": 2}


Change = Callable[[Path], None]


def listing(line: str) -> Change:
    def change(root: Path) -> None:
        for file in (root / "ImageSets").rglob("val.txt"):
            with file.open("a") as opened:
                opened.write(line)

    return change


def cut(path: Callable[[Path, str, int], Path], *, keep: float = 0.5) -> Change:
    """The middle frame of the bear, or its mask, cut; away without `keep`."""

    def change(root: Path) -> None:
        file = path(root, "bear", 1)
        data = file.read_bytes()
        file.unlink()
        if keep:
            file.write_bytes(data[: int(len(data) * keep)])

    return change


def repaint(value: int, time: int = 1, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Change:
    return lambda root: save(mask(root, "bear", time), np.full(size, value, np.uint8))


def colours(root: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(mask(root, "bear", 1))


def alone(root: Path) -> None:
    mask(root, "bear", 1).rename(mask(root, "bear", 9))


def no_first(root: Path) -> None:
    mask(root, "bear", 0).unlink()


@pytest.mark.parametrize(
    ("year", "change", "what", "kept"),
    [
        ("2017", listing("bear\n"), "bear: it is listed twice", 2),
        ("2017", listing("fish\n"), "fish: there is no folder .*fish; published at https://davischallenge", 2),
        ("2017", listing("../x\n"), "no name of a sequence", 2),
        ("2017", cut(mask), "the mask .*bear/00001.png can't be read: .*[Tt]runcated", 1),
        ("2017", cut(mask, keep=0.1), "the mask .*bear/00001.png can't be read", 1),
        ("2017", cut(image), "bear/00001.jpg: .*[Tt]runcated", 1),
        ("2017", cut(image, keep=0), "bear: there is no frame .*bear/00001.jpg, which there is a mask of", 1),
        ("2017", alone, "bear: there is no frame .*bear/00009.jpg, which there is a mask of", 1),
        ("2017", cut(mask, keep=0), "bear: 1 frames have no mask, first 00001.jpg", 2),
        ("2017", no_first, "its first frame bear/00000.jpg has no mask", 1),
        ("2017", repaint(7), "holds the object 7, which the first frame does not", 1),
        ("2017", repaint(0, time=0), "first frame bear/00000.jpg holds no object", 1),
        ("2017", repaint(1, size=(WIDTH, HEIGHT)), "a mask is for 16 x 24 pixels, bear/00001.jpg has 24 x 16", 1),
        ("2017", colours, r"holds colours \(RGB\)", 1),
        ("2016", listing("/JPEGImages/480p/bear/00000.jpg\n"), "it is no frame of JPEGImages/480p/ beside", 2),
        ("2016", listing("/JPEGImages/480p/../a.jpg /Annotations/480p/b/c.png\n"), "it is no frame of", 2),
        (
            "2016",
            listing("/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png\n"),
            "bear/00000.jpg: it is listed twice",
            2,
        ),
        ("2016", cut(mask, keep=0), "bear: there is no file .*bear/00001.png", 1),
        ("2016", cut(image, keep=0), "bear/00001.jpg: there is no such file", 1),
        ("2016", lambda root: save(mask(root, "bear", 1), np.ones((HEIGHT, WIDTH), np.uint8)), "where 0 and 255", 1),
    ],
)
def test_every_problem_is_told_and_the_rest_is_ingested(
    home: Home, tmp_path: Path, *, year: str, change: Change, what: str, kept: int
) -> None:
    root = make(tmp_path / "davis", year)
    change(root)
    store = Store(home.store)
    with pytest.raises(UnsoundDataset, match=what) as caught:
        ingest(f"davis-{year}-val", root, home, store)
    assert "\n" not in str(caught.value)
    assert not store.root.exists()
    manifest = ingest(f"davis-{year}-val", root, home, store, skip_bad=True).manifest
    assert len(manifest["problems"]) == 1
    assert manifest["samples"] == {"clip": kept}


def test_what_is_missing_is_said_and_where_it_is_published(tmp_path: Path) -> None:
    root = make(tmp_path / "davis", "2017")
    with pytest.raises(BadDataset, match=r"no file .*2017/train.txt; expected .*DAVIS-2017-trainval-480p.zip"):
        read(root, "2017-train")
    with pytest.raises(BadDataset, match=r"no file .*480p/val.txt;"):
        read(root, "2016-val")
    for folder in ("Annotations", "JPEGImages"):
        (root / folder).rename(root / folder.lower())
        with pytest.raises(BadDataset, match=f"no folder .*{folder}/480p;"):
            read(root, "2017-val")
