"""What becomes of a site's vector before it leaves: three envelopes, of which each opens at one aggregator alone."""

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ...mpc.fields import NUM_AGGREGATORS
from ...mpc.sharing import Ring, ShareContext
from ...mpc.sharing.ring import from_integers
from ...mpc.sharing.sealing import seal_update
from ...mpc.sharing.tags import tags
from ..study import Study
from ..wire.messages import RoundPlan, TopUpPlan, require_run_keys, require_tag_key
from .outbox import Envelopes


def require_keys(study: Study, plan: RoundPlan | TopUpPlan) -> None:
    """Raises `MessageInvalid` unless the plan has what `seal` needs: to be asked before anything is charged."""
    require_run_keys(study, plan.run, plan.keys)
    require_tag_key(study, plan.tag_key)


def seal(
    study: Study,
    plan: RoundPlan | TopUpPlan,
    vector: npt.NDArray[np.int64],
    context: ShareContext,
    signer: Ed25519PrivateKey,
) -> Envelopes:
    """The envelopes of `vector`, in ring units, by aggregator.

    Raises:
        MessageInvalid: the plan has not the keys that it should.
    """
    require_run_keys(study, plan.run, plan.keys)
    tag_key = require_tag_key(study, plan.tag_key)
    first, second, third = seal_update(
        from_integers(vector, Ring(context.ring_bits, context.scale_bits)),
        context,
        [bytes.fromhex(key.public_key) for key in plan.keys],
        signer,
        full=study.site_names().index(context.site) % NUM_AGGREGATORS,  # who gets the long share rotates over the sites
        tags=tags(vector, tag_key, context.tag_count) if tag_key else (),
    )
    return first.to_bytes(), second.to_bytes(), third.to_bytes()
