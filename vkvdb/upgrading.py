"""Bringing a catalog up to date: its tables (Alembic), views, comments, and what is summed up of every job's scores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.schema import SetColumnComment, SetTableComment

from vkvdb import schema
from vkvdb.errors import OldVersion
from vkvdb.paths import shipped

_HERE = Path(__file__).parent
VIEWS, SUMMARIES, CHOICES, CHECKS = "views.sql", "summaries.sql", "choices.sql", "checks.sql"


def text_of(name: str) -> str:
    """The text of an SQL file that lies beside this one."""
    return (_HERE / name).read_text(encoding="utf-8")


def revision_of(select: Callable[[str], Sequence[Any]]) -> str | None:
    """The revision of the tables; None where there are none."""
    if not select("SELECT 1 FROM duckdb_tables() WHERE table_name = 'alembic_version'"):
        return None
    found = select("SELECT version_num FROM alembic_version")
    return str(found[0][0]) if found else None


def selecting(connection: sa.Connection) -> Callable[[str], Sequence[Any]]:
    """How `revision_of` asks a connection of SQLAlchemy's."""
    return lambda text: connection.exec_driver_sql(text).all()


def require_known(path: Path, revision: str | None) -> None:
    """Raise OldVersion where a newer vkvdb made the tables."""
    if revision is not None and int(revision) > int(schema.REVISION):
        raise OldVersion(what=f"the catalog {path}", found=f"revision {revision}", known=schema.REVISION)


def bring_up_to_date(connection: sa.Connection) -> None:
    """Upgrade the tables, then replace views, comments and summaries whose text has changed: all of it or nothing."""
    with connection.begin():
        if revision_of(selecting(connection)) != schema.REVISION:
            _migrate(connection)
        state = schema.metadata.tables["state"]
        known = {row.name: row.value for row in connection.execute(sa.select(state))}
        todo: dict[str, tuple[str, Callable[[sa.Connection], None]]] = {
            VIEWS: (text_of(VIEWS), lambda c: c.exec_driver_sql(text_of(VIEWS)).close()),
            "comments": (_comments(), _set_comments),
            SUMMARIES: (text_of(SUMMARIES), partial(_compute_all, SUMMARIES, schema.summaries)),
            CHOICES: (text_of(CHOICES), partial(_compute_all, CHOICES, schema.choices)),
        }
        for name, (text, act) in todo.items():
            value = hashlib.sha256(text.encode()).hexdigest()
            if known.get(name) != value:
                act(connection)
                connection.execute(state.delete().where(state.c.name == name))
                connection.execute(state.insert(), {"name": name, "value": value})


def _migrate(connection: sa.Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(shipped("migrations")).replace("%", "%%"))
    command.upgrade(config, "head")


def _comments() -> str:
    """All comments of the schema as one text, which changes when one of them does."""
    tables = schema.metadata.sorted_tables
    return "\n".join(
        [f"{t.name}: {t.comment}" for t in tables] + [f"{c}: {c.comment}" for t in tables for c in t.columns]
    )


def _set_comments(connection: sa.Connection) -> None:
    for table in schema.metadata.sorted_tables:
        connection.execute(SetTableComment(table))
        for column in table.columns:
            connection.execute(SetColumnComment(column))


def _compute_all(name: str, table: sa.Table, connection: sa.Connection) -> None:
    """Compute anew what is kept of every job's scores."""
    jobs = schema.jobs
    connection.execute(table.delete())
    for (job,) in connection.execute(sa.select(jobs.c.job).where(jobs.c.task.is_not(None)).order_by(jobs.c.job)).all():
        connection.exec_driver_sql(text_of(name), {"job": job})
