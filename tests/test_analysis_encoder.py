"""Image values against encoders: the paired difference, what is said of it, and the chart."""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import pytest
import synthetic

from vkvdb import analysis, registry
from vkvdb.catalog import Catalog
from vkvdb.paths import Home, shipped
from vkvdb.store import Store


def module():
    return registry.import_file("vkvdb_analyses.encoder", shipped("analyses") / "encoder.py")


def home_of(world, tmp_path) -> Home:
    home = Home(tmp_path / "home")
    assert Catalog(home.catalog).absorb(world.store).problems == []
    return home


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """A language model with every reference; what is 0.43 at best stands beside 0.34 (tower) and up to 0.54."""
    folder = tmp_path_factory.mktemp("encoder")
    world = synthetic.rich(Store(folder / "home/store"), layers=4, heads=2, images=20)
    world.model("llava-onevision-7b@random:1", layers=4, heads=2, variant="random:1")
    world.score("llava-onevision-7b@random:1", 0.3, metrics=("pck_image", "pck_point"))
    return home_of(world, folder)


@pytest.fixture(scope="module")
def rows(rich):
    return analysis.run(rich, "encoder", {}).rows.to_dicts()


# --- the paired difference ---


def crossed(catalog, job, stage, part):
    """{sample: (grp, cluster, value, weight)}, each read by the choice that was made on the half that it is not in."""
    sql = """SELECT sample, site, head, grp, cluster, value, weight
             FROM scores JOIN jobs USING (job) JOIN samples USING (dataset, sample) JOIN sites USING (site)
             WHERE jobs.id = $job AND stage = $stage AND part = $part AND metric = 'pck_image'"""
    found = catalog.query(sql, {"job": job, "stage": stage, "part": part}).rows
    clusters = sorted({row[4] for row in found}, key=lambda c: (hashlib.md5(f"{c}:0".encode()).hexdigest(), c))
    half = {cluster: (place + 1) % 2 for place, cluster in enumerate(clusters)}
    places = sorted({row[1:3] for row in found if row[2] >= 0 or stage != "decoder"})
    best = {}
    for on in (0, 1):
        means = {}
        for place in places:
            mine = [row for row in found if row[1:3] == place and half[row[4]] == on]
            means[place] = np.mean(
                [
                    np.average([r[5] for r in mine if r[3] == g], weights=[r[6] for r in mine if r[3] == g])
                    for g in {r[3] for r in mine}
                ]
            )
        best[on] = max(places, key=lambda place: means[place])
    return {row[0]: row[3:] for row in found if row[1:3] == best[1 - half[row[4]]]}


def plain(one, other):
    """The difference of two crossed readings and its error by cluster, by the formula in encoder.sql's terms."""
    both = sorted(one.keys() & other.keys())
    groups = sorted({one[n][0] for n in both})
    means = {}
    for which, found in enumerate((one, other)):
        for g in groups:
            mine = [found[n] for n in both if found[n][0] == g]
            weight = sum(m[3] for m in mine)
            means[which, g] = (sum(m[2] * m[3] for m in mine) / weight, weight)
    difference = np.mean([means[0, g][0] - means[1, g][0] for g in groups])
    parts = {}
    for n in both:
        total = 0.0
        for which, found, sign in ((0, one, 1), (1, other, -1)):
            g, _, value, weight = found[n]
            mean, whole = means[which, g]
            total += sign * weight * (value - mean) / whole / len(groups)
        parts[one[n][1]] = parts.get(one[n][1], 0.0) + total
    count = len(parts)
    return difference, math.sqrt(count / (count - 1) * sum(e * e for e in parts.values())), count


