"""The closed vocabulary of the audit log: what an action is called, which fields say what was done, and who acts.

Who acts is the operator whose token a command has shown, or else the account that runs the process.

No field depends on a record: names, numbers of runs and rounds, hashes, states, and words that a person typed. What a
run failed of is the text that stands in its row already.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, create_model

from ...client_node.login import login_name
from ...privacy.ledger.chain import Hex64 as Digest
from ..errors import StateDamaged
from .states import RunState

MOST_TEXT = 2000  # characters
SELF = "coordinator"  # what the server and its drivers do by themselves
MOST_LETTERS = 80

_ACTING: ContextVar[str | None] = ContextVar("acting", default=None)

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Text = Annotated[str, Field(max_length=MOST_TEXT)]
Short = Annotated[str, Field(max_length=255)]
Moment = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
_Number = Annotated[int, Field(ge=-1, lt=2**48)]
_Names = Annotated[list[Name], Field(max_length=1000)]
_State = Annotated[str, StringConstraints(pattern=f"^({'|'.join(RunState)})$")]
_Decision = Annotated[str, StringConstraints(pattern="^(approved|revoked|withdrawn)$")]
_Day = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\d$")]
_Operator = {"operator": Name, "role": Short, "expires": Moment | None}
_Moved = {"run": Short, "state": _State, "error": Text | None}
_Model = {"run": Short, "folder": Text, "override": Text | None}

ACTIONS: Mapping[str, Mapping[str, Any]] = {
    "federation.init": {"federation": Text, "coordinator": Digest},
    "federation.backup": {"file": Text},
    "site.invite": {"site": Name, "roles": Short},
    "site.enrol": {"site": Name, "identity": Digest},
    "site.rotate": {"site": Name, "key": Digest},  # fingerprint of its new transport key
    "site.identity": {"site": Name, "old": Digest, "new": Digest},  # its identity key was followed by another
    "site.revoke": {"site": Name},
    "site.leave": {"site": Name},
    "site.return": {"site": Name, "identity": Digest, "key": Digest},  # key: fingerprint of its new transport key
    "site.trust": {"site": Name, "cas": Annotated[list[Digest], Field(max_length=2)]},  # it has confirmed them
    "site.key": {"site": Name, "key": Digest},  # the coordinator's, by which it says that it knows it
    "site.decision": {"site": Name, "hash": Digest, "decision": _Decision, "until": _Day | None},  # it has told so
    "study.create": {"study": Short, "hash": Digest},
    "run.start": {"run": Short, "hash": Digest},
    "run.stop": _Moved,
    "run.cut": _Moved,
    "run.abandon": _Moved,
    "run.resume": _Moved,
    "run.halt": _Moved,
    "run.finish": _Moved,
    "run.fail": _Moved,
    "run.leave": _Moved,
    "run.toolong": {"run": Short, "round": _Number, "site": Name},
    "run.outdated": {"run": Short, "round": _Number, "sites": _Names},
    "audit.privacy": {"run": Short, "result": Text},
    "adapter.export": _Model,
    "adapter.merge": _Model,
    "adapter.deploy": _Model,
    "adapter.map": {"run": Short, "round": _Number},
    "budget.export": {"site": Name, "file": Text},
    "ca.rotate": {"ca": Digest, "next": Digest},
    "ca.cancel": {"ca": Digest},
    "ca.finish": {"ca": Digest, "before": Digest, "without": _Names, "void": _Names},  # void: whose codes are
    "certificate.use": {"until": Moment, "ca": Digest},
    "keys.seal": {},
    "keys.unseal": {},
    "keys.rotate": {"old": Digest, "new": Digest},
    "certificate.renew": {"until": Moment},
    "serve.start": {"version": Short},
    "serve.stop": {},
    "page.enter": {"by": Short},  # token or link: a browser was let in to the operator's page
    "operator.add": _Operator,
    "operator.renew": _Operator,
    "operator.revoke": {"operator": Name},
    "operator.recover": _Operator,
    "access.refused": {"operator": Name | None, "reason": Short, "command": Short},
    "log.export": {"file": Text},
    "log.refused": {"site": Name, "reason": Short, "held": _Number},
    "log.earlier": {"at": Moment, "what": Text},  # lines of versions that kept no chain
}
_CONFIG = ConfigDict(extra="forbid", strict=True)
_FORMS: Mapping[str, type[BaseModel]] = {
    name: create_model(name, __config__=_CONFIG, **cast(Any, {field: (form, ...) for field, form in fields.items()}))
    for name, fields in ACTIONS.items()
}


def fields_of(action: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Checks the fields of an action, and returns them.

    Raises:
        StateDamaged: no such action is known, or its fields are others.
    """
    if action not in _FORMS:
        raise StateDamaged(f"the audit log knows no action {action[:40]!r}")
    try:
        return _FORMS[action].model_validate(dict(fields)).model_dump()
    except ValidationError as err:
        problem = err.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise StateDamaged(f"the audit log's action {action}: {where}: {problem['msg']}") from err


def plain(text: object) -> str:
    """Returns text for a field: at most 2,000 characters, and a path's bytes that are no UTF-8 as question marks."""
    return str(text).encode("utf-8", "replace").decode()[:MOST_TEXT]


def acting() -> str:
    """Names who acts, for the audit log: `operator:NAME`, or `login:NAME` where no operators are."""
    return _ACTING.get() or f"login:{login_name()}"[:MOST_LETTERS]


@contextmanager
def acting_as(operator: str | None) -> Iterator[None]:
    """Lets all actions inside be those of an operator; None leaves them to the account."""
    token = _ACTING.set(None if operator is None else f"operator:{operator}")
    try:
        yield
    finally:
        _ACTING.reset(token)
