"""The catalog: a DuckDB file that indexes the store's manifests. The only module that opens DuckDB.

DuckDB admits one process at a time, so nothing on the way to a result needs the catalog: whoever gets its lock absorbs
what is new, whoever does not is told at once (CatalogLocked) and goes on. The file is let go after each use. Everything
in it can be made again from the store (`rebuild`).
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import duckdb
import sqlalchemy as sa

from vkvdb import absorbing, schema
from vkvdb.absorbing import Absorbed
from vkvdb.errors import BadQuery, CatalogFailed, CatalogLocked, DamagedStore, VkvdbError
from vkvdb.store import Manifest, Store
from vkvdb.upgrading import (
    CHECKS,
    CHOICES,
    SUMMARIES,
    bring_up_to_date,
    require_known,
    revision_of,
    selecting,
    text_of,
)

if TYPE_CHECKING:
    import polars as pl

T = TypeVar("T")

# Read-only, sees no other file, and can't be told otherwise; Python variables are no tables.
_SAFE: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "lock_configuration": "true",
}
_READING = {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN}

_INSERT = {
    "images": """INSERT INTO images
        SELECT $dataset, image, name, path, recipe, width, height, sha256, bytes FROM read_parquet($file)""",
    "samples": """INSERT INTO samples
        SELECT $dataset, sample, id, kind, "group", cluster, images, body FROM read_parquet($file)""",
    "scores": """INSERT INTO scores
        SELECT $job, sample, site, head, metric, coalesce(value, 'nan'::FLOAT), weight FROM read_parquet($files)""",
    "answers": """INSERT INTO answers
        (job, sample, variant, prompt, prompt_id, raw, likelihoods, choice, correct, likeliest, answer)
        SELECT $job, sample, variant, prompt, prompt_id, raw, to_json(likelihoods), choice, correct, likeliest, answer
        FROM read_parquet($files)""",
    "key_variance": """INSERT INTO key_variance
        SELECT $job, site, head, half, unbiased, n, value FROM read_parquet($files)""",
    "tokens": """INSERT INTO tokens
        SELECT $capture, width, height, place, kind, view, tile, "row", col, "left", top, "right", bottom
        FROM read_parquet($file)""",
}
_FACTS = ("scores", "answers", "key_variance")
"""Rows of jobs, each in Parquet under its name."""


@dataclass(frozen=True)
class Rows:
    """What a query gave."""

    columns: list[str]
    rows: list[tuple[Any, ...]]


class Catalog:
    """The catalog at a path; the file need not exist yet. Nothing is held open between calls."""

    def __init__(self, path: Path) -> None:
        self.path = path

    # --- writing ---

    def upgrade(self) -> str | None:
        """Create the file, or bring it up to date; the revision that it had before, or None when it is new.

        Before tables change, a copy is kept as NAME.<old revision>. Raises CatalogLocked, OldVersion, CatalogFailed.
        """
        with self._writing() as (_, before):
            return before

    def absorb(self, store: Store) -> Absorbed:
        """Take in every manifest that is not here yet, each in a transaction of its own.

        A manifest that can't be taken in is a line in `problems` and holds nothing else up. Raises CatalogLocked at
        once when another process has the catalog open, OldVersion, CatalogFailed.
        """
        with self._writing() as (connection, _):
            return _absorb(connection, store)

    def rebuild(self, store: Store) -> Absorbed:
        """Make the catalog anew from the store alone, beside the old one, and put it in its place."""
        with self._lock():
            if self.path.exists():
                self._require_free()
            new = Catalog(self.path.with_name(f"{self.path.name}.new"))
            new._remove()
            with new._connected() as connection:
                bring_up_to_date(connection)
                absorbed = _absorb(connection, store)
            # The old file's write-ahead log must not be replayed into the new one.
            self.path.with_name(f"{self.path.name}.wal").unlink(missing_ok=True)
            os.replace(new.path, self.path)
            return absorbed

    # --- reading ---

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Rows:
        """Run one SELECT with named parameters (`$name`) on a read-only, locked-down connection. Raises BadQuery."""
        return self._read(sql, parameters, lambda found: Rows([c[0] for c in found.description], found.fetchall()))

    def frame(self, sql: str, parameters: Mapping[str, Any] | None = None) -> pl.DataFrame:
        """The same, as a polars frame."""
        return self._read(sql, parameters, lambda found: found.pl())

    def check(self) -> Iterator[str]:
        """Run checks.sql; a line for every row that should not be there."""
        for name, sql in _named(text_of(CHECKS)):
            found = self.query(sql)
            for row in found.rows:
                yield f"{name}: " + ", ".join(f"{c}={v}" for c, v in zip(found.columns, row, strict=True))

    # --- how ---

    def _read(
        self, sql: str, parameters: Mapping[str, Any] | None, take: Callable[[duckdb.DuckDBPyConnection], T]
    ) -> T:
        try:
            statements = duckdb.extract_statements(sql)
        except duckdb.Error as error:
            raise BadQuery(why=_line(error)) from error
        kinds = [s.type for s in statements]
        # PIVOT is a CREATE TYPE (in memory) and a SELECT.
        if not kinds or kinds[-1] not in _READING or set(kinds[:-1]) - {duckdb.StatementType.CREATE}:
            raise BadQuery(why="one SELECT is expected; the catalog is only read here")
        if not self.path.exists():
            raise CatalogFailed(path=self.path, why="it is not there yet", hint="type vkvdb sync")
        try:
            connection = duckdb.connect(self.path, read_only=True, config=_SAFE)
        except duckdb.Error as error:
            raise self._refusal(error) from error
        with connection:
            require_known(self.path, revision_of(lambda text: connection.execute(text).fetchall()))
            try:
                for statement in statements[:-1]:
                    connection.execute(statement)
                return take(connection.execute(statements[-1], dict(parameters or {})))
            except duckdb.Error as error:
                raise BadQuery(why=_line(error)) from error

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """What writers of ours exclude each other by, over the moments in which DuckDB's own lock is let go."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.with_name(f"{self.path.name}.lock").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield
        except BlockingIOError as error:
            raise CatalogLocked(why="another vkvdb writes to it") from error
        except OSError as error:
            raise CatalogFailed(path=self.path, why=error.strerror, hint="set VKVDB_HOME to another folder") from error

    @contextmanager
    def _writing(self) -> Iterator[tuple[sa.Connection, str | None]]:
        """A connection to an up-to-date catalog, and the revision that it had before."""
        with self._lock():
            before = None
            if self.path.exists():
                before = self._copy_if_old()
            with self._connected() as connection:
                bring_up_to_date(connection)
                yield connection, before

    @contextmanager
    def _connected(self) -> Iterator[sa.Connection]:
        # NullPool: the usual pool would keep the file locked after the connection is closed.
        engine = sa.create_engine(sa.URL.create("duckdb", database=str(self.path)), poolclass=sa.NullPool)
        try:
            connection = engine.connect()
        except (sa.exc.DBAPIError, duckdb.Error) as error:
            raise self._refusal(error) from error
        with connection:
            try:
                yield connection
            except sa.exc.DBAPIError as error:
                raise CatalogFailed(path=self.path, why=_line(error.orig), hint="type vkvdb db rebuild") from error

    def _copy_if_old(self) -> str | None:
        """Keep a copy of a file whose tables are about to change; its revision.

        It is made while nobody has the file open: closing a file drops all locks that this process has on it, DuckDB's
        too. After CHECKPOINT nothing is left in the write-ahead log, which is not copied.
        """
        with self._connected() as connection:
            revision = revision_of(selecting(connection))
            require_known(self.path, revision)
            if revision == schema.REVISION:
                return revision
            connection.rollback()
            connection.exec_driver_sql("CHECKPOINT")
        if revision is not None:
            copy = self.path.with_name(f"{self.path.name}.{revision}")
            private = copy.with_name(f"{copy.name}.part")
            shutil.copy2(self.path, private)
            os.replace(private, copy)
        return revision

    def _require_free(self) -> None:
        """Raise CatalogLocked while another process has the file open; a file that can't be opened is nobody's."""
        try:
            with self._connected():
                pass
        except CatalogFailed:
            return

    def _remove(self) -> None:
        for path in (self.path, self.path.with_name(f"{self.path.name}.wal")):
            path.unlink(missing_ok=True)

    def _refusal(self, error: BaseException) -> VkvdbError:
        text = _line(getattr(error, "orig", None) or error)
        if "Could not set lock" in text:
            holder = re.search(r"held in (.+?) by user|held in (.+?)\. ", text)
            return CatalogLocked(why=(holder[1] or holder[2]) if holder else text)
        return CatalogFailed(path=self.path, why=text, hint="type vkvdb db rebuild")