@pytest.mark.parametrize(
    ("place", "stage", "part"),
    [
        ("tower", "encoder", "hidden"),
        ("projector", "projector", "hidden"),
        ("random weights", "decoder", "value"),
        ("encoder dinov2_small", "encoder", "hidden"),
        ("raw pixels", "encoder", "hidden"),
    ],
)
def test_the_difference_is_the_plain_one(rich, rows, place, stage, part):
    found = {row["place"]: row for row in rows}
    catalog = Catalog(rich.catalog)
    own = crossed(catalog, found["subject"]["id"], "decoder", "value")
    difference, error, clusters = plain(own, crossed(catalog, found[place]["id"], stage, part))
    row = found[place]
    assert row["difference"] == pytest.approx(difference, rel=1e-5)
    # Student's t at 97.5 % with 19 degrees of freedom.
    assert clusters == 20
    assert (row["difference_high"] - row["difference"]) / error == pytest.approx(2.0930, rel=1e-3)
    assert row["difference"] - row["difference_low"] == pytest.approx(row["difference_high"] - row["difference"])


def test_a_fixed_layer_is_paired_too(rich, rows):
    row = next(r for r in rows if r["place"] == "encoder dinov2_small, last layer")
    assert (row["layer"], row["is_chosen"], row["choices"]) == (12, False, None)
    catalog = Catalog(rich.catalog)
    sql = """SELECT sample, grp, cluster, value, weight
             FROM scores JOIN jobs USING (job) JOIN samples USING (dataset, sample) JOIN sites USING (site)
             WHERE jobs.id = $job AND stage = 'encoder' AND layer = 12 AND metric = 'pck_image'"""
    fixed = {r[0]: r[1:] for r in catalog.query(sql, {"job": row["id"]}).rows}
    own = crossed(catalog, next(r["id"] for r in rows if r["place"] == "subject"), "decoder", "value")
    assert row["difference"] == pytest.approx(plain(own, fixed)[0], rel=1e-5)


# --- rows ---


def test_every_place_has_a_row_of_its_own(rows):
    assert sorted(row["place"] for row in rows) == sorted(
        [
            "subject",
            "tower",
            "projector",
            "raw pixels",
            "blank image",
            "random weights",
            "random weights 1",  # never averaged with the other twin
            *(f"encoder {name}{layer}" for name in ("dinov2_small", "siglip-so400m") for layer in ("", ", last layer")),
            "encoder siglip-so400m, layer 26",  # what a tower of 27 layers gives to the projector
        ]
    )
    apart = {row["place"]: row["difference"] for row in rows if row["place"] != "subject"}
    assert apart["random weights"] - apart["random weights 1"] == pytest.approx(0.18, abs=0.1)
    assert next(row["difference"] for row in rows if row["place"] == "subject") is None


def test_what_is_not_comparable_is_left_out(tmp_path):
    world = synthetic.small(Store(tmp_path / "home/store"))
    left_out = [
        world.score("onevision", 0.9, prefix="a cat"),
        world.score("onevision", 0.9, square=336),
        world.score("onevision", 0.9, interventions=("knockout",)),
        world.score("onevision", 0.9, dtype="float16"),
        world.score("onevision", 0.9, limit=10),
        world.score("dinov2_small", 0.9, prefix="a cat"),
    ]
    found = analysis.run(home_of(world, tmp_path), "encoder", {}).rows
    assert not set(found["id"]) & set(left_out)
    assert found.filter(place="subject")["value"].item() == pytest.approx(0.5, abs=0.15)


def test_options_choose(rich):
    key = analysis.run(rich, "encoder", {"part": "key"}).rows
    assert set(key.filter(place="subject")["part"]) == {"key"}
    assert set(analysis.run(rich, "encoder", {"metric": "pck_point"}).rows["metric"]) == {"pck_point"}
    twin = analysis.run(rich, "encoder", {"model": "llava-onevision-7b@random:1"}).rows
    assert set(twin["subject_name"]) == {"llava-onevision-7b@random:1"}
    assert "random weights" in twin["place"].to_list()  # the other twin


# --- words and chart ---


def row(place, difference=None, wide=0.05, **other):
    edges = (None, None) if difference is None else (difference - wide, difference + wide)
    common = {"task": "foreground", "subject_name": "toy", "is_chosen": True, "difference": difference}
    return {**common, "place": place, "difference_low": edges[0], "difference_high": edges[1], **other}


