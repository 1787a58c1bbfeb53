"""The toy world as a dataset: every kind of sample, perfect, the same bytes each time, made once."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from vkvdb import ingestion, masks
from vkvdb.datasets import toyworld
from vkvdb.datasets.toyworld import SIZES, Sizes, ToyWorld, png
from vkvdb.errors import StoreFailed
from vkvdb.extraction import dataset_root
from vkvdb.images import open_image
from vkvdb.ingestion import ingest
from vkvdb.paths import Home
from vkvdb.samples import SAMPLE_KINDS, Clip, Episode, Expression, Image, ImagePair, ImageSet, Question, Sample
from vkvdb.soundness import fault
from vkvdb.store import Store
from vkvdb.toyworld.world import CATEGORIES, HELD_OUT_CATEGORIES, HELD_OUT_PARTS, render, scene, seeds
from vkvdb.types import Reading, TokenGrid

FEW = Sizes(pairs=4, pool=8, episodes=3, scenes=8, asked=8, clips=2, choices=1)
TWICE = Sizes(pairs=1, pool=2, episodes=0, scenes=2, asked=1, clips=1, choices=0, draws=2)
# Other content under the same version would make a store's dataset stand for what the code no longer makes.
GOLDEN = "7a94c7acce3859cd98fab653ad754c8a"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "demo", FEW)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reading]:
    """A small split and where it was made."""
    root = tmp_path_factory.mktemp("toyworld")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "demo", FEW)
        return root, ToyWorld().read(root, "demo")


@pytest.fixture
def copied(made: tuple[Path, Reading], monkeypatch: pytest.MonkeyPatch) -> None:
    """Making is copying what was made."""

    def read(_self: ToyWorld, root: Path, _split: str) -> Reading:
        shutil.copytree(made[0], root, dirs_exist_ok=True)
        return made[1]

    monkeypatch.setattr(ToyWorld, "read", read)


def of(reading: Reading, kind: type[Sample]) -> list[Any]:
    return [sample for sample in reading.samples if isinstance(sample, kind)]


def pixels(root: Path, name: str) -> np.ndarray:
    return np.asarray(Pillow.open(root / "images" / f"{name}.png"))


def test_every_kind_is_there_and_sound(made: tuple[Path, Reading]) -> None:
    root, reading = made
    assert {sample.kind for sample in reading.samples} == set(SAMPLE_KINDS)
    sizes = {image.name: Pillow.open(root / image.path).size for image in reading.images}
    assert set(sizes.values()) == {(112, 112)}
    assert [fault(sample, sizes) for sample in reading.samples if fault(sample, sizes)] == []
    assert len({sample.id for sample in reading.samples}) == len(reading.samples)
    assert {path.stem for path in (root / "images").iterdir()} == sizes.keys()
    assert reading.problems == []


def test_every_category_has_its_share(made: tuple[Path, Reading]) -> None:
    for kind, count in ((ImagePair, 4), (Image, 8), (Episode, 3), (ImageSet, 1)):
        assert Counter(sample.group for sample in of(made[1], kind)) == dict.fromkeys(CATEGORIES, count)
    assert set(HELD_OUT_CATEGORIES) < {sample.group for sample in of(made[1], ImagePair)}


def test_images_of_a_group_lie_together(made: tuple[Path, Reading]) -> None:
    number = {image.name: n for n, image in enumerate(made[1].images)}
    for sample in (*of(made[1], ImagePair), *of(made[1], Clip)):
        places = [number[name] for name in sample.images()]
        assert places == list(range(places[0], places[0] + len(places)))
    for sample in (*of(made[1], Episode), *of(made[1], ImageSet)):
        places = [number[name] for name in sample.images()]
        assert max(places) - min(places) < FEW.pool


def test_pairs_are_above_what_a_grid_can_tell(made: tuple[Path, Reading]) -> None:
    """The truth sent down to the 14 x 14 grid and back is right; the same place is not."""
    right = copied = total = 0
    for pair in of(made[1], ImagePair):
        assert len(pair.source_points) == len(pair.names) >= 3
        left, top, end, bottom = pair.target_box
        within = 0.1 * max(end - left, bottom - top)
        grid = TokenGrid(14, 14, (0.0, 0.0, 112.0, 112.0))
        for (x, y), (u, v) in zip(pair.source_points, pair.target_points, strict=True):
            cell = grid.cell(u, v)
            assert cell
            centre = grid.centre(*cell)
            right += np.hypot(centre[0] - u, centre[1] - v) <= within
            copied += np.hypot(x - u, y - v) <= within
            total += 1
            assert left <= u <= end
            assert top <= v <= bottom
    assert right / total > 0.95
    assert copied / total < 0.2


def test_points_lie_on_the_thing(made: tuple[Path, Reading]) -> None:
    masked = {sample.image: masks.decode(sample.mask) for sample in of(made[1], Image)}
    for pair in of(made[1], ImagePair):
        for name, points in ((pair.source, pair.source_points), (pair.target, pair.target_points)):
            assert all(masked[name][int(y), int(x)] for x, y in points)


def test_an_episode_is_of_one_category_and_its_query_apart(made: tuple[Path, Reading]) -> None:
    for episode in of(made[1], Episode):
        assert len(set(episode.images())) == 6
        assert all(f"pair-{episode.group}-" in name for name in episode.images())
        assert episode.cluster == episode.query.image


def test_expressions_have_others_and_scenes_are_the_worlds(made: tuple[Path, Reading]) -> None:
    root, reading = made
    first = seeds("test", 1)[0]
    np.testing.assert_array_equal(pixels(root, f"scene-{first}"), render(scene(first)).image)
    found = of(reading, Expression)
    assert found
    for said in found:
        assert said.others
        target = masks.decode(said.mask)
        assert target.any()
        assert not any((masks.decode(other) & target).any() for other in said.others)


def test_clips_have_their_objects_in_every_frame(made: tuple[Path, Reading]) -> None:
    for clip in of(made[1], Clip):
        assert len(clip.frames) == len(clip.objects) == 8
        assert all(mask is not None for frame in clip.objects for mask in frame)
        assert all(masks.area(mask) > 0 for mask in clip.objects[0])


def test_questions_of_both_shapes(made: tuple[Path, Reading]) -> None:
    from vkvdb.toyworld.choices import CHOICE_KINDS
    from vkvdb.toyworld.questions import KINDS

    open_ended = [q for q in of(made[1], Question) if not q.options]
    choices = [q for q in of(made[1], Question) if q.options]
    assert {q.group for q in open_ended} <= set(KINDS)
    assert len({q.group for q in open_ended}) > 10
    assert Counter(q.group for q in choices) == {f"choice-{kind}": 1 for kind in CHOICE_KINDS}
    matching = next(q for q in choices if q.group == "choice-correspondence")
    assert len(matching.shown) == 2
    assert len(matching.marks) == 5  # the reference, then A to D
    assert len(matching.options) == 4


def test_no_seed_is_one_of_training(made: tuple[Path, Reading]) -> None:
    # What training takes begins at the split's first seed and is smaller than where the next split begins.
    assert seeds("val", 1)[0] - seeds("train", 1)[0] > toyworld._CHOICES + 10 * toyworld._APART
    test = range(seeds("test", 1)[0], seeds("test", 1)[0] + 100_000_000)
    assert all(int(image.name.split("-")[2 - image.name.startswith("scene")]) in test for image in _seeded(made[1]))


def test_draws_are_told_apart_and_share_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "test", TWICE)
    reading = ToyWorld().read(tmp_path, "test")
    draws = [{name for name in _names(reading) if name.startswith(f"draw{n}-")} for n in range(2)]
    assert draws[0] | draws[1] == _names(reading)
    kinds = Counter((sample.kind, sample.cluster.partition("-")[0]) for sample in reading.samples)
    assert kinds["image_pair", "draw0"] == kinds["image_pair", "draw1"] == len(CATEGORIES)
    for sample in reading.samples:
        draw = sample.cluster.partition("-")[0]
        assert sample.id.startswith(f"{draw}-")
        assert all(name.startswith(f"{draw}-") for name in sample.images())
    content = [
        {(tmp_path / image.path).read_bytes() for image in reading.images if image.name in draw} for draw in draws
    ]
    assert not content[0] & content[1]
    # What the card asks of a draw's scenes is asked of these.
    first = seeds("test", 1, toyworld.DRAW_APART)[0]
    assert f"draw1-scene-{first}" in draws[1]


def test_parts_are_pairs_of_one_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "parts", TWICE)
    monkeypatch.setitem(SIZES, "test", TWICE)
    whole = {pair.id: pair for pair in of(ToyWorld().read(tmp_path / "whole", "test"), ImagePair)}
    reading = ToyWorld().read(tmp_path / "parts", "parts")
    assert len({sample.id for sample in reading.samples}) == len(reading.samples)
    assert set(HELD_OUT_PARTS) < {sample.group for sample in reading.samples}
    assert {image.name for image in reading.images} == {name for one in reading.samples for name in one.images()}
    seen: Counter[str] = Counter()
    for part in reading.samples:
        assert isinstance(part, ImagePair)
        pair = whole[part.cluster]
        assert pair.group not in HELD_OUT_CATEGORIES
        assert (part.id, part.names) == (f"{pair.id}-{part.group}", (part.group,))
        place = pair.names.index(part.group)
        assert part.source_points == pair.source_points[place : place + 1]
        assert part.target_points == pair.target_points[place : place + 1]
        assert (part.source, part.target, part.target_box) == (pair.source, pair.target, pair.target_box)
        seen[pair.id] += 1
    assert seen == {name: len(pair.names) for name, pair in whole.items() if pair.group not in HELD_OUT_CATEGORIES}


def test_what_the_card_counts_on_is_there() -> None:
    """Three draws, 300 scenes and pairs, and so many questions of a kind that half of them is more than 25."""
    test = SIZES["test"]
    assert test.draws == SIZES["parts"].draws == 3
    assert min(test.pairs * len(CATEGORIES), test.episodes * len(CATEGORIES), test.scenes) * test.draws >= 300
    assert test.choices * test.draws >= 60


def _names(reading: Reading) -> set[str]:
    return {image.name for image in reading.images}


def _seeded(reading: Reading) -> list[Any]:
    return [image for image in reading.images if image.name.startswith(("pair", "scene"))]


def test_the_same_bytes_each_time(few: None, made: tuple[Path, Reading], tmp_path: Path) -> None:
    root, first = made
    second = ToyWorld().read(tmp_path, "demo")
    assert first == second
    for image in first.images:
        assert (root / image.path).read_bytes() == (tmp_path / image.path).read_bytes()


@pytest.mark.parametrize("shape", [(3, 5), (112, 112), (200, 300)])
def test_a_png_is_one(shape: tuple[int, int]) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Pillow.open(io.BytesIO(png(drawn)))
    assert (image.format, image.mode) == ("PNG", "RGB")
    np.testing.assert_array_equal(np.asarray(image), drawn)


def test_it_is_made_once_into_the_store(copied: None, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(home.store)
    done = ingest("toyworld-demo", None, home, store)
    assert done.new
    assert done.manifest["root"] == ""
    assert done.manifest["hash"] == GOLDEN
    folder = dataset_root(home, store, done.manifest)
    assert folder == store.dataset_folder(done.manifest["hash"])
    rows = store.images(done.manifest["hash"])
    assert open_image(folder, rows[0]).size == (112, 112)
    assert len(list((folder / "images").iterdir())) == len(rows)
    # Nothing private is left, in the store or in the home.
    assert [path.name for path in (store.root / "datasets").iterdir()] == [done.manifest["hash"]]
    monkeypatch.setattr(ToyWorld, "read", lambda *_: pytest.fail("made again"))
    again = ingest("toyworld-demo", None, home, store)
    assert (again.new, again.manifest) == (False, done.manifest)


def refuse(*_args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_failure_while_it_is_made_leaves_nothing(few: None, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(home.store)
    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(StoreFailed, match="No space left"):
        ingest("toyworld-demo", None, home, store)
    assert not store.root.exists()


def test_a_failure_leaves_no_dataset(copied: None, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(home.store)
    with monkeypatch.context() as patch:
        patch.setattr(ingestion, "_force", refuse)
        with pytest.raises(StoreFailed, match="No space left"):
            ingest("toyworld-demo", None, home, store)
    assert not store.root.exists()
    # Died between images and manifest: they are taken as they are.
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        with pytest.raises(StoreFailed, match="No space left"):
            ingest("toyworld-demo", None, home, store)
    assert list(store.datasets()) == []
    assert ingest("toyworld-demo", None, home, store).new


def test_what_a_killed_ingest_left_is_removed(copied: None, home: Home) -> None:
    store = Store(home.store)
    # A process of this boot whose number was taken by another since.
    from vkvdb.processes import this_process

    name = f".toyworld-demo.{this_process().signature()}.0123abcd.part"
    mine = store.root / "datasets" / name
    mine.mkdir(parents=True)
    pid = os.fork()
    if pid == 0:
        left = store.root / "datasets" / f".toyworld-demo.{this_process().signature()}.0123abce.part"
        (left / "images").mkdir(parents=True)
        os._exit(0)
    os.waitpid(pid, 0)
    ingest("toyworld-demo", None, home, store)
    private = [path.name for path in (store.root / "datasets").iterdir() if path.name.startswith(".")]
    assert private == [name]  # this process may be at work on it
