"""Audits of a run's engine and attacks on its adapter."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Creates the table of privacy tests."""
    op.create_table(
        "privacy_test",
        sa.Column("seq", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("run", sa.String(64), sa.ForeignKey("run.id"), nullable=False, index=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("facts", sa.Text(), nullable=False),
    )


def downgrade() -> None:
    """Drops the table, with its rows."""
    op.drop_table("privacy_test")
