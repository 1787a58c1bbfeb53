"""The pictures of a report, as data URIs: samples of each task with what is read of them, the mosaic of keys, and
questions that the image values read right and the model answers wrong.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vkvdb.errors import VkvdbError
from vkvdb.findings import Row, Subject, number
from vkvdb.paths import Home

if TYPE_CHECKING:
    import PIL.Image

    from vkvdb.catalog import Catalog

_SCORED = """
SELECT samples.id, value FROM scores JOIN samples USING (sample)
WHERE job = $job AND dataset = $dataset AND site = $site AND head = $head AND metric = $metric AND isfinite(value)
ORDER BY value, sample
"""

# Questions that surface by either measure of the answer, of one ask job and one reading of it, in the dataset's order.
# `picked` is NULL of readings that don't say which option they pick.
_CASES = """
WITH cases AS (
    SELECT dataset, sample, sample_id, grp, stage, part, layer, site, head, share_when_chosen, read_job, read_id,
        asked_id, question, options::VARCHAR[] AS options, answer, raw,
        max(given) FILTER (measure = 'text') AS written, max(given) FILTER (measure = 'likelihood') AS likeliest
    FROM surfacing
    WHERE asked_id = $asked AND read_id = $read AND place = $place
    GROUP BY ALL
    HAVING bool_or(surfaces)
)
SELECT cases.*, picks.value::INTEGER AS picked, samples.images, count(*) OVER (PARTITION BY cases.grp) AS of
FROM cases
    JOIN samples USING (dataset, sample)
    LEFT JOIN scores AS picks ON picks.job = read_job AND picks.sample = cases.sample AND picks.site = cases.site
        AND picks.head = cases.head AND picks.metric = 'chosen' AND isfinite(picks.value)