# --- absorbing --------------------------------------------------------------------------------------------------------


def _absorb(connection: sa.Connection, store: Store) -> Absorbed:
    absorbed = Absorbed()
    for name in absorbing.MANIFESTS:
        table = schema.metadata.tables[name]
        marks = [table.c[c] for c in absorbing.MARKS.get(name, table.primary_key.columns.keys())]
        with connection.begin():
            known = {tuple(row) for row in connection.execute(sa.select(*marks).distinct())}
        there = dict(absorbing.manifest_paths(store, name))
        for key, path in there.items():
            if key in known:
                continue
            try:
                manifest = store.read_json(path)
                rows = absorbing.rows_of(name, path, manifest)
                with connection.begin():
                    _take_in(connection, store, path, manifest, rows)
            except VkvdbError as error:
                absorbed.problems.append(str(error))
                continue
            absorbed.counts[name] += 1
            if name == "jobs":
                absorbed.jobs.append(manifest["job"])
        if name == "captures":  # a cache: what a person cleared is gone
            _forget(connection, table, known - set(there))
    return absorbed


def _take_in(connection: sa.Connection, store: Store, path: Path, manifest: Manifest, rows: absorbing.Rows) -> None:
    """Insert the rows of one manifest, among them the one that marks it absorbed."""
    if "jobs" in rows:
        _take_in_job(connection, store, path, manifest, rows["jobs"][0])
        return
    for name, those in rows.items():
        if those:
            connection.execute(schema.metadata.tables[name].insert(), those)
    if "token_maps" in rows:
        row = rows["token_maps"][0]
        file = path.with_suffix(".parquet")
        _insert(connection, "tokens", {"capture": row["capture"], "file": str(file)}, row["rows"], file)
    if "datasets" in rows:
        row = rows["datasets"][0]
        for name, expected in (("images", row["images"]), ("samples", sum(row["samples"].values()))):
            file = path.with_name(f"{name}.parquet")
            _insert(connection, name, {"dataset": row["dataset"], "file": str(file)}, expected, file)


