from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time

import duckdb
import pytest
import synthetic
from by_hand import mean_and_error
from scipy import stats

from vkvdb import catalog as catalog_module
from vkvdb import statistics, upgrading
from vkvdb.catalog import Catalog
from vkvdb.errors import BadQuery, CatalogFailed, CatalogLocked
from vkvdb.schema import metadata, number
from vkvdb.store import Store
from vkvdb.types import PARTS, STAGES, Site


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return synthetic.small(Store(tmp_path_factory.mktemp("published") / "store"))


@pytest.fixture
def world(tmp_path, published):
    """A world of this test's own."""
    shutil.copytree(published.store.root, tmp_path / "store", copy_function=os.link)
    return synthetic.World(Store(tmp_path / "store"), dict(published.datasets), dict(published.models))


@pytest.fixture
def catalog(tmp_path):
    """A catalog that is not there yet."""
    return Catalog(tmp_path / "catalog.duckdb")


@pytest.fixture(scope="module")
def filled_file(tmp_path_factory, published):
    made = Catalog(tmp_path_factory.mktemp("filled") / "catalog.duckdb")
    made.absorb(published.store)
    return made.path


@pytest.fixture
def filled(filled_file, catalog):
    """A catalog of this test's own that has absorbed the world."""
    shutil.copy(filled_file, catalog.path)
    return catalog


def dump(catalog: Catalog) -> dict[str, list[tuple]]:
    return {table.name: sorted(catalog.query(f"FROM {table.name}").rows, key=repr) for table in metadata.sorted_tables}


def value(catalog: Catalog, sql: str, **parameters):
    ((found,),) = catalog.query(sql, parameters).rows
    return found


# --- absorbing ---


def test_everything_is_absorbed_once(catalog, world):
    first = catalog.absorb(world.store)
    assert {table: n for table, n in first.counts.items() if n} == {"models": 3, "datasets": 1, "jobs": 3}
    assert str(first) == "3 models, 1 datasets, 3 jobs"
    assert first.problems == []
    before = dump(catalog)
    assert {name: len(rows) for name, rows in before.items() if name in ("images", "samples")} == {
        "images": 24,
        "samples": 48,
    }
    assert len(before["scores"]) == sum(
        m["rows"] for job in first.jobs for m in world.store.score_shards(job, 0).values()
    )
    again = catalog.absorb(world.store)
    assert (str(again), again.jobs) == ("nothing new", [])
    assert dump(catalog) == before


def test_columns_say_what_manifests_say(filled, world):
    job = world.score(
        "onevision",
        limit=10,
        prefix="a cat",
        square=336,
        dtype="float16",
        interventions=("knockout",),
        notes={"title": "T"},
    )
    filled.absorb(world.store)
    (row,) = filled.frame("FROM jobs WHERE id = $job", {"job": job}).to_dicts()
    manifest = world.store.job(job, 0)
    assert (row["prefix"], row["square"], row["dtype"], row["limited"], row["view"]) == (
        "a cat",
        336,
        "float16",
        10,
        "base",
    )
    assert (row["model_name"], row["dataset_name"], row["n"], row["of"]) == ("onevision", "coco-val", 10, 48)
    assert json.loads(row["interventions"]) == ["knockout"]
    assert json.loads(row["spec"]) == manifest["spec"]
    assert row["layers"] is None
    assert row["finished"].isoformat() == "2026-01-02T03:05:10"
    assert row["job"] == number(job)
    labels = filled.query("SELECT grp, images, body->>'mask' LIKE '%48%' FROM samples ORDER BY sample LIMIT 2").rows
    assert labels == [("cat", [0], True), ("dog", [0], True)]


