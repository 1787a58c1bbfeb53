"""${message}

Set REVISION in vkvdb/schema.py to ${repr(up_revision)}. Going back is the copy kept beside the catalog, so there is no downgrade.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}
