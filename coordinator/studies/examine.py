"""Examines an operator's draft from all sides before anything of it is stored: what is wrong, what is to be asked."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...client_node.errors import StudyInvalid
from ...client_node.replay.following import start_state
from ...client_node.study import StudyDraft, cost, load_draft
from ...client_node.training.study_model import load_study_model, unused_experts
from ...models.errors import BackboneMismatch, InvalidBackbone, InvalidPrompt, ModelError, TargetMissing
from ...models.evaluation.router_statistics import describe_experts
from ...mpc.errors import MpcError
from ...privacy.accounting import epsilon_pld
from ..errors import StudyRefused
from ..store import Store
from ..store.tables import NodeRow
from .expectation import Expectation, expectation
from .learning_rates import with_rates
from .questions import Facts, questions

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

    def require(self) -> tuple[StudyDraft, StudyParts]:
        """Returns draft and parts; raises the one problem that there is, or `StudyRefused` with all of them."""
        if len(self.problems) == 1:
            raise self.problems[0]
        if self.problems:
            raise StudyRefused("nothing was stored:\n  " + "\n  ".join(map(str, self.problems)))
        assert self.draft is not None, "a draft without problems was read"
        assert self.parts is not None, "a draft without problems has its parts"
        return self.draft, self.parts


def examine(
    store: Store,
    draft_file: Path,
    *,
    units: int | None = None,
    accept_unused_experts: bool = False,
    backbones: Path | None = None,
) -> Examination:
    """Examines the draft in `draft_file`, and solves for its noise and rates. Nothing is stored.

    Args:
        units: persons at all sites together, as the sites have told; None if they were not asked.
        accept_unused_experts: True to put adapters also on routed experts that no public token is sent to.
        backbones: folder from which the draft's backbone is named; None for that of the draft.
    """
    try:
        draft = load_draft(draft_file)
    except StudyInvalid as err:
        return Examination(
            draft=None, problems=(err,), questions=(), epsilon=None, dim=0, is_dim_assumed=True, parts=None
        )
    problems: list[Exception] = []
    folder = ((backbones or draft_file.parent) / draft.model.backbone).resolve()
    sites, not_there = _enrolled(store, draft.participants.sites, "train")
    aggregators, also_not_there = _enrolled(store, draft.participants.aggregators, "aggregate")
    if missing := [*not_there, *also_not_there]:
        problems.append(StudyRefused("the study can't be created; nothing was stored:\n  " + "\n  ".join(missing)))
    model = None
    try:
        if not folder.exists():
            raise InvalidBackbone(f"{folder} cannot be listed: there is no such folder; {_remedy(draft, draft_file)}")
        model = load_study_model(draft, folder)
    except (BackboneMismatch, InvalidPrompt, TargetMissing) as err:
        problems.append(StudyRefused(f"{draft_file}: {err}"))
    except ModelError as err:
        problems.append(err)
    if model and not accept_unused_experts and (unused := unused_experts(model, draft, folder)):
        problems.append(
            StudyRefused(
                f"{draft_file}: the backbone's routers send no token to {describe_experts(unused)}, whose adapters "
                'would take noise and learn nothing; build the backbone anew, leave "experts" out of [adapter] '
                "targets, or accept them: --accept-unused-experts"
            )
        )
    layout = model.adapted.layout if model else None
    dim = draft.state_dim(layout.dim if layout else ASSUMED_DIM)
    epsilon = None
    try:
        draft = cost.solve_noise(draft, dim)
        if draft.privacy.mode != "none":
            epsilon = epsilon_pld(cost.releases_of_draft(draft, dim), draft.privacy.delta, draft.privacy.collusion)
    except (StudyInvalid, MpcError) as err:  # no noise reaches the target, or no ring holds the sum
        problems.append(err)
    asked = questions(Facts(draft=draft, units=units, epsilon=epsilon))
    parts = expected = None
    if model and layout and not problems:
        expected = expectation(draft, trained=layout.dim, head=layout.head_slice.stop)
        draft = with_rates(draft, layout.dim - layout.head_slice.stop)  # by the solved noise, among others
        parts = StudyParts(
            sites=tuple(sites),
            aggregators=tuple(aggregators),
            folder=folder,
            backbone_hash=model.backbone_hash,
            state=start_state(draft, model.adapted.state()),
            head_size=layout.head_slice.stop,
        )
    return Examination(
        draft=draft,
        problems=tuple(problems),
        questions=asked,
        epsilon=epsilon,
        dim=dim,
        is_dim_assumed=layout is None,
        parts=parts,
        expected=expected,
    )


def _remedy(draft: StudyDraft, draft_file: Path) -> str:
    if draft.data.kind.reads == "text":
        return "import one: coordinator backbone import FOLDER-OF-A-CHECKPOINT DIRECTORY, or smollm2 for a small one"
    return f"build one: coordinator backbone build {draft_file} {draft_file.parent / draft.model.backbone}"


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
