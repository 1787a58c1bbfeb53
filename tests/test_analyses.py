from __future__ import annotations

import json
import re
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st

from vkvdb import analysis, registry
from vkvdb.catalog import Catalog
from vkvdb.errors import NothingToDraw
from vkvdb.paths import Home, shipped
from vkvdb.store import Store


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """A home whose catalog has a language model of 8 layers x 4 heads and every reference."""
    home = Home(tmp_path_factory.mktemp("rich"))
    world = synthetic.rich(Store(home.store), layers=8, heads=4, images=24)
    Catalog(home.catalog).absorb(world.store)
    return home


def layers():
    return registry.import_file("vkvdb_analyses.layers", shipped("analyses") / "layers.py")


@cache
def drawn(home: Home, **given):
    """The chart as Vega-Lite."""
    return json.loads(analysis.run(home, "layers", given).chart.to_json())


def values(panel, mark: str, **wanted) -> list[dict]:
    """The data of a panel's layers of one mark with these properties."""
    found = []
    for layer in panel["layer"]:
        properties = layer["mark"] if isinstance(layer["mark"], dict) else {"type": layer["mark"]}
        if properties["type"] == mark and wanted.items() <= properties.items():
            found += layer["data"]["values"] if "values" in layer["data"] else panel["datasets"][layer["data"]["name"]]
    return found


def panels(chart) -> list[dict]:
    return [
        {**panel, "datasets": chart.get("datasets", {})} for group in chart["vconcat"] for panel in group["vconcat"]
    ]


def titles(chart) -> list[str]:
    """The words above each group of panels."""
    return [
        " ".join([*group["title"]["text"], *group["title"]["subtitle"]]).replace("\u00a0", " ")
        for group in chart["vconcat"]
    ]


@pytest.mark.parametrize("name", registry.names("analyses"))
def test_every_analysis_has_a_help_line_and_says_what_its_parameters_are(name):
    assert registry.help_line("analyses", name)
    assert all(analysis.parameters(name).values())


def test_the_flow_chart_draws_every_head_and_the_best(rich):
    chart = drawn(rich)
    value, key = panels(chart)
    assert [p["title"]["text"] for p in (value, key)] == ["image value", "image key before rotation (key_unrotated)"]
    thin = values(value, "line", strokeWidth=0.8)
    assert {(v["x"], v["head"]) for v in thin} == {(n, h) for n in range(8) for h in range(4)}
    best = values(value, "line", strokeWidth=2.8)
    tops = {n: max(v["y"] for v in thin if v["x"] == n) for n in range(8)}
    assert {v["x"]: v["y"] for v in best} == tops
    assert all(v["low"] < v["y"] < v["high"] for v in values(value, "area"))
    (ring,) = values(value, "point", size=170)
    found = Catalog(rich.catalog).query(
        "SELECT layer, value FROM best_layer"
        " WHERE model_name = 'llava-onevision-7b' AND part = 'value' AND metric = 'pck_image'"
    )
    assert (ring["x"], ring["y"]) == found.rows[0]
    assert len(values(value, "line", strokeDash=[5, 3])) == 8  # heads concatenated


def test_the_flow_chart_draws_every_reference(rich):
    for panel in panels(drawn(rich)):
        labels = [v["label"] for v in values(panel, "text")]
        for wanted in ("tower", "projector", "siglip-so400m", "dinov2_small", "random twin", "blank image",
                       "raw pixels", "position only", "ceiling", "best head", "heads concatenated"):  # fmt: skip
            assert any(wanted in label for label in labels), wanted
        assert not any("random:0" in label for label in labels)  # that of another model
        assert len(labels) == len(set(labels))


def test_no_labels_overlap(rich):
    for panel in panels(drawn(rich)):
        low, high = panel["encoding"]["y"]["scale"]["domain"]
        column = [v["text_y"] for v in values(panel, "text", align="left")]
        heights = sorted((y - low) / (high - low) * panel["height"] for y in column)
        assert min(b - a for a, b in pairwise(heights)) > 13


def test_the_title_says_what_the_numbers_support(rich):
    ((words),) = titles(drawn(rich))
    best = Catalog(rich.catalog).frame(
        "FROM best_layer WHERE model_name = 'llava-onevision-7b' AND part = 'value' AND metric = 'pck_image'"
    ).to_dicts()[0]  # fmt: skip
    assert f"Best image value at layer {best['layer']}, head {best['head']} (in-sample): .4" in words
    above, _, rest = words.partition("; ")
    assert "raw pixels .0" in above
    assert "random twin" in above
    assert "dinov2_small" not in above
    assert "self-warp (geometric), not semantic" in rest
    assert "n = 48 of 48 samples in 24 clusters" in rest
    for (job,) in Catalog(rich.catalog).query("SELECT id FROM jobs WHERE model_name <> 'dinov2_small@random:0'").rows:
        assert job[:8] in rest


def test_words_of_comparison_follow_the_intervals():
    compared = layers()._compared
    best = {"low": 0.40, "high": 0.46}
    assert compared(best, {"low": 0.1, "high": 0.39}) == "above"
    assert compared(best, {"low": 0.1, "high": 0.41}) == "not told apart from"
    assert compared(best, {"low": 0.47, "high": 0.5}) == "below"
    assert compared(best, {"low": None, "high": None}) == "not told apart from"


