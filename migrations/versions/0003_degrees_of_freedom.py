"""Degrees of freedom of summaries and choices, which are computed anew."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    for table in ("summaries", "choices"):
        op.add_column(table, sa.Column("df", sa.Double(), nullable=True))
