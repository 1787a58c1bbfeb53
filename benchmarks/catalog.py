"""How long every analysis takes on a large catalog: its SQL with no parameter given, through `Catalog.query`.

    python benchmarks/catalog.py [--scores 10e6 --models 4 --repeat 3 --keep FOLDER]

The catalog is made with plain SQL in a temporary folder: models of --layers x --heads with a random twin each, encoders
and raw pixels, scored on several tasks; those of one kind of sample are questions, which are asked too. Values are
random. Summaries and choices are computed by the very SQL that absorbing runs. Three times: building, choices of one
job, each analysis (the best of --repeat; seconds, rows). Reported, not asserted.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb

from vkvdb import analysis, registry
from vkvdb.catalog import CHOICES, SUMMARIES, Catalog
from vkvdb.types import CEILING, POSITION, Site

HERE = Path(analysis.__file__).parent
TASKS = {  # task: (kind of sample, first metric)
    "foreground": ("episode", "iou"),
    "segmentation": ("image", "iou"),
    "correspondence": ("image_pair", "pck_image"),
    "choices": ("question", "correct"),
}
PARTS = ("key", "key_unrotated", "value")

# A sample has two images, a cluster three samples, a group a twelfth of the samples of its kind.
MAKE_SAMPLES = """
INSERT INTO samples
SELECT 1, row_number() OVER (ORDER BY kind, n) - 1, kind || n, kind, kind || n % 12, 'c' || n // 3, [n, n + 1],
    {answer: 'a', options: ['a', 'b'], text: '?'}::JSON
FROM unnest($kinds) AS kinds(kind), range($samples) AS numbers(n)
"""
MAKE_SITES = "INSERT INTO layers SELECT $model, $number, $stage, $layer, $part, $heads, 64"
MAKE_SCORES = """
INSERT INTO scores
SELECT $job, sample, site, head, metric,
    CASE WHEN metric = 'correct' THEN (v > 0.5)::INTEGER ELSE v END, 1 + sample % 3
FROM (
    SELECT sample, site, head, metric, random() * 0.6 + 0.01 * (site % 64) AS v
    FROM samples, unnest($sites) AS places(place), unnest([$metric, 'other']) AS metrics(metric)
        CROSS JOIN LATERAL (SELECT place[1]::SMALLINT AS site, place[2]::TINYINT AS head) AS split
    WHERE kind = $kind
)
"""
MAKE_ANSWERS = """
INSERT INTO answers (job, sample, variant, prompt, prompt_id, raw, likelihoods, choice, correct, likeliest, answer)
SELECT $job, sample, variant, '?', 'x', 'a', '[-1, -2]', c, c = 0, c, 0
FROM (SELECT sample, variant, (random() < 0.4)::SMALLINT AS c FROM samples, range(3) AS variants(variant)
    WHERE kind = 'question')