def test_the_title_says_what_the_differences_support():
    finding = module().finding
    said = finding([row("subject"), row("tower", 0.2), row("projector", 0.01), row("encoder siglip", -0.3)])
    assert said == (
        "foreground: the image values of toy hold more than its vision tower, hold less than encoder siglip, "
        "are not told apart from its projector"
    )
    said = finding([row("subject"), row("tower", 0.2), row("projector", 0.3), row("random weights", 0.3)])
    assert said == "foreground: the image values of toy hold more than its vision tower and its projector"
    fixed = row("encoder siglip, last layer", 0.3, is_chosen=False)
    assert "nothing to compare" in finding([row("subject"), fixed])
    assert "nothing to compare" in finding([row("subject"), row("tower", 0.3, wide=math.nan, difference_low=None)])
    assert "nothing to compare" in finding([row("tower", 0.3)])


def test_twins_keep_their_seeds():
    label = module()._label
    assert label("random weights 1") == ("random weights 1", label("random weights")[1])
    assert label("random decoder 2")[0] == "random decoder under it 2"
    assert label("encoder random weights")[0] == "encoder random weights"


@pytest.mark.parametrize(
    ("tower", "words"),
    [
        (0.2, "hold more than its vision tower and its projector"),
        (0.5, "hold more than its projector, are not told apart from its vision tower"),
        (0.8, "hold more than its projector, hold less than its vision tower"),
    ],
)
def test_planted_differences_are_found(tmp_path, tower, words):
    """A model alone: no encoder, no twin."""
    world = synthetic.World(Store(tmp_path / "home/store"))
    world.dataset()
    world.model("onevision", layers=2)
    # Noise is drawn by the job, and .5 is the best head's own mean.
    world.score("onevision", lambda s, h: tower if s.stage == "encoder" else 0.1 + 0.4 * (s.layer == 1 and h == 1))
    found = analysis.run(home_of(world, tmp_path), "encoder", {})
    assert set(found.rows["place"]) == {"subject", "tower", "projector"}
    (panel,) = json.loads(found.chart.to_json())["vconcat"]
    assert " ".join(panel["title"]["text"]) == f"correspondence: the image values of onevision {words}"
    assert "n = 48 of 48 samples in 24 clusters" in panel["title"]["subtitle"][0]


def test_many_tasks_are_panels(tmp_path):
    world = synthetic.small(Store(tmp_path / "home/store"))
    for task in ("foreground", "referring"):
        for model in ("onevision", "dinov2_small"):
            world.score(model, 0.5, task=task, metrics=("iou",))
    world.model("other", layers=2)
    world.score("other", 0.4)
    chart = json.loads(analysis.run(home_of(world, tmp_path), "encoder", {}).chart.to_json())
    titles = [" ".join(panel["title"]["text"]) for panel in chart["vconcat"]]
    assert [title.split(":")[0] for title in titles] == ["correspondence", "correspondence", "foreground", "referring"]
    assert "of onevision" in titles[0]
    assert "of other" in titles[1]
    for panel in chart["vconcat"]:
        named = [value["y"] for value in chart["datasets"][panel["layer"][0]["data"]["name"]]]
        assert len(named) == len(set(named)) > 2


def test_groups_of_one_cluster_each_are_no_certainty(home):
    world = synthetic.World(Store(home.store))
    world.dataset(labels=[(f"g{n}", f"c{n}") for n in range(6)])
    world.model("onevision", layers=2)
    world.score("onevision", lambda s, h: 0.5 if s.stage == "decoder" else 0.3, noise=0.1)
    Catalog(home.catalog).absorb(world.store)
    rows = {r["place"]: r for r in analysis.run(home, "encoder").rows.to_dicts()}
    for place in ("tower", "projector"):
        row = rows[place]
        # The error of six differences with a spread of .1 * sqrt(2), give or take, by Student's t.
        assert 0.05 < row["difference_high"] - row["difference_low"] < 0.8
