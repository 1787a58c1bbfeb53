"""The store: every fact, as Parquet and a JSON manifest. What has a manifest is there; nothing published ever changes.

datasets/HASH/   images.parquet, samples.parquet, manifest.json
models/HASH.json
captures/CAPTURE/   see `vkvdb.captures`
tokens/CAPTURE.parquet, CAPTURE.json   the token map of a capture's images
scores/JOB/EDITION/NNNN.parquet, NNNN.json   a shard and its manifest
jobs/JOB/EDITION.json   published last: a job is done when it is there
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vkvdb import layouts
from vkvdb.errors import DamagedStore, OldVersion
from vkvdb.publishing import Write, private_files, publish, sha256, sweep
from vkvdb.samples import Sample, sample_from_json, sample_to_json

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch

    from vkvdb.captures import StoredCapture
    from vkvdb.types import Site, TokenGrid

    Column = np.ndarray[Any, np.dtype[Any]]

FORMAT = 1
Manifest = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """An image of a dataset: its number in dataset order, where it lies under the root, its size, its content's hash.

    `recipe` is the JSON of `ImageFile.recipe`, and empty for a file as it is. `sha256` and `bytes` are the file's.
    """

    image: int
    name: str
    path: str
    recipe: str = ""
    width: int
    height: int
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class ScoreRows:
    """Scores in columns of equal length; `site` is `Site.number`, head -1 is all heads concatenated."""

    sample: Column
    site: Column
    head: Column
    metric: Sequence[str]
    value: Column
    weight: Column

    def __len__(self) -> int:
        return len(self.metric)


class Store:
    """One store, at a folder that need not exist yet. It may lie on a file system that several hosts share."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._shards: dict[Path, Manifest] = {}  # shard manifests that were read: they never change
        self._captures: dict[str, StoredCapture] = {}

    # --- publishing ---

    def publish(self, final: Path, write: Write) -> bool:
        """Publish one file: `write` is given a private path. False when the name is taken. Raises StoreFailed."""
        return not final.is_file() and publish({final: write})

    def publish_json(self, final: Path, body: Mapping[str, Any]) -> bool:
        """Publish a manifest; `format` is added. False when there is one. Raises StoreFailed."""
        return self.publish(final, _json_writer(body))

    def publish_with_manifest(self, files: Mapping[Path, Write], final: Path, facts: Mapping[str, Any]) -> bool:
        """Publish data files and then their manifest: `facts`, and `files` {name, relative to the manifest: sha256}.

        False when the manifest is there. A data file that is there without it, of a worker that died, is taken as it
        is. Raises StoreFailed; then nothing of this call remains.
        """
        while not final.is_file():
            hashes = {path: sha256(path) for path in files if path.is_file()}

            def manifest(private: Path, hashes: dict[Path, str] = hashes) -> None:
                named = {str(path.relative_to(final.parent)): hashes[path] for path in files}
                _json_writer({**facts, "files": {**facts.get("files", {}), **named}})(private)

            new = {path: _hashing(path, write, hashes) for path, write in files.items() if path not in hashes}
            if publish({**new, final: manifest}):
                return True
            # Another published one of the files meanwhile: now it is there to be taken.
        return False

    def sweep(self) -> None:
        """Remove what processes that died on this host left unfinished, anywhere in the store."""
        sweep(private_files(self.root))

    def read_json(self, path: Path) -> Manifest:
        """A manifest. Raises DamagedStore where there is none that can be read, OldVersion where it is too new."""
        try:
            body: Manifest = json.loads(path.read_text(encoding="utf-8"))
            found = int(body["format"])
        except OSError as error:
            raise DamagedStore(path=path, why=error.strerror or error) from error
        except (ValueError, TypeError, KeyError) as error:
            raise DamagedStore(path=path, why="it is no manifest") from error
        if found > FORMAT:
            raise OldVersion(what=path, found=f"format {found}", known=FORMAT)
        return body

    # --- manifests ---

    def datasets(self) -> Iterator[Manifest]:
        """The manifests of all datasets."""
        return map(self.read_json, sorted(self.root.glob("datasets/*/manifest.json")))

    def models(self) -> Iterator[Manifest]:
        """The manifests of all models."""
        return map(self.read_json, sorted(self.root.glob("models/*.json")))

    def jobs(self) -> Iterator[Manifest]:
        """The manifests of all jobs that are done, every edition."""
        return map(self.read_json, sorted(self.root.glob("jobs/*/*.json")))

    def dataset(self, dataset: str) -> Manifest:
        """The manifest of a dataset, by its hash. Raises DamagedStore when it is not there."""
        return self.read_json(self.dataset_folder(dataset) / "manifest.json")

    def dataset_folder(self, dataset: str) -> Path:
        """A dataset's own folder, by its hash."""
        return self.root / "datasets" / dataset

    def dataset_named(self, name: str) -> Manifest | None:
        """The manifest of the dataset of that name that was ingested last."""
        named = [m for m in self.datasets() if m["name"] == name]
        return max(named, key=lambda m: (m["created"], m["hash"]), default=None)

    def model(self, model: str) -> Manifest:
        """The manifest of a model, by its hash. Raises DamagedStore when it is not there."""
        return self.read_json(self.model_path(model))

    def model_path(self, model: str) -> Path:
        """Where a model's manifest is published."""
        return self.root / "models" / f"{model}.json"

    def job(self, job: str, edition: int) -> Manifest | None:
        """A job's manifest; None when it is not done."""
        path = self.job_path(job, edition)
        return self.read_json(path) if path.is_file() else None

    def job_path(self, job: str, edition: int) -> Path:
        """Where a job's manifest is published."""
        return self.root / "jobs" / job / f"{edition}.json"

    def newest_edition(self, job: str) -> int | None:
        """The last edition of a job that is done, or None."""
        return max((int(path.stem) for path in (self.root / "jobs" / job).glob("*.json")), default=None)

    # --- datasets ---

    def write_dataset(
        self, dataset: str, images: Sequence[ImageRow], samples: Sequence[Sample], facts: Mapping[str, Any]
    ) -> bool:
        """Publish a dataset: images in dataset order, samples in theirs. False when it is there. Raises StoreFailed."""
        number = {row.name: row.image for row in images}
        folder = self.dataset_folder(dataset)
        files = {
            folder / "images.parquet": _table_writer(
                {f.name: [getattr(row, f.name) for row in images] for f in fields(ImageRow)}, _images_schema
            ),
            folder / "samples.parquet": _table_writer(
                {
                    "sample": range(len(samples)),
                    "id": [s.id for s in samples],
                    "kind": [s.kind for s in samples],
                    "group": [s.group for s in samples],
                    "cluster": [s.cluster for s in samples],
                    "images": [[number[name] for name in s.images()] for s in samples],
                    "body": [json.dumps(sample_to_json(s), sort_keys=True, ensure_ascii=False) for s in samples],
                },
                layouts.samples,
            ),
        }
        facts = {"kind": "dataset", "hash": dataset, **facts}
        return self.publish_with_manifest(files, folder / "manifest.json", facts)

    def images(self, dataset: str) -> list[ImageRow]:
        """The images of a dataset, by its hash, in dataset order."""
        rows = _read(self.dataset_folder(dataset) / "images.parquet").to_pylist()
        return [ImageRow(**row) for row in rows]

    def samples(self, dataset: str) -> list[tuple[int, Sample]]:
        """The samples of a dataset, by its hash, each with its number."""
        rows = _read(self.dataset_folder(dataset) / "samples.parquet").to_pylist()
        return [
            (r["sample"], sample_from_json(r["kind"], r["id"], r["group"], r["cluster"], json.loads(r["body"])))
            for r in rows
        ]

    # --- rows: scores, answers, key_variance ---

    def write_scores(self, job: str, edition: int, shard: int, rows: ScoreRows, facts: Mapping[str, Any]) -> Manifest:
        """Publish a shard of scores; its manifest is given back. Raises StoreFailed."""
        span = {
            "first": int(rows.sample.min()) if len(rows) else None,
            "last": int(rows.sample.max()) if len(rows) else None,
        }
        return self.write_rows("scores", job, edition, shard, vars(rows), {**span, **facts})

    def write_rows(  # noqa: PLR0917 - where it goes, and what it is
        self, kind: str, job: str, edition: int, shard: int, columns: Mapping[str, Any], facts: Mapping[str, Any]
    ) -> Manifest:
        """Publish a shard of rows of a kind (`scores`, `answers` or `key_variance`); its manifest is given back.

        `columns` are those of the kind's schema, by name, of equal lengths. Raises StoreFailed.
        """
        folder = self._rows(kind, job, edition)
        data, final = folder / f"{shard:04d}.parquet", folder / f"{shard:04d}.json"
        body = {
            "kind": kind,
            "job": job,
            "edition": edition,
            "shard": shard,
            "file": str(data.relative_to(self.root)),
            "rows": len(next(iter(columns.values()))),
            **facts,
        }
        self.publish_with_manifest({data: _table_writer(columns, layouts.ROWS[kind])}, final, body)
        return self._shard(final)

    def score_shards(self, job: str, edition: int) -> dict[int, Manifest]:
        """The manifests of a job's shards of scores that are published, as `row_shards` gives them."""
        return self.row_shards("scores", job, edition)

    def row_shards(self, kind: str, job: str, edition: int) -> dict[int, Manifest]:
        """The manifests of a job's shards that are published: {shard: facts, with `file`, `rows` and `sha256`}."""
        return {int(path.stem): self._shard(path) for path in sorted(self._rows(kind, job, edition).glob("*.json"))}

    def read_scores(self, job: str, edition: int) -> pa.Table:
        """A job's scores, shard after shard: columns as `ScoreRows`, `metric` as a dictionary."""
        return self.read_rows("scores", job, edition)

    def read_rows(self, kind: str, job: str, edition: int) -> pa.Table:
        """A job's rows of a kind, shard after shard."""
        import pyarrow as pa

        shards = self.row_shards(kind, job, edition)
        tables = [_read(self.root / shards[n]["file"]) for n in sorted(shards)]
        return pa.concat_tables([layouts.ROWS[kind]().empty_table(), *tables]).unify_dictionaries().combine_chunks()

    def _rows(self, kind: str, job: str, edition: int) -> Path:
        return self.root / kind / job / str(edition)

    def _shard(self, path: Path) -> Manifest:
        if path not in self._shards:
            body = self.read_json(path)
            # One file: its hash is also told as a column of its own.
            self._shards[path] = {**body, "sha256": next(iter(body["files"].values()))}
        return dict(self._shards[path])

    # --- captures ---

    def write_capture(  # noqa: PLR0917 - what a shard is made of
        self,
        capture: str,
        shard: int,
        images: Sequence[int],
        grids: Sequence[TokenGrid],
        tokens: Mapping[Site, Sequence[torch.Tensor]],
        facts: Mapping[str, Any],
    ) -> bool:
        """Publish tokens {site: (H, R, C, D) of each image}. False when they are there. Raises StoreFailed."""
        from vkvdb import captures

        folder = self.root / "captures" / capture
        files, final, body = captures.plan(folder, shard, images, grids, tokens)
        return self.publish_with_manifest(files, final, {"kind": "capture", "capture": capture, **body, **facts})

    def capture_shards(self, capture: str) -> list[Manifest]:
        """The manifests of a capture's shards that are published."""
        return self.open_capture(capture).manifests

    def open_capture(self, capture: str) -> StoredCapture:
        """What is stored of a capture, as of now; there may be nothing."""
        from vkvdb.captures import StoredCapture

        stored = self._captures.setdefault(capture, StoredCapture(self.root / "captures" / capture))
        stored.refresh(self.read_json)
        return stored

    # --- token maps ---

    def has_token_map(self, capture: str) -> bool:
        """Whether the token map of a capture is published."""
        return self._token_map(capture).is_file()

    def write_token_map(self, capture: str, columns: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
        """Publish the token map of a capture's images, a row a position of an image of each size.

        `columns` are those of the catalog's table `tokens`, but for the capture, of equal lengths. False when it is
        there. Raises StoreFailed.
        """
        final = self._token_map(capture)
        sizes = {*zip(columns["width"], columns["height"], strict=True)}
        body = {"kind": "token_map", "capture": capture, "sizes": len(sizes), "rows": len(columns["place"]), **facts}
        return self.publish_with_manifest(
            {final.with_suffix(".parquet"): _table_writer(columns, layouts.tokens)}, final, body
        )

    def _token_map(self, capture: str) -> Path:
        return self.root / "tokens" / f"{capture}.json"


# --- files ------------------------------------------------------------------------------------------------------------


def _json_writer(body: Mapping[str, Any]) -> Write:
    """A manifest as people like it: `format` and `kind` first, the rest by name, lists of numbers on one line."""
    first = {"format": FORMAT, **({"kind": body["kind"]} if "kind" in body else {})}
    rest = json.loads(json.dumps(body, sort_keys=True, allow_nan=False))
    text = json.dumps(first | rest, indent=1, ensure_ascii=False)
    # A line break never stands inside a JSON string, so this finds nothing but lists.
    text = re.sub(r"\[\n[-\d.,\s]+\n *\]", lambda m: "[" + " ".join(m[0][1:-1].split()) + "]", text)

    def write(path: Path) -> None:
        path.write_text(f"{text}\n", encoding="utf-8")

    return write


def _hashing(final: Path, write: Write, hashes: dict[Path, str]) -> Write:
    """`write`, noting the hash of what it wrote."""

    def both(private: Path) -> None:
        write(private)
        hashes[final] = sha256(private)

    return both


def _table_writer(columns: Mapping[str, Any], schema: Any) -> Write:
    """Columns as Parquet. Equal columns give equal bytes: there is no time and no chance in it."""

    def write(path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        wanted = schema()
        arrays = [pa.array(columns[field.name], field.type) for field in wanted]
        pq.write_table(pa.Table.from_arrays(arrays, schema=wanted), path, compression="zstd")

    return write


def _read(path: Path) -> pa.Table:
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, memory_map=True, partitioning=None)
    except (OSError, ValueError) as error:  # Arrow's errors are one of the two
        raise DamagedStore(path=path, why=" ".join(str(error).split())) from error


def _images_schema() -> pa.Schema:
    import pyarrow as pa

    narrow, long = ("image", "width", "height"), ("bytes",)
    kinds = {**dict.fromkeys(narrow, pa.int32()), **dict.fromkeys(long, pa.int64())}
    return pa.schema([(f.name, kinds.get(f.name, pa.string())) for f in fields(ImageRow)])
