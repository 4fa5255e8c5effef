import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from confide.client_node.cli.console import print_json
from confide.client_node.enrolment.protocol import InvitationCode
from confide.client_node.replay.checkpoint import Checkpoint
from confide.client_node.spoken_hash import words
from confide.coordinator.cli.main import app
from confide.coordinator.federation.pki import Pki
from confide.coordinator.results.export import export_adapter
from confide.coordinator.store.ledger_replica import LedgerReplica
from confide.coordinator.store.run_folder import RunFolder
from confide.coordinator.store.store import Store
from confide.coordinator.store.tables import DecisionRow, NodeRow, Round, Run
from confide.coordinator.studies.catalogue import load_study
from confide.models.adapters import AdapterConfig, attach, export
from confide.models.backbones import pretraining
from confide.models.backbones.checkpoints import content_hash
from confide.models.backbones.loading import backbone_hash, load
from confide.models.backbones.pretraining import PretrainingConfig
from confide.models.rounding import rounded_up
from confide.privacy.ledger import backup
from confide.privacy.ledger.ledger import Ledger

from ...client_node.conftest import EVALUATION, STUDY_TOML, TEXT, changed, identity_of, make_study, write_draft
from ...models.adapters.test_peft_export import CARD
from ...models.tiny import save_text_backbone
from ...privacy.ledgers import charge, ledger_with, signer
from ..conftest import SITES, committed_round, enrolled_nodes, put_in_state
from ..results.test_export import HELD_OUT, with_run
from ..results.test_metrics import RUN as EVALUATED
from ..results.test_metrics import with_evaluation

__all__ = ["make_study", "write_draft"]  # fixtures

FAILED, USAGE, UNVERIFIED, INTERRUPTED = 1, 2, 3, 130
RUN = "thyroid-0001"
COMMANDS = (
    "init serve page status health ca+rotate ca+status ca+finish ca+cancel ca+statement certificate+use "
    "doctor backup restore site+invite site+list site+leave site+revoke study+init study+check "
    "study+compare study+create study+list study+show run+start run+list "
    "run+rounds run+watch run+stop run+abandon run+resume run+metrics backbone+build backbone+import backbone+list "
    "backbone+moments backbone+compress "
    "backbone+routing backbone+show budget+report budget+verify budget+export adapter+export "
    "adapter+merge adapter+deploy adapter+choose adapter+combine adapter+carry adapter+ask adapter+serve "
    "adapter+evaluate adapter+routing adapter+map "
    "space+build audit+log audit+verify audit+export audit+privacy "
    "operator+add operator+list operator+renew operator+revoke operator+recover keys+seal keys+unseal keys+rotate "
    "keys+status demo simulate"
)


