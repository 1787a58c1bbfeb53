"""The catalog's tables. Views lie in views.sql; how summaries are computed, in summaries.sql.

Numbers stand for ids: the number of a model, a dataset or a job is the first 12 hex digits of its id (a job's edition
is added), so it is the same in every catalog, whatever is absorbed first. Primary keys on dimension tables and NOT NULL
are the only constraints: foreign keys freeze ALTER, and secondary indexes of DuckDB 1.5 break when a process is killed.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    REAL,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
)
from sqlalchemy import JSON as _JSON
from sqlalchemy.types import UserDefinedType

# The newest file of migrations/versions: compared with the catalog's revision whenever that is opened.
REVISION = "0003"

metadata = MetaData()

JSON = _JSON(none_as_null=True)


class TinyInteger(UserDefinedType[int]):
    """DuckDB's TINYINT, -128 to 127."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """The type's name in DDL."""
        return "TINYINT"


def number(id: str, edition: int = 0) -> int:  # noqa: A002 - it is the id
    """The number that stands for an id (32 hex digits) in the catalog."""
    return int(id[:12], 16) + edition


def _key(name: str, type_: Any, comment: str) -> Column[Any]:
    # Without autoincrement=False the dialect would make a sequence for integers.
    return Column(name, type_, primary_key=True, autoincrement=False, comment=comment)


def _col(name: str, type_: Any, comment: str, *, null: bool = False) -> Column[Any]:
    return Column(name, type_, nullable=null, comment=comment)


_ISO = "(UTC)"

models = Table(
    "models",
    metadata,
    _key("model", BigInteger, "number of the model"),
    _col("id", String, "id: hash of checkpoint, family, family version and variant"),
    _col("name", String, "what a person typed when it was first used"),
    _col("path", String, "where it lay then; empty for a model without a checkpoint"),
    _col("checkpoint", String, "hash of weights, configuration, processor, tokenizer and template"),
    _col("family", String, "file of vkvdb/models that reads it"),
    _col("family_version", Integer, "version of that file"),
    _col("variant", String, "departure from the checkpoint: random:SEED, random-decoder:SEED or blank; empty for none"),
    _col("dtype", String, "the checkpoint's own number type", null=True),
    _col("parameters", BigInteger, "number of parameters; NULL where it is not known", null=True),
    _col("files", JSON, "{file: sha256} of the checkpoint"),
    _col("created", DateTime, f"when its manifest was published {_ISO}"),
    _col("host", String, "host that published it"),
    comment="One row a model: a checkpoint by content, or a random twin of it",
)

layers = Table(
    "layers",
    metadata,
    _key("model", BigInteger, "number of the model"),
    _key("site", SmallInteger, "number of the site, the same in every model"),
    _col("stage", String, "encoder, projector or decoder"),
    _col("layer", SmallInteger, "layer of the stage, from 0"),
    _col("part", String, "key (as cached, after rotation), key_unrotated, value or hidden"),
    _col("heads", SmallInteger, "key-value heads; 1 where there are none"),
    _col("dim", Integer, "numbers in a token's vector of one head"),
    comment="One row a site of a model: where its tokens can be read",
)

datasets = Table(
    "datasets",
    metadata,
    _key("dataset", BigInteger, "number of the dataset"),
    _col("id", String, "id: hash of its images and samples"),
    _col("name", String, "NAME-SPLIT"),
    _col("adapter", String, "file of vkvdb/datasets that read it"),
    _col("adapter_version", Integer, "version of that file"),
    _col("split", String, "split of it"),
    _col("root", String, "folder of its images when it was ingested; empty for the dataset's own folder in the store"),
    _col("images", Integer, "number of images"),
    _col("samples", JSON, "{kind: number of samples}"),
    _col("problems", JSON, "[{where, what}]: what is wrong in its annotations"),
    _col("files", JSON, "{annotation file: sha256}"),
    _col("seed", Integer, "seed of a dataset that is made", null=True),
    _col("created", DateTime, f"when its manifest was published {_ISO}"),
    _col("host", String, "host that published it"),
    _col("versions", JSON, "{package: version}"),
    comment="One row a dataset that was ingested",
)

images = Table(
    "images",
    metadata,
    _key("dataset", BigInteger, "number of the dataset"),
    _key("image", Integer, "place in the dataset's order, from 0"),
    _col("name", String, "what samples call it"),
    _col("path", String, "file, relative to the dataset's root"),
    _col("recipe", String, "JSON that makes a derived image out of the file; empty for the file as it is"),
    _col("width", Integer, "pixels"),
    _col("height", Integer, "pixels"),
    _col("sha256", String, "of the file"),
    _col("bytes", BigInteger, "of the file"),
    comment="One row an image of a dataset",
)

samples = Table(
    "samples",
    metadata,
    _key("dataset", BigInteger, "number of the dataset"),
    _key("sample", Integer, "place in the dataset's order, from 0"),
    _col("id", String, "what the dataset calls it"),
    _col("kind", String, "image, image_pair, episode, image_set, expression, clip or question"),
    _col("grp", String, "class or fold that means are taken over"),
    _col("cluster", String, "what is not independent: image, clip"),
    _col("images", ARRAY(Integer), "number of each image that it stands on"),
    _col("body", JSON, "its labels"),
    comment="One row a labelled item of a dataset",
)

jobs = Table(
    "jobs",
    metadata,
    _key("job", BigInteger, "number of the job"),
    _col("id", String, "id: hash of the specification; people type the first 8 hex digits"),
    _col("edition", Integer, "how often it had been done before (vkvdb score --again)"),
    _col("kind", String, "extract, score, ask or calibrate"),
    _col("capture", String, "id of the capture: hash of the specification without sites and task"),
    _col("model", BigInteger, "number of the model"),
    _col("model_name", String, "name of the model"),
    _col("checkpoint", String, "hash of the checkpoint"),
    _col("family", String, "model family"),
    _col("family_version", Integer, "version of the family's file"),
    _col("variant", String, "random:SEED, random-decoder:SEED, blank, or empty"),
    _col("dataset", BigInteger, "number of the dataset"),
    _col("dataset_name", String, "NAME-SPLIT of the dataset"),
    _col("task", String, "file of vkvdb/tasks; NULL for an extract", null=True),
    _col("task_version", Integer, "version of that file", null=True),
    _col("parameters", JSON, "{name: value} of the task's parameters that are not their defaults"),
    _col("view", String, "base or tiles"),
    _col("square", Integer, "side in pixels that images are forced to; NULL for the model's own grid", null=True),
    _col("prefix", String, "text before the image"),
    _col("dtype", String, "number type; NULL for the checkpoint's own", null=True),
    _col("quantisation", String, "4bit or 8bit; NULL for none", null=True),
    _col("attention", String, "implementation of attention"),
    _col("block", SmallInteger, "images of one forward pass"),
    _col("interventions", JSON, "[changes to the forward pass]"),
    _col("selection", String, "hash of the image list when it is not the whole dataset"),
    _col("layers", JSON, "[layers]; NULL for all", null=True),
    _col("parts", JSON, "[parts]"),
    _col("seed", Integer, "seed of every draw"),
    _col("limited", Integer, "the specification's limit: at most so many samples; NULL for all", null=True),
    _col("spec", JSON, "the specification, whose hash is the id"),
    _col("provenance", JSON, "what a person asked for that no number depends on"),
    _col("attempt", Integer, "how often workers had tried when it was done"),
    _col("n", Integer, "samples (or images) done"),
    _col("of", Integer, "samples (or images) there were"),
    _col("host", String, "host of the worker"),
    _col("device", String, "device that it ran on"),
    _col("started", DateTime, f"when its last attempt began {_ISO}"),
    _col("finished", DateTime, f"when its manifest was published {_ISO}"),
    _col("seconds", Double, "how long it took"),
    _col("versions", JSON, "{package: version}"),
    _col("captured", JSON, "blocks, captures, from_store, images, per_image (captures an image)"),
    _col("notes", JSON, "what the task or the family had to say"),
    comment="One row a finished job, with every field of its specification",
)

captures = Table(
    "captures",
    metadata,
    _key("capture", String, "id of the capture"),
    _key("shard", String, "the shard's manifest, as its file is called"),
    _col("number", Integer, "number of the shard in the job that published it, from 0"),
    _col("images", ARRAY(Integer), "number of each image"),
    _col("sites", ARRAY(String), "sites, as stage.layer.part"),
    _col("files", Integer, "Parquet files"),
    _col("bytes", BigInteger, "size of those files"),
    _col("spec", JSON, "what decides the tensors' bytes, whose hash is the capture's id"),
    comment="One row a shard of tensors that lies in the store (a cache: rows go when files go)",
)

scores = Table(
    "scores",
    metadata,
    _col("job", BigInteger, "number of the job"),
    _col("sample", Integer, "number of the sample in the job's dataset"),
    _col("site", SmallInteger, "number of the site"),
    _col("head", TinyInteger, "key-value head; -1 for all heads concatenated, or where there are none"),
    _col("metric", String, "what is measured"),
    _col("value", REAL, "the score; NaN where it is not defined"),
    _col("weight", REAL, "weight in the group's mean"),
    comment="One row a sample, site, head and metric: the record that all results stand on",
)

summaries = Table(
    "summaries",
    metadata,
    _col("job", BigInteger, "number of the job"),
    _col("site", SmallInteger, "number of the site"),
    _col("head", TinyInteger, "key-value head; -1 for all heads concatenated, or where there are none"),
    _col("metric", String, "what is measured"),
    _col("grp", String, "class or fold; empty for the mean over all of them"),
    _col(
        "value",
        Double,
        "weighted mean of a group, or mean of the groups' means; NULL where no score is defined",
        null=True,
    ),
    _col("se", Double, "its cluster-linearised standard error; NULL where so few clusters tell none", null=True),
    _col("n", Integer, "scores that are defined"),
    _col("n_undefined", Integer, "scores that are not"),
    _col("n_groups", Integer, "groups"),
    _col("n_clusters", Integer, "independent clusters"),
    _col("df", Double, "degrees of freedom of the error, for Student's interval; NULL without one", null=True),
    comment="Means of a job's scores with their errors, computed by summaries.sql when the job is absorbed",
)

choices = Table(
    "choices",
    metadata,
    _col("job", BigInteger, "number of the job"),
    _col("stage", String, "encoder, projector or decoder: among its layers and heads the choice is made"),
    _col("part", String, "part of that stage"),
    _col("metric", String, "what is measured"),
    _col("split", TinyInteger, "number of the split of the clusters into two halves, from 0"),
    _col("half", TinyInteger, "half on which the choice was made, 0 or 1"),
    _col("site", SmallInteger, "site that was chosen"),
    _col("head", TinyInteger, "head that was chosen; -1 where there are none"),
    _col("chosen", Double, "its value on the half on which it was chosen"),
    _col("value", Double, "its value on the other half"),
    _col("se", Double, "its cluster-linearised standard error; NULL where so few clusters tell none", null=True),
    _col("n_clusters", Integer, "clusters of the other half"),
    _col("df", Double, "degrees of freedom of the error; NULL without one", null=True),
    comment="The best layer and head, chosen on one half of the clusters and reported on the other (choices.sql)",
)

answers = Table(
    "answers",
    metadata,
    _col("job", BigInteger, "number of the job"),
    _col("sample", Integer, "number of the sample in the job's dataset"),
    _col("variant", SmallInteger, "order of options and images: 0 as in the dataset, others are controls"),
    _col("prompt", String, "text that the model was given"),
    _col("prompt_id", String, "hash of that text and its images"),
    _col("raw", String, "what the model wrote, as it is"),
    _col("likelihoods", JSON, "[log-likelihood of each option's letter]; NULL for an open question", null=True),
    _col("choice", SmallInteger, "option read from what it wrote, in the dataset's order; NULL: none", null=True),
    _col("correct", Boolean, "whether what it wrote is the dataset's answer; NULL where it can't be read", null=True),
    _col("likeliest", SmallInteger, "option of the likeliest letter, in the dataset's order", null=True),
    _col("answer", SmallInteger, "option that is right, in the dataset's order; NULL for an open question", null=True),
    comment="One row an answer of a model to a question",
)

benchmarks = Table(
    "benchmarks",
    metadata,
    _key("source", String, "sha256 of the file that it was imported from"),
    _key("model_name", String, "the model as that file calls it"),
    _key("benchmark", String, "name of the benchmark"),
    _key("metric", String, "what is measured"),
    _col("value", Double, "the number"),
    _col("n", Integer, "items that it stands on; NULL where the file does not say", null=True),
    _col("model", BigInteger, "number of the model, where it is one of ours", null=True),
    _col("tool", String, "what wrote the file"),
    _col("created", DateTime, f"when its manifest was published {_ISO}"),
    comment="One row a benchmark number that was imported",
)

key_variance = Table(
    "key_variance",
    metadata,
    _col("job", BigInteger, "number of the job"),
    _col("site", SmallInteger, "number of the site"),
    _col("head", TinyInteger, "key-value head"),
    _col("half", TinyInteger, "0 for all images, 1 and 2 for two halves of them"),
    _col("unbiased", Boolean, "whether the projection's bias was subtracted first"),
    _col("n", Integer, "images"),
    _col("value", Double, "trace of the covariance over images / mean squared norm, averaged over positions"),
    comment="One row a site, head and half of a calibrate job: how much keys depend on the image",
)

checks = Table(
    "checks",
    metadata,
    _key("id", String, "the check's manifest, as its file is called"),
    _key("name", String, "what was compared; empty where nothing could be"),
    _col("model", BigInteger, "number of the model"),
    _col("verdict", String, "of the whole check: SUPPORTED, ERROR or SILENTLY WRONG"),
    _col("why", String, "what was wrong; empty for SUPPORTED"),
    _col("deviation", Double, "largest relative deviation; NULL where it is not finite", null=True),
    _col("tolerance", Double, "what is allowed", null=True),
    _col("worst", String, "where the largest deviation is"),
    _col("options", JSON, "dtype, attention, quantisation and square that were checked"),
    _col("device", String, "device that it ran on"),
    _col("created", DateTime, f"when its manifest was published {_ISO}"),
    _col("host", String, "host that published it"),
    comment="One row a comparison of vkvdb models check",
)

tokens = Table(
    "tokens",
    metadata,
    _col("capture", String, "id of the capture"),
    _col("width", Integer, "pixels of the original image"),
    _col("height", Integer, "pixels of the original image"),
    _col("place", Integer, "position, counted from the image's first"),
    _col("kind", String, "base, tile, newline or padding"),
    _col("view", String, "base or tiles"),
    _col("tile", SmallInteger, "number of the tile, row by row; -1 in the base view and for a newline"),
    _col("row", SmallInteger, "row on the view's grid"),
    _col("col", SmallInteger, "column on the view's grid"),
    _col("left", Double, "pixel of the original image; NULL for a newline", null=True),
    _col("top", Double, "pixel of the original image; NULL for a newline", null=True),
    _col("right", Double, "pixel of the original image; NULL for a newline", null=True),
    _col("bottom", Double, "pixel of the original image; NULL for a newline", null=True),
    comment="The token map: one row a position of an image of that size in a capture's prompt",
)

token_maps = Table(
    "token_maps",
    metadata,
    _key("capture", String, "id of the capture"),
    _col("sizes", Integer, "different sizes of its images"),
    _col("rows", Integer, "rows of its map"),
    comment="One row a capture whose token map is in the table tokens",
)

state = Table(
    "state",
    metadata,
    _key("name", String, "views.sql or summaries.sql"),
    _col("value", String, "sha256 of the text in force"),
    comment="Which of the SQL files that ship with vkvdb the catalog was last brought up to date with",
)