def test_extracts_and_captures_are_rows_and_cleared_captures_go(filled, world, tmp_path):
    from vkvdb.jobs import CaptureSpec, Extract, Job, Provenance, to_json
    from vkvdb.types import TokenGrid

    torch = pytest.importorskip("torch")
    spec = CaptureSpec(model=world.models["onevision"].spec, dataset=world.datasets["coco-val"])
    site = Site("decoder", 1, "value")
    grids, tokens = [TokenGrid(1, 2, (0, 0, 2, 1))] * 3, [torch.zeros(2, 1, 2, 4)] * 3
    world.store.write_capture(spec.id, 0, [0, 1, 2], grids, {site: tokens}, {"spec": to_json(spec)})
    job = Job(spec=Extract(capture=spec, layers=(1,)), provenance=Provenance(model="onevision", dataset="coco-val"))
    world.publish_job(job, n=3, of=24)
    absorbed = filled.absorb(world.store)
    assert (absorbed.counts["captures"], absorbed.problems) == (1, [])
    found = filled.query("SELECT captures.sites, captures.images, files, bytes > 100, kind, jobs.layers, task"
                          " FROM captures JOIN jobs USING (capture) WHERE kind = 'extract'")  # fmt: skip
    assert found.rows == [(["decoder.1.value"], [0, 1, 2], 1, True, "extract", "[1]", None)]
    shutil.rmtree(tmp_path / "store/captures")
    filled.absorb(world.store)
    assert value(filled, "SELECT count(*) FROM captures") == 0


def test_what_is_damaged_is_told_and_holds_nothing_else_up(catalog, world):
    store = world.store
    short = world.score("onevision", task="foreground")
    gone = world.score("onevision", task="foreground", prefix="x")
    orphan = world.score("onevision", task="foreground", prefix="y")
    cut = store.job_path(short, 0)
    body = store.read_json(cut)
    body["shards"][0]["rows"] += 1
    cut.write_text(json.dumps(body))
    (store.root / store.job(gone, 0)["shards"][1]["file"]).unlink()
    body = store.read_json(store.job_path(orphan, 0))
    del body["finished"]
    store.job_path(orphan, 0).write_text(json.dumps(body))
    (store.root / "models/0123456789abcdef.json").write_text("{")
    absorbed = catalog.absorb(store)
    assert absorbed.counts["jobs"] == 3
    told = "\n".join(absorbed.problems)
    assert len(absorbed.problems) == len(told.splitlines()) == 4
    assert "scores where" in told
    assert "it is not there" in told
    assert "KeyError: 'finished'" in told
    assert "it is no manifest" in told
    assert value(catalog, "SELECT count(DISTINCT job) FROM scores") == value(catalog, "SELECT count(*) FROM jobs") == 3
    assert list(catalog.check()) == []


def test_a_job_whose_specification_was_changed_is_refused(catalog, world):
    path = next((world.store.root / "jobs").glob("*/0.json"))
    body = world.store.read_json(path)
    body["spec"]["task"] = "foreground"
    path.unlink()
    path.write_text(json.dumps(body))
    absorbed = catalog.absorb(world.store)
    assert absorbed.counts["jobs"] == 2
    assert "not the hash of its specification" in absorbed.problems[0]


def test_a_job_without_its_model_is_absorbed_once_that_is_there(catalog, world):
    path = world.store.model_path(min((world.store.root / "models").glob("*.json")).stem)
    path.rename(path.with_suffix(".away"))
    absorbed = catalog.absorb(world.store)
    assert absorbed.counts["jobs"] == 2
    assert "does not have its model" in absorbed.problems[0]
    path.with_suffix(".away").rename(path)
    assert catalog.absorb(world.store).counts["jobs"] == 1


