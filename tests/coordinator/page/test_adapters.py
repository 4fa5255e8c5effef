import io
import json
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import save_file
from starlette.testclient import TestClient

from confide.client_node.web.entering import make_link
from confide.client_node.web.framing import framed
from confide.coordinator.errors import AuditMissing
from confide.coordinator.federation import Settings, create_home
from confide.coordinator.oversight import operators
from confide.coordinator.page import adapters, model_work
from confide.coordinator.page.app import PageApp
from confide.coordinator.page.model_work import FOLDER, Making
from confide.coordinator.results.export import export_adapter, merge_adapter
from confide.coordinator.results.metrics import measurement
from confide.coordinator.routing import kept
from confide.coordinator.store import audit_log
from confide.coordinator.store.run_folder import RunFolder
from confide.coordinator.store.tables import PrivacyTest, Round
from confide.listening import LOOPBACK_NAMES
from confide.privacy.report.schema import AuditFinding, dump

from ...client_node.conftest import EVALUATION
from ..audits import audit_facts, keep_audit, membership_facts
from ..conftest import Federation, logged, put_in_state
from ..results.test_export import RUN, spend, with_run
from ..results.test_metrics import evaluation
from ..routing.test_kept import a_map
from .conftest import key_of

SETTINGS = Settings(federation="Four hospitals", address="fed.example:1", listen="127.0.0.1", port=1, superlink_port=2)
PLAIN = (('mode = "distributed"', 'mode = "none"'), ("noise_multiplier = 1.19\n", ""), ("delta = 1e-5\n", ""))


@pytest.fixture
def app(federation: Federation) -> Iterator[PageApp]:
    create_home(federation.home, SETTINGS)
    app = PageApp(federation.home, federation.store, is_https=False)
    yield app
    app.close()


@pytest.fixture
def browser(app: PageApp, federation: Federation) -> TestClient:
    """A browser that was let in as the home's account."""
    return entered(app, federation)


def entered(app: PageApp, federation: Federation, *who: str) -> TestClient:
    client = TestClient(
        framed(app.app, LOOPBACK_NAMES, is_https=False), base_url="http://localhost", follow_redirects=False
    )
    link = make_link(federation.home, *(who or (None,)))
    assert client.get("/enter", params={"link": link}).status_code == 303
    return client


def send(browser: TestClient, form: str = "export", **fields: str):
    page = browser.get(f"/adapters/{RUN}/{form}")
    assert page.status_code == 200
    return browser.post(f"/adapters/{RUN}/{form}", data={"form_key": key_of(page), **fields})


def begin_map(browser: TestClient):
    return browser.post(f"/adapters/{RUN}/map", data={"form_key": key_of(browser.get(f"/adapters/{RUN}"))})


def made_map(browser: TestClient) -> str:
    """The adapter's page once its heat map is no longer being made."""
    for _ in range(600):
        page = browser.get(f"/adapters/{RUN}").text
        if "by a process of its own. This takes" not in page:
            return page
        time.sleep(0.2)
    raise AssertionError("the heat map is still being made")


def test_only_runs_that_have_trained_something_are_listed(browser, federation):
    assert "No run has trained one yet" in browser.get("/adapters").text
    with_run(federation, rounds=0)
    assert "No run has trained one yet" in browser.get("/adapters").text
    assert browser.get(f"/adapters/{RUN}").status_code == 409
    assert browser.get("/adapters/nothing").status_code == 404


def test_an_adapter_is_listed_once_its_run_has_ended(browser, federation):
    with_run(federation)
    for state, is_listed in (("running", False), ("stopped", True), ("failed", True), ("done", True)):
        put_in_state(federation.store, RUN, state)
        assert (RUN in browser.get("/adapters").text) is is_listed, state
        assert "2 of 40" in browser.get(f"/adapters/{RUN}").text
        for form in ("export", "merge"):
            told = browser.get(f"/adapters/{RUN}/{form}").text
            assert ("of round 2, or of a later one, since the run goes on," in told) is not is_listed


def test_the_measured_figures_come_with_their_interval(browser, federation):
    with_run(federation, EVALUATION)
    put_in_state(federation.store, RUN, "running")
    assert "is not evaluated yet" in browser.get(f"/adapters/{RUN}").text
    federation.store.commit_round(evaluation(federation.store.acquire_lease(RUN), number=41))
    put_in_state(federation.store, RUN, "done")
    auc = measurement(federation.store, RUN).metrics.auc
    shown = f"AUC {auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f})"
    for path in ("/adapters", f"/adapters/{RUN}"):
        assert shown in browser.get(path).text, path