def _take_in_job(connection: sa.Connection, store: Store, path: Path, manifest: Manifest, row: absorbing.Row) -> None:
    job = row["job"]
    for key, table in (("model", schema.models), ("dataset", schema.datasets)):
        name = connection.execute(sa.select(table.c.name).where(table.c[key] == row[key])).scalar_one_or_none()
        if name is None:
            raise DamagedStore(path=path, why=f"the store does not have its {key}")
        row[f"{key}_name"] = name
    for name in (*_FACTS, "summaries", "choices"):
        facts = schema.metadata.tables[name]
        connection.execute(facts.delete().where(facts.c.job == job))
    connection.execute(schema.jobs.insert(), row)
    for name in _FACTS:
        files, expected = absorbing.row_files(store, manifest, name)
        if files:
            _insert(connection, name, {"job": job, "files": files}, expected, path)
    if row["task"]:
        for name in (SUMMARIES, CHOICES):
            connection.exec_driver_sql(text_of(name), {"job": job})


def _insert(connection: sa.Connection, table: str, parameters: dict[str, Any], expected: int, path: Path) -> None:
    """Read Parquet into a table. Raises DamagedStore when it can't be read or holds other than the expected rows."""
    try:
        found = connection.exec_driver_sql(_INSERT[table], parameters).scalar_one()
    except sa.exc.DBAPIError as error:
        raise DamagedStore(path=path, why=_line(error.orig)) from error
    if found != expected:
        raise DamagedStore(path=path, why=f"{found} {table} where {expected} are expected")


def _forget(connection: sa.Connection, table: sa.Table, keys: set[tuple[Any, ...]]) -> None:
    with connection.begin():
        for key in keys:
            same = [column == value for column, value in zip(table.primary_key.columns, key, strict=True)]
            connection.execute(table.delete().where(*same))


# --- text -------------------------------------------------------------------------------------------------------------


def _named(text: str) -> Iterator[tuple[str, str]]:
    """The queries of a file, each with the name in the comment above it (`-- name: what it finds`)."""
    for block in text.split("\n\n"):
        found = re.match(r"-- ([\w-]+: .+)\n", block)
        if found:
            yield found[1], block


def _line(error: object) -> str:
    """DuckDB's message without the picture of where it went wrong, in one line."""
    return " ".join(str(error).partition("\n\nLINE ")[0].split())
