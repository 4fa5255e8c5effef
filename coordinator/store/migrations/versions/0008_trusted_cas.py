"""The CAs that each node says that it trusts."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Adds the column; of nodes that have said nothing yet it is empty."""
    with op.batch_alter_table("node") as table:
        table.add_column(sa.Column("trusted_cas", sa.String(160)))


def downgrade() -> None:
    """Drops the column."""
    with op.batch_alter_table("node") as table:
        table.drop_column("trusted_cas")
