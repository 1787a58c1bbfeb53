"""Pictures: what they show is what was scored, whatever the task, and it can be seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import synthetic

from vkvdb import registry, scoring
from vkvdb.drawing import HEIGHT, MOST, OBJECTS, RIGHT, TRUTH, WRONG, draw
from vkvdb.errors import BadOption, NoSuchSample
from vkvdb.ingestion import ingest
from vkvdb.models._checkpoint import resolve
from vkvdb.paths import Home, find_home
from vkvdb.planning import Choices, Planned, default_model, score_jobs
from vkvdb.showing import Picture, picture
from vkvdb.store import Store
from vkvdb.types import Panel, Pictured, Site
from vkvdb_cli.main import main

BLOBS = '''"""Six noisy pictures with a disc in each, in samples of every kind that a task takes."""

import random

import numpy as np
from PIL import Image as Pictures

from vkvdb.masks import encode
from vkvdb.samples import Clip, Episode, Expression, Image, ImagePair, ImageSet, Labelled
from vkvdb.types import ImageFile, Reading


class Blobs:
    version = 1
    splits = ("test",)
    layout = ""

    def read(self, root, split):
        found, masks = Reading(), []
        noise = np.random.default_rng(0)
        y, x = np.mgrid[:64, :64]
        for n in range(6):
            disc = np.hypot(x - 24 - 3 * n, y - 32) < 18
            pixels = noise.integers(0, 90, (64, 64, 3), dtype=np.uint8)
            pixels[disc] += 150
            (root / "images").mkdir(exist_ok=True)
            Pictures.fromarray(pixels).save(root / "images" / f"{n}.png")
            found.images.append(ImageFile(name=f"{n}.png", path=f"images/{n}.png"))
            masks.append(encode(disc))
        names = [i.name for i in found.images]
        labelled = [Labelled(name, mask) for name, mask in zip(names, masks)]
        shared = {"group": "g", "cluster": "c"}
        found.samples = [
            ImagePair(id="pair-0", source=names[0], target=names[3], source_points=((24.5, 32.5), (10.5, 32.5)),
                      target_points=((33.5, 32.5), (19.5, 32.5)), target_box=(15, 14, 52, 51), **shared),
            ImagePair(id="pair-1", source=names[1], target=names[2], source_points=((27.5, 32.5),),
                      target_points=((30.5, 32.5),), target_box=(12, 14, 49, 51), **shared),
            Episode(id="episode", supports=tuple(labelled[:2]), query=labelled[4], **shared),
            Image(id="image", image=names[0], category="disc", mask=masks[0], **shared),
            Expression(id="expression", image=names[5], text="the bright disc", mask=masks[5], **shared),
            ImageSet(id="set", members=tuple(labelled[:4]), **shared),
            Clip(id="clip", frames=tuple(names), objects=tuple((m, None if n == 2 else masks[0])
                 for n, m in enumerate(masks)), **shared),
        ]
        return found


DATASET = Blobs
'''
SAMPLES = {
    "correspondence": "pair-0",
    "foreground": "episode",
    "segmentation": "image",
    "referring": "expression",
    "cosegmentation": "set",
    "temporal_correspondence": "clip",
}


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory, small_onevision: Path) -> Iterator[Home]:
    """A home with the dataset above, whose model is a tiny LLaVA-OneVision."""
    folder = tmp_path_factory.mktemp("showing")
    (folder / "plugins" / "datasets").mkdir(parents=True)
    (folder / "plugins" / "datasets" / "blobs.py").write_text(BLOBS, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VKVDB_HOME", str(folder / "home"))
        patch.setenv("VKVDB_PLUGINS", str(folder / "plugins"))
        patch.setenv("VKVDB_DATASET", "blobs-test")
        patch.setenv("VKVDB_MODEL", str(small_onevision))
        patch.delenv("VKVDB_STORE", raising=False)
        home = find_home()
        ingest("blobs-test", None, home, Store(home.store))
        yield home


def plan(home: Home, task: str, **choices: Any) -> list[Planned]:
    """The job that scores all samples of a task."""
    return score_jobs(
        home,
        Store(home.store),
        task=task,
        model=default_model(),
        dataset="blobs-test",
        parameters={},
        choices=Choices(**choices),
        controls=False,
    )


def has(image: PIL.Image.Image, colour: tuple[int, int, int]) -> bool:
    return bool((np.asarray(image) == colour).all(-1).any())


def test_every_task_but_choices_draws_pictures() -> None:
    drawn = [name for name in registry.names("tasks") if isinstance(scoring.make_task(name, {}), Pictured)]
    assert drawn == sorted(SAMPLES)


@pytest.mark.parametrize("head", [1, -1])
@pytest.mark.parametrize(("task", "sample"), SAMPLES.items(), ids=SAMPLES)
def test_a_picture_shows_what_is_scored(blobs: Home, task: str, sample: str, head: int) -> None:
    """The caption's scores are those of the job, to rounding; the drawing stands on the same reading."""
    store, site = Store(blobs.store), Site("decoder", 1, "value")
    shown = picture(blobs, sample, task, site=str(site), head=head)
    assert (shown.sample.id, shown.site, shown.head, shown.job) == (sample, site, head, None)
    (planned,) = plan(blobs, task)
    run = scoring.open(planned.job, blobs, store, lambda _: None)
    if not run.done(0):
        run.run_shard(0, lambda _: None)
    number = next(n for n, s in store.samples(planned.job.spec.capture.dataset) if s.id == sample)
    rows = store.read_scores(planned.job.id, 0).to_pylist()
    own = [r for r in rows if (r["sample"], r["site"], r["head"]) == (number, site.number, head)]
    scored = {r["metric"]: r["value"] for r in own if not np.isnan(r["value"])}  # a caption tells what is defined
    assert scored
    assert shown.scores == pytest.approx(scored, abs=1e-5)
    assert shown.image.height > HEIGHT


