"""Manifests as rows of the catalog: what a manifest says, in the columns of `vkvdb.schema`. Opens no database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vkvdb.errors import DamagedStore
from vkvdb.jobs import Ask, Score, digest, from_json, to_json
from vkvdb.schema import number
from vkvdb.store import Manifest, Store
from vkvdb.types import Site

Row = dict[str, Any]
Rows = dict[str, list[Row]]  # {table: rows}
Key = tuple[int, ...] | tuple[str, ...]

# What is absorbed, in this order (a job needs its model and its dataset), and where the manifests lie.
MANIFESTS = {
    "models": "models/*.json",
    "datasets": "datasets/*/manifest.json",
    "captures": "captures/*/*.json",
    "token_maps": "tokens/*.json",
    "checks": "checks/*.json",
    "benchmarks": "benchmarks/*.json",
    "jobs": "jobs/*/*.json",
}
# The columns that a manifest's name gives; those of the table's key unless told.
MARKS = {"checks": ("id",), "benchmarks": ("source",)}


@dataclass
class Absorbed:
    """What `absorb` took in: {table: new rows}, the ids of new jobs, and a line for each manifest that it could not."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MANIFESTS, 0))
    jobs: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """`2 models, 1 datasets, 3 jobs`, or `nothing new`."""
        return ", ".join(f"{n} {table}" for table, n in self.counts.items() if n) or "nothing new"


def manifest_paths(store: Store, table: str) -> Iterator[tuple[Key, Path]]:
    """The manifests of a kind, each with its row's key, told from its name alone: a known one is not read again."""
    for path in sorted(store.root.glob(MANIFESTS[table])):
        yield _key(table, path), path


def _key(table: str, path: Path) -> Key:
    if table == "models":
        return (number(path.stem),)
    if table == "datasets":
        return (number(path.parent.name),)
    if table == "jobs":
        return (number(path.parent.name, int(path.stem)),)
    if table == "captures":
        return (path.parent.name, path.stem)
    return (path.stem,)


def rows_of(table: str, path: Path, manifest: Manifest) -> Rows:
    """The rows that a manifest makes, without those that lie in Parquet and a job's names. Raises DamagedStore."""
    try:
        return _MAKERS[table](path, manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"its manifest does not say what it should ({type(error).__name__}: {error})"
        raise DamagedStore(path=path, why=why) from error


def _model(_: Path, m: Manifest) -> Rows:
    model = number(m["hash"])
    copied = (
        "name",
        "path",
        "checkpoint",
        "family",
        "family_version",
        "variant",
        "dtype",
        "parameters",
        "files",
        "host",
    )
    row = {"model": model, "id": m["hash"], "created": _time(m["created"]), **{c: m[c] for c in copied}}
    layers = []
    for shape in m["sites"]:
        site = Site(shape["stage"], shape["layer"], shape["part"])
        layers.append(
            {"model": model, "site": site.number, **{c: shape[c] for c in ("stage", "layer", "part", "heads", "dim")}}
        )
    return {"models": [row], "layers": layers}


def _dataset(_: Path, m: Manifest) -> Rows:
    copied = (
        "name",
        "adapter",
        "adapter_version",
        "split",
        "root",
        "images",
        "samples",
        "problems",
        "files",
        "host",
        "versions",
    )
    row = {"dataset": number(m["hash"]), "id": m["hash"], "created": _time(m["created"]), "seed": m.get("seed")}
    return {"datasets": [{**row, **{c: m[c] for c in copied}}]}


def _capture(path: Path, m: Manifest) -> Rows:
    files = [path.parent / name for name in m["files"]]
    row = {
        "capture": m["capture"],
        "shard": path.stem,
        "number": m["shard"],
        "images": m["images"],
        "sites": m["sites"],
        "files": len(files),
        "bytes": sum(f.stat().st_size for f in files if f.is_file()),
        "spec": m["spec"],
    }
    return {"captures": [row]}


def _job(_: Path, m: Manifest) -> Rows:
    spec = from_json(m["spec"])
    if digest(m["spec"]) != m["job"]:
        raise ValueError("its id is not the hash of its specification")
    capture, model = spec.capture, spec.capture.model
    task = spec if isinstance(spec, Score | Ask) and spec.task else None
    row = {
        "job": number(m["job"], m["edition"]),
        "id": m["job"],
        "kind": spec.kind,
        "capture": capture.id,
        "model": number(digest(to_json(model))),
        "dataset": number(capture.dataset),
        "task": task.task if task else None,
        "task_version": task.task_version if task else None,
        "parameters": dict(task.parameters) if task else {},
        "interventions": list(capture.interventions),
        "layers": None if spec.layers is None else list(spec.layers),
        "parts": list(spec.parts),
        "seed": spec.seed,
        "limited": spec.limit,
        "started": _time(m["started"]),
        "finished": _time(m["finished"]),
    }
    row |= {c: getattr(model, c) for c in ("checkpoint", "family", "family_version", "variant")}
    same = ("view", "square", "prefix", "dtype", "quantisation", "attention", "block", "selection")
    row |= {c: getattr(capture, c) for c in same}
    copied = (
        "edition",
        "spec",
        "provenance",
        "attempt",
        "n",
        "of",
        "host",
        "device",
        "seconds",
        "versions",
        "captured",
        "notes",
    )
    row |= {c: m[c] for c in copied}
    return {"jobs": [row]}


def _token_map(path: Path, m: Manifest) -> Rows:
    return {"token_maps": [{"capture": path.stem, "sizes": m["sizes"], "rows": m["rows"]}]}


def _check(path: Path, m: Manifest) -> Rows:
    row = {"id": path.stem, "model": number(m["model"]), "created": _time(m["created"])}
    row |= {c: m[c] for c in ("verdict", "why", "options", "device", "host")}
    nothing = {"": {"deviation": None, "tolerance": None, "where": ""}}  # a check that could not be run
    found = m["deviations"] or nothing
    return {
        "checks": [
            {**row, "name": name, "worst": one["where"], **{c: one[c] for c in ("deviation", "tolerance")}}
            for name, one in found.items()
        ]
    }


def _benchmark(path: Path, m: Manifest) -> Rows:
    shared = {"source": path.stem, "tool": m["tool"], "created": _time(m["created"])}
    columns = ("model_name", "benchmark", "metric", "value", "n", "model")
    return {"benchmarks": [{**shared, **{c: row[c] for c in columns}} for row in m["rows"]]}


_MAKERS = {
    "models": _model,
    "datasets": _dataset,
    "captures": _capture,
    "token_maps": _token_map,
    "checks": _check,
    "benchmarks": _benchmark,
    "jobs": _job,
}


def _time(text: str) -> datetime:
    """An ISO time as the catalog has it: UTC, without saying so."""
    return datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None)


def row_files(store: Store, manifest: Manifest, kind: str) -> tuple[list[str], int]:
    """The Parquet files of a job's rows of a kind (`scores`, `answers`, `key_variance`), and how many rows they hold.

    Scores are the manifest's `shards` that name a file, other kinds have a list under their own name.
    Raises DamagedStore when a file is gone.
    """
    shards = manifest["shards"] if kind == "scores" else manifest.get(kind, [])
    named = [shard for shard in shards if "file" in shard]
    files = [store.root / shard["file"] for shard in named]
    for file in files:
        if not file.is_file():
            raise DamagedStore(path=file, why="it is not there")
    return [str(f) for f in files], sum(shard["rows"] for shard in named)