QUALIFY row_number() OVER (PARTITION BY cases.grp ORDER BY cases.sample) <= $most
ORDER BY cases.grp, cases.sample
"""
MOST = 8  # cases of a group
_SIDE = 96  # pixels of a thumbnail


@dataclass(frozen=True)
class Case:
    """A question that is read right in the image values and answered wrong; options are told with their letters.

    `images` are data URIs; `lacking` says why there are none. `of` is how many such questions its group has.
    """

    group: str
    sample: str
    question: str
    images: Sequence[str]
    lacking: str
    right: str
    reading: str
    where: str
    written: str
    written_as: str
    likeliest: str
    of: int
    asked: str
    read: str


@dataclass(frozen=True)
class Shown:
    """A picture as a data URI with its caption, or (without one) a line on why it is not there."""

    caption: str
    uri: str = ""


def shown_of(home: Home, catalog: Catalog, of: Subject, count: int, device: str) -> Iterator[Shown]:
    """`count` samples of each task at even places among its scores (one: the median), and the mosaic of keys."""
    from vkvdb.models._checkpoint import resolve
    from vkvdb.syncing import patiently
    from vkvdb.types import Site

    if not of.values:
        return
    reference = str(of.values[0]["reference"])
    try:
        found = resolve(reference, home)
        if found.spec.checkpoint != of.model["checkpoint"]:
            yield Shown(f"model {reference} has other files now than when it was measured, so nothing is read of it")
            return
    except VkvdbError as error:
        yield Shown(str(error))
        return
    for task, parameters in of.tasks():
        best = of.best(task, parameters)
        if best is None:
            continue
        site = Site(best["stage"], best["layer"], best["part"])
        given = {k: best[k] for k in ("job", "dataset", "head", "metric")} | {"site": site.number}
        rows = patiently(lambda given=given: catalog.query(_SCORED, given).rows)  # type: ignore[misc]
        places = dict.fromkeys(len(rows) * (k + 1) // (count + 1) for k in range(count))
        for place in (p for p in places if p < len(rows)):
            yield _picture(home, of, best, (rows[place], place, len(rows)), device)
    yield from _mosaic(home, of, found, device)


def _picture(home: Home, of: Subject, best: Row, scored: tuple[Any, int, int], device: str) -> Shown:
    from vkvdb.showing import picture

    (sample, value), place, count = scored
    site = "{stage}.{layer}.{part}".format_map(best)
    parameters = {k: str(v) for k, v in json.loads(best["parameters"]).items()}
    asked = {"model": best["reference"], "dataset": of.dataset, "site": site, "head": best["head"], "device": device}
    try:
        shown = picture(home, sample, best["task"], parameters=parameters, **asked)
    except VkvdbError as error:
        return Shown(f"{best['task']}: {error}")
    words = f"{best['task']}: sample {place + 1} of {count} by {best['metric']} ({number(value)}), from the worst"
    return Shown(words, data_uri(shown.image))


def _mosaic(home: Home, of: Subject, found: Any, device: str) -> Iterator[Shown]:
    from vkvdb.extraction import dataset_root
    from vkvdb.images import open_image
    from vkvdb.models._checkpoint import load
    from vkvdb.mosaic import mosaic
    from vkvdb.planning_keys import group_of
    from vkvdb.store import Store
    from vkvdb.types import Capture, LoadOptions

    sites = [s.site for s in found.sites() if s.site.stage == "decoder" and s.site.part == "key_unrotated"]
    if not sites:
        return
    store = Store(home.store)
    try:
        manifest = store.dataset_named(of.dataset)
        assert manifest is not None
        rows = store.images(manifest["hash"])[:2]
        opened = [open_image(dataset_root(home, store, manifest), row) for row in rows]
        read = load(found, LoadOptions(device=device)).capture(opened, sites)
        captures = [Capture(row.name, "base", *one) for row, one in zip(rows, read, strict=True)]
        group, words = group_of(store, found)
    except VkvdbError as error:
        yield Shown(f"keys: {error}")
        return
    caption = f"Keys of images {rows[0].name} and {rows[-1].name}, the first ones of {of.dataset}"
    yield Shown(caption, data_uri(mosaic(captures, opened, outlined=group, words=words), exact=True))


def cases_of(home: Home, catalog: Catalog, of: Subject, rows: Sequence[Row]) -> Iterator[Case]:
    """The first cases of each group of questions: `rows` are those of the analysis surfacing, which names the jobs.

    The values are those of the pass that answered, else those of each image alone.
    """
    from vkvdb.extraction import dataset_root
    from vkvdb.store import Store
    from vkvdb.syncing import patiently

    own: dict[str, tuple[str, str]] = {}
    for row in sorted(rows, key=lambda r: r["place"] or ""):  # `value` comes before `value, isolated`
        if row["place"] in ("value", "value, isolated"):
            own.setdefault(row["asked_id"], (row["read_id"], row["place"]))
    store = Store(home.store)
    opened: Any = None
    for asked, (read, place) in own.items():
        given = {"asked": asked, "read": read, "place": place, "most": MOST}
        found = patiently(lambda given=given: catalog.frame(_CASES, given).to_dicts())  # type: ignore[misc]
        for row in found:
            images: list[str] = []
            lacking = ""
            try:
                if opened is None:
                    manifest = store.dataset_named(of.dataset)
                    assert manifest is not None
                    opened = dataset_root(home, store, manifest), store.images(manifest["hash"])
                images = [_thumbnail(opened[0], opened[1][number]) for number in row["images"]]
            except VkvdbError as error:
                lacking = str(error)
            yield _case(row, images, lacking, place)


def _case(row: Mapping[str, Any], images: Sequence[str], lacking: str, place: str) -> Case:
    def option(number: int | None) -> str:
        return "can't be read" if number is None else f"({chr(65 + number)}) {row['options'][number]}"

    head = f", head {row['head']}" if row["head"] >= 0 else ""
    isolated = ", each image alone" if place.endswith("isolated") else ""
    share = f"right in {100 * row['share_when_chosen']:.0f} % of the other fold"
    return Case(
        group=row["grp"],
        sample=row["sample_id"],
        question=row["question"],
        images=images,
        lacking=lacking,
        right=option(row["answer"]),
        reading=option(row["answer"] if row["picked"] is None else row["picked"]),
        where=f"layer {row['layer']}{head}{isolated}; {share}",
        written=row["raw"],
        written_as=option(row["written"]),
        likeliest=option(row["likeliest"]),
        of=row["of"],
        asked=row["asked_id"],
        read=row["read_id"],
    )


def _thumbnail(root: Any, row: Any) -> str:
    from vkvdb.images import open_image

    image = open_image(root, row)
    image.thumbnail((_SIDE, _SIDE))
    return data_uri(image)


def data_uri(image: PIL.Image.Image, *, exact: bool = False) -> str:
    """An image as WebP in a data URI, a tenth of a PNG's size; `exact` keeps every pixel."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="WEBP", lossless=exact, quality=90)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