@pytest.mark.parametrize(
    ("value", "text"), [(0.434, ".43"), (-0.031, "-.03"), (1.0, "1.00"), (0.0, ".00"), (0.999, "1.00"), (57.31, "57.3")]
)
def test_numbers_are_short(value, text):
    assert layers()._number(value) == text


def test_tooltips_have_n_and_interval(rich):
    value, _ = panels(drawn(rich))
    mark = values(value, "point", size=170)[0]
    assert re.fullmatch(r"\.\d\d \[\.\d\d, \.\d\d\]", mark["shown"])
    assert mark["counts"].startswith("n = 48 of 48")
    assert {t["field"] for layer in value["layer"] for t in layer["encoding"]["tooltip"]} >= {
        "shown",
        "counts",
        "id",
        "what",
    }


def test_options_choose(rich):
    assert [p["title"]["text"] for p in panels(drawn(rich, part="key"))] == [
        "image key as cached, after rotation (key)"
    ]
    assert "metric pck_point" in titles(drawn(rich, metric="pck_point"))[0]
    encoder = drawn(rich, model="dinov2_small")
    (panel,) = panels(encoder)
    assert "Best hidden state at layer 12 (in-sample)" in titles(encoder)[0]
    assert any("random twin" in v["label"] for v in values(panel, "text"))  # its own
    with pytest.raises(NothingToDraw):
        drawn(rich, part="position")


class Loaded(HTMLParser):
    """What a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.sources += [v for k, v in attrs if k in ("src", "href") and tag in ("script", "link", "img", "iframe")]


def test_files_are_written_and_the_page_loads_nothing(rich, tmp_path):
    paths = analysis.save(analysis.run(rich, "layers", {"part": "value"}), tmp_path)
    assert [p.name for p in paths] == ["layers.html", "layers.png", "layers.svg"]
    page = Loaded()
    page.feed((tmp_path / "layers.html").read_text())
    assert page.sources == []
    assert "llava-onevision-7b" in (tmp_path / "layers.html").read_text()
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "layers.svg").read_text()
    assert "best head" in svg
    assert svg.count("<path") > 20


@pytest.fixture
def world(tmp_path):
    return synthetic.small(Store(tmp_path / "home/store"))


def absorbed(world, tmp_path) -> Home:
    home = Home(tmp_path / "home")
    Catalog(home.catalog).absorb(world.store)
    return home


def test_jobs_that_match_alike_are_drawn_apart(world, tmp_path):
    other = world.score("onevision", 0.9, dtype="float16")
    chart = drawn(absorbed(world, tmp_path), part="value")
    (panel,) = panels(chart)
    assert len({v["job"] for v in values(panel, "line", strokeWidth=2.8)}) == 2
    labels = [v["label"] for v in values(panel, "text")]
    assert {"best head (dtype float16)", "best head (dtype of the checkpoint)"} <= set(labels)
    assert other[:8] in titles(chart)[0]
    assert "(dtype float16; in-sample)" in titles(chart)[0]


def test_what_is_not_comparable_is_left_out_or_drawn_apart(world, tmp_path):
    left_out = [
        world.score("onevision", 0.9, prefix="a cat"),
        world.score("onevision", 0.9, square=336),
        world.score("onevision", 0.9, interventions=("knockout",)),
        world.score("onevision", 0.9, limit=10),
    ]
    world.score("onevision", 0.5, task="foreground", metrics=("iou",), limit=20)
    world.score("onevision@random:0", 0.1, task="foreground", metrics=("iou",), limit=6)
    chart = drawn(absorbed(world, tmp_path), part="value")
    assert len(chart["vconcat"]) == 2
    words = " ".join(titles(chart))
    assert not any(job[:8] in words for job in left_out)
    assert "task foreground on coco-val, metric iou" in words
    assert "n = 20 of 48" in words  # nothing fuller was scored
    assert words.count("(n = ") == words.count("onevision@random:0 (n = 6)") == 1


def test_encoders_alone_flow_through_their_own_layers(tmp_path):
    world = synthetic.World(Store(tmp_path / "home/store"))
    world.dataset()
    world.model("dinov2_small", "dinov2", layers=4, heads=0)
    world.score("dinov2_small", lambda s, h: 0.2 + 0.1 * s.layer)
    world.model("pixels", "pixels", layers=1, heads=0)
    world.score("pixels", 0.1)
    chart = drawn(absorbed(world, tmp_path))
    (panel,) = panels(chart)
    assert panel["encoding"]["x"]["axis"]["title"] == "encoder layer"
    assert [v["x"] for v in values(panel, "line", strokeWidth=2.8)] == [0, 1, 2, 3]
    assert "above raw pixels" in titles(chart)[0]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 400), max_size=20), st.floats(5, 20))
def test_labels_are_pushed_apart_in_order(heights, gap):
    placed = layers()._apart(heights, gap, 420)
    ranks = sorted(range(len(heights)), key=lambda i: heights[i])
    steps = [placed[b] - placed[a] for a, b in pairwise(ranks)]
    assert all(step >= gap - 1e-6 for step in steps)
    if len(heights) * gap < 400:
        assert all(-1e-6 <= p <= 420 + 1e-6 for p in placed)
    if all(abs(a - b) > gap for i, a in enumerate(heights) for b in heights[:i]):
        assert placed == pytest.approx(heights)
