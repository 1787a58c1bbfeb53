from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import socket
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import answered
import numpy as np
import PIL.Image
import pytest
import synthetic
import vl_convert

from vkvdb import analysis, charting, findings, pictures, report, tracking
from vkvdb.catalog import Catalog
from vkvdb.errors import NothingToDraw, TrackingFailed
from vkvdb.paths import Home
from vkvdb.store import Store
from vkvdb_cli.main import main

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Elements, texts and references of a page; `open` is empty when every element was closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.found, self.references, self.specs, self.tables = [], [], [], [], []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.references += [(tag, v) for k, v in attributes if k in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tag, attributes = self.open[-1] if self.open else ("", {})
        if tag == "script" and attributes.get("type") == "application/json":
            self.specs.append(json.loads(data))
        elif tag not in ("script", "style"):
            self.text += data
        if any(t in ("td", "th") for t, _ in self.open):
            self.tables[-1][-1][-1] += data


def written(home: Home, model="onevision", against=None, dataset="coco-val") -> str:
    out = home.root / "report.html"
    assert report.write(home, model, dataset, out, against, pictures=0, track=False) == out
    return out.read_text()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    home = Home(tmp_path_factory.mktemp("small"))
    synthetic.small(Store(home.store))
    return home


@pytest.fixture(scope="module")
def text(small):
    return written(small, against="dinov2_small")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_the_page_is_whole_and_asks_for_nothing(text, page):
    assert page.open == []
    ids = [a["id"] for _, a in page.found if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, reference in page.references:
        assert reference.startswith(("data:", "#")), (tag, reference)
        assert not reference.startswith("#") or reference[1:] in ids
    ours = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"https?://|url\(|@import|fetch\(", ours)
    (policy,) = (a["content"] for t, a in page.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"https?:|\*", policy)


def test_vegas_scripts_stand_in_it_once(text, page):
    assert text.count("window.vegaEmbed=") == 1
    assert len([1 for t, a in page.found if t == "script" and "type" not in a]) == 2
    assert len([1 for t, a in page.found if a.get("class") == "chart"]) == len(page.specs) == 3


def test_every_chart_is_drawn(page):
    for spec in page.specs:
        svg = vl_convert.vegalite_to_svg(spec)
        groups = [g for g in ET.fromstring(svg).iter() if "role-mark" in g.get("class", "")]
        assert sum(len(g) for g in groups) > 5
        assert "NaN" not in svg


def test_tables_state_n_and_interval(small, page):
    (table,) = (t for t in page.tables if t[0][0] == "read at" and "job" in t[0] and "layer" in t[0])
    head = [h.strip() for h in table[0]]
    assert {"n", "value [95 % interval]", "image values less this, paired [95 % interval]", "in-sample"} <= set(head)
    rows = {r[0].strip(): dict(zip(head, (c.strip() for c in r), strict=True)) for r in table[1:]}
    chosen = Catalog(small.catalog).frame(
        "SELECT * FROM chosen WHERE model_name = 'onevision' AND stage = 'decoder' AND part = 'value'"
    )
    (best,) = chosen.to_dicts()
    value = rows["image values"]
    assert value["value [95 % interval]"] == f"{best['value']:.3f} [{best['low']:.3f}, {best['high']:.3f}]"
    assert (value["layer"], value["head"], value["n"]) == (str(best["layer"]), str(best["head"]), "48 of 48")
    assert {"projector", "tower", "random weights", "encoder dinov2_small", "position only (floor)"} <= set(rows)
    assert all(
        re.fullmatch(r"-?\d\.\d{3} \[-?\d\.\d{3}, -?\d\.\d{3}\]", r["value [95 % interval]"]) for r in rows.values()
    )


def test_the_summary_says_what_the_intervals_support(page):
    said = " ".join(page.text.split())
    # 0.5 at the best site, 0.3 in tower and projector, 0.1 in the twin.
    sentence = re.search(r"correspondence \(pck\): image values [^;]+?Paired by sample: ([^.]+)\.", said)
    assert sentence
    assert re.fullmatch(r"above .*projector.*", sentence[1])
    assert "random weights" in sentence[1]
    assert "Of 1 tasks that both define, image values are, against the projector's output: above it in 1" in said


def test_no_difference_is_said_to_be_none(home):
    world = synthetic.World(Store(home.store))
    world.dataset()
    world.model("flat")
    world.score("flat", 0.4)
    said = " ".join(Page(written(home, "flat")).text.split())
    assert "not told apart from" in re.search(r"Paired by sample: ([^.]+)\.", said)[1]
    assert "above it in 0" in said


def test_a_comparison_is_paired(small, page):
    (table,) = (t for t in page.tables if t[0][0] == "task")
    assert (table[0][2].strip(), table[0][5].strip()) == ("onevision [95 % interval]", "dinov2_small [95 % interval]")
    mean, low, high = map(float, re.findall(r"-?\d\.\d+", table[1][8]))
    assert low < 0.5 - 0.35 < high
    assert low < mean < high
    assert table[1][9] == "48"


def test_a_revision_is_named_by_its_id(home):
    world = synthetic.World(Store(home.store))
    world.dataset()
    world.model("base")
    world.score("base", 0.4)
    world.model("base", family_version=2)
    world.score("base", 0.6, seconds=20)
    catalog = Catalog(home.catalog)
    catalog.absorb(world.store)
    one = findings.subject(catalog, "base", "coco-val")
    (other,) = one.others
    two = findings.subject(catalog, other[:8], "coco-val")
    assert two.model["id"] == other != one.model["id"]
    assert f"--against {other[:8]}" in " ".join(Page(written(home, "base")).text.split())


def test_hostile_names_are_text(home):
    world = synthetic.World(Store(home.store))
    world.dataset("coco-</title><script>alert(1)</script>")
    name = "</script><script>alert('&\"')</script>"
    world.model(name)
    world.score(name, 0.4, dataset="coco-</title><script>alert(1)</script>", notes={"title": "<img src=x onerror=y>"})
    text = written(home, name, dataset="coco-</title><script>alert(1)</script>")
    page = Page(text)
    assert page.open == []
    assert len([1 for t, a in page.found if t == "script" and "type" not in a]) == 2
    assert not [t for t, _ in page.found if t == "img"]
    assert name in page.text
    assert name in json.dumps(page.specs, ensure_ascii=False).replace('\\"', '"')


def test_a_model_without_decoder_and_a_single_job(home):
    world = synthetic.World(Store(home.store))
    world.dataset()
    world.model("dinov2_small", "dinov2", layers=4, heads=0)
    job = world.score("dinov2_small", lambda s, h: 0.2 + 0.05 * s.layer)
    page = Page(written(home, "dinov2_small"))
    assert job in json.dumps(page.found)
    assert len(page.specs) == 1
    nothing = [a for _, a in page.found if a.get("class") == "nothing"]
    assert len(nothing) >= 3
    assert "vkvdb calibrate --model dinov2_small" in page.text


def test_provenance_names_jobs_hashes_and_versions(small, page):
    catalog = Catalog(small.catalog)
    for table, columns in (("models", "id, checkpoint"), ("datasets", "id")):
        for row in catalog.query(f"SELECT {columns} FROM {table}").rows:
            assert all(part in page.text for part in row)
    titles = {a.get("title") for _, a in page.found}
    assert {r[0] for r in catalog.query("SELECT id FROM jobs").rows} <= titles
    assert '"python"' in page.text


def test_what_was_not_measured_is_one_line(small, capsys, monkeypatch):
    with pytest.raises(NothingToDraw, match="onevision on coco-val") as refused:
        written(small, "onevison")
    assert "\n" not in str(refused.value)
    with pytest.raises(NothingToDraw, match="other-val"):
        written(small, dataset="other-val")


def test_pictures_that_cant_be_made_are_told(small):
    out = small.root / "pictures.html"
    report.write(small, "onevision", "coco-val", out, pictures=1, track=False)
    page = Page(out.read_text())
    (section,) = (a for t, a in page.found if a.get("id") == "pictures")
    assert section
    assert "onevision" in page.text.partition("Pictures")[2]


def test_the_command_writes_and_keeps_it_in_mlflow_or_says_why_not(home, capsys, monkeypatch):
    synthetic.small(Store(home.store))
    kept = []
    monkeypatch.setattr(tracking, "log_page", lambda *given, **_: kept.append(given))
    options = ["report", "--model", "onevision", "--dataset", "coco-val", "--pictures", "0"]
    assert main(options) == 0
    out, err = capsys.readouterr()
    path = home.charts / "report-onevision-coco-val.html"
    assert (out.strip(), err) == (str(path), "")
    (given,) = kept
    assert given[1:4] == ("coco-val/report", "report onevision coco-val", path)
    assert {n: c[:4] for n, c in given[4].items()} == {f"charts/{n}.png": b"\x89PNG" for n in ("encoder", "layers")}

    def failing(*_, **__):
        raise TrackingFailed(uri="x", why="y")

    monkeypatch.setattr(tracking, "log_page", failing)
    assert main([*options, "--out", str(home.root / "a folder" / "r.html")]) == 0
    err = capsys.readouterr().err
    assert (err.count("\n"), "did not answer" in err) == (1, True)
    assert (home.root / "a folder" / "r.html").stat().st_size > 500_000
    (home.root / "file").write_text("")
    assert main([*options, "--no-track", "--out", str(home.root / "file" / "r.html")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture
def surfaced(home):
    """Ten questions, read right by head 1 of layer 1 and answered right but for the first nine."""
    world = synthetic.World(Store(home.store))
    answered.questions(world, {"Art_Style": 10})
    world.model("onevision", layers=2)
    best = (1, 1)
    reading = lambda s, h: np.full(10, float(s.stage == "decoder" and (s.layer, h) == best))  # noqa: E731
    answered.ask(world, "onevision", [False] * 9 + [True], reading=reading, samples=range(10), unread=(0,))
    answered.read(world, "onevision", reading, range(10))
    return home


def test_questions_that_surface_are_listed(surfaced):
    page = Page(written(surfaced, dataset=answered.DATASET))
    (table,) = (t for t in page.tables if t[0][0] == "images")
    assert len(table) == 1 + pictures.MOST
    assert "Art_Style: 8 of 9 such questions" in page.text
    images, question, right, read, wrote, likeliest, _ = (" ".join(cell.split()) for cell in table[1])
    assert "its root /data is gone" in images
    assert (question, right, wrote, likeliest) == ("which?", "(A) A", "\u201c?\u201d can't be read", "(B) B")
    assert read == "(A) A layer 1, head 1; right in 100 % of the other fold"
    assert table[2][4].split() == ["\u201c(B)\u201d", "(B)", "B"]


def test_a_thumbnail_is_small_and_whole(tmp_path):
    image = PIL.Image.new("RGB", (400, 200), (200, 30, 30))
    image.save(tmp_path / "a.png")
    digest = hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    uri = pictures._thumbnail(tmp_path, SimpleNamespace(path="a.png", sha256=digest, recipe=""))
    kind, _, data = uri.partition(",")
    assert kind == "data:image/webp;base64"
    with PIL.Image.open(io.BytesIO(base64.b64decode(data))) as small:
        assert small.size == (96, 48)
        assert abs(small.getpixel((50, 20))[0] - 200) < 8


def test_choices_are_drawn_by_layer_beside_chance(surfaced):
    Catalog(surfaced.catalog).absorb(Store(surfaced.store))
    found = analysis.run(surfaced, "layers", {"task": "choices"})
    (chance,) = found.rows.filter(role="chance", panel_part="value").to_dicts()
    assert (chance["value"], chance["low"], chance["high"], chance["n"]) == (0.5, 0.5, 0.5, 10)
    said = charting.findings_of(found.chart.to_dict())[0]
    assert said[0].startswith("Best image value at layer 1, head 1")
    assert "chance\u00a0.50" in said[1]


def test_no_network_is_touched(small, monkeypatch):
    def refused(*_):
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refused)
    assert "<html" in written(small)