def invoke(*words, code=0, columns=400):
    """Runs one command; whatever fails does so in our own words."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": str(columns)})
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def _new_home(tmp_path_factory):
    home = tmp_path_factory.mktemp("cli") / "home"
    invoke("init", "--home", home, "--federation", "thyroid network", "--host", "fed.example", "--port", "9999")
    return home


@pytest.fixture
def home(tmp_path, _new_home):
    """A federation as `coordinator init` leaves it."""
    return shutil.copytree(_new_home, tmp_path / "home")


@pytest.fixture
def call(home):
    return lambda *words, **how: invoke(*words, "--home", home, **how)


@pytest.fixture
def store(home):
    """The store of `home`, with everyone enrolled whom STUDY_TOML names."""
    opened = Store.open(home)
    with opened.session() as session:
        session.add_all(enrolled_nodes())
    yield opened
    opened.close()


@pytest.fixture
def study(call, store, home, backbone):
    """The hash of a study."""
    return create_study(call, home, backbone)


def create_study(call, home, backbone):
    (home / "study.toml").write_text(changed(STUDY_TOML, (("some/where/backbone", str(backbone)),)))
    return json.loads(call("study", "create", home / "study.toml", "--json").stdout)["hash"]


@pytest.fixture
def run(store, study):
    """A pending run."""
    return add_run(store, study)


def add_run(store, study):
    with store.session() as session:
        session.add(Run(id=RUN, study=study, state="pending", created_at=0.0))
    return RUN


def lined(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.process
def test_every_command_explains_itself_without_loading_torch():
    script = (
        "import sys; from typer.testing import CliRunner; from confide.coordinator.cli.main import app\n"
        f"for words in {COMMANDS.split()!r}:\n"
        "    result = CliRunner().invoke(app, [*words.split('+'), '--help'])\n"
        "    assert result.exit_code == 0 and 'Usage' in result.output, words\n"
        "slow = {'torch', 'flwr', 'dp_accounting', 'transformers', 'sklearn', 'scipy', 'pandas'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


def test_every_command_is_tried_here():
    groups = {group.name: group.typer_instance for group in app.registered_groups}
    found = {command.name or command.callback.__name__ for command in app.registered_commands}
    found |= {f"{name}+{command.name}" for name, group in groups.items() for command in group.registered_commands}
    assert found == set(COMMANDS.split())


def test_init_makes_a_federation_that_is_its_owner_s_alone(home, call):
    assert Pki.load(home).certificate_path.exists()
    assert json.loads(call("status", "--json").stdout) == {
        "federation": "thyroid network", "serving": None, "sites": [], "runs": [],
        "worries": ["nobody serves this federation: start `coordinator serve`"], "keys": "not encrypted",
        "standbys": [],
    }  # fmt: skip
    assert (home / "pki" / "signing.key").stat().st_mode & 0o077 == 0


def test_init_leaves_a_federation_that_is_there_as_it_is(home, call):
    before = Pki.load(home).identity_hex
    result = call("init", "--federation", "another", code=FAILED)
    assert "Conflict" in result.stderr
    assert "holds a federation already" in lined(result.stderr)
    assert Pki.load(home).identity_hex == before
    assert json.loads(call("status", "--json").stdout)["federation"] == "thyroid network"


def test_init_invites_at_once_and_then_serves(tmp_path, monkeypatch):
    served = []
    monkeypatch.setattr(
        "confide.coordinator.cli.main.serve_federation", lambda home, *, page: served.append((home, page.port))
    )
    home, parcel = tmp_path / "home", tmp_path / "parcel"
    words = ["--site", "north", "--aggregator", "agg-a", "--out", parcel, "--then-serve"]
    made = json.loads(invoke("init", "--home", home, *words, "--json").stdout)
    assert made["files"] == [str(parcel / "north.join"), str(parcel / "agg-a.join")]
    assert all(Path(file).stat().st_mode & 0o077 == 0 for file in made["files"])
    roles = {row["name"]: row["roles"] for row in json.loads(invoke("site", "list", "--json", "--home", home).stdout)}
    assert roles == {"north": "train", "agg-a": "aggregate"}
    assert served == [(home, 9449)]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--site", "North", "--out", "parcel"], FAILED, "is no name for a site"),
        (["--site", "a", "--aggregator", "a", "--out", "parcel"], FAILED, "named more than once"),
        (["--site", "a"], USAGE, "join files need a folder"),
        (["--out", "parcel"], USAGE, "the folder needs sites"),
        (["--site", "a", "--out", "file"], USAGE, "file cannot be a folder: File exists"),
    ],
)
def test_init_that_cannot_invite_makes_no_federation(tmp_path, monkeypatch, words, code, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    result = invoke("init", "--home", tmp_path / "home", *words, code=code)
    assert said in lined(result.stderr)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    "words",
    ["status", "site list", "study list", "run list", "site invite north", "budget report", "run watch r", "serve"],
)
def test_a_folder_without_a_federation_says_what_to_do(tmp_path, words):
    result = invoke(*words.split(), "--home", tmp_path, code=FAILED)
    assert "run `coordinator init` first" in lined(result.stderr)
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_an_invitation_prints_the_code_alone_on_stdout(call, home):
    result = call("site", "invite", "north")
    code = InvitationCode.parse(result.stdout)
    assert code.text() == result.stdout.strip()
    assert (code.address, code.ca_digest) == ("fed.example:9999", Pki.load(home).ca_digest)


def test_an_invitation_in_json_names_site_and_roles(call):
    printed = json.loads(call("site", "invite", "n", "--role", "aggregate", "--role", "train", "--json").stdout)
    assert (printed["name"], printed["roles"]) == ("n", ["train", "aggregate"])
    assert InvitationCode.parse(printed["code"]).address == "fed.example:9999"


@pytest.mark.parametrize("more", [(), ("--out", "parcel")])
def test_whose_code_was_out_already_is_told(call, tmp_path, more):
    more = [tmp_path / word if word == "parcel" else word for word in more]
    assert "void" not in call("site", "invite", "north", "south").stderr
    result = call("site", "invite", "north", "west", *more)
    assert "A code was out already for north: it is void now" in lined(result.stderr)
    assert "void" not in result.stdout


@pytest.mark.parametrize("name", ["North", "a b", "../up", ".hidden", "a" * 64, "ö"])
def test_a_name_that_is_none_is_refused(call, store, name):
    assert "is no name for a site" in lined(call("site", "invite", name, code=FAILED).stderr)
    assert len(store.nodes()) == 7


def test_a_role_that_is_none_is_refused(call):
    result = call("site", "invite", "north", "--role", "watch", code=FAILED)
    assert "watch is no role; the roles are train and aggregate" in lined(result.stderr)


def test_sites_are_listed_with_roles_and_state(call, store):
    call("site", "invite", "late")
    call("site", "revoke", "svi", "--yes")
    rows = {row["name"]: row for row in json.loads(call("site", "list", "--json").stdout)}
    assert rows["late"] == {"name": "late", "roles": "train", "state": "invited", "identity": ""}
    assert rows["svi"]["state"] == "revoked"
    assert rows["rest"] == {"name": "rest", "roles": "train", "state": "enrolled", "identity": identity_of("rest")}
    table = call("site", "list").stdout
    assert all(name in table for name in (*SITES, "late", "revoked", "invited", "enrolled"))


@pytest.mark.parametrize(("words", "title"), [("site list", "Sites"), ("study list", "Studies"), ("run list", "Runs")])
def test_an_empty_list_says_so_and_is_an_empty_json_list(call, words, title):
    assert call(*words.split()).stdout == f"{title}: none yet\n"
    assert json.loads(call(*words.split(), "--json").stdout) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("site revoke nobody", "no site is called 'nobody'"),
        ("study show nothing", "no study is called 'nothing'"),
        ("study create no.toml", "no.toml"),
        ("run start nothing", "no study is called 'nothing'"),
        ("run watch nothing", "no run is called 'nothing'"),
        ("run stop nothing", "no run is called 'nothing'"),
        ("run resume nothing", "no run is called 'nothing'"),
        ("run metrics nothing", "no run is called 'nothing'"),
        ("budget report", "no site has sent a ledger yet"),
        ("budget report --study nothing", "no study is called 'nothing'"),
        ("adapter export nothing out", "no run is called 'nothing'"),
        ("adapter merge nothing out", "no run is called 'nothing'"),
        ("audit privacy nothing", "no run is called 'nothing'"),
        ("adapter evaluate nothing --data x.csv --unit-column p", "no run is called 'nothing'"),
    ],
)
def test_a_refusal_is_one_message_on_stderr(call, words, told):
    result = call(*words.split(), code=FAILED)
    assert told in lined(result.stderr)
    assert "Traceback" not in result.output
    assert result.stdout == ""


@pytest.mark.parametrize("words", ["nonsense", "site", "site invite", "init --port 0", "init --port 65536"])
def test_wrong_usage_has_an_exit_code_of_its_own(words):
    invoke(*words.split(), code=USAGE)


def test_debug_shows_where_an_error_arose(home):
    result = CliRunner().invoke(app, ["--debug", "site", "revoke", "nobody", "--home", str(home)])
    assert type(result.exception).__name__ == "NotFound"
    invoke("site", "revoke", "nobody", "--home", home, code=FAILED)  # and the next call is quiet again


@pytest.mark.slow
def test_a_study_is_created_listed_and_shown(call, store, study):
    assert store.study("thyroid").hash == study
    (row,) = json.loads(call("study", "list", "--json").stdout)
    assert (row["name"], row["hash"]) == ("thyroid", study)
    assert row["words"] == " ".join(words(study))
    shown = json.loads(call("study", "show", "thyroid", "--json").stdout)
    assert shown == json.loads(store.study(study).canonical)
    assert json.loads(call("study", "show", study[:8], "--json").stdout) == shown


@pytest.mark.parametrize("shown_by", ["study list", "study show thyroid", "study create"])
def test_hash_and_words_are_whole_lines_wherever_a_study_is_shown(call, home, study, shown_by):
    """Also in a narrow terminal and in a pipe, so that they can be copied and read aloud."""
    command = [*shown_by.split(), *([home / "study.toml"] if shown_by.endswith("create") else [])]
    lines = call(*command, columns=80).stdout.splitlines()
    assert study in lines
    spoken = [line for line in lines if re.fullmatch(r"([a-z]{3,8} ){5}[a-z]{3,8}", line)]
    assert " ".join(spoken) == " ".join(words(study))


def test_a_created_study_prints_the_hash_alone_on_its_last_line(call, home, study):
    assert call("study", "create", home / "study.toml").stdout.splitlines()[-1] == study


def test_a_study_of_sites_that_are_not_there_names_them_all(call, home, backbone):
    (home / "study.toml").write_text(changed(STUDY_TOML, (("some/where/backbone", str(backbone)),)))
    result = call("study", "create", home / "study.toml", code=FAILED)
    assert all(f"coordinator site invite {site} --role train" in result.stderr for site in SITES)


def test_a_wrong_draft_is_told_line_by_line(call, home):
    (home / "study.toml").write_text("name = 1\n")
    result = call("study", "create", home / "study.toml", code=FAILED)
    assert result.stderr.startswith("StudyInvalid: ")
    assert "privacy" in result.stderr


def test_a_run_is_started_and_printed_alone_on_stdout(call, store, study):
    run = call("run", "start", "thyroid").stdout.strip()
    assert (store.run(run).study, store.run(run).state) == (study, "pending")
    assert f"study thyroid is pending as {run}; --again" in call("run", "start", "thyroid", code=FAILED).stderr
    other = json.loads(call("run", "start", study, "--again", "--json").stdout)["run"]
    rows = json.loads(call("run", "list", "--json").stdout)
    assert [(row["run"], row["state"], row["rounds"]) for row in rows] == [(run, "pending", 0), (other, "pending", 0)]


def test_who_has_not_approved_is_told_before_a_run_and_is_no_refusal(call, store, study):
    assert "nobody has said" in call("study", "list").stdout
    assert "As far as nodes have told" not in call("run", "start", study).stderr
    with store.session() as session:
        session.add(DecisionRow(site="svi", study=study, verdict="revoked", runs_left=0, until=None, since=1.75e9))
    told = "approved by 0 of 7: svi refuses since 2025-06-15; other, svhc, rest, agg-a, agg-b, agg-c have not said"
    assert told in lined(call("study", "show", study).stderr)
    assert told in lined(call("study", "show", study, "--approvals").stderr)
    assert "refused" in call("study", "show", study, "--approvals").stdout
    assert "by 0 of 7" in call("study", "list").stdout
    started = call("run", "start", study, "--again")
    assert told in lined(started.stderr)
    assert store.run(started.stdout.strip()).state == "pending"


def test_a_pending_run_can_be_stopped_and_a_stopped_one_goes_on(call, store, run):
    call("run", "stop", run)
    assert store.run(run).state == "stopped"
    assert "goes on from round 1" in call("run", "resume", run).stdout
    assert store.run(run).state == "pending"


@pytest.mark.parametrize("state", ["stopped", "done", "failed", "abandoned"])
def test_a_run_that_does_not_run_cannot_be_stopped(call, store, run, state):
    put_in_state(store, run, state)
    assert f"is {state}, there is nothing to stop" in lined(call("run", "stop", run, code=FAILED).stderr)
    assert store.run(run).state == state


def test_a_run_is_abandoned_only_by_somebody_who_says_so(call, store, run):
    assert "a script says --yes" in lined(call("run", "abandon", run, code=2).stderr)
    assert store.run(run).state == "pending"
    assert json.loads(call("run", "abandon", run, "--yes", "--json").stdout) == {"run": run, "state": "abandoning"}
    assert "is abandoning, there is nothing to abandon" in lined(call("run", "abandon", run, "--yes", code=1).stderr)


@pytest.mark.parametrize("state", ["pending", "running", "stopping", "done"])
def test_only_a_stopped_or_failed_run_is_resumed(call, store, run, state):
    put_in_state(store, run, state)
    assert "only a stopped or failed run is resumed" in lined(call("run", "resume", run, code=FAILED).stderr)
    assert store.run(run).state == state


@pytest.mark.parametrize("error", ["svi refuses (ChargeRefused): no [/] here", "sites [dim] are [/dim] missing"])
def test_an_error_with_a_node_s_words_is_shown_as_it_is(call, store, run, error):
    put_in_state(store, run, "failed", error=error)
    assert error in call("run", "list").stdout
    assert json.loads(call("run", "list", "--json").stdout)[0]["step"] == error
    assert error in call("run", "watch", run, code=FAILED).stderr


def test_watching_a_run_that_is_done_succeeds(call, store, run):
    put_in_state(store, run, "done")
    assert "round 0 of 40, done" in call("run", "watch", run).stderr


def test_watching_in_json_is_a_line_an_event_on_stdout(call, store, run):
    put_in_state(store, run, "failed", error="SitesMissing: nobody")
    (line,) = call("run", "watch", run, "--json", code=FAILED).stdout.splitlines()
    told = json.loads(line)
    assert (told["run"], told["state"], told["rounds"], told["rounds_planned"]) == (run, "failed", 0, 40)
    assert told["error"] == "SitesMissing: nobody"
    assert told["epsilon"] == 0 < told["epsilon_planned"]


def test_metrics_are_a_table_with_intervals_and_their_cost_or_json(call, home, make_study):
    fresh = Store.open(home)
    with_evaluation(fresh, make_study(EVALUATION), number=41)
    fresh.close()
    shown = lined(call("run", "metrics", EVALUATED).stdout)
    printed = json.loads(call("run", "metrics", EVALUATED, "--json").stdout)
    auc = printed["metrics"]["auc"]
    assert f"{auc['value']:.3f}" in shown
    assert f"{auc['low']:.3f} to {auc['high']:.3f}" in shown
    assert f"epsilon {rounded_up(printed['epsilon'], 3)} by itself" in shown
    assert len(printed["metrics"]["reliability"]) == 10


def test_metrics_of_free_text_say_how_many_completions_are_exact(call, home, make_study):
    fresh = Store.open(home)
    with_evaluation(fresh, make_study(EVALUATION, *TEXT), number=41)
    fresh.close()
    shown = lined(call("run", "metrics", EVALUATED).stdout)
    printed = json.loads(call("run", "metrics", EVALUATED, "--json").stdout)
    assert printed["judged"] == "completions"
    assert f"exact match │ {printed['metrics']['prevalence']['value']:.3f}" in " ".join(shown.split())
    assert "auc" not in shown.lower()


def test_rounds_say_whose_updates_they_hold_who_is_missing_and_whose_was_too_long(call, store, run):
    first, second, *others = SITES
    lease = store.acquire_lease(run)
    store.leave_out(run, lease, 1, [first])
    for number, summed in ((1, [second, *others]), (2, [first, *others])):
        store.commit_round(
            Round(
                run=run, number=number, sites=json.dumps(summed), evidence="[]", state_hash="ab" * 32, seconds=1.25,
                bytes_per_site=1000, lease=lease, committed_at=0.0,
            )
        )  # fmt: skip
    store.leave_out(run, lease, 3, [second])
    printed = json.loads(call("run", "rounds", run, "--json").stdout)
    found = [(row["summed"], row["too_long"], row["missing"]) for row in printed["rounds"]]
    assert found == [([second, *others], [first], []), ([first, *others], [], [second])]
    assert printed["too_long"] == {"1": [first], "3": [second]}
    shown = lined(call("run", "rounds", run).stdout)
    assert ", ".join([second, *others]) in shown
    assert f"Round 3 has not been opened: the vectors of {second} were too long." in shown


def test_a_run_that_has_opened_nothing_says_so(call, run):
    assert "none yet" in call("run", "rounds", run).stdout


def test_a_database_that_serve_has_not_upgraded_is_refused_with_words(call, store):
    with store.session() as session:
        session.execute(text("DROP TABLE evaluation"))
        session.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    assert "start `serve` once" in lined(call("run", "metrics", RUN, code=FAILED).stderr)


def test_metrics_of_a_run_that_measured_nothing_say_why(call, run):
    assert "has no [evaluation]" in lined(call("run", "metrics", run, code=FAILED).stderr)


def test_ctrl_c_leaves_the_run_alone(call, store, run, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("confide.coordinator.run.progress.watch", interrupted)
    call("run", "watch", run, code=INTERRUPTED)
    assert store.run(run).state == "pending"


@pytest.fixture
def trained(store, home, run):
    """The id of a run with one committed round."""
    return train_a_round(store, home, run)


def train_a_round(store, home, run):
    study, lease = load_study(store.study(store.run(run).study)), store.acquire_lease(run)
    state = np.random.default_rng(1).normal(0, 0.1, study.dim).astype(np.float32)
    state_hash = RunFolder(home, run).save(Checkpoint(round=1, state=state, velocity=np.zeros_like(state)))
    store.commit_round(committed_round(1, run=run, lease=lease, state_hash=state_hash))
    return run


def test_an_evaluation_prints_every_metric_with_its_interval_or_json(call, trained, tmp_path):
    (tmp_path / "held-out.csv").write_text(HELD_OUT)
    words = ("adapter", "evaluate", trained, "--data", tmp_path / "held-out.csv", "--unit-column", "patient_id")
    found = json.loads(call(*words, "--json").stdout)
    lines = call(*words).stdout.splitlines()
    metrics = ("auc", "accuracy", "brier_score", "calibration_error")
    assert found.keys() == {"records", *metrics}
    for metric, line in zip(metrics, lines, strict=True):
        assert line.startswith(metric.replace("_", " "))
        assert f"{found[metric]['value']:.4f}  [{found[metric]['low']:.4f}, {found[metric]['high']:.4f}]" in line


def test_the_routing_of_a_run_is_that_of_its_backbone_with_the_adapter_in_place(call, trained, backbone):
    found = json.loads(call("adapter", "routing", trained, "--tokens", "500", "--json").stdout)
    before = json.loads(invoke("backbone", "routing", backbone, "--tokens", "500", "--json").stdout)
    (layer,), (plain,) = found["layers"], before["layers"]
    assert (found["hash"], layer["tokens"]) == (before["hash"], plain["tokens"])
    assert layer["choices"] != plain["choices"]
    assert trained in call("adapter", "routing", trained, "--tokens", "500").stdout


def test_exports_are_combined_by_weight_and_cut_to_a_rank(federation, tmp_path):
    with_run(federation)
    export_adapter(federation.store, federation.home, RUN, tmp_path / "a")
    words = ("adapter", "combine", tmp_path / "a", tmp_path / "a", tmp_path / "both", "--weights", "1,3", "--rank", "3")
    told = json.loads(invoke(*words, "--json").stdout)
    assert (told["rank"], told["directory"]) == (3, str(tmp_path / "both"))
    assert 0 < told["relative_error"] < 1
    assert {"o_proj", "experts"} <= {part for name in told["error_of"] for part in name.split(".")}
    sources = json.loads((tmp_path / "both" / "confide.json").read_text())["sources"]
    assert [source["weight"] for source in sources] == [0.25, 0.75]
    assert "exists already" in lined(invoke(*words, code=FAILED).stderr)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("no nor out", "confide.json cannot be read"),
        ("no nor out --weights 1,x", "takes numbers with commas between them"),
        ("no nor out --weights 1,2,3", "one positive weight each; got 2 and 3 weights"),
    ],
)
def test_what_cannot_be_combined_is_told(words, told):
    assert told in lined(invoke("adapter", "combine", *words.split(), code=FAILED).stderr)


@pytest.mark.parametrize("command", ["export", "merge"])
def test_a_run_without_rounds_has_nothing_to_export(call, run, tmp_path, command):
    result = call("adapter", command, run, tmp_path / "adapter", code=FAILED)
    assert "no committed round yet" in lined(result.stderr)
    assert not (tmp_path / "adapter").exists()


@pytest.fixture
def report(call, store, study, tmp_path):
    """A budget report over the ledger of one site, as a file."""
    replicate_a_ledger(store, tmp_path)
    path = tmp_path / "report.json"
    path.write_text(call("budget", "report", "--json").stdout)
    return path


def replicate_a_ledger(store, folder):
    with ledger_with(folder / "svi.db", site="svi") as ledger:
        with store.session() as session:
            session.get(NodeRow, "svi").identity = ledger.public_key
        LedgerReplica(store).extend("svi", ledger.public_key, ledger.entries())


def test_a_report_verifies_anywhere(report):
    assert json.loads(invoke("budget", "verify", report, "--json").stdout)["verified"]
    assert "ok" in invoke("budget", "verify", report).stdout


def test_a_report_of_other_keys_than_the_known_ones_does_not_verify(report):
    good = json.loads(report.read_text())
    site = good["sites"][0]
    known = ("--issuer", good["issuer"], "--site", f"{site['name']}={site['public_key']}")
    invoke("budget", "verify", report, *known)
    assert "FAILED" in invoke("budget", "verify", report, "--issuer", "0" * 64, code=UNVERIFIED).stdout
    assert (
        "FAILED" in invoke("budget", "verify", report, "--site", f"{site['name']}={'0' * 64}", code=UNVERIFIED).stdout
    )
    assert "is not NAME=KEY" in invoke("budget", "verify", report, "--site", "svi", code=FAILED).stderr


def test_a_report_with_one_figure_changed_does_not_verify(report):
    text = report.read_text()
    figure = json.loads(text)["sites"][0]["accounts"][0]["spent"][0]["pld"]
    report.write_text(text.replace(str(figure), "0.001"))
    result = invoke("budget", "verify", report, "--json", code=UNVERIFIED)
    assert not json.loads(result.stdout)["verified"]
    assert "FAILED" in invoke("budget", "verify", report, code=UNVERIFIED).stdout


def test_a_verification_that_takes_long_says_so_first_and_is_refused_above_the_limit(report, monkeypatch):
    assert invoke("budget", "verify", report).stderr == ""
    monkeypatch.setattr("confide.privacy.report.workload.WORTH_TELLING_S", 0.0)
    told = invoke("budget", "verify", report, "--json")
    assert re.match(r"Verifying 3 releases, about \d seconds\n", told.stderr)
    assert told.stderr.count("Verifying") == 1
    assert json.loads(told.stdout)["verified"]
    monkeypatch.setattr("confide.privacy.report.workload.MAX_SECONDS", 0.1)
    assert "--no-limit verifies it all the same" in lined(invoke("budget", "verify", report, code=FAILED).stderr)
    assert "ok" in invoke("budget", "verify", report, "--no-limit").stdout


@pytest.mark.usefixtures("report")
def test_a_site_that_lost_its_ledger_gets_it_back_from_the_replica(call, tmp_path):
    file = tmp_path / "svi.jsonl"
    written = json.loads(call("budget", "export", "svi", file, "--json").stdout)
    restored = Ledger.restore(tmp_path / "restored.db", backup.read(file), signer(), "svi")
    assert restored == (written["entries"], written["entries"])
    with Ledger.open(tmp_path / "restored.db", signer(), "svi") as ledger:
        assert ledger.head.hash == written["head"]
        ledger.reserve(charge(9))


def test_a_site_without_a_replica_has_nothing_to_export(call, tmp_path):
    for site in ("svi", "nobody"):
        assert f"no ledger of {site} is here" in call("budget", "export", site, tmp_path / "f", code=FAILED).stderr
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("text", ["", "{}", "[1]", "no json", '{"sites": 1}'])
def test_what_is_no_report_does_not_verify(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    result = CliRunner().invoke(app, ["budget", "verify", str(tmp_path / "report.json")])
    assert result.exit_code in (FAILED, UNVERIFIED)
    assert isinstance(result.exception, SystemExit)


@pytest.mark.usefixtures("report")
def test_a_report_is_a_table_a_page_or_json(call, tmp_path):
    assert "svi" in call("budget", "report").stdout
    result = call("budget", "report", "--html", tmp_path / "report.html")
    assert "svi" in (tmp_path / "report.html").read_text()
    assert result.stdout == ""


@pytest.mark.usefixtures("report")
def test_a_page_is_in_the_language_asked_for_and_nothing_else_is_in_any(call, tmp_path):
    page = tmp_path / "report.html"
    call("budget", "report", "--html", page, "--lang", "de")
    assert '<html lang="de">' in page.read_text()
    assert "Datenschutzbudget" in page.read_text()
    assert "needs --html" in lined(call("budget", "report", "--json", "--lang", "de", code=2).stderr)
    assert "none of de, en" in lined(call("budget", "report", "--html", page, "--lang", "fr", code=2).stderr)


def test_a_backbone_is_built_from_a_draft_and_named_by_its_hash(tmp_path, monkeypatch):
    few = PretrainingConfig(steps=2, batch=8, questions=4, moment_records=32)
    monkeypatch.setattr(pretraining, "PretrainingConfig", lambda: few)
    (tmp_path / "study.toml").write_text(STUDY_TOML)
    built = json.loads(invoke("backbone", "build", tmp_path / "study.toml", tmp_path / "made", "--json").stdout)
    assert built["hash"] == backbone_hash(tmp_path / "made")
    (layer,) = built["routing"]
    printed = invoke("backbone", "build", tmp_path / "study.toml", tmp_path / "again").stdout
    assert f"load entropy {layer['entropy']:.3f}, max violation {layer['max_violation']:.2f}; none of 8" in printed
    assert printed.splitlines()[-1] == built["hash"]


def test_a_backbone_of_several_drafts_has_the_columns_of_all(tmp_path, monkeypatch):
    few = PretrainingConfig(steps=2, batch=8, questions=4, moment_records=32)
    monkeypatch.setattr(pretraining, "PretrainingConfig", lambda: few)
    other = (("TSH = [0.4, 4.0, 10.0]", "BMI = [18.5, 25.0]"), ('["sick"]', '["sick", "smoker"]'))
    (tmp_path / "a.toml").write_text(STUDY_TOML)
    (tmp_path / "b.toml").write_text(changed(STUDY_TOML, other))
    (tmp_path / "c.toml").write_text(changed(STUDY_TOML, (('["F", "M"]', '["F", "M", "X"]'),)))
    drafts = (tmp_path / "a.toml", tmp_path / "b.toml")
    built = json.loads(invoke("backbone", "build", *drafts, tmp_path / "made", "--json").stdout)
    assert built["hash"] == backbone_hash(tmp_path / "made")
    assert [field.name for field in load(tmp_path / "made").schema.fields()] == [
        "BMI", "TSH", "age", "sex", "sick", "smoker"
    ]  # fmt: skip
    result = invoke("backbone", "build", *drafts, tmp_path / "c.toml", tmp_path / "other", code=FAILED)
    assert "sex: two studies describe it differently" in lined(result.stderr)
    assert not (tmp_path / "other").exists()
    (tmp_path / "public.csv").write_text(PUBLIC)
    words = ("backbone", "build", *drafts, tmp_path / "other", "--public", tmp_path / "public.csv")
    assert "--public takes one study.toml" in lined(invoke(*words, code=USAGE).stderr)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "granitemoehybrid"])
def test_a_backbone_of_another_family_is_built_and_shown(tmp_path, monkeypatch, family):
    few = PretrainingConfig(steps=2, batch=8, questions=4, moment_records=32)
    monkeypatch.setattr(pretraining, "PretrainingConfig", lambda: few)
    (tmp_path / "study.toml").write_text(STUDY_TOML)
    folder = tmp_path / "made"
    built = json.loads(
        invoke("backbone", "build", tmp_path / "study.toml", folder, "--family", family, "--json").stdout
    )
    assert json.loads((folder / "config.json").read_text())["model_type"] == family
    shown = json.loads(invoke("backbone", "show", folder, "--json").stdout)
    assert (shown["hash"], shown["routing"]) == (built["hash"], built["routing"])
    assert (built["routing"] is None) == (family == "llama")
    if family == "llama":
        assert "none: the model has no routed experts" in lined(invoke("backbone", "show", folder).stdout)


def test_a_backbone_is_built_as_large_as_it_is_asked_for(tmp_path, monkeypatch):
    few = PretrainingConfig(steps=2, batch=8, questions=4, moment_records=32)
    monkeypatch.setattr(pretraining, "PretrainingConfig", lambda: few)
    (tmp_path / "study.toml").write_text(STUDY_TOML)
    size = ("--layers", "3", "--hidden", "32", "--experts", "4")
    invoke("backbone", "build", tmp_path / "study.toml", tmp_path / "made", *size)
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert [config[name] for name in ("num_hidden_layers", "hidden_size", "n_routed_experts")] == [3, 32, 4]
    result = invoke("backbone", "build", tmp_path / "study.toml", tmp_path / "other", "--hidden", "100", code=1)
    assert "hidden a multiple of 32" in lined(result.stderr)
    assert not (tmp_path / "other").exists()


def test_a_backbone_of_no_family_is_not_built(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY_TOML)
    result = invoke("backbone", "build", tmp_path / "study.toml", tmp_path / "made", "--family", "gemma", code=1)
    assert "there is no family 'gemma'; there are deepseek_v3" in lined(result.stderr)
    assert not (tmp_path / "made").exists()


def test_experts_that_no_token_reaches_are_warned_of_wherever_a_backbone_is_looked_at(tmp_path, monkeypatch, collapsed):
    few = PretrainingConfig(steps=1, batch=8, questions=4, moment_records=32)
    monkeypatch.setattr(pretraining, "PretrainingConfig", lambda: few)
    monkeypatch.setattr(pretraining, "build", lambda schema, config: load(collapsed).model)
    (tmp_path / "study.toml").write_text(STUDY_TOML)
    for command in (("build", tmp_path / "study.toml", tmp_path / "made"), ("show", collapsed), ("routing", collapsed)):
        result = invoke("backbone", *command)
        assert "no token was sent to experts 2, 3 of layer 1" in lined(result.stderr)
        if command[0] != "routing":
            assert "2 of 4 experts never chosen" in lined(result.stdout)
    assert "Warning" not in invoke("backbone", "show", collapsed.parent / "backbone").stderr


def test_a_study_of_unused_experts_is_created_only_if_they_are_accepted(call, store, home, collapsed):
    (home / "study.toml").write_text(changed(STUDY_TOML, (("some/where/backbone", str(collapsed)),)))
    result = call("study", "create", home / "study.toml", code=FAILED)
    assert "experts 2, 3 of layer 1" in lined(result.stderr)
    call("study", "create", home / "study.toml", "--accept-unused-experts")


def test_a_backbone_is_made_smaller_and_an_adapter_follows(tmp_path, monkeypatch):
    few = PretrainingConfig(steps=2, batch=8, questions=4, moment_records=64)
    monkeypatch.setattr(pretraining, "PretrainingConfig", lambda: few)
    (tmp_path / "study.toml").write_text(STUDY_TOML)
    whole, small = tmp_path / "whole", tmp_path / "small"
    invoke("backbone", "build", tmp_path / "study.toml", whole, "--hidden", "64")
    made = json.loads(invoke("backbone", "compress", whole, small, "--times", "2", "--steps", "2", "--json").stdout)
    assert (made["hash"], made["of"]) == (backbone_hash(small), backbone_hash(whole))
    assert made["times"] >= 2
    assert made["measure"] == "variance lost"
    again = invoke("backbone", "compress", whole, tmp_path / "again", "--times", "2", "--steps", "2").stdout
    assert again.splitlines()[-1] == made["hash"]
    assert f"{made['parameters']:,}, {made['times']:.2f} times fewer than {made['parameters_before']:,}" in lined(again)
    assert f"{made['cut']:.4f} when cut, {made['after']:.4f} now" in lined(again)
    shown = json.loads(invoke("backbone", "show", small, "--json").stdout)
    assert (shown["hash"], shown["experts"]) == (made["hash"], made["sizes"]["experts"])
    assert shown["made_of"] == made["of"]
    assert f"made smaller from: {made['of']}" in lined(invoke("backbone", "show", small).stdout)
    assert "made_of" not in json.loads(invoke("backbone", "show", whole, "--json").stdout)

    loaded = load(whole)
    adapted = attach(loaded.model, AdapterConfig(rank=2, alpha=2.0, targets=("o_proj",), seed="s"), loaded.head())
    export(adapted, whole, tmp_path / "adapter", replace(CARD, backbone_hash=loaded.hash))
    words = ("adapter", "carry", tmp_path / "adapter", whole, small)
    carried = json.loads(invoke(*words, tmp_path / "carried", "--steps", "2", "--json").stdout)
    assert carried["provenance"]["backbone_hash"] == made["hash"]
    assert carried["numbers"] < carried["numbers_before"]
    assert f"Adapter of {carried['numbers']:,} numbers" in lined(invoke(*words, tmp_path / "b", "--steps", "2").stdout)
    result = invoke(*words, tmp_path / "c", "--texts", tmp_path / "study.toml", code=FAILED)
    assert "public texts have no part in it" in lined(result.stderr)


def test_public_texts_for_a_smaller_backbone_come_from_one_place(tmp_path, backbone):
    words = ("backbone", "compress", backbone, tmp_path / "small")
    assert "--study and --public go together" in lined(invoke(*words, "--public", "a.csv", code=USAGE).stderr)
    both = (*words, "--public", "a.csv", "--study", "s.toml", "--texts", "t.txt")
    assert "not from both" in lined(invoke(*both, code=USAGE).stderr)
    assert "experts is 64; it can be 1 to" in lined(invoke(*words, "--experts", "64", code=FAILED).stderr)
    assert not (tmp_path / "small").exists()


def test_a_backbone_that_writes_is_made_smaller_on_texts_one_a_line(tmp_path):
    backbone = tmp_path / "backbone"
    save_text_backbone(backbone)
    (tmp_path / "texts.txt").write_text("\n".join(f"text {n} of a few words" for n in range(40)))
    words = ("backbone", "compress", backbone, tmp_path / "small", "--experts", "3", "--steps", "2", "--json")
    made = json.loads(invoke(*words, "--texts", tmp_path / "texts.txt").stdout)
    assert made["measure"] == "loss"
    assert content_hash(tmp_path / "small") == made["hash"]
    assert "none are given" in lined(invoke(*words[:3], tmp_path / "x", "--experts", "3", code=FAILED).stderr)


def test_a_built_backbone_is_shown_with_its_hash_and_size(backbone):
    shown = lined(invoke("backbone", "show", backbone).stdout)
    printed = json.loads(invoke("backbone", "show", backbone, "--json").stdout)
    assert (printed["hash"], printed["reads"], printed["origin"]) == (backbone_hash(backbone), "records", None)
    parameters = sum(parameter.numel() for parameter in load(backbone).model.parameters())
    assert printed["size"]["parameters"] == parameters > printed["size"]["active_parameters"]
    assert all(word in shown for word in (printed["hash"], "not stated", f"{parameters:,}"))


def test_backbones_are_listed_and_those_that_are_broken_with_the_reason(backbone, tmp_path):
    folder = tmp_path / "backbones"
    for name in ("good", "broken", "lying"):
        shutil.copytree(backbone, folder / name)
    (folder / "broken" / "model.safetensors").unlink()
    (folder / "lying" / "origin.json").write_text("{}")
    (folder / "notes").mkdir()
    (folder / "config.json").write_text("{}")
    printed = json.loads(invoke("backbone", "list", folder, "--json").stdout)
    assert [row["directory"] for row in printed] == [str(folder / name) for name in ("broken", "good", "lying")]
    shown = json.loads(invoke("backbone", "show", folder / "good", "--json").stdout)
    assert printed[1] == {name: value for name, value in shown.items() if name != "routing"}
    assert "model.safetensors" in printed[0]["problem"]
    result = invoke("backbone", "list", folder)
    assert backbone_hash(backbone) in result.stdout
    assert "broken" not in result.stdout
    assert "origin.json must be" in lined(result.stderr)
    assert "none yet" in invoke("backbone", "list", folder / "notes").stdout
    assert "cannot be listed" in invoke("backbone", "list", folder / "absent", code=FAILED).stderr


@pytest.mark.process  # tries the chat template
def test_a_published_checkpoint_is_imported_with_all_that_a_study_may_name(tmp_path):
    (tmp_path / "source").mkdir()
    save_text_backbone(tmp_path / "source")
    (tmp_path / "source" / "modeling.py").write_text("")
    words = ("backbone", "import", tmp_path / "source")
    checked = invoke(*words, "--check")
    assert "can be imported: DeepSeek-V3" in checked.stdout
    assert json.loads(invoke(*words, "--check", "--json").stdout)["left"] == ["modeling.py"]
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    result = invoke(*words, tmp_path / "out", "--name", "M", "--licence", "MIT")
    assert result.stdout.splitlines()[-1] == content_hash(tmp_path / "out")
    told = (
        "DeepSeek-V3",
        "MIT",
        'targets = ["o_proj", "down_proj"]',
        "layers = [0, 1]",
        f'backbone = "{tmp_path}/out"',
    )
    assert [text for text in told if text not in result.stdout] == []
    assert "Left behind, not needed: modeling.py" in result.stderr
    printed = json.loads(invoke(*words, tmp_path / "again", "--name", "M", "--licence", "MIT", "--json").stdout)
    assert (printed["hash"], printed["family"], printed["has_chat_template"]) == (
        content_hash(tmp_path / "out"), "DeepSeek-V3", True,
    )  # fmt: skip
    row = invoke("backbone", "list", tmp_path).stdout
    assert all(word in row for word in ("DeepSeek-V3", "2 of 4", "kv_b_proj", "MIT"))


def test_moments_of_public_texts_make_a_backbone_for_documents(tmp_path):
    save_text_backbone(tmp_path / "source")
    (tmp_path / "public.txt").write_text("\n".join(f"text {number}, {'ab' * number}" for number in range(9)))
    words = ("backbone", "moments", tmp_path / "source", tmp_path / "public.txt")
    result = invoke(*words, tmp_path / "made", "--reads", 0, "--reads", 2)
    assert result.stdout.splitlines()[-1] == content_hash(tmp_path / "made")
    assert "9 public texts" in result.stdout
    assert json.loads(invoke("backbone", "show", tmp_path / "made", "--json").stdout)["moments"] == [0, 2]
    made = json.loads(invoke(*words, tmp_path / "again", "--reads", 0, "--reads", 2, "--json").stdout)
    assert (made["hash"], made["reads"], made["texts"]) == (content_hash(tmp_path / "made"), [0, 2], 9)
    assert "has moments already" in invoke(
        "backbone", "moments", tmp_path / "made", tmp_path / "public.txt", tmp_path / "more", code=FAILED
    ).stderr  # fmt: skip
    assert not (tmp_path / "more").exists()


def test_an_import_is_refused_in_a_sentence_and_leaves_nothing(tmp_path):
    assert "cannot be listed" in invoke("backbone", "import", "gpt5", tmp_path / "out", code=FAILED).stderr
    assert "exists already" in invoke("backbone", "import", "smollm2", tmp_path, code=FAILED).stderr
    invoke("backbone", "import", tmp_path, code=USAGE)
    invoke("backbone", "import", tmp_path, tmp_path / "out", "--check", code=USAGE)
    invoke("backbone", "import", "smollm2", tmp_path / "out", "--name", "another", code=USAGE)
    assert "cannot be listed" in invoke("backbone", "show", tmp_path / "out", code=FAILED).stderr
    assert list(tmp_path.iterdir()) == []


def test_json_output_has_no_number_outside_json(capsys):
    print_json({"epsilon": math.inf, "rows": [(1.5, math.inf)]})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"epsilon": "inf", "rows": [[1.5, "inf"]]}


FORMULAS = Path(__file__).resolve().parents[3] / "examples" / "derivations" / "study.toml"
PUBLIC = "patient_id,question,derivation,answer\n" + "".join(
    f'p{number},"{number},1",{number}+1={number + 1},{number + 1}\n' for number in range(40)
)


@pytest.mark.slow
def test_a_backbone_is_built_of_a_public_table_of_formulas(tmp_path):
    (tmp_path / "public.csv").write_text(PUBLIC)
    words = ("backbone", "build", FORMULAS, tmp_path / "made", "--public", tmp_path / "public.csv", "--tokens", 500)
    result = invoke(*words, "--structure", "formulas")
    assert result.stdout.splitlines()[-1] == content_hash(tmp_path / "made")
    shown = json.loads(invoke("backbone", "show", tmp_path / "made", "--json").stdout)
    assert (shown["reads"], shown["targets"][-1]) == ("text", "structure")
    plain = json.loads(invoke(*words[:3], tmp_path / "plain", *words[4:], "--json").stdout)
    assert "structure" not in json.loads(invoke("backbone", "show", tmp_path / "plain", "--json").stdout)["targets"]
    assert plain["hash"] != content_hash(tmp_path / "made")


def test_a_public_table_that_does_not_fit_is_told_by_line(tmp_path):
    (tmp_path / "public.csv").write_text(PUBLIC + 'p99,"1,1",1+1=3,__import__\n')
    words = ("backbone", "build", FORMULAS, tmp_path / "made", "--public", tmp_path / "public.csv")
    said = lined(invoke(*words, code=FAILED).stderr)
    assert "line 42, column derivation" in said
    assert "line 42, column answer" in said
    assert "__import__" not in said
    assert "no structure reader 'music'" in lined(invoke(*words, "--structure", "music", code=FAILED).stderr)
    assert not (tmp_path / "made").exists()


def test_public_records_are_for_the_kinds_that_make_a_vocabulary_alone(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY_TOML)
    (tmp_path / "public.csv").write_text(PUBLIC)
    words = ("backbone", "build", tmp_path / "study.toml", tmp_path / "made")
    assert "for [data.formulas], [data.code], [data.picture] and [data.sound]" in lined(
        invoke(*words, "--public", tmp_path / "public.csv", code=FAILED).stderr
    )
    assert "go with --public" in lined(invoke(*words, "--structure", "formulas", code=2).stderr)


CODE = Path(__file__).resolve().parents[3] / "examples" / "code" / "study.toml"


@pytest.mark.slow
def test_a_backbone_of_public_code_is_built_with_a_vocabulary_of_its_own(tmp_path):
    functions = "".join(f'f{number},python,"def f{number}(x):\n    return x + {number}"\n' for number in range(40))
    (tmp_path / "public.csv").write_text(f"file_id,language,function\n{functions}")
    words = ("backbone", "build", CODE, tmp_path / "made", "--public", tmp_path / "public.csv", "--structure", "code")
    built = json.loads(invoke(*words, "--tokens", "3000", "--json").stdout)
    assert built["hash"] == content_hash(tmp_path / "made")
    shown = json.loads(invoke("backbone", "show", tmp_path / "made", "--json").stdout)
    assert "structure" in shown["targets"]
    (tmp_path / "public.csv").write_text('file_id,language,function\nf,python,"def f(:\n    return secret_name"\n')
    refused = lined(invoke(*words[:-2], code=FAILED).stderr)
    assert "line 2, column function" in refused
    assert "secret_name" not in refused


def test_code_of_a_model_is_not_run_and_the_command_says_why(home):
    words = ("adapter", "evaluate", "run-1", "--data", "x.csv", "--unit-column", "id", "--equality", "code")
    said = lined(invoke(*words, "--home", home, code=FAILED).stderr)
    assert "runs no code that a model has written" in said
    assert "programs that parse" in said
