"""Alembic's environment: the catalog hands over its connection; a developer names a scratch file in VKVDB_CATALOG."""

from __future__ import annotations

import os

import duckdb_sqlalchemy.alembic_impl  # noqa: F401 - tells Alembic about DuckDB
from alembic import context
from sqlalchemy import Connection, NullPool, create_engine

from vkvdb.schema import metadata


def run(connection: Connection) -> None:
    """Migrate on a connection, whose transaction is the caller's."""
    context.configure(connection=connection, target_metadata=metadata)
    context.run_migrations()


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    engine = create_engine(f"duckdb:///{os.environ['VKVDB_CATALOG']}", poolclass=NullPool)
    with engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=metadata,
            compare_type=True,
            # Comments are no migration: catalog.py sets them anew, as it does views.
            autogenerate_plugins=["alembic.autogenerate.*", "~alembic.autogenerate.comments"],
        )
        with context.begin_transaction():
            context.run_migrations()
