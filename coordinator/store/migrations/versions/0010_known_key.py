"""The coordinator's key that each node says that it knows."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Adds the column; of nodes that have said nothing yet it is empty."""
    with op.batch_alter_table("node") as table:
        table.add_column(sa.Column("known_key", sa.String(64)))


def downgrade() -> None:
    """Drops the column."""
    with op.batch_alter_table("node") as table:
        table.drop_column("known_key")
