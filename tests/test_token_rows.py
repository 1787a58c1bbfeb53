"""Token maps as rows: as many as the sequence has positions, joinable in SQL, and in the store before the catalog."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plugins
import pytest
import tiny
from fakes import tree

from vkvdb import extraction
from vkvdb.catalog import Catalog
from vkvdb.ingestion import ingest
from vkvdb.models._checks import pictures
from vkvdb.paths import Home
from vkvdb.planning import Choices, Planned, extract_job, score_jobs
from vkvdb.queue import Queue
from vkvdb.store import ImageRow, Store
from vkvdb.types import Site, TokenGrid
from vkvdb.verification import problems
from vkvdb.worker import Worker

VALUES = {"parts": ("value",), "layers": (0,)}


@pytest.fixture
def store(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store in which the plug-in dataset is ingested: forty images, all of 64 x 64 pixels."""
    monkeypatch.setenv("VKVDB_PLUGINS", str(plugins.write(tmp_path / "plugins")))
    made = Store(home.store)
    ingest("dots-test", None, home, made)
    return made


def extract(home: Home, store: Store, model: Path | str, **choices: Any) -> Planned:
    """Keep some tokens of the plug-in dataset."""
    chosen = Choices(**{**VALUES, **choices})
    plan = extract_job(home, store, model=str(model), dataset="dots-test", choices=chosen)
    return run(home, store, plan)


def run(home: Home, store: Store, plan: Planned) -> Planned:
    Queue(home.queue).enqueue(plan.job)
    (outcome,) = Worker(home, store, Queue(home.queue)).run_until_empty()
    assert outcome.state == "done", outcome
    return plan


def absorbed(home: Home, store: Store) -> Catalog:
    catalog = Catalog(home.catalog)
    assert catalog.absorb(store).problems == []
    return catalog


@pytest.mark.parametrize("view", ["base", "tiles"])
def test_rows_are_the_positions_of_the_sequence(home: Home, store: Store, small_onevision: Path, view: str) -> None:
    """Counted and found where the model's own prompt has its image tokens."""
    plan = extract(home, store, small_onevision, view=view)
    capture = plan.job.spec.capture.id
    reader: Any = extraction.load_model(plan.job, home)
    line = reader.block(pictures([(64, 64)])).inputs["input_ids"][0]
    (image,) = (line == reader.image_id).nonzero(as_tuple=True)
    catalog = absorbed(home, store)
    rows = catalog.query("SELECT place, kind FROM tokens WHERE capture = $id ORDER BY place", {"id": capture}).rows
    assert [place + int(image[0]) for place, _ in rows] == image.tolist()
    ((grid, _),) = store.open_capture(capture).read([0], [Site("decoder", 0, "value")])
    cells = [p for p, kind in rows if kind == ("base" if view == "base" else "tile")]
    assert [int(image[0]) + p for p in cells] == list(grid.positions)


def test_a_score_has_its_cells_beside_it_in_sql(home: Home, store: Store, small_onevision: Path) -> None:
    """Boxes of an image's own size, joined through job, sample and image; they divide the grid's window."""
    (plan,) = score_jobs(
        home,
        store,
        task="correspondence",
        model=str(small_onevision),
        dataset="dots-test",
        parameters={},
        choices=Choices(**VALUES),
        controls=False,
    )
    run(home, store, plan)
    catalog = absorbed(home, store)
    joined = catalog.query(CELLS).rows
    assert len(joined) == 16
    ((_, stacks),) = extraction.load_model(plan.job, home).capture(pictures([(64, 64)]), [Site("decoder", 0, "value")])
    assert stacks[0].tokens.shape[2:4] == (4, 4)
    assert [(r[0], r[1]) for r in joined] == [(row, col) for row in range(4) for col in range(4)]
    grid = TokenGrid(4, 4, (0.0, 0.0, 64.0, 64.0))
    for row, col, left, top, right, bottom, value in joined:
        assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx(grid.centre(row, col))
        assert 0 <= value <= 1


CELLS = """
    SELECT "row", col, "left", top, "right", bottom, any_value(value)
    FROM scores
    JOIN jobs USING (job)
    JOIN samples USING (dataset, sample)
    JOIN images ON images.dataset = jobs.dataset AND images.image = samples.images[1]
    JOIN tokens USING (capture, width, height, view)
    WHERE jobs.kind = 'score' AND head = -1 AND metric = 'pck_image' AND tokens.kind = 'base' AND sample = 0
    GROUP BY ALL ORDER BY "row", col
"""


