"""The join file: an invitation code with what a site must know and do next, in one file that the operator hands over.

It is as secret as the code in it: whoever has it first enrols with the site's name. It works once, and for a week.
"""

import datetime as dt
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from ...models.strict import Digest, Name, StrictModel, Text, contradictions
from ..errors import CodeExpired, CodeInvalid
from ..files import read_private, write_private
from .protocol import Address, InvitationCode, Role

SUFFIX = ".join"
_MAX_BYTES = 64 << 10
_NOTE = (
    "As secret as a password until it was used: hand it over in private, and delete it afterwards. It works once. The "
    "node must reach the address, and trusts only the CA certificate with this SHA-256."
)


class JoinFile(StrictModel):
    """The contents of a join file. Its repr has no code."""

    format: Literal["confide-join-1"] = "confide-join-1"
    note: Text = _NOTE
    name: Name  # of the node in the federation
    roles: Annotated[tuple[Role, ...], Field(min_length=1, max_length=2)]
    federation: Text
    address: Address  # of the coordinator's gate, as in the code
    ca_sha256: Digest  # of the CA certificate, as in the code
    expires: AwareDatetime
    next: Annotated[tuple[Text, ...], Field(max_length=16)] = ()  # commands, for people
    code: Annotated[str, Field(min_length=1, max_length=1000, repr=False)]

    @model_validator(mode="after")
    def _says_what_the_code_says(self) -> Self:
        try:
            code = InvitationCode.parse(self.code)
        except CodeInvalid:
            raise contradictions(["code is no whole invitation code"]) from None
        if (code.address, code.ca_digest.hex()) != (self.address, self.ca_sha256):
            raise contradictions(["address or ca_sha256 is another than in the code"])
        return self


def make_join_file(name: str, roles: tuple[Role, ...], federation: str, code: str, expires: dt.datetime) -> JoinFile:
    """Makes the join file of a new invitation."""
    meant = InvitationCode.parse(code)
    trains, aggregates = "train" in roles, "aggregate" in roles
    address = " --party-address HOST:PORT   (where the other two aggregators reach this node)" if aggregates else ""
    steps = [
        f"client-node enroll {name}{SUFFIX}{address}",
        *(["client-node init TABLE   (describes the data)"] if trains else []),
        *(
            ["client-node site confirm NAME=FINGERPRINT...   (as each site's people read it to you)"]
            if aggregates
            else []
        ),
        "client-node study approve HASH   (the 24 words that the operator reads to you)",
        "client-node run",
    ]
    return JoinFile(
        name=name,
        roles=roles,
        federation=federation,
        address=meant.address,
        ca_sha256=meant.ca_digest.hex(),
        expires=expires,
        next=tuple(steps),
        code=code,
    )


def write_join_file(path: Path, join: JoinFile) -> None:
    """Writes a join file that only its owner can read."""
    write_private(path, text_of(join).encode())


def text_of(join: JoinFile) -> str:
    """Writes the text of a join file, which is as secret as the code in it."""
    return join.model_dump_json(indent=2) + "\n"


def read_join_file(path: Path) -> JoinFile:
    """Reads a join file.

    Raises:
        CodeInvalid: there is none, or it is damaged; the message has nothing of its content.
        CodeExpired: its time is over.
    """
    try:
        join = JoinFile.model_validate_json(read_private(path, max_bytes=_MAX_BYTES + 1)[:_MAX_BYTES])
    except OSError as err:
        raise CodeInvalid(f"{path} cannot be read: {err.strerror}") from err
    except ValidationError as err:
        fields = ", ".join(sorted({str(each["loc"][0]) for each in err.errors() if each["loc"]})) or "its form"
        raise CodeInvalid(f"{path} is no whole join file ({fields}); ask the operator for it again") from None
    if join.expires < dt.datetime.now(dt.UTC):
        raise CodeExpired(f"the invitation in {path} has expired; ask the operator for a new one")
    return join
