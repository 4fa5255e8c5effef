"""The policy of a site for studies, data and cost: site.toml with the decisions in decisions.json.

Default deny: a fresh site has approved nothing, and a policy that cannot be read permits nothing.
"""

import datetime as dt
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from ...models.strict import (
    NO_ENTRIES,
    Digest,
    FieldName,
    Frozen,
    Label,
    Name,
    StrictModel,
    Unique,
    contradictions,
    matches,
    rule,
)
from ...mpc.fields import MAX_SHARDS
from ..enrolment import Enrolment
from ..errors import NotEnrolled, PolicyInvalid
from ..ruling import Ruling
from ..study import Study
from ..study.toml import read_toml, top_keys
from .decisions import MOST_RUNS, BudgetPolicy, Decisions, approve, load_decisions, revoke, today
from .schedule import SchedulePolicy
from .sources import MOST_QUERY, FhirPolicy, Source, SqlPolicy

__all__ = [
    "Account",
    "BudgetPolicy",
    "NodePolicy",
    "SitePolicy",
    "approval_ruling",
    "approvals",
    "approve",
    "decided",
    "describes_site",
    "load_node_policy",
    "load_policy",
    "revoke",
    "rulings",
]

FILE = "site.toml"
_ENROLMENT = "enrolment.json"
_PARTNER = r"[a-z0-9][a-z0-9._-]{0,62}(=[A-Z2-7]{4}(-[A-Z2-7]{4}){7})?"
Partner = Annotated[str, matches(_PARTNER, "a name, or NAME=FINGERPRINT, such as svi=ABCD-EF23-...")]


def _is_separator(value: str) -> str:
    if value not in (",", ";", "\t", "|"):
        raise rule("one of ',' ';' '|' or a tab")
    return value


@dataclass(frozen=True, slots=True)
class Account:
    """An account in the ledger: a data set, and the word for whom its budget protects."""

    dataset: str
    unit: str

    def __str__(self) -> str:
        return f"{self.dataset}/{self.unit}"


def _is_account(value: str) -> str:
    if value.count("/") != 1 or not all(0 < len(part) <= 63 and part.isprintable() for part in value.split("/")):
        raise rule("NAME/UNIT as `client-node budget show` tells them, such as patients/patient")
    return value


AccountName = Annotated[str, AfterValidator(_is_account)]


