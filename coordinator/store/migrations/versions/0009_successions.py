"""Successions of nodes' identity keys."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Creates the table. No key was ever followed before: all nodes keep theirs."""
    op.create_table(
        "succession",
        sa.Column("old", sa.String(64), primary_key=True),
        sa.Column("new", sa.String(64), nullable=False, unique=True),
        sa.Column("site", sa.String(63), nullable=False),
        sa.Column("taken_at", sa.Double(), nullable=False),
        sa.Column("statement", sa.Text(), nullable=False),
    )
    op.create_index("ix_succession_site", "succession", ["site"])


def downgrade() -> None:
    """Drops the table: nodes stay known by their present keys, which nothing ties to the earlier ones any more."""
    op.drop_table("succession")