@pytest.mark.parametrize("state", ["passed", "failed", "missing", "not needed"])
def test_the_page_and_the_gate_of_an_export_judge_alike(browser, federation, state, tmp_path):
    study = with_run(federation, *(PLAIN if state == "not needed" else ()), audited=state == "passed")
    if state == "failed":
        finding = AuditFinding(check="clipping", detail="<b>a norm of 2</b>")
        for number, findings in ((1, [finding]), (2, [])):
            keep_audit(federation.store, audit_facts(run=RUN, study=study.study_hash, round=number, findings=findings))
    page = browser.get(f"/adapters/{RUN}")
    assert page.status_code == 200
    assert f">{state}<" in page.text or "claims no privacy" in page.text
    assert f">{state}<" in browser.get("/adapters").text
    assert "<b>a norm" not in page.text
    export = browser.get(f"/adapters/{RUN}/export").text
    is_blocked = state in ("failed", "missing")
    assert ('name="reason"' in export) is is_blocked
    if is_blocked:
        with pytest.raises(AuditMissing):
            export_adapter(federation.store, federation.home, RUN, tmp_path / "adapter")
        for reason in ("", "   "):
            assert "no reason was typed" in send(browser, reason=reason).text
    else:
        export_adapter(federation.store, federation.home, RUN, tmp_path / "adapter")
    assert sum(action == "adapter.export" for action, _ in logged(federation.store)) == (not is_blocked)


def test_attacks_are_shown_beside_what_the_guarantee_rules_out(browser, federation):
    study = with_run(federation)
    facts = membership_facts(run=RUN, study=study.study_hash, attacked="<i>it</i>")
    federation.store.add_privacy_test(PrivacyTest(run=RUN, kind="membership", facts=json.dumps(dump(facts))), "x")
    page = browser.get(f"/adapters/{RUN}").text
    assert page.count('<svg class="roc"') == 2
    assert "<i>it" not in page
    assert "ruled out" not in page  # no ledger says yet what is guaranteed


@pytest.mark.process
def test_a_download_is_what_the_command_writes_and_leaves_nothing_behind(app, federation, tmp_path, monkeypatch):
    study = with_run(federation, audited=False)
    spend(federation, study, "svi", rounds=2)
    before = {path.name for path in federation.home.iterdir()}
    operators.add(federation.store, "anna", "admin")
    operators.add(federation.store, "oscar", "operator")
    [proof] = [each.token_hash for each in operators.operators(federation.store) if each.name == "oscar"]
    begun: list[tuple[object, object]] = []

    class Noted(subprocess.Popen):
        def __init__(self, args, **options):
            begun.append((args, options.get("env")))
            super().__init__(args, **options)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    answer = send(entered(app, federation, "oscar", proof), reason="a paper | of ours")
    assert answer.status_code == 200, answer.text
    assert ["model_process" in str(each) for each in begun] == [True]
    assert "paper" not in str(begun)  # arguments are for every account of the machine to read
    assert answer.headers["content-disposition"] == f'attachment; filename="{RUN}-adapter.zip"'
    assert int(answer.headers["content-length"]) == len(answer.content)
    export_adapter(federation.store, federation.home, RUN, tmp_path / "same", override_audit="a paper | of ours")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    assert found == {f"{RUN}/{path.name}": path.read_bytes() for path in (tmp_path / "same").iterdir()}
    with federation.store.session() as session:
        first = next(each for each in audit_log.entries(session) if each.action == "adapter.export")
    assert first.actor == "operator:oscar"
    assert first.fields["folder"] == "browser of the operator oscar"
    assert "a paper | of ours" in first.fields["override"]
    assert {path.name for path in federation.home.iterdir()} - before <= {"page-links", "same"}


@pytest.mark.process
def test_a_merged_model_is_what_the_command_writes_and_leaves_nothing_behind(browser, federation, tmp_path):
    with_run(federation, audited=False)
    answer = send(browser, form="merge", reason="a paper of ours")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-disposition"] == f'attachment; filename="{RUN}-merged.zip"'
    merge_adapter(federation.store, federation.home, RUN, tmp_path / "same", override_audit="a paper of ours")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    assert found == {f"{RUN}/{path.name}": path.read_bytes() for path in (tmp_path / "same").iterdir()}
    assert not (federation.home / FOLDER).exists()
    written = sum(len(data) for data in found.values())
    assert written <= adapters.merged_size(federation.backbone) + 20_000  # for its card
    [first, _] = [fields for action, fields in logged(federation.store) if action == "adapter.merge"]
    assert first["folder"] == "browser of this machine's account"


def test_a_merged_model_takes_float32_and_a_tied_matrix_twice_however_small_the_backbone_is(tmp_path):
    weights = {"embedding": torch.ones(50, 20).bfloat16(), "norm": torch.ones(20).to(torch.float8_e4m3fn)}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert adapters.merged_size(tmp_path) == 2 * 4 * 1000 + 4 * 20 + 2