class DataPolicy(StrictModel):
    """The one source of records, and the site's own names for its columns."""

    path: Path | None = Field(
        default=None, examples=['"patients.csv"'], description="beside site.toml, or absolute", strict=False
    )
    sql: SqlPolicy | None = None  # in place of path
    fhir: FhirPolicy | None = None  # in place of path
    format: Literal["csv", "parquet"] | None = None  # None: by the file's suffix
    separator: Annotated[str, AfterValidator(_is_separator)] = ","
    decimal: Literal[".", ","] = "."  # what a number's fraction begins with
    heldout_path: Path | None = Field(default=None, strict=False)  # kept out of training, for studies that evaluate
    files: Path | None = Field(default=None, strict=False)  # folder of the files that both tables name; None: none
    name: Name = Field(examples=['"patients"'], description="what the ledger calls this data set; never rename it")
    unit: Name = Field(
        examples=['"patient"'], description="the word for whom privacy protects; studies must use the same"
    )
    unit_column: Label = Field(examples=['"patient_id"'])
    continues: Name | None = None  # the data set whose budget pays, where its people have another name now
    distinct_from: Annotated[tuple[AccountName, ...], Field(max_length=100)] = ()  # of other people with the same ids
    label_column: Label | None = None  # None: by the study's name for it
    columns: Annotated[Mapping[FieldName, Label], Field(max_length=10_000), *Frozen] = NO_ENTRIES
    values: Annotated[
        Mapping[FieldName, Annotated[Mapping[Label, Label], Field(max_length=10_000), *Frozen]],
        Field(max_length=10_000),
        *Frozen,
    ] = NO_ENTRIES

    @model_validator(mode="after")
    def _check(self) -> Self:
        named = [name for name in ("path", "sql", "fhir") if getattr(self, name) is not None]
        if not named:
            raise contradictions(['data.path is missing; add it: path = "patients.csv", or [data.sql] or [data.fhir]'])
        if len(named) > 1:
            raise contradictions([f"data names {' and '.join(named)}; records have one source, remove all but one"])
        if self.heldout_path is not None and self.path is None:
            raise contradictions([f"data.heldout_path is for data.path; use heldout_... of data.{named[0]}"])
        return self

    @property
    def source(self) -> Source:
        """The source of the records that studies train on."""
        if self.sql is not None:
            return self.sql.source(self.sql.query or "")
        if self.fhir is not None:
            return self.fhir.source(self.fhir.folder)
        assert self.path is not None, "one of the three is there"
        return self.path

    @property
    def heldout_source(self) -> Source | None:
        """The source of the records that are kept out of training; None if there are none."""
        if self.sql is not None:
            return None if self.sql.heldout_query is None else self.sql.source(self.sql.heldout_query)
        if self.fhir is not None:
            return None if self.fhir.heldout_folder is None else self.fhir.source(self.fhir.heldout_folder)
        return self.heldout_path

    def held_out(self) -> "DataPolicy":
        """Returns the same settings with the held-out records in the place of the others."""
        sql, fhir = self.sql, self.fhir
        update = {
            "path": self.heldout_path,
            "heldout_path": None,
            "sql": sql and sql.model_copy(update={"query": sql.heldout_query, "heldout_query": None}),
            "fhir": fhir and fhir.model_copy(update={"folder": fhir.heldout_folder, "heldout_folder": None}),
        }
        return self.model_copy(update=update)

    def beside(self, folder: Path) -> "DataPolicy":
        """Returns the same settings with paths made absolute from `folder`, and queries read from their files.

        Raises:
            PolicyInvalid: the file of a query cannot be read, or holds none.
        """

        def absolute(path: Path | None) -> Path | None:
            return path and folder / path.expanduser()

        update: dict[str, object] = {name: absolute(getattr(self, name)) for name in ("path", "heldout_path", "files")}
        if self.sql is not None:
            query, held_out = (
                stated if file is None else _query_in(folder / file.expanduser())
                for stated, file in (
                    (self.sql.query, self.sql.query_file),
                    (self.sql.heldout_query, self.sql.heldout_query_file),
                )
            )
            password = absolute(self.sql.password_file)
            update["sql"] = self.sql.model_copy(
                update={"query": query, "heldout_query": held_out, "password_file": password}
            )
        if self.fhir is not None:
            folders = {name: absolute(getattr(self.fhir, name)) for name in ("folder", "heldout_folder")}
            update["fhir"] = self.fhir.model_copy(update=folders)
        return self.model_copy(update=update)


def _query_in(path: Path) -> str:
    """Reads a query from its file."""
    try:
        with path.open("rb") as file:
            text = file.read(MOST_QUERY + 1).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        raise PolicyInvalid(str(path), ("the file of a query cannot be read as UTF-8 text",)) from None
    if not text.strip() or len(text) > MOST_QUERY or "\0" in text:
        raise PolicyInvalid(str(path), (f"the file must hold one SELECT of at most {MOST_QUERY} characters",))
    return text


class StudyPolicy(StrictModel):
    """The studies that may run."""

    approved: Annotated[tuple[Digest, ...], Field(max_length=10_000)] = ()
    unprotected: Annotated[tuple[Digest, ...], Field(max_length=10_000)] = ()  # of these, which without any privacy
    runs: Annotated[Mapping[Digest, Annotated[int, Field(ge=1, le=MOST_RUNS)]], Field(max_length=10_000), *Frozen] = (
        NO_ENTRIES  # different runs of a study; 1 for one that is not named here
    )

    def names(self, study_hash: str) -> bool:
        """True if the study is approved, with privacy or without."""
        return study_hash in {*self.approved, *self.unprotected}

    def runs_of(self, study_hash: str) -> int:
        """The number of different runs that the study's approval covers."""
        return self.runs.get(study_hash, 1)


class BackbonePolicy(StrictModel):
    """The folder of the approved backbone."""

    directory: Path = Field(examples=['"backbone"'], description="beside site.toml, or absolute", strict=False)


def _is_possible(workers: int) -> int:
    if workers and importlib.util.find_spec("deepspeed") is None:
        raise rule("0 where DeepSpeed is not installed; install it beside confide: pip install 'confide[deepspeed]'")
    return workers


