"""The least role that each command takes, and the action by which it stands in the audit log.

A command that is not in the table is refused: a new one is decided upon before anybody can use it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from ..errors import AccessRefused

Role = Literal["viewer", "operator", "admin"]
ANYONE: Final = "anyone"  # no home, or one that needs no operator: what it does stands in the log all the same


@dataclass(frozen=True, slots=True)
class Access:
    """Describes the role that a command takes, and its action in the audit log; None if it changes nothing."""

    role: Role | Literal["anyone"]
    action: str | None = None


COMMANDS: Mapping[str, Access] = {
    "init": Access(ANYONE, "federation.init"),
    "serve": Access(ANYONE, "serve.start"),
    "demo": Access(ANYONE),
    "simulate": Access(ANYONE),  # on public records, and opens no home
    "status": Access("viewer"),
    "page": Access("viewer"),  # a link by which the operator's browser is let in
    "health": Access(ANYONE),  # asks a port of this machine, and opens no home
    "backup": Access("admin", "federation.backup"),  # the file holds every private key
    "restore": Access(ANYONE),  # makes a home; whoever has the file has all that is in it
    "doctor": Access("viewer"),
    "keys seal": Access("admin", "keys.seal"),
    "keys unseal": Access("admin", "keys.unseal"),
    "keys rotate": Access("admin", "keys.rotate"),
    "keys status": Access("viewer"),
    "site invite": Access("admin", "site.invite"),
    "site list": Access("viewer"),
    "site revoke": Access("admin", "site.revoke"),
    "site leave": Access("admin", "site.leave"),
    "certificate use": Access("admin", "certificate.use"),
    "ca rotate": Access("admin", "ca.rotate"),
    "ca status": Access("viewer"),
    "ca finish": Access("admin", "ca.finish"),
    "ca cancel": Access("admin", "ca.cancel"),
    "ca statement": Access("viewer"),  # public certificates, under the coordinator's signature
    "study init": Access(ANYONE),
    "study check": Access("viewer"),
    "study compare": Access(ANYONE),
    "study create": Access("operator", "study.create"),
    "study list": Access("viewer"),
    "study show": Access("viewer"),
    "run start": Access("operator", "run.start"),
    "run list": Access("viewer"),
    "run rounds": Access("viewer"),
    "run watch": Access("viewer"),
    "run stop": Access("operator", "run.stop"),
    "run abandon": Access("operator", "run.abandon"),
    "run resume": Access("operator", "run.resume"),
    "run metrics": Access("viewer"),
    "budget report": Access("viewer"),
    "budget export": Access("operator", "budget.export"),
    "budget verify": Access(ANYONE),
    "backbone build": Access(ANYONE),
    "backbone import": Access(ANYONE),
    "backbone list": Access(ANYONE),
    "backbone moments": Access(ANYONE),
    "backbone compress": Access(ANYONE),
    "backbone routing": Access(ANYONE),
    "backbone show": Access(ANYONE),
    "adapter export": Access("operator", "adapter.export"),
    "adapter merge": Access("operator", "adapter.merge"),
    "adapter deploy": Access("operator", "adapter.deploy"),
    "adapter choose": Access("viewer"),
    "adapter combine": Access(ANYONE),
    "adapter carry": Access(ANYONE),
    "adapter ask": Access(ANYONE),
    "adapter serve": Access(ANYONE),
    "adapter evaluate": Access("viewer"),
    "adapter routing": Access("viewer"),
    "adapter map": Access("operator", "adapter.map"),
    "space build": Access(ANYONE),
    "audit privacy": Access("operator", "audit.privacy"),
    "audit log": Access("viewer"),
    "audit verify": Access("viewer"),
    "audit export": Access("operator", "log.export"),
    "operator add": Access("admin", "operator.add"),
    "operator list": Access("viewer"),
    "operator renew": Access("admin", "operator.renew"),
    "operator revoke": Access("admin", "operator.revoke"),
    "operator recover": Access(ANYONE, "operator.recover"),  # takes a file that only the home's account can write
}


def least_role(command: str) -> Role | Literal["anyone"]:
    """Finds the least role for a command, as `site invite`. Raises AccessRefused for one that is not in the table."""
    if command not in COMMANDS:
        raise AccessRefused(f"no role is known for `{command}`, so nobody may use it")
    return COMMANDS[command].role


def is_enough(role: Role, least: Role) -> bool:
    """True if a role has all rights of the least one."""
    ranks = get_args(Role)
    return ranks.index(role) >= ranks.index(least)
