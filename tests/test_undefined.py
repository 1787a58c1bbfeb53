"""Words where there are none: rows of `results` without a value, with the reason in words."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from vkvdb.catalog import Catalog
from vkvdb.ingestion import ingest
from vkvdb.paths import Home
from vkvdb.planning import Choices, score_jobs
from vkvdb.queue import Queue
from vkvdb.store import Store
from vkvdb.worker import Worker

SQUARES = '''"""Six pictures of a square, each with its class and a phrase."""

import numpy as np

from vkvdb import masks
from vkvdb.samples import Expression, Image
from vkvdb.types import ImageFile, Reading


class Squares:
    version = 1
    splits = ("test",)
    layout = ""

    def read(self, root, split):
        from PIL import Image as Pictures

        found, draw = Reading(), np.random.default_rng(0)
        (root / "images").mkdir()
        for n in range(6):
            region = np.zeros((56, 56), dtype=bool)
            region[8 + 2 * n : 30 + 2 * n, 10:40] = True
            pixels = draw.integers(0, 90, (56, 56, 3)).astype(np.uint8) + region[..., None] * np.uint8(120)
            name = f"{n:02d}"
            Pictures.fromarray(pixels).save(root / "images" / f"{name}.png")
            found.images.append(ImageFile(name, f"images/{name}.png"))
            other = np.zeros((56, 56), dtype=bool)
            other[:6] = True
            mask, word = masks.encode(region), ("cat", "dog")[n % 2]
            found.samples.append(Image(id=name, group=word, cluster=name, image=name, category=word, mask=mask))
            found.samples.append(
                Expression(id=f"e{n}", group="val", cluster=name, image=name, text=f"the {word}", mask=mask,
                           others=(masks.encode(other),)))
        return found


DATASET = Squares
'''
MODELS = ("pixels", "dinov2", "onevision")
WHY = {
    "pixels": "pixels have no text side",
    "dinov2": "DINOv2 has no text side",
    "onevision": "the tower comes without its text side: score its encoder",
}


@pytest.fixture(scope="module")
def scored(
    tmp_path_factory: pytest.TempPathFactory, small_onevision: Path, tiny_dinov2: Path
) -> tuple[Catalog, Store, dict[str, str]]:
    """A catalog with both tasks on every model, and {model: what it is called}."""
    folder = tmp_path_factory.mktemp("undefined")
    plugin = folder / "plugins/datasets/squares.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(SQUARES)
    called = {"pixels": "pixels", "dinov2": str(tiny_dinov2), "onevision": str(small_onevision)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VKVDB_PLUGINS", str(folder / "plugins"))
        home = Home(folder / "home")
        store, queue = Store(home.store), Queue(home.queue)
        ingest("squares-test", None, home, store)
        for task in ("segmentation", "referring", "naming"):
            for model in called.values():
                for plan in score_jobs(
                    home, store, task=task, model=model, dataset="squares-test", parameters={},
                    choices=Choices(parts=("value", "hidden")), controls=False,
                ):  # fmt: skip
                    queue.enqueue(plan.job)
        assert {o.state for o in Worker(home, store, queue).run_until_empty()} == {"done"}
    catalog = Catalog(home.catalog)
    catalog.absorb(store)
    return catalog, store, {name: path.rpartition("/")[2] for name, path in called.items()}


def test_a_class_counts_in_all_images(scored: tuple[Catalog, Store, dict[str, str]]) -> None:
    """Task naming: the scores of classes are summed by the view `pooled`, and stand in no mean over groups."""
    catalog, _, called = scored
    sql = """SELECT metric, avg(value) FROM pooled
             WHERE model_name = $model AND task = 'naming' AND stage = 'projector' GROUP BY metric ORDER BY metric"""
    found = dict(catalog.query(sql, {"model": called["onevision"]}).rows)
    assert found.keys() == {"accuracy", "iou", "iou of cat", "iou of dog", "miou"}
    both = [found[f"iou of {name}"] for name in ("cat", "dog")]
    assert found["miou"] == pytest.approx(sum(both) / 2)
    sums = """SELECT metric, sum(value * weight) / sum(weight) FROM scores JOIN jobs USING (job) JOIN sites USING (site)
              WHERE model_name = $model AND task = 'naming' AND stage = 'projector' AND metric LIKE 'iou of %'
              GROUP BY metric ORDER BY metric"""
    by_hand = catalog.query(sums, {"model": called["onevision"]}).rows
    assert [value for _, value in by_hand] == pytest.approx(both)
    assert catalog.query("SELECT DISTINCT metric FROM results WHERE task = 'naming' ORDER BY ALL").rows == [
        ("accuracy",), ("iou",)
    ]  # fmt: skip


def silent(catalog: Catalog, model: str, task: str) -> list[tuple[object, ...]]:
    sql = """SELECT DISTINCT stage, value, se, low, high, n, n_undefined, of, why_undefined
             FROM results WHERE model_name = $model AND task = $task AND n = 0"""
    return catalog.query(sql, {"model": model, "task": task}).rows


@pytest.mark.parametrize("task", ["segmentation", "referring", "naming"])
@pytest.mark.parametrize("model", MODELS)
def test_a_site_without_words_is_a_row_with_its_reason(
    scored: tuple[Catalog, Store, dict[str, str]], model: str, task: str
) -> None:
    catalog, _, called = scored
    rows = silent(catalog, called[model], task)
    assert rows == [("encoder", None, None, None, None, 0, 6, 6, WHY[model])]
    # Every metric and layer has such a row, and what is defined says nothing.
    counted = catalog.query(
        """SELECT count(DISTINCT metric), count(DISTINCT layer) FROM results
           WHERE model_name = $model AND task = $task AND stage = 'encoder'""",
        {"model": called[model], "task": task},
    ).rows
    assert counted == [(2 if task == "naming" else 6, 4 if model == "dinov2" else 1)]
    others = catalog.query(
        "SELECT DISTINCT n, why_undefined FROM results WHERE model_name = $model AND task = $task AND metric = 'iou'"
        " AND stage <> 'encoder'",
        {"model": called[model], "task": task},
    ).rows
    assert others == [(6, None)]


def test_no_layer_is_chosen_where_nothing_is_defined(scored: tuple[Catalog, Store, dict[str, str]]) -> None:
    catalog, _, called = scored
    for view in ("best_layer", "chosen"):
        shown = catalog.query(f"SELECT DISTINCT model_name, stage FROM {view} WHERE stage = 'encoder'").rows
        assert shown == []
    assert catalog.query("SELECT DISTINCT model_name FROM chosen").rows == [(called["onevision"],)]


def test_nothing_is_wrong_with_such_a_catalog_and_it_can_be_rebuilt(
    scored: tuple[Catalog, Store, dict[str, str]],
) -> None:
    catalog, store, called = scored
    assert list(catalog.check()) == []

    def dump() -> list[list[tuple[object, ...]]]:
        with duckdb.connect(catalog.path, read_only=True) as connection:
            tables = ("scores", "summaries", "choices", "jobs")
            return [connection.execute(f"SELECT * FROM {t} ORDER BY ALL").fetchall() for t in tables]

    before, shown = repr(dump()), silent(catalog, called["pixels"], "referring")
    catalog.rebuild(store)
    assert repr(dump()) == before
    assert silent(catalog, called["pixels"], "referring") == shown
