"""The daemon behind `client-node run`: one process for as long as the site takes part, its model loaded once."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..importing import without_collector
from ..privacy.errors import PrivacyError
from .approval.confirmed_sites import fingerprint
from .enrolment import Enrolment, NodeIdentity
from .enrolment.sessions import only_one
from .errors import AlreadyRunning, ClientNodeError, FileDamaged, KeysSealed, PolicyInvalid, SiteNotReady
from .secret_files import standing as keys_standing
from .succession import own_keys
from .supervision import Monitor
from .vitals import Vitals
from .web.child import noted_address

if TYPE_CHECKING:
    from ..privacy.ledger.ledger import Ledger

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 3600.0
PAGE_FILE = "page.json"  # where the site's page is


def run(home: Path, stop: threading.Event, *, vitals: Vitals | None = None, monitor: int | None = None) -> int:
    """Serves the coordinator until `stop` is set. Returns 0 when stopped, 77 when the coordinator refuses it.

    Args:
        vitals: counts for those who watch the daemon.
        monitor: loopback port for health checks and metrics; None for none.

    Raises:
        MonitorUnavailable: that port is taken.
    """
    from .approval.charges import open_ledger  # these take seconds to import, which `status` has not
    from .node import Node
    from .traffic import Traffic
    from .usage import Usage
    from .warm_node import WarmNode

    identity, enrolment = NodeIdentity.load(home), Enrolment.load(home)
    with only_one(home):
        identity = _rotated(home, identity)
        ledger = open_ledger(home, identity, enrolment) if "train" in enrolment.roles else None
        vitals = vitals or Vitals()
        node = Node(home, identity, enrolment, ledger=ledger)
        logger.info("%s starts, to %s", enrolment.name, " and ".join(enrolment.roles))
        imports = threading.Thread(target=_import_ahead, name="confide-imports", daemon=True)
        ended = threading.Event()
        threading.Thread(target=_look_after_keys, args=(home, ledger, ended), name="confide-keys", daemon=True).start()
        if ledger is not None:
            threading.Thread(target=_look_for_ended_runs, args=(home, ended), name="confide-kept", daemon=True).start()
            if _can_run_studies(home, ledger):
                imports.start()
        try:
            with _monitored(monitor, home, enrolment, vitals, ledger):
                may_refuse = Usage(home).may_refuse
                warm = WarmNode(identity, enrolment, node.handle, vitals, may_refuse=may_refuse, traffic=Traffic(home))
                return warm.run(stop)
        finally:
            ended.set()
            node.stop()
            if ledger is not None:
                ledger.close()
            if imports.is_alive():  # an interpreter that ends in the middle of torch's import aborts
                imports.join()


@contextmanager
def _monitored(
    port: int | None, home: Path, enrolment: Enrolment, vitals: Vitals, ledger: "Ledger | None"
) -> Iterator[None]:
    """Serves the monitor, if one is wanted."""
    if port is None:
        yield
        return
    from .node_metrics import NodeMetrics

    served = Monitor(port, NodeMetrics(home=home, enrolment=enrolment, vitals=vitals, ledger=ledger).answers())
    try:
        yield
    finally:
        served.stop()


def _can_run_studies(home: Path, ledger: "Ledger") -> bool:
    """Returns True if some study is approved and can be computed in this process.

    Logs a mistake in the policy, or an old ledger, at the start and not in a run; a person can mend it meanwhile.
    """
    from .ledger_head import LedgerHead
    from .policy import load_policy

    try:
        LedgerHead(home, ledger).require()
        policy = load_policy(home)
    except (FileDamaged, PolicyInvalid, SiteNotReady) as err:
        logger.error("no study can run until this is mended: %s", err)
        return False
    return bool(policy.studies.approved or policy.studies.unprotected) and not policy.limits.workers


def delete_states(home: Path) -> None:
    """Deletes kept states of studies without a run under way here, or without approval.

    The last message of a run may never come: its reservation lapses.

    Raises:
        FileDamaged: the file of runs or of decisions is damaged.
        PolicyInvalid: the policy cannot be read.
    """
    from .approval.run_reservations import RunReservations
    from .data import kept_files
    from .policy import load_policy

    studies = load_policy(home).studies
    kept_files.keep_only(home, {*RunReservations(home).runs().values()} & {*studies.approved, *studies.unprotected})


def _look_for_ended_runs(home: Path, ended: threading.Event) -> None:
    """Deletes kept states of runs that have ended, at the start and then every hour."""
    while True:
        try:
            delete_states(home)
        except (FileDamaged, OSError, PolicyInvalid) as err:
            logger.error("kept states of runs that have ended are not deleted until this is mended: %s", err)
        if ended.wait(_LOOK_EVERY_S):
            return


def _rotated(home: Path, identity: NodeIdentity) -> NodeIdentity:
    """Completes a rotation of the identity key that was cut short; if that cannot be now, the present key serves."""
    from .succession import rotation

    try:
        return rotation.complete(home)
    except ClientNodeError as err:
        logger.warning("the rotation of the identity key is not completed, and goes on later: %s", err)
        return identity


def _look_after_keys(home: Path, ledger: "Ledger | None", ended: threading.Event) -> None:
    """Hands logs over to a new identity key, and deletes keys that no study names, at the start and every hour."""
    from . import identity_keys

    while True:
        try:
            identity_keys.settle(home, ledger)
        except (ClientNodeError, OSError, PrivacyError) as err:
            logger.error("earlier identity keys are kept until this is mended: %s", err)
        if ended.wait(_LOOK_EVERY_S):
            return


def _import_ahead() -> None:
    """Imports what a site computes with, which takes seconds, while it connects and nobody has asked yet."""
    with without_collector():
        from .training import trainer

    logger.debug("%s is imported", trainer.__name__)


def status(home: Path) -> dict[str, Any]:
    """Describes this node and the state of its daemon; nothing here depends on records.

    Where the keys are sealed and no passphrase is given, all that takes a key is left out.
    """
    enrolment = Enrolment.load(home)
    try:
        with only_one(home, shared=True):
            running = False
    except AlreadyRunning:
        running = True
    found = {
        "name": enrolment.name,
        "roles": list(enrolment.roles),
        "coordinator": enrolment.address,
        "coordinator_key": enrolment.coordinator,
        "running": running,
        "keys": keys_standing(home),
        "page": (noted_address(home / PAGE_FILE) if running else "") or None,
    }
    try:
        identity = NodeIdentity.load(home).identity_hex
    except KeysSealed as err:
        return found | {"keys": f"{found['keys']}, and not opened here: {err}"}
    found |= {"identity": identity, "fingerprint": fingerprint(identity)}
    if "train" in enrolment.roles:
        from .ledger_head import standing  # imports SQLAlchemy

        found["ledger"] = standing(home, *own_keys.of_home(home).all())
    return found
