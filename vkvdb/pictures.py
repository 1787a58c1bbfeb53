"""The pictures of a report: samples of each task with what is read of them, and the mosaic of keys, as data URIs."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
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


def data_uri(image: PIL.Image.Image, *, exact: bool = False) -> str:
    """An image as WebP in a data URI, a tenth of a PNG's size; `exact` keeps every pixel."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="WEBP", lossless=exact, quality=90)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
