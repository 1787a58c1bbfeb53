"""What the catalog knows of the toy model, as tables of its card: each phenomenon, pooled and by evaluation seed.

`toyworld-test` and `toyworld-parts` are drawn from three seeds far apart, and samples say which (`draw0-`). A finding
is told by the pooled interval; what each seed gives alone stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from vkvdb_cli._card_queries import FLOW, PLACES, PREFIX, SURFACING
from vkvdb_cli._card_words import by_seed, interval, number, table, verdict

Row = dict[str, Any]

MODEL = "toy"
DATASET = "toyworld-test"
PARTS = "toyworld-parts"


def rows_of(name: str, **given: str) -> list[Row]:
    """The rows of an analysis; none where there is nothing to draw."""
    from vkvdb import analysis
    from vkvdb.errors import NothingToDraw
    from vkvdb.paths import find_home

    try:
        return analysis.run(find_home(), name, given).rows.to_dicts()
    except NothingToDraw:
        return []


def asked_of_catalog(sql: str, **given: object) -> list[Row]:
    """The rows of a query."""
    from vkvdb.paths import find_home
    from vkvdb_cli._after import reading

    found = reading(find_home()).query(sql, given)
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def places(dataset: str) -> list[Row]:
    """Image values against every other place on a dataset; `held out` are categories or parts, as its groups are."""
    from vkvdb.toyworld.world import HELD_OUT_CATEGORIES, HELD_OUT_PARTS

    held_out = [*HELD_OUT_CATEGORIES, *HELD_OUT_PARTS]
    return asked_of_catalog(PLACES, model=MODEL, dataset=dataset, held_out=held_out)


def _draws(rows: Sequence[Row], like: Row, field: str) -> list[float | None]:
    """A field of each draw, of the same task, place and set as a row."""
    same = ("task", "metric", "place", "part_of")
    return [row[field] for row in rows if row["draw"] and all(row[key] == like[key] for key in same)]


def _compared(low: float | None, high: float | None) -> str:
    """What the interval of image values less another place says."""
    if low is None or high is None:
        return "one cluster tells nothing"
    return "values hold more" if low > 0 else "values hold less" if high < 0 else "not told apart"


def against_others() -> str:
    """Image values against what they are held against, paired by sample."""
    alone, told = places(DATASET), []
    for row in rows_of("encoder", model=MODEL, dataset=DATASET):
        own = row["place"] == "subject"
        if not own and row["difference"] is None:
            continue
        key = {**row, "place": "image values" if own else row["place"], "part_of": "all"}
        ends = (row["difference_low"], row["difference_high"])
        told.append(
            (
                row["task"],
                row["metric"],
                key["place"],
                row["layer"],
                interval(row["value"], row["low"], row["high"]),
                "" if own else interval(row["difference"], *ends, sign=True),
                "" if own else by_seed(_draws(alone, key, "difference")),
                "" if own else _compared(*ends),
                row["n"],
            )
        )
    columns = ["task", "metric", "place", "layer", "value", "image values less this", "by seed", "", "n"]
    return table(columns, told)


def _held_out(dataset: str, tasks: Sequence[str], groups: str) -> str:
    rows = [row for row in places(dataset) if row["task"] in tasks and row["part_of"] != "all"]
    against = (
        "image values",
        "raw pixels",
        "colour statistics",
        "position only",
        "random weights",
        "encoder toy-siglip",
    )
    told = []
    for row in rows:
        if row["draw"] or row["place"] not in against:
            continue
        own = row["place"] == "image values"
        ends = (row["difference_low"], row["difference_high"])
        told.append(
            (
                row["task"],
                row["part_of"],
                row["place"],
                interval(row["value"], row["low"], row["high"]),
                "" if own else interval(row["difference"], *ends, sign=True),
                "" if own else by_seed(_draws(rows, row, "difference")),
                "" if own else _compared(*ends),
                row["groups"],
                row["n"],
            )
        )
    columns = ["task", groups, "place", "value", "image values less this", "by seed", "", f"{groups} counted", "n"]
    return table(columns, told)


def held_out_categories() -> str:
    """Trained and held-out categories apart."""
    return _held_out(DATASET, ("correspondence", "foreground", "segmentation"), "categories")


def held_out_parts() -> str:
    """Trained and held-out parts apart."""
    return _held_out(PARTS, ("correspondence",), "parts")


def flow() -> str:
    """Rise and fall of the image values over the layers."""
    rows = asked_of_catalog(FLOW, model=MODEL, dataset=DATASET)
    told = []
    for task in dict.fromkeys(row["task"] for row in rows):
        layers = [row for row in rows if row["task"] == task]
        first, last, best = layers[0], layers[-1], max(layers, key=lambda row: float(row["value"]))
        told.append(
            (
                task,
                best["metric"],
                interval(first["value"], first["low"], first["high"]),
                f"{interval(best['value'], best['low'], best['high'])} in layer {best['layer']}",
                interval(last["value"], last["low"], last["high"]),
                _moved(best, first),
                by_seed(_less(best, first)),
                _moved(best, last),
                by_seed(_less(best, last)),
                best["n"],
            )
        )
    seeds = ["rise", "rise by seed", "fall", "fall by seed"]
    return table(["task", "metric", "first layer", "best layer", "last layer", *seeds, "n"], told)


def _moved(best: Row, end: Row) -> str:
    """Whether the best layer is above an end of the decoder."""
    return verdict(shown=None not in (best["low"], end["high"]) and best["low"] > end["high"])


def _less(best: Row, end: Row) -> list[float | None]:
    return [one - other for one, other in zip(best["by_draw"] or (), end["by_draw"] or (), strict=True)]


def keys() -> str:
    """Input-agnostic keys."""
    from vkvdb.agnostic import find

    rows = [r for r in rows_of("keys") if r["kind"] == "head" and r["subject_name"] == MODEL and not r["unbiased"]]
    told = []
    for role, name in (("model", MODEL), ("random", "its random twin")):
        own = [r for r in rows if r["role"] == role]
        if not own:
            continue
        found: Any = find(own)
        whole = [r["value"] for r in own if r["half"] == 0]
        told.append(
            (
                name,
                number(min(whole)),
                number(max(whole)),
                f"{len(found.heads)} of {len(whole)}",
                found.why,
                number(found.jaccard),
                own[0]["n"],
            )
        )
    columns = ["model", "least S", "largest S", "input-agnostic heads", "why none", "Jaccard of halves", "n images"]
    return table(columns, told)


def surfacing() -> str:
    """Questions that the tokens answer and the model does not."""
    from vkvdb.statistics import mcnemar

    @cache
    def draws(asked: str) -> dict[tuple[str, str, str], list[float]]:
        found: dict[tuple[str, str, str], list[float]] = {}
        for row in asked_of_catalog(SURFACING, asked=asked):
            found.setdefault((row["grp"], row["place"], row["read_id"]), []).append(row["above"])
        return found

    told = []
    for row in rows_of("surfacing", model=MODEL, dataset=DATASET, measure="likelihood"):
        if row["place"] is None:
            continue
        told.append(
            (
                row["grp"].removeprefix("choice-"),
                row["place"],
                row["n"],
                row["n_values_right"],
                row["n"] - row["n_wrong"],
                row["surfacing"],
                f"{row['expected']:.1f} [{row['low']:.0f}, {row['high']:.0f}]",
                by_seed(draws(row["asked_id"]).get((row["grp"], row["place"], row["read_id"])), digits=1),
                verdict(shown=row["surfacing"] > row["high"]),
                f"{row['only_value']} : {row['only_here']}" if row["place"] != "value" and row["n_paired"] else "",
                "" if row["place"] == "value" or not row["n_paired"] else _more(row, mcnemar),
            )
        )
    columns = ["question", "place", "n", "read right", "answered right", "surfacing", "independence alone"]
    columns += ["above it, by seed", "", "only in values : only here", "values surface"]
    return table(columns, told)


def _more(row: Row, test: Callable[[int, int], float]) -> str:
    """Whether more questions surface in the image values than at a place (McNemar's exact test)."""
    if test(row["only_value"], row["only_here"]) >= 0.05:
        return "not told apart"
    return "more" if row["only_value"] > row["only_here"] else "less"


def prefixes() -> str:
    """What a text before the image does, against filler of the same length."""
    told = []
    for row in rows_of("prefix", model=MODEL, dataset=DATASET):
        if row["layer"] is not None or row["part"] != "value":
            continue
        of = {"filler": row["filler_id"], "other": row["id"], "metric": row["metric"]}
        draws = [each["delta"] for each in asked_of_catalog(PREFIX, **of)]
        ends = row["low"], row["high"]
        shown = None not in ends and (row["low"] > 0 or row["high"] < 0)
        delta = f"{row['delta']:+.4f}" + ("" if None in ends else f" [{row['low']:+.4f}, {row['high']:+.4f}]")
        told.append(
            (
                row["task"],
                row["metric"],
                row["condition"],
                delta.replace("-", "\u2212"),
                by_seed(draws, digits=4),
                verdict(shown=shown),
                row["n"],
            )
        )
    columns = ["task", "metric", "text before the image", "difference to filler, mean over layers", "by seed"]
    return table([*columns, "effect", "n"], told)
