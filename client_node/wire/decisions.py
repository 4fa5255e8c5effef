"""A node's word on its people's decisions: what the coordinator is told of studies that name the node.

One message has all of them and takes the place of the one before, so that nothing is left standing that the node says
no more. It is signed with the node's identity key, names the coordinator that it is for, and bears a time: an older one
never takes the place of a newer one. It is for people, and admits nothing: a node judges every message by its own
decisions, whatever it has told.
"""

import datetime as dt
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..enrolment.protocol import Hex32, SignedQuery

DECISIONS_PATH = "/confide/v1/decisions"
MOST = 500  # decisions in a word
MOST_BYTES = 128 << 10  # of a word
MOST_RUNS = 1000  # as of an approval


class ToldDecision(BaseModel):
    """A decision on one study; no person, no reason and no hour is told."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    study: Hex32  # its hash
    verdict: Literal["approved", "revoked"]
    runs_left: Annotated[int, Field(ge=0, le=MOST_RUNS)] = 0  # different runs that may still begin
    until: dt.date | None = None  # the last day of an approval, UTC

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.verdict == "revoked" and (self.runs_left or self.until):
            raise ValueError("what is revoked has neither runs nor a last day")
        return self


class DecisionsWord(SignedQuery):
    """A node's whole word, signed."""

    domain = b"confide decisions 1\n"
    coordinator: Hex32  # Ed25519 public key by which the node knows it
    decisions: Annotated[tuple[ToldDecision, ...], Field(max_length=MOST)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len({each.study for each in self.decisions}) < len(self.decisions):
            raise ValueError("a study is named twice")
        return self
