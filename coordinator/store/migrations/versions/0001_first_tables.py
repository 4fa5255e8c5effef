"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Creates nodes, studies, runs, rounds, the ledger replica and the audit log."""
    op.create_table(
        "node",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("roles", sa.String(64), nullable=False),
        sa.Column("invite_digest", sa.String(64), index=True),
        sa.Column("invite_expires", sa.Double()),
        sa.Column("identity", sa.String(64)),
        sa.Column("transport_key", sa.LargeBinary()),
        sa.Column("fingerprint", sa.String(64), index=True),
        sa.Column("party_address", sa.String(255)),
        sa.Column("party_certificate", sa.String(8192)),
        sa.Column("flower_id", sa.String(32)),
        sa.Column("enrolled_at", sa.Double()),
        sa.Column("revoked_at", sa.Double()),
    )
    op.create_table(
        "study",
        sa.Column("hash", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(63), nullable=False, index=True),
        sa.Column("canonical", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.String(128), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
    )
    op.create_table(
        "run",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("study", sa.String(64), sa.ForeignKey("study.hash"), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("lease", sa.Integer(), nullable=False),
        sa.Column("heartbeat", sa.Double(), nullable=False),
        sa.Column("step", sa.String(255), nullable=False),
        sa.Column("error", sa.String(2000)),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double()),
    )
    op.create_table(
        "round",
        sa.Column("run", sa.String(64), sa.ForeignKey("run.id"), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("sites", sa.Text(), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.Column("state_hash", sa.String(64), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("bytes_per_site", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("lease", sa.Integer(), nullable=False),
        sa.Column("committed_at", sa.Double(), nullable=False),
    )
    op.create_table(
        "ledger",
        sa.Column("site", sa.String(63), primary_key=True),
        sa.Column("seq", sa.Integer(), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("entry", sa.Text(), nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("seq", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("what", sa.String(2000), nullable=False),
    )


def downgrade() -> None:
    """Drops all tables, with their rows."""
    for name in ("audit", "ledger", "round", "run", "study", "node"):
        op.drop_table(name)
