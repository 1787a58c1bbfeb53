"""The correlation over models: its statistics on planted truths, its points in SQL, its words and charts."""

from __future__ import annotations

import json
import math
from itertools import permutations

import numpy as np
import polars as pl
import pytest
import synthetic

from vkvdb import analysis, registry, statistics
from vkvdb.catalog import Catalog
from vkvdb.errors import NothingToDraw
from vkvdb.jobs import Ask, CaptureSpec, Job, Provenance, digest
from vkvdb.paths import Home, shipped
from vkvdb.samples import Image, Question
from vkvdb.store import ImageRow, Store

IMAGES = 30
KINDS = ("count", "where")


# --- statistics ---


def pairs(seed, slope=1.5, models=12):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=models)
    return x, slope * x + draw.normal(size=models)


def test_coefficients_are_the_plain_ones():
    x, y = pairs(0, models=9)
    y[3] = y[5]
    found = statistics.correlation(x, y, np.arange(9) // 3, draws=99)
    assert found.pearson == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-12)
    ranks = [[np.mean([sorted(v).index(each), sorted(v)[::-1].index(each) * -1 + 8]) for each in v] for v in (x, y)]
    assert found.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1], rel=1e-12)
    kept = [np.arange(9) // 3 != family for family in range(3)]
    without = [np.corrcoef(x[some], y[some])[0, 1] for some in kept]
    assert found.pearson_without == pytest.approx((min(without), max(without)))
    z = np.arctanh(found.pearson)
    assert found.pearson_interval == pytest.approx((np.tanh(z - 1.96 / 6**0.5), np.tanh(z + 1.96 / 6**0.5)))
    assert (found.n, found.families) == (9, 3)


def test_few_items_are_permuted_in_every_way():
    x, y = pairs(1, models=5)
    plain = abs(np.corrcoef(x, y)[0, 1]) - 1e-12
    as_large = [abs(np.corrcoef(x, y[list(order)])[0, 1]) >= plain for order in permutations(range(5))]
    found = statistics.correlation(x, y, range(5))
    assert found.pearson_p == pytest.approx(np.mean(as_large))
    assert statistics.correlation(range(5), range(5), range(5)).spearman_p == pytest.approx(2 / 120)


def test_a_planted_correlation_is_found():
    found = [statistics.correlation(*pairs(seed, slope=5), range(12), draws=999, seed=seed) for seed in range(20)]
    assert all(one.pearson > 0.6 and one.pearson_p < 0.01 and one.spearman_p < 0.01 for one in found)


@pytest.mark.parametrize("name", ["pearson_p", "spearman_p"])
def test_a_permuted_one_is_found_as_often_as_chance_has_it(name):
    found = []
    for seed in range(200):
        x, y = pairs(seed)
        y = np.random.default_rng(1000 + seed).permutation(y)
        found.append(getattr(statistics.correlation(x, y, range(12), draws=399, seed=seed), name))
    # Of 200 at the rate .05, the binomial's 99.9 % lie between 2 and 22; of the p, a half below .5.
    assert 2 <= sum(p <= 0.05 for p in found) <= 22
    assert 75 <= sum(p <= 0.5 for p in found) <= 125


def test_what_is_not_defined_is_nan():
    constant = statistics.correlation([1.0] * 6, range(6), range(6))
    assert all(
        math.isnan(v) for v in (constant.pearson, constant.pearson_p, constant.spearman, *constant.pearson_without)
    )
    two = statistics.correlation([1, 2], [1, 2], [0, 1])
    assert math.isnan(two.pearson)
    assert math.isnan(two.spearman_p)
    alone = statistics.correlation(range(6), range(6), ["toy"] * 6)
    assert alone.pearson == pytest.approx(1)
    assert math.isnan(alone.pearson_without[0])


# --- a store ---


def questioned(store) -> synthetic.World:
    """A dataset whose images have a mask and two questions each."""
    world = synthetic.World(store)
    rows = [
        ImageRow(image=n, name=f"i{n}", path=f"{n}.jpg", width=64, height=48, sha256=f"{n:064x}", bytes=1000 + n)
        for n in range(IMAGES)
    ]
    samples = [
        Image(id=f"{n}", group=f"c{n % 3}", cluster=f"i{n}", image=f"i{n}", category="x", mask=synthetic.MASK)
        for n in range(IMAGES)
    ]
    samples += [
        Question(
            id=f"{n}-{kind}", group=kind, cluster=f"i{n}", shown=(f"i{n}",), text="?", answer="a", options=("a", "b")
        )
        for n in range(IMAGES)
        for kind in KINDS
    ]
    facts = {
        "name": "scenes-test",
        "adapter": "scenes",
        "adapter_version": 1,
        "split": "test",
        "root": "/data",
        "images": IMAGES,
        "samples": {"image": IMAGES, "question": 2 * IMAGES},
        "problems": [],
        "created": synthetic.WHEN,
        "host": "here",
        "versions": {},
    }
    world.datasets["scenes-test"] = digest("scenes")
    store.write_dataset(digest("scenes"), rows, samples, facts)
    return world


def ask(world, model, right, **capture) -> str:
    """An ask job; `right` (images, kinds) says which answers are. Letter likelihoods say the opposite."""
    made = world.models[model]
    dataset = world.datasets["scenes-test"]
    spec = Ask(capture=CaptureSpec(model=made.spec, dataset=dataset, **capture), asking_version=1)
    job = Job(spec=spec, provenance=Provenance(model=made.name, dataset="scenes-test"), edition=0)
    flat = [bool(r) for image in right for r in image]
    n = len(flat)
    columns = {
        "sample": list(range(IMAGES, IMAGES + n)),
        "variant": [0] * n,
        "prompt": ["?"] * n,
        "prompt_id": ["0"] * n,
        "raw": ["a" if r else "b" for r in flat],
        "likelihoods": [[-2.0, -1.0] if r else [-1.0, -2.0] for r in flat],
        "choice": [0 if r else 1 for r in flat],
        "likeliest": [1 if r else 0 for r in flat],
        "correct": flat,
        "answer": [0] * n,
    }
    world.store.write_rows("answers", job.id, 0, 0, columns, {"samples": n, "device": "cpu"})
    world.publish_job(job, n=n, of=n)
    return job.id


def planted(store, models=12) -> synthetic.World:
    """Models that answer as well as they segment; every second one is a random twin, the sixth of another family."""
    world = questioned(store)
    draw = np.random.default_rng(5)
    for n in range(models):
        name = f"m{n // 2}" + ("@random:0" if n % 2 else "")
        family = "llava_next" if n // 2 == 5 else "llava_onevision"
        world.model(name, family, layers=2, variant="random:0" if n % 2 else "")
        quality = 0.2 + 0.6 * ((5 * n) % models) / models
        world.score(
            name,
            lambda s, h, q=quality: q - 0.1 * (s.stage != "decoder") + 0.03 * h,
            dataset="scenes-test",
            task="foreground",
            metrics=("iou",),
            noise=0.05,
        )
        ask(world, name, draw.random((IMAGES, 2)) < quality)
    return world


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    home = Home(tmp_path_factory.mktemp("many"))
    world = planted(Store(home.store))
    # None of these is a point.
    world.model("m0@blank", variant="blank")
    world.model("alone", "dinov2", heads=0)
    common = {"dataset": "scenes-test", "task": "foreground", "metrics": ("iou",)}
    world.score("m0@blank", 0.9, **common)
    world.score("alone", 0.9, **common)
    world.score("m0", 0.9, prefix="a cat", **common)
    world.score("m0", 0.9, interventions=("knockout",), **common)
    ask(world, "m0@blank", np.ones((IMAGES, 2)))
    ask(world, "m0", np.ones((IMAGES, 2)), prefix="a cat")
    ask(world, "m0", np.ones((IMAGES, 2)), interventions=("knockout",))
    body = {
        "kind": "benchmark",
        "tool": "lmms_eval",
        "created": synthetic.WHEN,
        "rows": [
            {"model_name": f"m{n}", "benchmark": "mmbench", "metric": m, "value": 60.0 + n, "n": 100, "model": None}
            for n in range(6)
            for m in (("acc", "rare") if n == 0 else ("acc",))
        ],
    }
    world.store.publish_json(world.store.root / "benchmarks" / f"{'a' * 32}.json", body)
    assert Catalog(home.catalog).absorb(world.store).problems == []
    return home


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Three models; on the images that the first one reads better it answers better."""
    home = Home(tmp_path_factory.mktemp("few"))
    world = questioned(Store(home.store))
    for name in ("m0", "m0@random:0", "m1"):
        world.model(name, variant="random:0" if "@" in name else "")
        world.score(name, 0.5, dataset="scenes-test", task="foreground", metrics=("iou",))
    catalog = Catalog(home.catalog)
    catalog.absorb(world.store)
    sql = """SELECT sample, scores.value FROM scores JOIN chosen USING (job, site, head, metric)
             WHERE model_name = 'm0' AND stage = 'decoder' AND part = 'value' ORDER BY sample"""
    score = np.array([row[1] for row in catalog.query(sql).rows])
    assert len(score) == IMAGES
    better = score > np.median(score)
    draw = np.random.default_rng(2)
    ask(world, "m0", draw.random((IMAGES, 2)) < np.where(better, 0.9, 0.2)[:, None])
    ask(world, "m0@random:0", draw.random((IMAGES, 2)) < 0.5)
    catalog.absorb(world.store)
    return home


def module():
    return registry.import_file("vkvdb_analyses.correlation", shipped("analyses") / "correlation.py")


def drawn(found) -> tuple[dict, str]:
    chart = json.loads(found.chart.to_json())
    return chart, " ".join([*chart["title"]["text"], *chart["title"]["subtitle"]]).replace("\u00a0", " ")


def test_points_are_what_the_views_say(many):
    found = analysis.run(many, "correlation", {}).rows
    assert set(found["level"]) == {"model"}
    assert found["model_name"].to_list() == sorted(f"m{n}{twin}" for n in range(6) for twin in ("", "@random:0"))
    catalog = Catalog(many.catalog)
    x = """SELECT model_name, value FROM chosen WHERE stage = 'decoder' AND part = 'value' AND prefix = ''
           AND json_array_length(interventions) = 0"""
    y = """SELECT model_name, avg(accuracy) FROM answers_by_group WHERE prefix = '' AND swap = 0
           AND json_array_length(interventions) = 0 GROUP BY ALL"""
    gain = {
        (place, name): value
        for place, name, value in catalog.frame(
            (shipped("analyses") / "encoder.sql").read_text(),
            dict.fromkeys(analysis.parameters("encoder")),
        ).select("place", "subject_name", "difference").rows()
    }  # fmt: skip
    values, answers = dict(catalog.query(x).rows), dict(catalog.query(y).rows)
    for row in found.to_dicts():
        name = row["model_name"]
        assert row["x"] == pytest.approx(values[name])
        assert row["x_low"] < row["x"] < row["x_high"]
        assert row["y"] == pytest.approx(answers[name])
        assert row["y_low"] < row["y"] < row["y_high"]
        if "@" not in name:
            assert row["gain"] == pytest.approx(gain["projector", name])
        assert 0.05 < row["gain_low"] < row["gain"] < row["gain_high"] < 0.25
        assert (row["n"], row["n_y"]) == (IMAGES, 2 * IMAGES)


def test_the_error_of_answers_is_by_cluster(many):
    row = analysis.run(many, "correlation", {}).rows.row(0, named=True)
    sql = """SELECT correct::INTEGER, grp, cluster
             FROM answers JOIN jobs USING (job) JOIN samples USING (dataset, sample)
             WHERE jobs.id = $id"""
    right, kinds, clusters = zip(*Catalog(many.catalog).query(sql, {"id": row["asked_id"]}).rows, strict=True)
    wanted = statistics.linearised(right, 1.0, kinds, clusters)
    assert row["y_high"] - row["y"] == pytest.approx(wanted.high - wanted.mean, rel=1e-3)


def test_the_planted_correlation_is_drawn_and_said(many):
    chart, words = drawn(analysis.run(many, "correlation", {}))
    assert "Models that segment better (foreground) answer better (rank correlation ." in words
    assert "No relation of gaining more over the projector to answering better is told from chance" in words
    assert "n = 12" in words
    (row,) = chart["vconcat"]
    assert [panel["title"]["text"][0] for panel in row["hconcat"]] == ["n = 12 models of 2 families"] * 2
    assert all("without one family" in panel["title"]["text"][2] for panel in row["hconcat"])


def test_siblings_are_one_family_and_left_out_one_by_one(many):
    rows = analysis.run(many, "correlation", {}).rows.with_columns(pl.lit("llava_onevision").alias("family"))
    chart = json.loads(module().chart(rows).to_json())
    told = [panel["title"]["text"] for panel in chart["vconcat"][0]["hconcat"]]
    assert [lines[0] for lines in told] == ["n = 12 models of one family, llava_onevision"] * 2
    values = rows.to_dicts()
    alone = statistics.correlation([r["x"] for r in values], [r["y"] for r in values], range(12))
    low, high = (f"{v:.2f}".removeprefix("0") for v in alone.spearman_without)
    assert told[0][2].endswith(f"; without one model {low} to {high}")
    assert "famil" not in " ".join(line for lines in told for line in lines[1:])


def test_a_colour_is_a_family(many):
    chart, words = drawn(analysis.run(many, "correlation", {}))
    (one, two) = chart["vconcat"][0]["hconcat"]
    colours = [layer["encoding"]["color"] for panel in (one, two) for layer in panel["layer"]]
    assert {tuple(c["scale"]["domain"]) for c in colours} == {("llava_next", "llava_onevision")}
    assert {c["legend"] is None for c in colours[: len(one["layer"])]} == {False}
    assert {c["legend"] is None for c in colours[len(one["layer"]) :]} == {True}
    assert "families: llava_next, llava_onevision; without one family" in words
    assert chart["usermeta"]["findings"][0][0].startswith("Models that segment better (foreground) answer better (")


def test_likelihood_is_another_measure_and_benchmarks_another_y(many):
    _, words = drawn(analysis.run(many, "correlation", {"measure": "likelihood"}))
    assert "Models that segment better (foreground) answer worse" in words
    assert "likeliest letter" in words
    found = analysis.run(many, "correlation", {"benchmark": "mmbench"})
    known = {r["model_name"]: r["y"] for r in found.rows.to_dicts() if r["y"] is not None}
    assert known == {f"m{n}": 60.0 + n for n in range(6)}
    assert "mmbench, acc" in drawn(found)[1]
    rare = analysis.run(many, "correlation", {"benchmark": "mmbench", "benchmark_metric": "rare"})
    assert "1 model has both numbers: nothing can be concluded over models" in drawn(rare)[1]


def test_few_models_conclude_nothing_and_images_are_shown(few):
    found = analysis.run(few, "correlation", {})
    images = found.rows.filter(level="image")
    assert images.group_by("model_name").len().sort("model_name").rows() == [("m0", IMAGES), ("m0@random:0", IMAGES)]
    sql = """SELECT scores.value FROM scores JOIN chosen USING (job, site, head, metric)
             WHERE model_name = 'm0' AND stage = 'decoder' AND part = 'value' ORDER BY sample"""
    mine = images.filter(model_name="m0").sort("image")
    assert mine["x"].to_list() == pytest.approx([r[0] for r in Catalog(few.catalog).query(sql).rows])
    chart, words = drawn(found)
    assert "2 models have both numbers: nothing can be concluded over models (5 are needed)" in words
    assert "m0 better where read better (." in words
    assert "m0@random:0 no relation told from chance" in words
    assert len(chart["vconcat"][0]["hconcat"]) == 2


def test_fifths_have_their_intervals():
    rows = [{"x": float(n), "image": n, "y": float(n % 2), "cluster": f"{n // 2}", "n_y": 1} for n in range(40)]
    fifths = module().binned(rows)
    assert [f["x"] for f in fifths] == [3.5, 11.5, 19.5, 27.5, 35.5]
    assert all(f["n"] == "8 images in 4 clusters, 8 questions" for f in fifths)
    # The clusters do not differ: Wilson's interval of 2 in 4.
    assert all((f["y_low"], f["y_high"]) == pytest.approx((0.15, 0.85), abs=1e-3) for f in fifths)
    assert module().binned([{**r, "y": 1.0} for r in rows])[0]["y_low"] == pytest.approx(0.510, abs=1e-3)
    assert math.isnan(module().over_images(rows).spearman)
    assert module().over_images([{**r, "y": r["x"]} for r in rows]).n == 20


def test_models_that_were_not_asked_are_no_points(few):
    with pytest.raises(NothingToDraw, match=r"scored and asked.*vkvdb ask"):
        analysis.run(few, "correlation", {"measure": "words"})
    with pytest.raises(NothingToDraw):
        analysis.run(few, "correlation", {"task": "referring"})


def test_all_wrong_is_not_certain(few):
    world = synthetic.World(Store(few.store))
    world.datasets["scenes-test"] = digest("scenes")
    world.model("m2")
    world.score("m2", 0.5, dataset="scenes-test", task="foreground", metrics=("iou",))
    ask(world, "m2", np.zeros((IMAGES, 2)))
    Catalog(few.catalog).absorb(world.store)
    row = analysis.run(few, "correlation", {}).rows.filter(level="model", model_name="m2").row(0, named=True)
    assert row["y"] == 0
    assert row["y_low"] == pytest.approx(0, abs=1e-6)
    assert row["y_high"] == pytest.approx(3.8415 / (IMAGES + 3.8415), rel=1e-3)  # of 30 clusters