def test_a_merged_model_needs_the_audit_that_an_export_needs_and_room_on_the_disk(browser, federation, monkeypatch):
    with_run(federation, audited=False)
    assert "no reason was typed" in send(browser, form="merge").text
    full = shutil.disk_usage(federation.home)._replace(free=10)
    monkeypatch.setattr(adapters.shutil, "disk_usage", lambda _: full)
    answer = send(browser, form="merge", reason="a paper of ours")
    assert answer.status_code == 409
    assert "0.0 GB are free; nothing was written" in answer.text
    assert "adapter.merge" not in [action for action, _ in logged(federation.store)]


@pytest.mark.process
def test_a_heat_map_is_made_by_a_process_of_its_own_and_stays(app, federation):
    study = with_run(federation, audited=False)
    operators.add(federation.store, "anna", "admin")
    operators.add(federation.store, "oscar", "operator")
    [proof] = [each.token_hash for each in operators.operators(federation.store) if each.name == "oscar"]
    browser = entered(app, federation, "oscar", proof)
    assert "Make the heat map" in browser.get(f"/adapters/{RUN}").text
    assert begin_map(browser).headers["location"] == f"/adapters/{RUN}"
    page = made_map(browser)
    assert page.count('<svg class="heat"') == 4  # before and after, each for two widths
    assert "Make the heat map" not in page
    found = kept.read(federation.home, RUN)
    assert found.is_of(federation.store.last_round(RUN).state_hash, study.backbone_hash)
    for layer in found.after:
        assert f'<th scope="row" class="n">{layer.layer}</th>' in page
    with federation.store.session() as session:
        entry = next(each for each in audit_log.entries(session) if each.action == "adapter.map")
    assert (entry.actor, entry.fields) == ("operator:oscar", {"run": RUN, "round": 2})


@pytest.mark.process
def test_a_heat_map_that_cannot_be_made_says_why_and_may_be_tried_again(browser, federation):
    with_run(federation)
    for path in RunFolder(federation.home, RUN).path.glob("state-2-*"):
        path.write_bytes(b"nothing")
    begin_map(browser)
    page = made_map(browser)
    assert "No heat map was made" in page
    assert "restore it from a backup" in page
    assert "Make the heat map" in page
    assert "adapter.map" not in [action for action, _ in logged(federation.store)]


def test_a_heat_map_of_another_adapter_is_not_shown(browser, federation):
    study = with_run(federation)
    state = federation.store.last_round(RUN).state_hash
    for own, is_shown in (({}, True), ({"adapter": "cd" * 32}, False), ({"backbone": "cd" * 32}, False)):
        kept.write(federation.home, RUN, a_map(**{"adapter": state, "backbone": study.backbone_hash, **own}))
        page = browser.get(f"/adapters/{RUN}").text
        assert ('<svg class="heat"' in page) is is_shown, own
        assert ("of another adapter than this one" in page) is not is_shown
        assert ("Make the heat map" in page) is not is_shown


def test_a_damaged_heat_map_breaks_no_page(browser, federation):
    with_run(federation)
    (federation.home / "runs" / RUN / kept.FILE).write_text('{"read": "<b>"}')
    page = browser.get(f"/adapters/{RUN}")
    assert page.status_code == 200
    assert "make the heat map anew" in page.text
    assert "<b>" not in page.text


def test_how_far_a_heat_map_is_can_be_seen_without_a_script(browser, federation, app):
    with_run(federation)
    app._federation.models._makings[RUN] = Making(part=0.4)
    page = browser.get(f"/adapters/{RUN}").text
    assert ">40 %</progress>" in page
    assert 'id="routing" data-live' in page
    assert "Make the heat map" not in page
    answer = browser.post(f"/adapters/{RUN}/map", data={"form_key": key_of(browser.get(f"/adapters/{RUN}"))})
    assert answer.status_code == 303  # nothing is begun twice


def test_experts_that_no_token_was_sent_to_are_marked_in_picture_and_table(browser, federation):
    study = with_run(federation)
    state = federation.store.last_round(RUN).state_hash
    kept.write(federation.home, RUN, a_map(adapter=state, backbone=study.backbone_hash))
    page = browser.get(f"/adapters/{RUN}").text
    assert page.count('class="unused"') == 2 * 2  # a cross is two lines; expert 3 now, for two widths
    assert page.count(">never<") == 1
    assert ">25.0 %</td>" in page  # 1 of 4 choices fell elsewhere


