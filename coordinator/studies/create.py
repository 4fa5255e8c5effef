"""Makes an immutable study of an operator's draft: adds keys to names, the backbone's hash and the adapter's size."""

import datetime as dt
import json
import time
from pathlib import Path

from ...client_node.files import write_private
from ...client_node.replay.following import start_digest, start_state
from ...client_node.study import AggregatorParty, Participant, Study, cost, load_draft
from ...client_node.training.study_model import load_study_model, unused_experts
from ...models.errors import BackboneMismatch, InvalidPrompt, TargetMissing
from ...models.evaluation.router_statistics import describe_experts
from ..errors import StudyRefused
from ..federation import Pki
from ..store import Store
from ..store.tables import NodeRow, StudyRow
from .catalogue import start_file
from .learning_rates import with_rates


def create_study(store: Store, pki: Pki, home: Path, draft_file: Path, *, accept_unused_experts: bool = False) -> Study:
    """Makes the draft in `draft_file` a signed study of this federation and stores it.

    If the draft names a target epsilon, the noise multiplier is solved for it.

    Args:
        accept_unused_experts: True to put adapters also on routed experts that no public token is sent to.

    Raises:
        StudyInvalid: the draft itself is wrong.
        StudyRefused: the draft fits no site, key or backbone of this federation.
    """
    draft = load_draft(draft_file)
    folder = (draft_file.parent / draft.model.backbone).resolve()
    try:
        model = load_study_model(draft, folder)
    except (BackboneMismatch, InvalidPrompt, TargetMissing) as err:
        raise StudyRefused(f"{draft_file}: {err}") from err
    if not accept_unused_experts and (unused := unused_experts(model, draft, folder)):
        raise StudyRefused(
            f"{draft_file}: the backbone's routers send no token to {describe_experts(unused)}, whose adapters would "
            'take noise and learn nothing; build the backbone anew, leave "experts" out of [adapter] targets, or '
            "accept them: --accept-unused-experts"
        )
    adapted, layout = model.adapted, model.adapted.layout
    draft = cost.solve_noise(draft, draft.state_dim(layout.dim))
    draft = with_rates(draft, layout.dim - layout.head_slice.stop)  # by the solved noise, among others
    state = start_state(draft, adapted.state())
    dim = len(state)
    head_size = layout.head_slice.stop
    ring = cost.ring_of(draft, dim)
    study = Study.from_draft(
        draft,
        backbone_hash=model.backbone_hash,
        sites=[
            Participant(name=node.name, identity=node.identity or "")
            for node in _enrolled(store, draft.participants.sites, "train")
        ],
        aggregators=[
            AggregatorParty(
                name=node.name,
                identity=node.identity or "",
                address=node.party_address or "",
                certificate=node.party_certificate or "",
            )
            for node in _enrolled(store, draft.participants.aggregators, "aggregate")
        ],
        coordinator=pki.identity_hex,
        created=dt.datetime.now(dt.UTC).date(),
        dim=dim,
        start=start_digest(state),
        head_size=head_size,
        scale_bits=ring.scale_bits,
        ring_bits=64 if ring.bits == 64 else 32,
    )
    start = {"state": state.tolist(), "backbone": str(folder)}
    write_private(start_file(home, study.study_hash), json.dumps(start).encode())
    with store.session() as session:
        if session.get(StudyRow, study.study_hash) is None:
            session.add(
                StudyRow(
                    hash=study.study_hash,
                    name=study.name,
                    canonical=study.canonical(),
                    signature=study.sign(pki.signer),
                    created_at=time.time(),
                )
            )
            store.log_action(session, f"study {study.name} created as {study.study_hash}")
    return study


def _enrolled(store: Store, names: tuple[str, ...], role: str) -> list[NodeRow]:
    nodes = {node.name: node for node in store.nodes()}
    problems = []
    for name in names:
        node = nodes.get(name)
        if node is None:
            problems.append(f"{name} is not a site; invite it: coordinator site invite {name} --role {role}")
        elif node.revoked_at is not None:
            problems.append(f"{name} was revoked")
        elif node.enrolled_at is None:
            problems.append(f"{name} was invited and has not enrolled yet")
        elif role not in node.roles.split(","):
            problems.append(f"{name} has roles {node.roles}, the study needs it to {role}")
    if problems:
        raise StudyRefused("the study can't be created; nothing was stored:\n  " + "\n  ".join(problems))
    return [nodes[name] for name in names]
