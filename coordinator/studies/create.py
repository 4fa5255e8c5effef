"""Makes an immutable study of an operator's draft: adds keys to names, the backbone's hash and the adapter's size."""

import datetime as dt
import json
import time
from pathlib import Path

from ...client_node.files import write_private
from ...client_node.replay.following import start_digest
from ...client_node.study import AggregatorParty, Participant, Study, cost
from ..federation import Pki
from ..store import Store
from ..store.tables import StudyRow
from .catalogue import start_file
from .examine import Examination, examine


def create_study(store: Store, pki: Pki, home: Path, draft_file: Path, *, accept_unused_experts: bool = False) -> Study:
    """Makes the draft in `draft_file` a signed study of this federation and stores it.

    If the draft names a target epsilon, the noise multiplier is solved for it.

    Args:
        accept_unused_experts: True to put adapters also on routed experts that no public token is sent to.

    Raises:
        StudyInvalid: the draft itself is wrong.
        StudyRefused: the draft fits no site, key or backbone of this federation.
    """
    return store_study(store, pki, home, examine(store, draft_file, accept_unused_experts=accept_unused_experts))


def store_study(store: Store, pki: Pki, home: Path, examined: Examination) -> Study:
    """Makes an examined draft a signed study and stores it. Raises as `create_study` does."""
    draft, parts = examined.require()
    signing = pki.signing.now
    dim = len(parts.state)
    ring = cost.ring_of(draft, dim)
    study = Study.from_draft(
        draft,
        backbone_hash=parts.backbone_hash,
        sites=[Participant(name=node.name, identity=node.identity or "") for node in parts.sites],
        aggregators=[
            AggregatorParty(
                name=node.name,
                identity=node.identity or "",
                address=node.party_address or "",
                certificate=node.party_certificate or "",
            )
            for node in parts.aggregators
        ],
        coordinator=signing.public,
        created=dt.datetime.now(dt.UTC).date(),
        dim=dim,
        start=start_digest(parts.state),
        head_size=parts.head_size,
        scale_bits=ring.scale_bits,
        ring_bits=64 if ring.bits == 64 else 32,
    )
    start = {"state": parts.state.tolist(), "backbone": str(parts.folder)}
    write_private(start_file(home, study.study_hash), json.dumps(start).encode())
    with store.alone("the studies") as session:
        if session.get(StudyRow, study.study_hash) is None:
            session.add(
                StudyRow(
                    hash=study.study_hash,
                    name=study.name,
                    canonical=study.canonical(),
                    signature=study.sign(signing.key),
                    created_at=time.time(),
                )
            )
            store.log_action(session, "study.create", study=study.name, hash=study.study_hash)
    return study
