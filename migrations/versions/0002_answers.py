"""Two-fold choices, answers by likelihood, variance of keys, checks of models, and token maps."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from duckdb_sqlalchemy.datatypes import TinyInteger

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("answers", sa.Column("likeliest", sa.SmallInteger(), nullable=True))
    op.add_column("answers", sa.Column("answer", sa.SmallInteger(), nullable=True))
    op.create_table(
        "choices",
        sa.Column("job", sa.BigInteger(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("part", sa.String(), nullable=False),
        sa.Column("metric", sa.String(), nullable=False),
        sa.Column("split", TinyInteger(), nullable=False),
        sa.Column("half", TinyInteger(), nullable=False),
        sa.Column("site", sa.SmallInteger(), nullable=False),
        sa.Column("head", TinyInteger(), nullable=False),
        sa.Column("chosen", sa.Double(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("se", sa.Double(), nullable=True),
        sa.Column("n_clusters", sa.Integer(), nullable=False),
    )
    op.create_table(
        "key_variance",
        sa.Column("job", sa.BigInteger(), nullable=False),
        sa.Column("site", sa.SmallInteger(), nullable=False),
        sa.Column("head", TinyInteger(), nullable=False),
        sa.Column("half", TinyInteger(), nullable=False),
        sa.Column("unbiased", sa.Boolean(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
    )
    op.create_table(
        "checks",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("model", sa.BigInteger(), nullable=False),
        sa.Column("verdict", sa.String(), nullable=False),
        sa.Column("why", sa.String(), nullable=False),
        sa.Column("deviation", sa.Double(), nullable=True),
        sa.Column("tolerance", sa.Double(), nullable=True),
        sa.Column("worst", sa.String(), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("created", sa.DateTime(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", "name"),
    )
    op.create_table(
        "tokens",
        sa.Column("capture", sa.String(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("view", sa.String(), nullable=False),
        sa.Column("tile", sa.SmallInteger(), nullable=False),
        sa.Column("row", sa.SmallInteger(), nullable=False),
        sa.Column("col", sa.SmallInteger(), nullable=False),
        sa.Column("left", sa.Double(), nullable=True),
        sa.Column("top", sa.Double(), nullable=True),
        sa.Column("right", sa.Double(), nullable=True),
        sa.Column("bottom", sa.Double(), nullable=True),
    )
    op.create_table(
        "token_maps",
        sa.Column("capture", sa.String(), nullable=False),
        sa.Column("sizes", sa.Integer(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("capture"),
    )
