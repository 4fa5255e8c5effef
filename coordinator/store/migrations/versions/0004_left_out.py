"""Sites that aggregators left out of a sum because their vectors were too long."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Creates the table of sites that were left out."""
    op.create_table(
        "left_out",
        sa.Column("run", sa.String(64), sa.ForeignKey("run.id"), primary_key=True),
        sa.Column("round", sa.Integer(), primary_key=True),
        sa.Column("site", sa.String(63), primary_key=True),
    )


def downgrade() -> None:
    """Drops the table, with its rows."""
    op.drop_table("left_out")