def test_death_in_the_middle_of_a_job_leaves_nothing_of_it(catalog, world, monkeypatch):
    text = upgrading.text_of

    def broken(name: str) -> str:
        return "SELECT error('power cut' || $job)" if name == "summaries.sql" else text(name)

    monkeypatch.setattr(catalog_module, "text_of", broken)
    with pytest.raises(CatalogFailed, match="power cut"):
        catalog.absorb(world.store)
    monkeypatch.undo()
    with duckdb.connect(catalog.path, read_only=True) as connection:
        for table in ("jobs", "scores", "summaries"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchall() == [(0,)]
    assert catalog.absorb(world.store).counts["jobs"] == 3


def test_rebuild_brings_back_every_row_whatever_was_absorbed_first(catalog, world):
    for path in sorted((world.store.root / "jobs").glob("*/*.json"), reverse=True):  # the other way round
        path.rename(path.with_suffix(".later"))
    for path in sorted((world.store.root / "jobs").glob("*/*.later"), reverse=True):
        path.rename(path.with_suffix(".json"))
        assert catalog.absorb(world.store).counts["jobs"] == 1
    before = dump(catalog)
    assert all(before[t] for t in ("models", "layers", "datasets", "images", "samples", "jobs", "scores", "summaries"))
    catalog.path.with_name("catalog.duckdb.wal").write_bytes(b"of the old file")
    catalog.path.write_bytes(b"no database")
    with pytest.raises(CatalogFailed, match="vkvdb db rebuild"):
        catalog.absorb(world.store)
    assert str(catalog.rebuild(world.store)) == "3 models, 1 datasets, 3 jobs"
    assert dump(catalog) == before
    assert sorted(p.name for p in catalog.path.parent.glob("catalog*")) == ["catalog.duckdb", "catalog.duckdb.lock"]


# --- locks ---


def python(code: str, **given: object) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", textwrap.dedent(code), json.dumps({k: str(v) for k, v in given.items()})]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_shell_that_has_the_catalog_open_is_told_at_once(filled, world, read_only, monkeypatch):
    def wait(seconds):
        raise AssertionError("nobody waits for a lock")

    shell = python(
        """
        import duckdb, json, sys
        given = json.loads(sys.argv[1])
        connection = duckdb.connect(given["path"], read_only=given["read_only"] == "True")
        print("open", flush=True)
        sys.stdin.read()
        """,
        path=filled.path,
        read_only=read_only,
    )
    with shell:
        assert shell.stdout.readline() == "open\n"
        monkeypatch.setattr(time, "sleep", wait)
        for write in (filled.absorb, filled.rebuild):
            with pytest.raises(CatalogLocked, match=f"PID {shell.pid}"):
                write(world.store)
        if read_only:
            assert value(filled, "SELECT count(*) FROM jobs") == 3
        else:
            with pytest.raises(CatalogLocked, match="close it and type the same again"):
                filled.query("SELECT 1")
        shell.communicate("")
    assert str(filled.absorb(world.store)) == "nothing new"


def test_nothing_is_held_between_calls(filled, world):
    filled.query("SELECT 1")
    other = python(
        "import duckdb, json, sys; duckdb.connect(json.loads(sys.argv[1])['path']); print('free')", path=filled.path
    )
    assert other.communicate()[0] == "free\n"


def test_processes_that_absorb_at_once_double_nothing(catalog, world):
    absorber = """
        import json, sys
        from pathlib import Path
        from vkvdb.catalog import Catalog
        from vkvdb.errors import CatalogLocked
        from vkvdb.store import Store
        given = json.loads(sys.argv[1])
        catalog, store = Catalog(Path(given["path"])), Store(Path(given["store"]))
        print("ready", flush=True)
        sys.stdin.readline()
        taken = locked = 0
        while taken < 1 or locked + taken < 8:
            try:
                taken += 1 if catalog.absorb(store) else 0
            except CatalogLocked:
                locked += 1
        """
    processes = [python(absorber, path=catalog.path, store=world.store.root) for _ in range(2)]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.communicate("go\n")
        assert process.returncode == 0
    assert list(catalog.check()) == []
    assert value(catalog, "SELECT count(*) FROM jobs") == 3


# --- reading ---


@pytest.mark.parametrize(
    "sql",
    [
        "ATTACH ':memory:' AS other",
        "ATTACH '/tmp/other.duckdb'",
        "COPY jobs TO '/tmp/jobs.csv'",
        "INSTALL httpfs",
        "LOAD json",
        "SET threads = 1",
        "DELETE FROM jobs",
        "CREATE TABLE mine (a INTEGER)",
        "PRAGMA enable_profiling",
        "SELECT * FROM read_csv('/etc/hostname')",
        "SELECT * FROM '/etc/hostname'",
        "SELECT * FROM glob('/*')",
        "EXPORT DATABASE '/tmp/x'",
        "EXPLAIN ANALYZE DELETE FROM jobs",
        "SELECT 1; DELETE FROM jobs",
        "SELECT 1; SELECT 2",
        "CREATE TABLE a AS SELECT 1; SELECT 1",
        "SELECT * FROM published",
        "SELECT nonsense FROM jobs",
        "SELEC 1",
        "SELECT $missing",
        "",
    ],
)
def test_a_query_reads_the_catalog_and_nothing_else(filled, sql):
    published = [1]  # noqa: F841 - a Python variable is no table
    before = filled.path.read_bytes()
    with pytest.raises(BadQuery) as refused:
        filled.query(sql)
    assert "\n" not in str(refused.value)
    assert "LINE 1" not in str(refused.value)
    assert filled.path.read_bytes() == before


def test_queries_take_named_values(filled, world):
    found = filled.query("SELECT name, $n + 1 AS more FROM models WHERE family = $family", {"family": "dinov2", "n": 2})
    assert (found.columns, found.rows) == (["name", "more"], [("dinov2_small", 3)])
    assert value(filled, "SELECT $text", text="'; DROP TABLE jobs") == "'; DROP TABLE jobs"
    with pytest.raises(BadQuery, match="other"):
        filled.query("SELECT $n", {"n": 1, "other": 2})


def test_what_people_type_works(filled, world):
    for sql in ("SHOW TABLES", "DESCRIBE jobs", "FROM jobs", "PIVOT jobs ON task USING count(*)", "SUMMARIZE jobs",
                "EXPLAIN SELECT 1", "-- comment\nSELECT 1;"):  # fmt: skip
        assert filled.query(sql).rows
    assert filled.frame("SELECT n FROM jobs").shape == (3, 1)


def test_a_catalog_that_is_not_there_is_no_database_error(catalog):
    with pytest.raises(CatalogFailed, match="vkvdb sync"):
        catalog.query("SELECT 1")


# --- views ---


def test_sites_are_spelled_as_types_spells_them(filled):
    numbers = {
        Site(stage, layer, part).number: (stage, layer, part)
        for stage in STAGES
        for layer in (0, 1, 511)
        for part in PARTS
    }
    found = filled.query(
        "SELECT site, stage, layer, part FROM sites WHERE site IN (SELECT unnest($n))", {"n": [*numbers]}
    )
    assert {row[0]: row[1:] for row in found.rows} == numbers
    assert value(filled, "SELECT count(*) FROM sites") == len(STAGES) * 512 * len(PARTS)


def test_results_are_what_the_method_says(filled, world):
    """Clusters across groups, weights, and values that are not defined."""
    truth = {0: 0.2, 1: 0.5, -1: float("nan")}
    job = world.score("onevision", lambda s, h: truth[h] if s.part == "value" else 0.3, task="foreground", noise=0.3)
    scores = world.store.read_scores(job, 0).to_pandas(ignore_metadata=True)
    labels = [s for _, s in world.store.samples(world.datasets["coco-val"])]
    filled.absorb(world.store)
    found = filled.frame("FROM results WHERE id = $job ORDER BY site, head", {"job": job})
    assert len(found) == len(scores.groupby(["site", "head", "metric"]))
    for row in found.to_dicts():
        part = scores[(scores.site == row["site"]) & (scores["head"] == row["head"])]
        given = [labels[i] for i in part["sample"]]
        wanted = mean_and_error(
            part.value.to_numpy(float),
            part.weight.to_numpy(float),
            [s.group for s in given],
            [s.cluster for s in given],
        )
        assert row["n"] + row["n_undefined"] == 48
        if row["head"] == -1 and row["part"] == "value":
            assert (row["value"], row["se"], row["low"], row["n"], row["n_clusters"]) == (None, None, None, 0, 0)
            continue
        assert (row["value"], row["se"]) == pytest.approx(wanted[:2], rel=1e-6)
        assert (row["n"], row["n_groups"], row["n_clusters"]) == (48, 3, wanted[2] == 24 and 24)
        assert row["df"] == pytest.approx(wanted[3], rel=1e-6)
        assert row["high"] - row["value"] == pytest.approx(stats.t.ppf(0.975, wanted[3]) * wanted[1], rel=1e-3)
    group = filled.frame(
        "SELECT * FROM results_by_group WHERE id = $job AND grp = 'dog' AND stage = 'projector'", {"job": job}
    ).to_dicts()[0]
    part = scores[scores.site == group["site"]]
    dogs = part[[labels[i].group == "dog" for i in part["sample"]]]
    wanted = mean_and_error(
        dogs.value.to_numpy(float),
        dogs.weight.to_numpy(float),
        ["dog"] * len(dogs),
        [labels[i].cluster for i in dogs["sample"]],
    )
    assert (group["value"], group["se"]) == pytest.approx(wanted[:2], rel=1e-6)
    assert (group["n"], group["n_groups"], group["n_clusters"], group["df"]) == (16, 1, 16, 15)


def test_some_undefined_values_are_left_out_and_counted(filled, world):
    broken = {("projector", n) for n in range(0, 48, 5)}
    job = world.score("onevision", 0.4, task="foreground", shards=1, publish=False)
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = world.store.root / f"scores/{job}/0/0000.parquet"
    table = pq.read_table(path)
    values = table["value"].to_pylist()
    for i, (sample, site) in enumerate(zip(table["sample"].to_pylist(), table["site"].to_pylist(), strict=True)):
        if (Site.from_number(site).stage, sample) in broken:
            values[i] = None if sample % 2 else float("nan")
    table = table.set_column(table.column_names.index("value"), "value", pa.array(values, pa.float32()))
    path.unlink()
    pq.write_table(table, path)
    from vkvdb.jobs import CaptureSpec, Job, Provenance, Score

    spec = CaptureSpec(model=world.models["onevision"].spec, dataset=world.datasets["coco-val"])
    score = Score(capture=spec, task="foreground", task_version=1)
    world.publish_job(Job(spec=score, provenance=Provenance(model="onevision", dataset="coco-val")), n=48, of=48)
    filled.absorb(world.store)
    row = filled.frame("FROM results WHERE id = $job AND stage = 'projector'", {"job": job}).to_dicts()[0]
    part = table.filter(pa.compute.equal(table["site"], row["site"])).to_pandas(ignore_metadata=True)
    labels = [s for _, s in world.store.samples(world.datasets["coco-val"])]
    given = [labels[i] for i in part["sample"]]
    wanted = mean_and_error(
        part.value.to_numpy(float), part.weight.to_numpy(float), [s.group for s in given], [s.cluster for s in given]
    )
    assert (row["n"], row["n_undefined"]) == (38, 10)
    assert (row["value"], row["se"], row["n_clusters"]) == pytest.approx(wanted[:3], rel=1e-6)


@pytest.mark.parametrize("df", [1, 1.5, 2, 3, 5, 10, 23, 100, 5000])
def test_the_interval_is_students(filled, df):
    assert value(filled, "SELECT t975($df)", df=df) == pytest.approx(stats.t.ppf(0.975, df), rel=0.006)
    assert value(filled, "SELECT t975($df)", df=df) == pytest.approx(statistics.t975(df), rel=1e-9)


def test_the_interval_holds_the_truth_as_often_as_it_says(tmp_path):
    """200 worlds with 24 clusters; the truth is known."""
    world = synthetic.World(Store(tmp_path / "store"))
    world.dataset()
    world.model("m", "dinov2", layers=200, heads=0)
    world.score("m", 0.5, noise=0.3)
    catalog = Catalog(tmp_path / "catalog.duckdb")
    catalog.absorb(world.store)
    inside = value(catalog, "SELECT avg((low < 0.5 AND high > 0.5)::INTEGER) FROM results WHERE stage = 'encoder'")
    assert 0.90 <= inside <= 0.99


def test_views_show_the_newest_edition_and_versions(filled, world):
    old = world.score("onevision", 0.1, task="foreground")
    world.score("onevision", 0.2, task="foreground", edition=1)
    filled.absorb(world.store)
    shown = "SELECT DISTINCT id, edition FROM results WHERE task = 'foreground'"
    assert filled.query(shown).rows == [(old, 1)]
    new = world.score("dinov2_small", 0.1, task="foreground", task_version=2)
    filled.absorb(world.store)
    assert filled.query(shown).rows == [(new, 0)]
    world.model("dinov2_small", "dinov2", layers=4, heads=0, family_version=2)
    newer = world.score("dinov2_small", 0.1, task="foreground", task_version=2)
    filled.absorb(world.store)
    assert filled.query(shown).rows == [(newer, 0)]
    assert value(filled, "SELECT count(*) FROM jobs WHERE task = 'foreground'") == 4


def test_the_best_layer_is_a_head_where_there_are_heads(filled, world):
    def truth(site: Site, head: int) -> float:
        return 0.9 if head == -1 else 0.5 if (site.layer, head, site.part) == (1, 0, "value") else 0.2

    job = world.score("onevision", truth, task="foreground", noise=0.01)
    filled.absorb(world.store)
    found = filled.query(
        "SELECT layer, head, choice FROM best_layer WHERE id = $job AND stage = 'decoder' AND part = 'value'",
        {"job": job},
    )
    assert found.rows == [(1, 0, "in-sample")]
    encoder = filled.query("SELECT layer, head FROM best_layer WHERE model_name = 'dinov2_small' AND part = 'hidden'")
    assert encoder.rows[0][1] == -1


def test_views_comments_and_summaries_follow_their_text(filled, world, tmp_path, monkeypatch):
    before = value(filled, "SELECT sum(value) FROM results")
    here = tmp_path / "texts"
    here.mkdir()
    for name in ("views.sql", "summaries.sql", "choices.sql", "checks.sql"):
        (here / name).write_text((upgrading._HERE / name).read_text())
    monkeypatch.setattr(upgrading, "_HERE", here)
    with (here / "views.sql").open("a") as file:
        file.write("CREATE OR REPLACE VIEW mine AS SELECT 42 AS answer;\n")
    text = (here / "summaries.sql").read_text()
    (here / "summaries.sql").write_text(text.replace("exact_sum(w * v)", "2 * exact_sum(w * v)"))
    monkeypatch.setattr(metadata.tables["jobs"], "comment", "new words")
    filled.absorb(world.store)
    assert value(filled, "SELECT answer FROM mine") == 42
    assert value(filled, "SELECT sum(value) FROM results") == pytest.approx(2 * before)
    assert value(filled, "SELECT comment FROM duckdb_tables() WHERE table_name = 'jobs'") == "new words"


# --- checks ---


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("score-twice", "INSERT INTO scores SELECT * FROM scores LIMIT 1"),
        ("score-without-job", "INSERT INTO scores SELECT 1, * EXCLUDE (job) FROM scores LIMIT 1"),
        ("score-without-sample", "UPDATE scores SET sample = 999 WHERE sample = 3"),
        ("score-nowhere", "UPDATE scores SET site = 5 WHERE site = (SELECT min(site) FROM scores)"),
        ("summary-count", "DELETE FROM scores WHERE sample = 3 AND site = (SELECT min(site) FROM scores)"),
        ("score-missing", "UPDATE summaries SET n = n - 1 WHERE grp = '' AND site = (SELECT min(site) FROM scores)"),
        ("job-count", "UPDATE jobs SET n = n - 1"),
        ("job-without-model", "DELETE FROM models WHERE name = 'onevision'"),
        ("job-without-dataset", "DELETE FROM datasets"),
        ("dataset-count", "DELETE FROM images WHERE image = 1"),
        ("sample-without-image", "DELETE FROM images WHERE image = 1"),
        ("layer-misnamed", "UPDATE layers SET layer = 7 WHERE layer = 1"),
    ],
)
def test_checks_find_what_is_wrong(filled, name, damage):
    with duckdb.connect(filled.path) as connection:
        connection.execute(damage)
    found = list(filled.check())
    assert any(line.startswith(f"{name}: ") for line in found)
    assert all("\n" not in line for line in found)


def test_checks_find_nothing_where_nothing_is_wrong(filled):
    assert list(filled.check()) == []


def test_every_check_has_a_name_and_a_test():
    named = [name.partition(":")[0] for name, _ in catalog_module._named(upgrading.text_of("checks.sql"))]
    tested = {case[0] for case in test_checks_find_what_is_wrong.pytestmark[0].args[1]}
    assert len(named) == upgrading.text_of("checks.sql").count(";")
    assert set(named) == tested
