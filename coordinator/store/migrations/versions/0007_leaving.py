"""Sites that leave and may come back."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Adds when a site left; whoever was shut out before was revoked, and stays so."""
    op.add_column("node", sa.Column("left_at", sa.Double()))


def downgrade() -> None:
    """Drops it: a site that has left is a revoked one for the version before."""
    op.drop_column("node", "left_at")
