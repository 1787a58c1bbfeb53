"""Whether the store holds what its manifests say: every listed file, bit for bit, and nothing unaccounted for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vkvdb.errors import VkvdbError
from vkvdb.publishing import is_abandoned, private_files, sha256

if TYPE_CHECKING:
    from vkvdb.store import Store

# A job's manifest comes last: what it says is compared with what the manifests of its shards say.
_MANIFESTS = (
    "datasets/*/manifest.json",
    *(f"{kind}/*/*/*.json" for kind in ("scores", "answers", "key_variance")),
    *(f"{kind}/*.json" for kind in ("models", "tokens", "checks", "benchmarks")),
    "captures/*/*.json",
    "jobs/*/*.json",
)
_DAY = 86_400


def problems(store: Store) -> Iterator[str]:
    """What is wrong, a line each; reads every file once. Workers may be at work meanwhile."""
    listed: dict[Path, str] = {}
    for pattern in _MANIFESTS:
        for path in sorted(store.root.glob(pattern)):
            try:
                files = _files(store, path)
            except VkvdbError as error:
                yield str(error)
                continue
            for file, wanted in files.items():
                if listed.setdefault(file, wanted) != wanted:
                    yield f"{path} tells another SHA-256 of {file} than the manifest beside it"
    for file, wanted in listed.items():
        if not file.is_file():
            yield f"{file} is missing"
        elif sha256(file) != wanted:
            yield f"{file} is not what was published: its SHA-256 differs"
    yield from _unaccounted(store.root, set(listed))


def _files(store: Store, path: Path) -> dict[Path, str]:
    """{file: its SHA-256} of what a manifest answers for."""
    body = store.read_json(path)
    if body["kind"] == "model":  # its `files` are those of the checkpoint, which is not in the store
        return {}
    if body["kind"] == "job":  # captures may be cleared; only shards of scores are named by `file`
        shards = [*body["shards"], *body.get("answers", []), *body.get("key_variance", [])]
        return {store.root / s["file"]: s["sha256"] for s in shards if "file" in s}
    if body["kind"] in ("check", "benchmark"):  # a manifest by itself
        return {}
    return {path.parent / name: wanted for name, wanted in body["files"].items()}


def _unaccounted(root: Path, listed: set[Path]) -> Iterator[str]:
    for path in private_files(root):
        if is_abandoned(path) or _age(path) > _DAY:
            yield f"{path} was left by a process that ended; it may be deleted"
    for pattern in (
        *(f"{kind}/*/*/*.parquet" for kind in ("scores", "answers", "key_variance", "captures")),
        "tokens/*.parquet",
    ):
        for path in sorted(set(root.glob(pattern)) - listed):
            yield f"{path} belongs to no manifest: a worker died there, and the job's next run will take it"


def _age(path: Path) -> float:
    """Seconds since a file was changed; none for one that is gone by now."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
