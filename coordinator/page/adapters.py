"""Adapters: what runs have trained, what is known of it, and its export to who asks for it."""

from dataclasses import dataclass

from markupsafe import Markup
from starlette.responses import Response

from ...client_node.study import Study
from ...privacy.report import figures
from ...privacy.report.schema import AuditFacts, MembershipFacts, membership_facts
from ..errors import AuditMissing, Conflict
from ..results.metrics import Measurement, measurement
from ..results.privacy_audit import Verdict, audit_verdict, audits
from ..run.progress import event_of
from ..store import Store
from ..store.states import RunState
from ..store.tables import Run
from ..studies.catalogue import load_study
from . import charts
from .downloads import attached
from .trained import Trained
from .visits import Visit

ADAPTERS_A_PAGE = 15
_MOST_REASON = 1000  # characters
AUDIT_TONES = {"passed": "good", "failed": "bad", "missing": "warn", "not needed": ""}


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter as it stands after a run's last committed round."""

    run: Run
    study: Study
    trained: Trained
    verdict: Verdict
    audits: tuple[AuditFacts, ...]  # the oldest first

    @property
    def tone(self) -> str:
        """The style's word for the audit's verdict."""
        return AUDIT_TONES[self.verdict]

    @property
    def figure(self) -> str:
        """The measured figure in few words; "" if there is none."""
        measured = self.trained.measured
        if measured is None:
            return ""
        metrics, judged = measured.metrics, measured.judged
        estimate, name = (metrics.auc, "AUC") if judged == "labels" else (metrics.prevalence, "right")
        if estimate is None:
            return ""
        return f"{name} {estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def show_all(visit: Visit) -> Response:
    """Shows every adapter, the newest first."""
    over = [run for run in visit.store.runs()[::-1] if run.state.is_over]
    found = [run for run in over if visit.store.last_commit(run.id)[0]]
    shown, page, pages = visit.page_of(found, ADAPTERS_A_PAGE)
    return visit.render("adapters.html", adapters=[adapter_of(visit, run.id) for run in shown], page=page, pages=pages)


def show(visit: Visit) -> Response:
    """Shows one adapter: its card, its privacy, its audits and the attacks on it."""
    found = adapter_of(visit, visit.part("run"))
    attacks = [membership_facts(text) for text in visit.store.privacy_tests(found.run.id, "membership")]
    prototype, guaranteed = visit.store.prototype(found.run.id), _guaranteed(visit, found.study)
    return visit.render(
        "adapter.html", found=found, attacks=attacks, prototype=prototype, guaranteed=guaranteed,
        audit_chart=charts.of_report(figures.audits, found.audits) if found.audits else Markup(""),
        roc=_roc(found, attacks, guaranteed),
    )  # fmt: skip


def ask(visit: Visit) -> Response:
    """Shows what an export writes, and what it still takes."""
    return visit.render("export.html", found=adapter_of(visit, visit.part("run")))


def send(visit: Visit) -> Response:
    """Sends an adapter, as `coordinator adapter export` writes it."""
    found = adapter_of(visit, visit.part("run"))
    reason = visit.form.get("reason", "").strip()[:_MOST_REASON]
    is_blocked = found.verdict in ("failed", "missing")
    if is_blocked and not reason:
        raise AuditMissing("no audit allows this export, and no reason was typed; nothing was written")
    archive = visit.federation.exports.zip(
        visit.home, found.run.id, visit.operator, reason if is_blocked else None
    )  # fmt: skip
    return attached(archive, f"{found.run.id}-adapter.zip", "application/zip")


def adapter_of(visit: Visit, run_id: str) -> Adapter:
    """Looks at a run's adapter.

    Raises:
        NotFound: there is no such run.
        Conflict: no round is committed yet.
    """
    store, known = visit.store, visit.federation.trained
    run = store.run(run_id)
    study, last = load_study(store.study(run.study)), store.last_round(run_id)
    if last.state_hash is None:
        raise Conflict(f"run {run_id} has no committed round yet, so there is no adapter")
    trained = known.get(run_id)
    if trained is None or trained.event.state != run.state or trained.rounds != last.number:
        trained = Trained(last.number, event_of(store, study, run_id), *_measured(store, run_id))
        if run.state == RunState.DONE:  # and so nothing of it changes any more
            known[run_id] = trained
    found = tuple(audits(store, run_id))
    return Adapter(run, study, trained, audit_verdict(study, last.number, found), found)


def _measured(store: Store, run_id: str) -> tuple[Measurement | None, str]:
    try:
        return measurement(store, run_id), ""
    except Conflict as err:
        return None, str(err)


def _guaranteed(visit: Visit, study: Study) -> float | None:
    """Finds the largest guaranteed epsilon of the study's sites on data of its unit, over all their studies."""
    names, unit = set(study.site_names()), study.draft.data.unit
    known = visit.federation.ledgers.standings()
    return max(
        (each.guaranteed for name in names & set(known) for each in known[name] if each.unit == unit), default=None
    )


def _roc(found: Adapter, attacks: list[MembershipFacts], guaranteed: float | None) -> Markup:
    if not attacks:
        return Markup("")
    privacy = found.study.draft.privacy
    limit = None if privacy.mode == "none" or guaranteed is None else (guaranteed, privacy.delta)
    return charts.of_report(figures.roc, attacks, limit)