class LimitPolicy(StrictModel):
    """The most that a study may use of this machine, and how long its answers take; changes no epsilon."""

    threads: int = Field(default=2, ge=1, le=1024)  # of all processes together
    max_rows_per_batch: int = Field(default=256, ge=1, le=1_000_000)  # rows of one forward pass of one process
    workers: Annotated[int, AfterValidator(_is_possible)] = Field(default=0, ge=0, le=64)  # 0: the node by itself
    offload: bool = False  # workers keep their parts of the backbone in the computer's memory, not in the GPU's
    warm_studies: int = Field(default=2, ge=1, le=64)  # models kept in memory between rounds, of the studies asked last
    answer_s: float = Field(default=0.0, ge=0, le=3600)  # no answer to a round leaves before; see training.public_time
    kept_states_bytes: int = Field(default=2**30, ge=0, le=2**50)  # of records, for each study; 0 keeps none

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.offload and not self.workers:
            raise contradictions(["limits.offload is true with limits.workers 0; remove it, or set limits.workers"])
        return self


class PeoplePolicy(StrictModel):
    """The models and partners that a study may name here, and how many people it takes to decide."""

    models: Annotated[tuple[Digest, ...], Field(max_length=1000), Unique] | None = None  # None: as an approval names
    sites: Annotated[tuple[Partner, ...], Field(max_length=1000), Unique] | None = None  # None: as an approval names
    aggregators: Annotated[tuple[Partner, ...], Field(max_length=1000), Unique] | None = None
    four_eyes: bool = False  # an approval, or a cap that allows more, takes two logins of the operating system
    tells_decisions: bool = False  # the coordinator is told which studies are approved or revoked here


def _is_listenable(value: str) -> str:
    found = re.fullmatch(r"(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})", value)
    if found is None or not 0 < int(found[1]) < 2**16:
        raise rule("HOST:PORT of this machine, such as 0.0.0.0:7001")
    return value


class PartyPolicy(StrictModel):
    """Settings of a node that aggregates."""

    listen: Annotated[str, AfterValidator(_is_listenable)] | None = None  # None: at its address in the federation
    shards: Annotated[int, Field(ge=1, le=MAX_SHARDS)] | None = None  # of a large round; None: one a core, at most 8


class NodePolicy(StrictModel):
    """The part of the policy that holds for every node, also for one that only aggregates."""

    studies: StudyPolicy = Field(default_factory=StudyPolicy)
    party: PartyPolicy = PartyPolicy()
    schedule: SchedulePolicy = SchedulePolicy()
    policy: PeoplePolicy = PeoplePolicy()


class SitePolicy(NodePolicy):
    """The whole policy, with paths made absolute and the decisions of decisions.json counted in."""

    data: DataPolicy = Field(examples=["a table [data]"])
    budget: BudgetPolicy = Field(examples=["a table [budget] with epsilon and delta"])
    backbone: BackbonePolicy = Field(examples=["a table [backbone]"])
    limits: LimitPolicy = LimitPolicy()

    @property
    def account(self) -> Account:
        """The account in the ledger that pays for this site's records."""
        return Account(self.data.continues or self.data.name, self.data.unit)

    def held_out(self) -> "SitePolicy | None":
        """Returns the same policy for the held-out records; None if the site holds none out."""
        if self.data.heldout_source is None:
            return None
        return self.model_copy(update={"data": self.data.held_out()})

    def permits(self, study: Study) -> bool:
        """True if the study may run on this site's records."""
        return approval_ruling(self.studies, study.study_hash).allows and all(
            each.allows for each in rulings(self, study)
        )

    def allows_unprotected(self, study: Study) -> bool:
        """True if the site approved the study also without any privacy."""
        return study.study_hash in self.studies.unprotected


def load_policy(home: Path) -> SitePolicy:
    """Reads the policy of the node whose folder is `home`.

    Raises:
        PolicyInvalid: site.toml is missing, or site.toml or decisions.json is unreadable or invalid.
    """
    path = home / FILE
    if not path.exists():
        raise PolicyInvalid(str(path), ("the file is missing; write it as docs/site-toml.md shows",))
    stated = read_toml(path, SitePolicy, error=PolicyInvalid)
    base = path.parent.resolve()
    backbone = stated.backbone.model_copy(update={"directory": base / stated.backbone.directory.expanduser()})
    decisions = load_decisions(home)
    return stated.model_copy(
        update={
            "data": stated.data.beside(base),
            "backbone": backbone,
            "budget": decisions.budget or stated.budget,
            "studies": decided(stated.studies, decisions),
        }
    )


