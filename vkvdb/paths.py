"""Where things lie: the home (catalog, queue, MLflow's file, charts), the store, and what ships beside the code."""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from vkvdb.errors import BadOption, WrongHost


@dataclass(frozen=True)
class Home:
    """One host's working folder. It must be a local disk; the store may be a shared file system."""

    root: Path

    @property
    def catalog(self) -> Path:
        return self.root / "catalog.duckdb"

    @property
    def queue(self) -> Path:
        return self.root / "queue.sqlite"

    @property
    def mlflow(self) -> Path:
        return self.root / "mlflow.sqlite"

    @property
    def charts(self) -> Path:
        return self.root / "charts"

    @property
    def store(self) -> Path:
        """`VKVDB_STORE`, or `store` inside the home."""
        chosen = os.environ.get("VKVDB_STORE")
        return Path(chosen).expanduser().resolve() if chosen else self.root / "store"

    @property
    def roots(self) -> Path:
        """{dataset hash: folder of its images on this host}."""
        return self.root / "roots.json"

    @property
    def hashes(self) -> Path:
        """Content hashes of checkpoint files, kept by path, size and time of change."""
        return self.root / "hashes.json"

    @property
    def revisions(self) -> Path:
        """{a checkpoint's folder or hub id: hashes of its settings and its weights when it was last used}."""
        return self.root / "revisions.json"


def find_home(given: Path | None = None) -> Home:
    """What is given, else `VKVDB_HOME`, else the nearest `.vkvdb` upward from here, else a new one here.

    A new one here is told on stderr. Raises WrongHost when the home was made by another host, BadOption when a file
    lies where it should be.
    """
    chosen = str(given) if given is not None else os.environ.get("VKVDB_HOME")
    if chosen:
        root = Path(chosen).expanduser().resolve()
    else:
        here = Path.cwd()
        root = next((d / ".vkvdb" for d in (here, *here.parents) if (d / ".vkvdb").is_dir()), here / ".vkvdb")
    marker = root / "home.json"
    if not marker.exists():
        _create(root, marker, announce=not chosen)
    owner = json.loads(marker.read_text(encoding="utf-8"))["host"]
    if owner != socket.gethostname():
        raise WrongHost(
            home=root,
            owner=owner,
            host=socket.gethostname(),
            hint=f"set VKVDB_HOME to a local folder and share the store with VKVDB_STORE={root / 'store'}, "
            f"or, if the home was moved here for good, delete {marker}",
        )
    return Home(root)


def _create(root: Path, marker: Path, announce: bool) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / ".gitignore").write_text("*\n", encoding="utf-8")
        private = marker.with_suffix(f".{os.getpid()}")
        private.write_text(json.dumps({"format": 1, "host": socket.gethostname()}) + "\n", encoding="utf-8")
        os.replace(private, marker)
    except OSError as error:
        raise BadOption(option="VKVDB_HOME", value=root, why=f"can't be made a home: {error.strerror}") from error
    if announce:
        print(f"made a home for results: {root} (set VKVDB_HOME to use another)", file=sys.stderr)


def shipped(folder: str) -> Path:
    """A data folder that ships beside the code (`analyses`, `migrations`): the packaged copy, else the checkout's."""
    packaged = Path(__file__).parent / f"_{folder}"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / folder
