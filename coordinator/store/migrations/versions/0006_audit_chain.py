"""The audit log as a hash chain, checkpoints of it, and operators."""

import calendar
import hashlib
import json
import secrets
import time

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Creates the tables, and moves the lines of the plain log to the beginning of the chain, in their order."""
    op.create_table(
        "audit_entry",
        sa.Column("seq", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("time", sa.String(20), nullable=False),
        sa.Column("actor", sa.String(80), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("fields", sa.Text(), nullable=False),
        sa.Column("salt", sa.String(32), nullable=False),
        sa.Column("contents", sa.String(64), nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.create_index("ix_audit_entry_time", "audit_entry", ["time"])
    op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.create_table(
        "audit_checkpoint",
        sa.Column("seq", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("log", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("time", sa.String(20), nullable=False),
        sa.Column("signature", sa.String(128), nullable=False),
    )
    op.create_table(
        "audit_countersignature",
        sa.Column("site", sa.String(63), primary_key=True),
        sa.Column("seq", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("time", sa.String(20), nullable=False),
        sa.Column("decisions", sa.Integer(), nullable=False),
        sa.Column("decisions_hash", sa.String(64), nullable=False),
        sa.Column("identity", sa.String(64), nullable=False),
        sa.Column("signature", sa.String(128), nullable=False),
    )
    op.create_table(
        "operator",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("token", sa.String(255), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double()),
        sa.Column("revoked_at", sa.Double()),
    )
    _carry_over()
    op.drop_table("audit")


def downgrade() -> None:
    """Writes the chain as plain lines again, and drops it with its signatures and the operators."""
    op.create_table(
        "audit",
        sa.Column("seq", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("what", sa.String(2000), nullable=False),
    )
    connection = op.get_bind()
    plain = sa.table("audit", sa.column("at"), sa.column("what"))
    query = "SELECT time, actor, action, fields FROM audit_entry ORDER BY seq"
    for moment, actor, action, fields in connection.execute(sa.text(query)).fetchall():
        said = {"at": moment, "what": f"{action} {fields} (by {actor})"}
        said = json.loads(fields) if action == "log.earlier" else said
        line = {"at": _seconds(said["at"]), "what": said["what"][:2000].replace("\0", "\N{REPLACEMENT CHARACTER}")}
        connection.execute(plain.insert().values(**line))
    for name in ("operator", "audit_countersignature", "audit_checkpoint", "audit_head", "audit_entry"):
        op.drop_table(name)


def _carry_over() -> None:
    """Chains the plain lines by the rules of this version, which are written out here: later ones may be others."""
    connection = op.get_bind()
    names = ("seq", "time", "actor", "action", "fields", "salt", "contents", "previous", "hash")
    table = sa.table("audit_entry", *(sa.column(name) for name in names))
    seq, previous, now = -1, "0" * 64, _moment(time.time())
    whole: dict[str, object]
    for at, what in connection.execute(sa.text("SELECT at, what FROM audit ORDER BY seq")).fetchall():
        seq += 1
        fields, salt = {"at": _moment(at), "what": what}, secrets.token_hex(16)
        whole = {"time": now, "actor": "coordinator", "action": "log.earlier", "fields": fields, "salt": salt}
        contents = _digest("confide log contents 1", whole)
        digest = _digest("confide log link 1", {"seq": seq, "contents": contents, "previous": previous})
        row = whole | {"seq": seq, "fields": json.dumps(fields, sort_keys=True), "contents": contents}
        connection.execute(table.insert().values(**row, previous=previous, hash=digest))
        previous = digest
    head = sa.table("audit_head", *(sa.column(name) for name in ("id", "seq", "hash")))
    connection.execute(head.insert().values(id=1, seq=seq, hash=previous))


def _digest(domain: str, value: dict[str, object]) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(domain.encode() + b"\n" + canonical.encode("ascii")).hexdigest()


def _seconds(moment: str) -> float:
    return float(calendar.timegm(time.strptime(moment, "%Y-%m-%dT%H:%M:%SZ")))


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