@pytest.mark.process
def test_what_the_command_refuses_is_told_and_leaves_nothing_behind(browser, federation):
    with_run(federation)
    with federation.store.session() as session:
        session.get(Round, (RUN, 2)).sites = '["svi"]'  # whose ledger has no charge of it
    answer = send(browser)
    assert answer.status_code == 409
    assert "no charge of svi for round 2" in answer.text
    assert not (federation.home / FOLDER).exists()
    assert "adapter.export" not in [action for action, _ in logged(federation.store)]


def test_one_model_is_loaded_at_a_time(browser, federation, app, monkeypatch):
    with_run(federation)
    monkeypatch.setattr(model_work, "_PATIENCE_S", 0.01)
    with app._federation.models._one:
        answers = [send(browser), send(browser, form="merge"), begin_map(browser)]
    assert [answer.status_code for answer in answers] == [409] * 3
    assert all("Another model is being loaded" in answer.text for answer in answers)


def test_without_a_thread_no_heat_map_is_begun_and_the_next_one_may_be(browser, federation, app, monkeypatch):
    with_run(federation)
    models, start = app._federation.models, threading.Thread.start

    def fails(thread) -> None:
        if thread.name == "heat map":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fails)
    assert begin_map(browser).status_code == 500
    assert models.making(RUN) is None
    assert not models._one.locked()
    models.close()


def test_what_a_killed_page_has_left_is_gone_before_anybody_asks_for_room(federation):
    create_home(federation.home, SETTINGS)
    left = federation.home / FOLDER / "0123456789abcdef"
    left.mkdir(parents=True)
    (left / "model.zip").write_bytes(b"a model of 40 GB")
    PageApp(federation.home, federation.store, is_https=False).close()
    assert not (federation.home / FOLDER).exists()


def test_a_viewer_sees_adapters_and_takes_none(app, federation):
    with_run(federation)
    operators.add(federation.store, "anna", "admin")
    operators.add(federation.store, "vera", "viewer")
    [proof] = [each.token_hash for each in operators.operators(federation.store) if each.name == "vera"]
    viewer = entered(app, federation, "vera", proof)
    page = viewer.get(f"/adapters/{RUN}")
    assert page.status_code == 200
    assert viewer.get(f"/adapters/{RUN}/export").status_code == 403
    key = re.search(r'name="form_key" value="([^"]+)"', page.text)[1]
    for change in ("export", "merge", "map"):
        assert f"/{change}" not in page.text
        assert viewer.post(f"/adapters/{RUN}/{change}", data={"form_key": key}).status_code == 403
    assert ("access.refused", "vera") in [(action, each.get("operator")) for action, each in logged(federation.store)]


def test_a_form_of_another_page_takes_nothing(browser, federation):
    with_run(federation)
    for change in ("export", "merge", "map"):
        assert browser.post(f"/adapters/{RUN}/{change}", data={"form_key": "x"}).status_code == 403
    assert "adapter.export" not in [action for action, _ in logged(federation.store)]


SHOWN = """
import sys
from pathlib import Path
from starlette.testclient import TestClient
from confide.client_node.web.entering import make_link
from confide.coordinator.page.app import PageApp
from confide.coordinator.page.views import VIEWS
from confide.coordinator.store import Store

home, parts = Path(sys.argv[1]), dict(run=sys.argv[2], site="svi", name="svi", study="thyroid", operator="nobody")
store = Store.open(home)
app = PageApp(home, store, is_https=False)
client = TestClient(app.app, base_url="http://localhost")
client.get("/enter", params={"link": make_link(home, None)})
for path in VIEWS:
    answer = client.get(path.format_map(parts))
    print(path, answer.status_code)
app.close()
store.close()
print("heavy", sorted({"torch", "transformers", "opacus"} & set(sys.modules)))
"""


@pytest.mark.process
def test_the_page_s_process_never_loads_a_model_s_libraries(federation):
    create_home(federation.home, SETTINGS)
    study = with_run(federation)
    spend(federation, study, "svi", rounds=2)
    own = a_map(adapter=federation.store.last_round(RUN).state_hash, backbone=study.backbone_hash)
    kept.write(federation.home, RUN, own)
    script = [sys.executable, "-W", "ignore", "-c", SHOWN, str(federation.home), RUN]
    found = subprocess.run(script, capture_output=True, text=True, timeout=300, check=True).stdout.splitlines()
    statuses = dict(line.rsplit(" ", 1) for line in found[:-1])
    own = (
        "/budgets",
        "/budgets/{site}",
        "/budgets/report.html",
        "/adapters/{run}",
        "/adapters/{run}/export",
        "/adapters/{run}/merge",
    )
    assert {statuses[path] for path in own} == {"200"}
    assert found[-1] == "heavy []"
