"""Examines an operator's draft from all sides before anything of it is stored: what is wrong, what is to be asked."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from ...client_node.errors import StudyInvalid
from ...client_node.replay.following import start_state
from ...client_node.study import Study, StudyDraft, cost, load_draft
from ...models.errors import BackboneMismatch, InvalidBackbone, InvalidPrompt, ModelError, TargetMissing
from ...models.rounding import rounded_up
from ...mpc.errors import MpcError
from ...privacy.accounting import epsilon_pld
from ..errors import StudyRefused
from ..store import Store
from ..store.tables import NodeRow
from .catalogue import study_start
from .expectation import Expectation, bought, expectation
from .learning_rates import with_rates
from .questions import Facts, questions

if TYPE_CHECKING:  # torch takes seconds to import
    from ...client_node.training.study_model import StudyModel

BACKBONES = "backbones"  # in the home, for drafts that lie in no file
_PART, _MOST_PARTS = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}"), 8  # so neither .. nor /
EPSILONS = (1.0, 2.0, 3.0, 8.0)  # that one may choose from, and that a comparison asks for
ASSUMED_DIM = 100_000  # trained numbers where the backbone cannot be read; the cost hardly depends on them


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyParts:
    """The parts of a study beside its draft."""

    sites: tuple[NodeRow, ...]
    aggregators: tuple[NodeRow, ...]
    folder: Path  # of the backbone
    backbone_hash: str
    state: npt.NDArray[np.float32]  # in which runs begin
    head_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Examination:
    """The findings on a draft; one without problems has all `parts`."""

    draft: StudyDraft | None  # with the noise and the rates that were solved for; None if it cannot be read
    problems: tuple[Exception, ...]  # for which no study can be made
    questions: tuple[str, ...]  # settings that are surely wrong, unless somebody says that they are meant
    epsilon: float | None  # by PLD, of a whole run at a site that releases nothing else; None without privacy
    dim: int  # trained numbers
    is_dim_assumed: bool
    parts: StudyParts | None
    expected: Expectation | None = None  # None without privacy, or while problems are left
    choices: Mapping[float, Expectation] = field(default_factory=dict)  # at other epsilons; only if it was asked for

    def with_choices(self) -> Self:
        """Adds what other epsilons would buy: seconds of computation, for who is still choosing."""
        if self.draft is None or self.parts is None or self.expected is None:
            return self
        head = self.parts.head_size
        return replace(self, choices=bought(self.draft, EPSILONS, trained=self.expected.adapters + head, head=head))

    def require(self) -> tuple[StudyDraft, StudyParts]:
        """Returns draft and parts; raises the one problem that there is, or `StudyRefused` with all of them."""
        if len(self.problems) == 1:
            raise self.problems[0]
        if self.problems:
            raise StudyRefused("nothing was stored:\n  " + "\n  ".join(map(str, self.problems)))
        assert self.draft is not None, "a draft without problems was read"
        assert self.parts is not None, "a draft without problems has its parts"
        return self.draft, self.parts

    @property
    def sentences(self) -> tuple[str, ...]:
        """Says what a run would cost, what the draft assumes, and what its noise leaves to be learned."""
        if self.draft is None:
            return ()
        privacy, said = self.draft.privacy, []
        if self.epsilon is not None:
            assumed = " (assumed, as long as the backbone cannot be read)" if self.is_dim_assumed else ""
            said.append(
                f"A whole run of {self.draft.rounds.rounds} rounds is planned to cost epsilon "
                f"{rounded_up(self.epsilon, 3)} at delta {privacy.delta:g} with {privacy.collusion} colluding: noise "
                f"multiplier {privacy.noise_multiplier:g}, {self.dim:,} trained numbers{assumed}."
            )
        said.append(f"It assumes {self.implied_units:,} {self.draft.data.unit} units in all.")
        if self.expected is not None:
            said.append(self.expected.sentence())
        if self.choices:
            listed = "; ".join(f"{epsilon:g}: {each.figures}" for epsilon, each in self.choices.items())
            said.append(f"That ratio if all rounds together were to cost an epsilon of {listed}.")
        return tuple(said)

    @property
    def implied_units(self) -> int | None:
        """Persons at all sites together that the draft assumes; None if it cannot be read."""
        if self.draft is None:
            return None
        return round(self.draft.rounds.batch_units / self.draft.privacy.sample_rate)


def examine(
    store: Store,
    draft_file: Path,
    *,
    units: int | None = None,
    accept_unused_experts: bool = False,
) -> Examination:
    """Examines the draft in `draft_file`, and solves for its noise and rates. Nothing is stored.

    Args:
        units: persons at all sites together, as the sites have told; None if they were not asked.
        accept_unused_experts: True to put adapters also on routed experts that no public token is sent to.
    """
    try:
        draft = load_draft(draft_file)
    except StudyInvalid as err:
        return unreadable(err)
    try:
        folder = _resolved(draft_file.parent, draft)
    except StudyRefused as err:
        return replace(examine_cost(draft, units=units), problems=(err,))
    return examine_draft(
        store, draft, folder, str(draft_file), units=units, accept_unused_experts=accept_unused_experts
    )


def backbone_folder(home: Path, draft: StudyDraft, base: Study | None = None) -> Path:
    """Finds the backbone of a draft that was typed or sent, and lies in no file: a folder in `backbones` of the home.

    Whoever may create studies need not learn what else lies on this machine, so no other path is looked at. What
    `backbones` holds or links to, only the home's account decides; links in it are followed.

    Args:
        home: the federation's.
        base: the study whose terms the draft began with: its backbone is good, too, under the whole path that is
            stored of it.

    Raises:
        StudyRefused: it names another place, or links lead in a circle.
    """
    named = PurePosixPath(draft.model.backbone)
    if base is not None and Path(named) == (own := study_start(home, base).backbone):
        return own
    if len(named.parts) > _MOST_PARTS or not named.parts or not all(map(_PART.fullmatch, named.parts)):
        also = ", or be left as it was" if base is not None else ""
        raise StudyRefused(
            f'model.backbone must name a folder inside {BACKBONES} of the federation\'s home, as "tiny"{also}; nothing '
            "was stored"
        )
    return _resolved(home / BACKBONES, draft)


def _resolved(parent: Path, draft: StudyDraft) -> Path:
    """Finds the folder that a draft names, from `parent` on; it need not be there. Raises `StudyRefused`."""
    try:
        return (parent / draft.model.backbone).resolve()
    except (OSError, RuntimeError, ValueError) as err:
        raise StudyRefused(
            f"model.backbone is {draft.model.backbone!r}, which leads to no folder: the name is none, or links lead in "
            "a circle. Nothing was stored"
        ) from err


def examine_draft(
    store: Store,
    draft: StudyDraft,
    folder: Path,
    source: str,
    *,
    units: int | None = None,
    accept_unused_experts: bool = False,
) -> Examination:
    """Examines a draft that was read, see `examine`.

    Args:
        folder: of the backbone.
        source: the draft's name in what is said of it: its file.
    """
    problems: list[Exception] = []
    sites, not_there = _enrolled(store, draft.participants.sites, "train")
    aggregators, also_not_there = _enrolled(store, draft.participants.aggregators, "aggregate")
    if missing := [*not_there, *also_not_there]:
        problems.append(StudyRefused("the study can't be created; nothing was stored:\n  " + "\n  ".join(missing)))
    model = None
    try:
        model = _model(draft, folder, source)
    except (BackboneMismatch, InvalidPrompt, TargetMissing) as err:
        problems.append(StudyRefused(f"{source}: {err}"))
    except ModelError as err:
        problems.append(err)
    if model and not accept_unused_experts and (idle := _idle_experts(model, draft, folder)):
        problems.append(
            StudyRefused(
                f"{source}: the backbone's routers send no token to {idle}, whose adapters "
                'would take noise and learn nothing; build the backbone anew, leave "experts" out of [adapter] '
                "targets, or accept them: --accept-unused-experts"
            )
        )
    layout = model.adapted.layout if model else None
    found = examine_cost(draft, layout.dim if layout else None, units=units)
    problems += found.problems
    if model is None or layout is None or problems or found.draft is None:
        return replace(found, problems=tuple(problems))
    trained, head = layout.dim, layout.head_slice.stop
    draft = with_rates(found.draft, trained - head)  # by the solved noise, among others
    parts = StudyParts(
        sites=tuple(sites),
        aggregators=tuple(aggregators),
        folder=folder,
        backbone_hash=model.backbone_hash,
        state=start_state(draft, model.adapted.state()),
        head_size=head,
    )
    return replace(found, draft=draft, parts=parts, expected=expectation(found.draft, trained=trained, head=head))


def examine_cost(draft: StudyDraft, trained: int | None = None, *, units: int | None = None) -> Examination:
    """Examines the cost of a draft alone, and solves for its noise; neither register nor backbone is looked at.

    Args:
        trained: numbers that are trained; None to assume some, as the cost hardly depends on them.
    """
    problems: list[Exception] = []
    dim, epsilon = draft.state_dim(ASSUMED_DIM if trained is None else trained), None
    try:
        draft = cost.solve_noise(draft, dim)
        if draft.privacy.mode != "none":
            epsilon = epsilon_pld(cost.releases_of_draft(draft, dim), draft.privacy.delta, draft.privacy.collusion)
    except (StudyInvalid, MpcError) as err:  # no noise reaches the target, or no ring holds the sum
        problems.append(err)
    return Examination(
        draft=draft,
        problems=tuple(problems),
        questions=questions(Facts(draft=draft, units=units, epsilon=epsilon)),
        epsilon=epsilon,
        dim=dim,
        is_dim_assumed=trained is None,
        parts=None,
    )


def unreadable(problem: Exception) -> Examination:
    """Makes the findings on a draft that cannot be read."""
    return Examination(
        draft=None, problems=(problem,), questions=(), epsilon=None, dim=0, is_dim_assumed=True, parts=None
    )


def _model(draft: StudyDraft, folder: Path, source: str) -> "StudyModel":
    from ...client_node.training.study_model import load_study_model

    if not os.path.exists(folder):  # which is False too for a name that no system takes
        raise InvalidBackbone(f"{folder} cannot be listed: there is no such folder; {_remedy(draft, source)}")
    return load_study_model(draft, folder)


def _idle_experts(model: "StudyModel", draft: StudyDraft, folder: Path) -> str:
    from ...client_node.training.study_model import unused_experts
    from ...models.evaluation.router_statistics import describe_experts

    unused = unused_experts(model, draft, folder)
    return describe_experts(unused) if unused else ""


def _remedy(draft: StudyDraft, source: str) -> str:
    if draft.data.kind.reads == "text":
        return "import one: coordinator backbone import FOLDER-OF-A-CHECKPOINT DIRECTORY, or smollm2 for a small one"
    return f"build one: coordinator backbone build {source} {Path(source).parent / draft.model.backbone}"


def _enrolled(store: Store, names: tuple[str, ...], role: str) -> tuple[list[NodeRow], list[str]]:
    """Finds the enrolled nodes of those names, and tells what speaks against the others."""
    nodes = {node.name: node for node in store.nodes()}
    found, against = [], []
    for name in names:
        node = nodes.get(name)
        if node is None:
            against.append(f"{name} is not a site; invite it: coordinator site invite {name} --role {role}")
        elif node.revoked_at is not None:
            against.append(f"{name} {'was revoked' if node.left_at is None else 'has left the federation'}")
        elif node.enrolled_at is None:
            against.append(f"{name} was invited and has not enrolled yet")
        elif role not in node.roles.split(","):
            against.append(f"{name} has roles {node.roles}, the study needs it to {role}")
        else:
            found.append(node)
    return found, against