"""


def job(connection: Any, number: int, **fields: Any) -> int:
    """A row of `jobs`; what is not told is empty, as its type has it."""
    sql = "SELECT column_name, data_type, is_nullable FROM duckdb_columns() WHERE table_name = 'jobs'"
    sql += " ORDER BY column_index"
    columns = connection.execute(sql).fetchall()
    empty = {"VARCHAR": "", "JSON": "[]", "TIMESTAMP": "2026-01-01", "DOUBLE": 0.0}
    row = {name: fields.get(name, None if nullable else empty.get(kind, 0)) for name, kind, nullable in columns} | {
        "job": number,
        "id": f"{number:032x}",
        "view": "base",
        "attention": "sdpa",
        "block": 8,
    }
    marks = ", ".join("?" * len(row))
    connection.execute(f"INSERT INTO jobs VALUES ({marks})", list(row.values()))
    return number


MAKE_VARIANCE = """
INSERT INTO key_variance
SELECT $job, site, head, half, unbiased, 256, if(head = 0, 0.01, 0.5) * (0.8 + 0.4 * random())
FROM layers, range($heads) AS heads(head), range(3) AS halves(half), unnest([false, true]) AS kinds(unbiased)
WHERE model = $model AND part = 'key_unrotated'
"""
TEXTS = ("tokens=8:", "tokens=8:a photo of a {category}")  # filler, and a condition of `vkvdb prefix`


def others(connection: Any, options: argparse.Namespace) -> None:
    """What the analyses keys and prefix read: a calibrate job a model, and scores under two texts before the image."""
    for number, (name, family, variant, _, heads) in enumerate(models(options), 1):
        if not heads:
            continue
        spec = {"model": number, "model_name": name, "checkpoint": name.partition("@")[0], "family": family}
        shared = {**spec, "variant": variant, "dataset": 1, "dataset_name": "big-test", "n": 256, "of": 256}
        calibrated = job(
            connection, 100_000 + number, kind="calibrate", spec='{"calibrating_version": 1}', notes="{}", **shared
        )
        connection.execute(MAKE_VARIANCE, {"job": calibrated, "model": number, "heads": heads})
        if variant:
            continue
        (plain,) = connection.execute(
            "SELECT job FROM jobs WHERE model = $model AND task = 'foreground' AND prefix = ''", {"model": number}
        ).fetchone()
        for place, text in enumerate(TEXTS):
            new = 200_000 + 10 * number + place
            copied = "INSERT INTO jobs SELECT * REPLACE ($new AS job, printf('%032x', $new) AS id, $text AS prefix)"
            connection.execute(f"{copied} FROM jobs WHERE job = $plain", {"new": new, "text": text, "plain": plain})
            for table in ("scores", "summaries", "choices"):
                copied = f"INSERT INTO {table} SELECT * REPLACE ($new AS job) FROM {table} WHERE job = $plain"
                connection.execute(copied, {"new": new, "plain": plain})


def build(catalog: Catalog, options: argparse.Namespace) -> dict[str, float]:
    """Fill a new catalog; what took how long, in seconds."""
    catalog.upgrade()
    start = time.perf_counter()
    connection = duckdb.connect(catalog.path)
    connection.execute("SELECT setseed(0.5)")
    kinds = sorted({kind for kind, _ in TASKS.values()})
    jobs: list[int] = []
    per_sample = options.models * 2 * len(TASKS) * 2 * (2 + len(PARTS) * options.layers * (options.heads + 1))
    samples = max(60, round(options.scores / per_sample))
    connection.execute(MAKE_SAMPLES, {"kinds": kinds, "samples": samples})
    connection.execute(
        "INSERT INTO datasets (dataset, id, name, adapter, adapter_version, split, root, images, samples, problems,"
        " files, created, host, versions)"
        " VALUES (1, 'd', 'big-test', 'big', 1, 'test', '', 0, '{}', '[]', '{}', now(), '', '{}')"
    )
    for number, (name, family, variant, layers, heads) in enumerate(models(options), 1):
        sites = [(site, heads) for site in places(layers, heads)]
        connection.execute(
            "INSERT INTO models SELECT $n, $n::VARCHAR, $name, '', $checkpoint, $family, 1, $variant, NULL, NULL, '{}',"
            " now(), ''",
            {"n": number, "name": name, "checkpoint": name.partition("@")[0], "family": family, "variant": variant},
        )
        for site, several in sites:
            given = {"stage": site.stage, "layer": site.layer, "part": site.part}
            many = several if site.stage == "decoder" else 1
            connection.execute(MAKE_SITES, {"model": number, "number": site.number, "heads": max(1, many), **given})
        shared = {
            "model": number,
            "model_name": name,
            "checkpoint": name.partition("@")[0],
            "family": family,
            "variant": variant,
            "dataset": 1,
            "dataset_name": "big-test",
            "n": samples,
            "of": samples,
            "parameters": "{}",
            "notes": "{}",
        }
        curves = [[s.number, h] for s, several in sites for h in (range(-1, several) if s.stage == "decoder" else [-1])]
        curves += [[POSITION.number, -1], [CEILING.number, -1]]
        for task, (kind, metric) in TASKS.items():
            asks = task == "choices" and heads > 0
            one = job(
                connection,
                1000 * number + len(jobs),
                kind="ask" if asks else "score",
                task=task,
                task_version=1,
                parts='["value"]',
                spec='{"asking_version": 1}' if asks else "{}",
                **{**shared, "notes": f'{{"metrics": ["{metric}"]}}'},
            )
            jobs.append(one)
            connection.execute(MAKE_SCORES, {"job": one, "sites": curves, "metric": metric, "kind": kind})
            if asks:
                connection.execute(MAKE_ANSWERS, {"job": one})
    took = {"scores": time.perf_counter() - start}
    for name in (SUMMARIES, CHOICES):
        text, start = (HERE / name).read_text(encoding="utf-8"), time.perf_counter()
        for one in jobs:
            connection.execute(text, {"job": one})
        took[f"{name}, {len(jobs)} jobs"] = time.perf_counter() - start
    others(connection, options)
    connection.close()
    return took


def models(options: argparse.Namespace) -> list[tuple[str, str, str, int, int]]:
    """Name, family, variant, layers and heads of every model."""
    made = [
        (f"m{n}{'@' if variant else ''}{variant}", "llava", variant, options.layers, options.heads)
        for n in range(options.models)
        for variant in ("", "random:0")
    ]
    return [*made, ("clip", "clip", "", 25, 0), ("pixels", "pixels", "", 1, 0)]


def places(layers: int, heads: int) -> list[Site]:
    """The sites of a language model, or of an encoder."""
    if not heads:
        return [Site("encoder", n, "hidden") for n in range(layers)]
    decoder = [Site("decoder", n, part) for n in range(layers) for part in PARTS]
    return [Site("encoder", 24, "hidden"), Site("projector", 0, "hidden"), *decoder]


def measure(catalog: Catalog, repeat: int) -> None:
    """Print seconds and rows of every analysis."""
    print(f"{'analysis':16} {'seconds':>8} {'rows':>8}")
    for name in registry.names("analyses"):
        text = registry.require("analyses", name).read_text(encoding="utf-8")
        given, times = dict.fromkeys(analysis.parameters(name)), []
        for _ in range(repeat):
            start = time.perf_counter()
            found = catalog.query(text, given)
            times.append(time.perf_counter() - start)
        print(f"{name:16} {min(times):8.2f} {len(found.rows):8}", flush=True)


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", type=float, default=10e6, help="about so many scores")
    parser.add_argument("--models", type=int, default=4, help="language models, each with a random twin")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="build in this folder, or measure what is there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        catalog = Catalog(folder / "catalog.duckdb")
        if not catalog.path.exists():
            for what, seconds in build(catalog, options).items():
                print(f"{what}: {seconds:.1f} s")
        counts = "SELECT count(*), count(DISTINCT job) FROM scores"
        (scores, jobs), (answers,) = (
            catalog.query(counts).rows[0],
            catalog.query("SELECT count(*) FROM answers").rows[0],
        )
        print(f"{scores:,} scores of {jobs} jobs, {answers:,} answers, {catalog.path.stat().st_size / 1e6:.0f} MB\n")
        measure(catalog, options.repeat)


if __name__ == "__main__":
    main()