def test_every_size_has_its_map_once(tiny_model: Any, home: Home) -> None:
    """Sizes in rows: Qwen's grid follows the image's shape, and images of one size share their rows."""
    from vkvdb.jobs import CaptureSpec
    from vkvdb.models._checkpoint import resolve

    found = resolve(str(tiny_model("qwen2_5_vl")), home)
    sizes = [(280, 140), (140, 280), (280, 140), (300, 300)]
    images = [
        ImageRow(image=n, name=str(n), path=str(n), width=w, height=h, sha256="", bytes=0)
        for n, (w, h) in enumerate(sizes)
    ]
    columns = extraction.token_rows(found, CaptureSpec(model=found.spec, dataset="d"), images)
    counts: dict[tuple[int, int], int] = {}
    for size in zip(columns["width"], columns["height"], strict=True):
        counts[size] = counts.get(size, 0) + 1
    assert counts == {(140, 280): 50, (280, 140): 50, (300, 300): 121}
    square = extraction.token_rows(found, CaptureSpec(model=found.spec, dataset="d", square=56), images[:1])
    assert (max(square["right"]), max(square["bottom"]), len(square["place"])) == (280, 140, 4)


def test_a_newline_has_no_box_and_padding_lies_outside(home: Home, tmp_path: Path) -> None:
    from vkvdb.jobs import CaptureSpec
    from vkvdb.models._checkpoint import resolve

    image = [ImageRow(image=0, name="0", path="0", width=100, height=50, sha256="", bytes=0)]
    pads = resolve(str(tiny.llava(tmp_path / "pads", side=56, pads=True)), home)
    columns = extraction.token_rows(pads, CaptureSpec(model=pads.spec, dataset="d"), image)
    kinds = dict(zip(columns["place"], columns["kind"], strict=True))
    assert [kinds[p] for p in (0, 4, 8, 12)] == ["padding", "base", "base", "padding"]
    near = resolve(str(tiny.llava_next(tmp_path / "next", side=56)), home)
    columns = extraction.token_rows(near, CaptureSpec(model=near.spec, dataset="d", view="tiles"), image)
    boxes = zip(columns["kind"], columns["left"], columns["tile"], strict=True)
    assert {(kind == "newline") == (left is None) for kind, left, _ in boxes} == {True}
    assert {"base", "tile", "newline"} <= set(columns["kind"])


def test_once_for_a_capture_and_the_same_after_a_rebuild(home: Home, store: Store, small_onevision: Path) -> None:
    plan = extract(home, store, small_onevision)
    before = tree(store.root / "tokens")
    assert set(before) == {f"{plan.job.spec.capture.id}.{end}" for end in ("json", "parquet")}
    extract(home, store, small_onevision, layers=(1,))  # the same capture, another site
    assert tree(store.root / "tokens") == before
    extract(home, store, "pixels", layers=None, parts=None)  # no sequence, no map
    assert tree(store.root / "tokens") == before
    assert list(problems(store)) == []

    def dump(catalog: Catalog) -> list[Any]:
        return [catalog.query(f"FROM {table} ORDER BY ALL").rows for table in ("tokens", "token_maps")]

    catalog = absorbed(home, store)
    first = dump(catalog)
    assert first[1] == [(plan.job.spec.capture.id, 1, 17)]
    assert catalog.absorb(store).counts["token_maps"] == 0
    catalog.rebuild(store)
    assert dump(catalog) == first
    assert len(first[0]) == 17


def test_the_map_is_that_of_the_model_not_a_guess(
    home: Home, store: Store, small_onevision: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map that counts other positions than the prompt has never comes as far as the store."""
    from vkvdb.models._token_map import TokenMap

    monkeypatch.setattr(TokenMap, "count", property(lambda self: sum(p.count for p in self.panels) - 1))
    choices = Choices(**VALUES)
    plan = extract_job(home, store, model=str(small_onevision), dataset="dots-test", choices=choices)
    Queue(home.queue).enqueue(plan.job)
    (outcome,) = Worker(home, store, Queue(home.queue)).run_until_empty()
    assert outcome.state == "failed"
    assert not (store.root / "tokens").exists()
