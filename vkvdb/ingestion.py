"""A dataset into the store: what an adapter reads is checked, every image decoded once and hashed, then published.

Images stay where they are; only those of a dataset that is made are written, into its own folder in the store. The
dataset's hash is that of its content: adapter and version, split, images, samples; not where it lies. What was decoded
is noted in the home (path, size, time of change, hash), so an ingest that was interrupted goes on where it was, and a
second one reads no image.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import socket
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import vkvdb
from vkvdb import registry
from vkvdb.errors import BadDataset, BadOption, StoreFailed, UnknownName
from vkvdb.inspection import Advance, Checked, Progress, inspect
from vkvdb.jobs import ID_LENGTH, canonical
from vkvdb.paths import Home
from vkvdb.processes import this_process
from vkvdb.publishing import PRIVATE, is_abandoned
from vkvdb.samples import sample_to_json
from vkvdb.store import Store
from vkvdb.types import Dataset

WORKERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Ingested:
    """What an ingest gave: the dataset's manifest, and whether it is new in the store."""

    manifest: dict[str, Any]
    new: bool


@contextmanager
def _quiet(_label: str, _total: int | None) -> Iterator[Advance]:
    yield lambda _steps: None


def known() -> dict[str, str]:
    """{NAME-SPLIT: its adapter's help line} of all datasets that there are adapters for."""
    return {
        f"{name}-{split}": registry.help_line("datasets", name)
        for name in registry.names("datasets")
        for split in registry.load("datasets", name).splits
    }


def adapter(name: str) -> tuple[str, str, Dataset]:
    """The adapter's name, the split and the adapter of a dataset NAME-SPLIT; raises UnknownName with the nearest."""
    stem, _, split = name.partition("-")
    if stem not in registry.names("datasets") or split not in registry.load("datasets", stem).splits:
        names = list(known())
        raise UnknownName(kind="dataset", name=name, nearest=registry.nearest(name, names), known=", ".join(names))
    found: Dataset = registry.load("datasets", stem)()
    return stem, split, found


def ingest(
    name: str,
    root: Path | None,
    home: Home,
    store: Store,
    *,
    skip_bad: bool = False,
    workers: int = WORKERS,
    progress: Progress = _quiet,
) -> Ingested:
    """Ingest the dataset NAME-SPLIT that lies under `root` (None for one that is made).

    Raises UnsoundDataset where anything is wrong with it, unless `skip_bad` leaves that out and notes it in the
    manifest; BadDataset where it is not there, UnknownName, BadOption, StoreFailed. Then the store is as it was.
    """
    stem, split, found = adapter(name)
    facts = {"name": name, "adapter": stem, "adapter_version": found.version, "split": split}
    if not found.layout:
        if root is not None:
            raise BadOption(option="--root", value=root, why=f"{name} is made, not read from a folder")
        return _make(found, facts, store, skip_bad=skip_bad, workers=workers, progress=progress)
    if root is None:
        raise BadOption(option="--root", value="is missing", why=f"{name} lies in a folder of yours, {found.layout}")
    root = root.expanduser().resolve()
    if not root.is_dir():
        what = f"{root} is a file, where a folder is needed" if root.exists() else f"there is no folder {root}"
        raise BadDataset(what=what, expected=found.layout.replace("SPLIT", split))
    with progress(f"reading {name}", None):
        reading = found.read(root, split)
    cache = home.root / "ingest" / f"{name}.jsonl"
    checked = inspect(name, root, reading, cache=cache, skip_bad=skip_bad, workers=workers, progress=progress)
    ingested = _publish(checked, facts, str(root), store)
    _remember_root(home, ingested.manifest["hash"], root)
    return ingested


def _make(
    found: Dataset, facts: dict[str, Any], store: Store, *, skip_bad: bool, workers: int, progress: Progress
) -> Ingested:
    """Have a dataset made in a private folder, then publish its images and itself; not when this version is there.

    Where publishing fails after the images have their name, they stay: without a manifest they are nothing yet, and the
    next ingest takes them as they are.
    """
    name = facts["name"]
    there = store.dataset_named(name)
    if there is not None and there["adapter_version"] == facts["adapter_version"]:
        return Ingested(there, new=False)
    with _private_folder(store.root / "datasets", name) as private:
        with progress(f"making {name}", None):
            reading = found.read(private, facts["split"])
        checked = inspect(name, private, reading, cache=None, skip_bad=skip_bad, workers=workers, progress=progress)
        _publish_folder(private, store.dataset_folder(_hash(checked, facts)), workers)
    return _publish(checked, facts, "", store)


# --- publishing -------------------------------------------------------------------------------------------------------


def _hash(checked: Checked, facts: Mapping[str, Any]) -> str:
    """The dataset's hash: equal content gives an equal one, wherever it lies."""
    content = hashlib.sha256(canonical([facts["adapter"], facts["adapter_version"], facts["split"]]).encode())
    for row in checked.rows:
        content.update(f"\n{canonical([row.name, row.path, row.recipe, row.sha256])}".encode())
    for s in checked.samples:
        content.update(f"\n{canonical([s.id, s.kind, s.group, s.cluster, sample_to_json(s)])}".encode())
    return content.hexdigest()[:ID_LENGTH]


@contextmanager
def _private_folder(parent: Path, name: str) -> Iterator[Path]:
    """A folder in the store to make a dataset in, removed in the end if it has not got another name; StoreFailed."""
    private = parent / f".{name}.{this_process().signature()}.{uuid.uuid4().hex[:8]}{PRIVATE}"
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        private.mkdir(parents=True)
        for left in parent.glob(f".{name}.*{PRIVATE}"):
            if is_abandoned(left):
                shutil.rmtree(left)
        yield private
    except OSError as error:
        raise StoreFailed(path=private, why=error.strerror or error) from error
    finally:
        shutil.rmtree(private, ignore_errors=True)  # what stays, `vkvdb db verify` finds
        for folder in made:
            with suppress(OSError):  # what was published keeps it
                folder.rmdir()


def _publish_folder(private: Path, final: Path, workers: int) -> None:
    """Force all files of a folder to disk and give it its name at once; one that has this name stays."""
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(_force, private.rglob("*")))
    try:
        private.rename(final)
    except OSError:
        if not final.is_dir():
            raise
    _force(final.parent)


def _force(path: Path) -> None:
    """Force a file, or a folder's list of names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _publish(checked: Checked, facts: Mapping[str, Any], root: str, store: Store) -> Ingested:
    dataset = _hash(checked, facts)
    manifest = {
        **facts,
        "root": root,
        "images": len(checked.rows),
        "samples": dict(Counter(sample.kind for sample in checked.samples)),
        "problems": [asdict(problem) for problem in checked.problems],
        "left_out": dict(checked.left_out),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "versions": {"vkvdb": vkvdb.__version__, "python": platform.python_version()},
    }
    new = store.write_dataset(dataset, checked.rows, checked.samples, manifest)
    return Ingested(store.dataset(dataset), new)


def _remember_root(home: Home, dataset: str, root: Path) -> None:
    """Note where the dataset lies on this host; by this a root is moved."""
    try:
        with (home.root / "roots.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            roots = json.loads(home.roots.read_text(encoding="utf-8")) if home.roots.is_file() else {}
            if roots.get(dataset) != str(root):
                private = home.roots.with_suffix(".part")
                private.write_text(json.dumps({**roots, dataset: str(root)}, indent=1) + "\n", encoding="utf-8")
                private.replace(home.roots)
    except OSError as error:
        raise StoreFailed(path=home.roots, why=error.strerror or error) from error
