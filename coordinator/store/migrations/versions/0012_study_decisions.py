"""The decisions on studies that nodes tell, and the time of each node's last word."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Adds the table and the column; nodes have told nothing yet."""
    op.create_table(
        "study_decision",
        sa.Column("site", sa.String(63), primary_key=True),
        sa.Column("study", sa.String(64), sa.ForeignKey("study.hash"), primary_key=True),
        sa.Column("verdict", sa.String(8), nullable=False),
        sa.Column("runs_left", sa.Integer(), nullable=False),
        sa.Column("until", sa.String(10)),
        sa.Column("since", sa.Double(), nullable=False),
    )
    with op.batch_alter_table("node") as table:
        table.add_column(sa.Column("told_at", sa.Double()))


def downgrade() -> None:
    """Drops both."""
    with op.batch_alter_table("node") as table:
        table.drop_column("told_at")
    op.drop_table("study_decision")
