"""Seals a site's vector into three envelopes, each of which only one aggregator can open."""

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ...mpc.fields import NUM_AGGREGATORS
from ...mpc.sharing.position import Position
from ...mpc.sharing.sealing import seal_update
from ...mpc.sharing.tags import tags
from ..study import Study
from ..wire.messages import RoundPlan, TopUpPlan, require_run_keys, require_tag_key, start_hash
from .outbox import Envelopes


@dataclass(frozen=True, slots=True)
class Sealer:
    """Seals one site's vectors in one round, with verified keys. Make it before anything is charged."""

    study: Study
    plan: RoundPlan | TopUpPlan = field(repr=False)
    site: str
    signer: Ed25519PrivateKey = field(repr=False)
    _tag_key: bytes | None = field(repr=False)

    @classmethod
    def of_plan(cls, study: Study, plan: RoundPlan | TopUpPlan, *, site: str, signer: Ed25519PrivateKey) -> "Sealer":
        """Verifies the keys in the plan, and makes a sealer with them.

        Raises:
            MessageInvalid: the plan does not have the keys that the study requires.
        """
        require_run_keys(study, plan.run, plan.keys)
        return cls(study, plan, site, signer, require_tag_key(study, plan.tag_key))

    def seal(
        self, vector: npt.NDArray[np.int64], *, state: str, position: Position, topup_for: str | None = None
    ) -> Envelopes:
        """Seals `vector`, in ring units, and returns its envelopes by aggregator.

        Args:
            state: SHA-256 of the state that every site was sent in this round.
            position: of the site's ledger, at its charge for the round.
            topup_for: `set_name` of the set that a top-up is for; None for the update itself.
        """
        plan, study = self.plan, self.study
        planned, start = study.planned_round(plan.round), start_hash(state, plan.tag_key)
        update = study.share_context(planned, run=plan.run, site=self.site, state=start)
        context = update if topup_for is None else replace(update, topup_for=topup_for)
        first, second, third = seal_update(
            vector,
            context,
            [bytes.fromhex(key.public_key) for key in plan.keys],
            self.signer,
            full=study.site_names().index(self.site) % NUM_AGGREGATORS,  # the long share rotates over the aggregators
            tags=tags(vector, self._tag_key, context.tag_count) if self._tag_key else (),
            position=position,
        )
        return first.framed(), second.framed(), third.framed()
