"""Evaluations."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Creates the table of evaluations on held-out records."""
    op.create_table(
        "evaluation",
        sa.Column("run", sa.String(64), sa.ForeignKey("run.id"), primary_key=True),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("sites", sa.Text(), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.Column("counts", sa.Text(), nullable=False),
        sa.Column("problem", sa.String(2000)),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("bytes_per_site", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("lease", sa.Integer(), nullable=False),
        sa.Column("committed_at", sa.Double(), nullable=False),
    )


def downgrade() -> None:
    """Drops the table, with its rows."""
    op.drop_table("evaluation")
