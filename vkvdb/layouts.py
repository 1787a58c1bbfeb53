"""The columns of the store's Parquet files. The widths are the catalog's: they are read into it as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


def samples() -> pa.Schema:
    """Samples of a dataset; `body` is JSON."""
    import pyarrow as pa

    text = [(name, pa.string()) for name in ("id", "kind", "group", "cluster")]
    return pa.schema([("sample", pa.int32()), *text, ("images", pa.list_(pa.int32())), ("body", pa.string())])


def tokens() -> pa.Schema:
    """A token map: a row a position of an image of some size; edges are pixels of the original image."""
    import pyarrow as pa

    whole = {name: pa.int32() for name in ("width", "height", "place")}
    text = {name: pa.string() for name in ("kind", "view")}
    narrow = {name: pa.int16() for name in ("tile", "row", "col")}
    edges = {name: pa.float64() for name in ("left", "top", "right", "bottom")}
    return pa.schema([*whole.items(), *text.items(), *narrow.items(), *edges.items()])


def scores() -> pa.Schema:
    """Scores; `site` is `Site.number`."""
    import pyarrow as pa

    return pa.schema(
        [
            ("sample", pa.int32()),
            ("site", pa.int16()),
            ("head", pa.int8()),
            ("metric", pa.dictionary(pa.int8(), pa.string())),
            ("value", pa.float32()),
            ("weight", pa.float32()),
        ]
    )


def answers() -> pa.Schema:
    """Answers to questions."""
    import pyarrow as pa

    numbers = {name: pa.int16() for name in ("variant", "choice", "likeliest", "answer")}
    others = {"sample": pa.int32(), "likelihoods": pa.list_(pa.float64()), "correct": pa.bool_()}
    text = {name: pa.string() for name in ("prompt", "prompt_id", "raw")}
    return pa.schema({**others, **numbers, **text}.items())


def key_variance() -> pa.Schema:
    """How much keys vary over images."""
    import pyarrow as pa

    whole = {"site": pa.int16(), "head": pa.int8(), "half": pa.int8(), "unbiased": pa.bool_(), "n": pa.int32()}
    return pa.schema([*whole.items(), ("value", pa.float64())])


ROWS = {"scores": scores, "answers": answers, "key_variance": key_variance}
"""Rows of jobs, by the kind that they are published under."""