def test_masks_that_are_shown_are_those_that_are_scored(blobs: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Intersection over union of the panels themselves."""
    import vkvdb.drawing

    kept: list[list[Panel]] = []
    own = vkvdb.drawing.draw
    monkeypatch.setattr(
        vkvdb.drawing, "draw", lambda panels, *more: (kept.append([p for p, _ in panels]), own(panels, *more))[1]
    )
    for task, sample in list(SAMPLES.items())[1:4]:
        shown = picture(blobs, sample, task, site="decoder.1.value", head=0)
        panel = kept[-1][0]
        (found,), (truth,) = panel.found, panel.truth
        assert (found & truth).sum() / (found | truth).sum() == pytest.approx(shown.scores["iou"], abs=1e-6)
    shown = picture(blobs, "pair-0", "correspondence", site="decoder.1.value", head=0)
    assert np.mean(kept[-1][1].right) == pytest.approx(shown.scores["pck_image"])
    picture(blobs, "clip", "temporal_correspondence", site="decoder.1.value", head=0)
    assert [p.image for p in kept[-1]] == [f"{n}.png" for n in range(5)], "the first, and what is scored"
    assert [len(p.found) for p in kept[-1]] == [2] * 5
    assert kept[-1][2].truth[1] is None, "an object that is not there has no outline"


def test_the_command_draws_the_best_of_what_was_scored(
    blobs: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(blobs.store)
    (planned,) = plan(blobs, "correspondence", layers=(1,))
    scoring.open(planned.job, blobs, store, lambda _: None).run_shard(0, lambda _: None)
    synthetic.World(store).publish_job(planned.job, n=2, of=2)
    out = tmp_path / "deep" / "pair.png"
    assert main(["show", "pair-0", "--task", "correspondence", "--out", str(out)]) == 0
    site, scores, path = capsys.readouterr().out.splitlines()
    assert "decoder.1." in site
    assert "the best of job " in site
    assert scores.startswith("pck_image ")
    assert path == str(out)
    with PIL.Image.open(out) as image:
        assert (image.format, image.height > HEIGHT) == ("PNG", True)
    shown = picture(blobs, "pair-1", "correspondence", site="decoder.1.key")
    assert (shown.site, shown.job is None, "at decoder.1.key" in shown.chosen) == (
        Site("decoder", 1, "key"),
        False,
        True,
    )
    assert main(["show", "set", "--task", "cosegmentation"]) == 0
    assert Path(capsys.readouterr().out.splitlines()[-1]) == blobs.charts / "cosegmentation-set.png"


def test_unscored_the_middle_value_layer_is_shown(blobs: Home) -> None:
    shown = picture(blobs, "episode", "foreground", parameters={"classifier": "ridge"})
    assert (shown.site.part, shown.head, shown.chosen) == ("value", -1, "not scored yet: the middle layer")
    encoder = picture(blobs, "episode", "foreground", model="pixels", parameters={"classifier": "ridge"})
    assert encoder.site.stage == "encoder"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "--task", "correspondence"], "there are: pair-0, pair-1"),
        (["pair", "--task", "correspondence"], "2 samples begin with it"),
        (["pair-0", "--task", "correspondance"], "did you mean 'correspondence'"),
        (["pair-0", "--task", "choices"], "draws no pictures"),
        (["pair-0", "--task", "correspondence", "--site", "decoder.77.value"], "has sites like decoder."),
        (["pair-0", "--task", "correspondence", "--site", "value"], "has sites like decoder."),
        (["pair-0", "--task", "correspondence", "--site", "decoder.0.value", "--head", "9"], "or -1 for all"),
        (["pair-0", "--task", "correspondence", "--dataset", "blobs-tast"], "did you mean 'blobs-test'"),
    ],
)
def test_a_mistake_is_one_line(
    blobs: Home, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(["show", *arguments]) == 1
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1


def test_an_exact_id_is_not_ambiguous(blobs: Home) -> None:
    with pytest.raises(NoSuchSample):
        picture(blobs, "pair-", "correspondence")
    with pytest.raises(BadOption, match="--head 5"):
        picture(blobs, "pair-1", "correspondence", site="decoder.0.key", head=5)


# --- drawing ---


def test_right_and_wrong_points_have_their_colours() -> None:
    image = PIL.Image.new("RGB", (112, 112), (0, 0, 0))
    points = [(30.0, 30.0), (80.0, 80.0)]
    source = Panel("a", "source", points=points)
    target = Panel("b", "target", points=points, right=[True, False], true_points=[(30.0, 30.0), (20.0, 90.0)])
    drawn = draw([(source, image), (target, image)], "title", ["line"])
    assert has(drawn, RIGHT)
    assert has(drawn, WRONG)
    assert has(drawn, TRUTH)
    assert not has(draw([(source, image)], "t", []), WRONG)


def test_a_small_image_is_drawn_large_and_a_large_one_small() -> None:
    for size in ((112, 112), (3000, 2000), (50, 400), (4000, 300)):
        drawn = draw([(Panel("a", "x" * 500), PIL.Image.new("RGB", size))], "a title", ["some words " * 60])
        assert HEIGHT < drawn.height < 2 * HEIGHT
        assert drawn.width < 1600


def test_masks_are_tinted_by_whether_they_are_right() -> None:
    truth, found = np.zeros((2, 40, 40), bool)
    truth[:20], found[10:30] = True, True
    drawn = np.asarray(draw([(Panel("a", "", found=[found], truth=[truth]), PIL.Image.new("RGB", (40, 40)))], "", []))
    right, wrong = (tuple(int(0.55 * c + 0.5) for c in colour) for colour in (RIGHT, WRONG))
    counts = [int((np.abs(drawn.astype(int) - colour) <= 1).all(-1).sum()) for colour in (right, wrong)]
    quarter = 360 * 90
    assert 0.9 * quarter < counts[0] <= quarter
    assert counts[1] == pytest.approx(quarter, rel=0.05)


def test_of_many_panels_some_are_shown_at_even_steps() -> None:
    image = PIL.Image.new("RGB", (112, 112))
    mask = np.ones((112, 112), bool)
    panels = [(Panel("a", f"frame {n}", found=[mask, ~mask]), image) for n in range(30)]
    few, many = draw(panels[:MOST], "t", []), draw(panels, "t", [])
    assert many.width == few.width
    assert 0 < many.height - few.height < 40, "a line says how many there are"
    tinted = np.array(OBJECTS[0]) * 0.55
    assert (np.abs(np.asarray(few) - tinted) <= 1).all(-1).sum() > MOST * HEIGHT * 200


def test_what_is_not_defined_is_drawn_and_has_no_score(blobs: Home) -> None:
    tower = next(s.site for s in resolve(default_model(), blobs).sites() if s.site.stage == "encoder")
    shown = picture(blobs, "image", "segmentation", site=str(tower))
    assert isinstance(shown, Picture)
    assert (shown.site, shown.scores) == (tower, {}), "words do not go through a tower"