def describes_site(home: Path) -> bool:
    """True if there is a site.toml that must have all that a site needs.

    It must at a node that trains, so that a file that was emptied or cut never counts as one of limits alone.

    Raises:
        PolicyInvalid: the file cannot be read, or says nothing.
    """
    path = home / FILE
    if not path.exists():
        return False
    stated, of_site = top_keys(path, error=PolicyInvalid), SitePolicy.model_fields.keys()
    if stated.isdisjoint(of_site):
        raise PolicyInvalid(str(path), ("the file has none of the tables of a policy: was it emptied?",))
    return _trains(home) or not stated.isdisjoint(of_site - NodePolicy.model_fields.keys())


def _trains(home: Path) -> bool:
    """True for a node that trains, and for one that has not enrolled yet; a damaged enrolment says neither."""
    if not (home / _ENROLMENT).exists():
        return True
    try:
        return "train" in Enrolment.load(home).roles
    except NotEnrolled as err:
        raise PolicyInvalid(str(home / FILE), (f"it cannot be told whether this node trains: {err}",)) from err


def load_node_policy(home: Path) -> NodePolicy:
    """Reads what holds for every node; one that only aggregates has no site.toml, or one without tables of a site.

    Raises:
        PolicyInvalid: site.toml or decisions.json is unreadable or invalid.
    """
    path = home / FILE
    if describes_site(home):
        return load_policy(home)
    stated = read_toml(path, NodePolicy, error=PolicyInvalid) if path.exists() else NodePolicy()
    return stated.model_copy(update={"studies": decided(stated.studies, load_decisions(home))})


def approvals(home: Path) -> StudyPolicy:
    """Reads the approvals of the node at `home`; raises as `load_node_policy`."""
    return load_node_policy(home).studies


def decided(stated: StudyPolicy, decisions: Decisions, *, day: dt.date | None = None) -> StudyPolicy:
    """Joins the approvals of site.toml and decisions.json; where both name a study, decisions.json counts.

    Args:
        day: in UTC; approvals that have expired by then are left out. None for today.
    """
    by_day = day or today()
    open_ = {study for study in (*stated.approved, *stated.unprotected) if decisions.verdict(study) is None}
    approved = {study for study, each in decisions.studies.items() if each.is_live(by_day)}
    bare = {study for study in approved if decisions.studies[study].unprotected}
    return StudyPolicy(
        approved=tuple(sorted(open_ | approved)),
        unprotected=tuple(sorted((open_ & {*stated.unprotected}) | bare)),
        runs={study: stated.runs_of(study) for study in open_}
        | {study: decisions.studies[study].runs for study in approved},
    )


def approval_ruling(studies: StudyPolicy, study_hash: str, *, decisions: Decisions | None = None) -> Ruling:
    """Rules on whether people at this node have approved the study.

    Args:
        decisions: those of decisions.json, which say why an approval holds no longer; None to leave that out.
    """
    if studies.names(study_hash):
        return Ruling("approval", True, "studies", "approved at this node")
    decision = None if decisions is None else decisions.studies.get(study_hash)
    ended = ""
    if decision is not None:
        ended = (
            ": it was revoked"
            if decision.verdict == "revoked"
            else f" any more: its approval was until {decision.until}"
        )
    why = f"not approved at this site{ended}; the site can: client-node study approve HASH"
    return Ruling("approval", False, "studies", why)


def rulings(policy: SitePolicy, study: Study) -> list[Ruling]:
    """Rules on running an approved study on this site's records, in the order in which a message meets the rules."""
    is_bare, unit = study.draft.privacy.mode == "none", study.draft.data.unit
    privacy = Ruling("privacy", True, "study", f"it has noise of mode {study.draft.privacy.mode}")
    if is_bare and policy.allows_unprotected(study):
        privacy = Ruling("privacy", True, "studies.unprotected", "it has no privacy, and was approved without any")
    elif is_bare:
        why = "it has no privacy; the site can allow that: client-node study approve HASH --unprotected"
        privacy = Ruling("privacy", False, "studies.unprotected", why)
    unit_ruling = Ruling("unit", True, "data.unit", f"it protects each {unit!r}, and so does the budget here")
    if unit != policy.data.unit:
        # Else a study could open a second budget on the same persons by giving them another name.
        why = f"it protects each {unit!r}, this site's budget is for each {policy.data.unit!r}"
        unit_ruling = Ruling("unit", False, "data.unit", why)
    return [privacy, unit_ruling]
