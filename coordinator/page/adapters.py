"""Adapters: what runs have trained, what is known of it, and its export to who asks for it."""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from safetensors import SafetensorError, safe_open
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
from ..studies.catalogue import load_study, study_start
from . import charts, routing
from .downloads import attached
from .model_work import Form
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
        routing=routing.shown(visit, found.run.id, found.trained.state_hash, found.study.backbone_hash),
        audit_chart=charts.of_report(figures.audits, found.audits) if found.audits else Markup(""),
        roc=_roc(found, attacks, guaranteed),
    )  # fmt: skip


def ask(form: Form) -> Callable[[Visit], Response]:
    """Makes the page that shows what an export, or a merge, writes, and what it still takes."""

    def asked(visit: Visit) -> Response:
        found = adapter_of(visit, visit.part("run"))
        size = _merged_size(visit, found.study) if form == "merged" else None
        return visit.render("export.html", found=found, form=form, size=size)

    return asked


def send(form: Form) -> Callable[[Visit], Response]:
    """Makes the answer that sends an adapter or a merged model, as `adapter export` or `adapter merge` writes it."""

    def sent(visit: Visit) -> Response:
        found = adapter_of(visit, visit.part("run"))
        reason = visit.form.get("reason", "").strip()[:_MOST_REASON]
        is_blocked = found.verdict in ("failed", "missing")
        if is_blocked and not reason:
            raise AuditMissing("no audit allows this export, and no reason was typed; nothing was written")
        if form == "merged":
            _require_room(visit, found.study)
        archive = visit.federation.models.zip(
            visit.home, found.run.id, form, visit.operator, reason if is_blocked else None
        )  # fmt: skip
        return attached(archive, f"{found.run.id}-{form}.zip", "application/zip")

    return sent


def begin_map(visit: Visit) -> Response:
    """Begins to make an adapter's heat map, as `coordinator adapter map` does, and goes back to where it will be."""
    found, models = adapter_of(visit, visit.part("run")), visit.federation.models
    making = models.making(found.run.id)
    if making is None or making.problem:
        models.begin_map(visit.home, found.run.id, visit.operator)
    return visit.go("adapters", found.run.id, notice="The heat map is being made. It appears under Routing.")


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
        trained = Trained(last.number, last.state_hash, event_of(store, study, run_id), *_measured(store, run_id))
        if run.state == RunState.DONE:  # and so nothing of it changes any more
            known[run_id] = trained
    found = tuple(audits(store, run_id))
    return Adapter(run, study, trained, audit_verdict(study, last.number, found), found)


def _measured(store: Store, run_id: str) -> tuple[Measurement | None, str]:
    try:
        return measurement(store, run_id), ""
    except Conflict as err:
        return None, str(err)


def merged_size(backbone: Path) -> int:
    """Bounds the bytes of a merged model: float32, however the backbone is stored, and a tied matrix comes out twice.

    Raises:
        OSError, SafetensorError: the backbone's files cannot be read.
    """
    beside, sizes = 0, [0]
    for path in backbone.iterdir():
        if path.suffix != ".safetensors":
            beside += path.stat().st_size
            continue
        with safe_open(path, framework="np") as file:
            sizes += [4 * math.prod(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
    return beside + sum(sizes) + max(sizes)


def _merged_size(visit: Visit, study: Study) -> int | None:
    """Bounds the bytes of a study's merged model; None if its backbone cannot be read."""
    try:
        return merged_size(study_start(visit.home, study).backbone)
    except (OSError, SafetensorError):
        return None


def _require_room(visit: Visit, study: Study) -> None:
    """Raises `Conflict` unless the home's disk has room for a merged model and its archive."""
    size, free = _merged_size(visit, study), shutil.disk_usage(visit.home).free
    if size is not None and free < 2 * size:
        raise Conflict(
            f"a merged model takes {2 * size / 1e9:.1f} GB of the coordinator's disk while it is written, and "
            f"{free / 1e9:.1f} GB are free; nothing was written"
        )


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
