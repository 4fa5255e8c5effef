"""Seconds of each step of a round, why a site is in no sum, and the audit log by action."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

_SUMS = ("round", "prototype", "evaluation")
_STEPS = ("collect_s", "topup_s", "deliver_s", "wait_s", "sum_s", "open_s", "apply_s")


def upgrade() -> None:
    """Adds the columns; rounds so far have no seconds of steps, and sites were noted for their length alone."""
    for name in _SUMS:
        with op.batch_alter_table(name) as table:
            for step in _STEPS:
                table.add_column(sa.Column(step, sa.Double()))
    with op.batch_alter_table("left_out") as table:
        table.add_column(sa.Column("why", sa.String(16)))
    op.execute("UPDATE left_out SET why = 'long'")
    with op.batch_alter_table("left_out") as table:
        table.alter_column("why", existing_type=sa.String(16), nullable=False)
    op.create_index("ix_audit_entry_action", "audit_entry", ["action"])


def downgrade() -> None:
    """Drops the columns, and the sites that were left out for something else than their length."""
    op.drop_index("ix_audit_entry_action", "audit_entry")
    op.execute("DELETE FROM left_out WHERE why <> 'long'")
    with op.batch_alter_table("left_out") as table:
        table.drop_column("why")
    for name in _SUMS:
        with op.batch_alter_table(name) as table:
            for step in _STEPS:
                table.drop_column(step)
