"""Numbers of benchmarks that other tools measured, taken into the store: one manifest a file, named by its content.

`benchmarks/HASH.json`, with the file's sha256 in its name, holds its rows; `vkvdb.absorbing` puts them into the table
`benchmarks`. Who reads which tool's file is told by the files in `vkvdb/imports`.
"""

from __future__ import annotations

import hashlib
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vkvdb import registry
from vkvdb.errors import BadImport, UnknownName
from vkvdb.jobs import ID_LENGTH
from vkvdb.schema import number

if TYPE_CHECKING:
    from vkvdb.imports._numbers import Number
    from vkvdb.store import Manifest, Store


@dataclass(frozen=True)
class Imported:
    """A file's manifest, and whether it is new to the store."""

    manifest: Manifest
    new: bool


def import_file(
    store: Store, tool: str, path: Path, *, model: str | None = None, benchmark: str | None = None
) -> Imported:
    """Publish the numbers of a tool's result file; `model` says which of the store's models they are of.

    The same file again changes nothing. Raises UnknownName for the tool or the model, BadImport for a file that is not
    what the tool writes, or that was imported with other choices; then nothing is written.
    """
    read = registry.load("imports", tool)
    known = find_model(store, model) if model is not None else None
    try:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BadImport(path=path, why=error.strerror or error, expected=f"a result file of {tool}") from error
    numbers: list[Number] = read(path, benchmark)
    if not numbers:
        raise BadImport(path=path, why="it has no number", expected="results of a run that was evaluated")
    body: dict[str, Any] = {
        "kind": "benchmark",
        "tool": tool,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "path": str(path.resolve()),
        "rows": [{**vars(n), "model": number(known["hash"]) if known else None} for n in numbers],
    }
    final = store.root / "benchmarks" / f"{content[:ID_LENGTH]}.json"
    new = store.publish_json(final, body)
    manifest = store.read_json(final)
    if (manifest["tool"], manifest["rows"]) != (tool, body["rows"]):
        why = f"it was imported on {manifest['created']} with another --model or --benchmark"
        raise BadImport(path=path, why=why, expected=f"the same; or delete {final} and type vkvdb db rebuild first")
    return Imported(manifest, new)


def find_model(store: Store, name: str) -> Manifest:
    """The manifest of a model of the store by its name, or by its hash or the beginning of that.

    Of several of one name, the newest. Raises UnknownName.
    """
    models = list(store.models())
    named = [m for m in models if m["name"] == name]
    hashed = [m for m in models if len(name) >= 4 and m["hash"].startswith(name)]
    if named or len(hashed) == 1:
        return dict(max(named or hashed, key=lambda m: (m["created"], m["hash"])))
    known = sorted({m["name"] for m in models})
    told = ", ".join(known) or "none; a model is known once it is checked or scored"
    raise UnknownName(kind="model of the store", name=name, nearest=registry.nearest(name, known), known=told)
