"""A head that learns classes, labels, a number or tasks, of documents and of fields, with and without adapters."""

import itertools
import json
import re
from hashlib import sha256

import numpy as np
import pytest
import torch

from confide.client_node import step_audit
from confide.client_node.cli.tables import show_study
from confide.client_node.data import Records, check, read
from confide.client_node.data.kept_files import KeptStates
from confide.client_node.data.site_draft import own_names, sketch
from confide.client_node.errors import DataInvalid, NothingToAudit, StudyInvalid
from confide.client_node.policy import load_policy
from confide.client_node.step_audit import _first
from confide.client_node.study import Study
from confide.client_node.telling import readers
from confide.client_node.training import trainer as trainer_module
from confide.client_node.training.record_arrays import from_arrays, to_arrays
from confide.client_node.training.study_model import load_study_model
from confide.client_node.training.warm_model import WarmModel
from confide.models.backbones.moments import take_moments
from confide.models.errors import BackboneMismatch, TargetMissing
from confide.models.evaluation.binned import bin_of
from confide.models.heads.written import ASKED, documents
from confide.models.heads.written import WRITTEN as WRITTEN_TOKEN
from confide.models.records.documents import Documents
from confide.models.records.kind import Examples
from confide.privacy.mechanism.batches import BatchShapes, probed_shapes

from ...models.tiny import save_text_backbone
from ..conftest import DOCUMENT, Site, of_model
from ..test_node import Desk, make_desk
from .test_trainer import BINS, NONE, new_trainer

SHAPES = BatchShapes({8: (8,), 16: (8,), 32: (8, 4), 64: (4,)}, 1)
PUBLIC = [f"public text {number} of many, {'abcdefgh'[number % 8] * (number % 11)}" for number in range(90)]
NOTES = """patient_id,note,finding,sepsis,shock,days
p1,"feels tired, <|end|> gains weight",low,0,1,3
p2,,none,0,0,0.5
p1,sweats,high,1,1,31
p3,sweats and sweats,high,1,0,12
"""
OUTCOMES = {
    "classes": 'label = "finding"\nclasses = ["low", "none", "high"]',
    "label": 'label = "sepsis"',
    "labels": 'labels = ["sepsis", "shock"]',
    "number": 'number = { column = "days", low = 0.0, high = 30.0, within = 3.0 }',
    "tasks": """[data.document.tasks]
sepsis = { label = "sepsis", weight = 0.5 }
finding = { label = "finding", classes = ["low", "none", "high"] }
stay = { number = { column = "days", low = 0.0, high = 30.0, within = 3.0 }, sites = ["svi", "svhc", "other"] }""",
}
# With a text behind what is read; a table of it says more of each record.
WRITTEN = {
    "written": """[data.document.tasks]
sepsis = { label = "sepsis" }
finding = { label = "finding", classes = ["low", "none", "high"] }
summary = { text = { prompt = "\\nIn short:", completion = " {summary}<|end|>", longest = 34 }, weight = 0.5 }""",
}
SUMMARIES = ("tired", "", "sweats, and a fever", "a fever")
TARGETS = 'targets = ["q_a_proj", "kv_b_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "experts"]'
ALONE = (TARGETS, "targets = []")
TOP = (TARGETS, 'targets = ["down_proj", "experts"]\nlayers = [1]')
TRAINED = {"all layers": [], "last layer": [TOP], "head alone": [ALONE]}


@pytest.fixture(autouse=True)
def shapes_taken_for_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    """To try shapes takes seconds; one test below does."""
    monkeypatch.setattr(trainer_module, "probed_shapes", lambda *_, **__: SHAPES)


def document_desk(site: Site, outcome: str, *changes: tuple[str, str], table: str = NOTES) -> Desk:
    """A desk whose study reads `NOTES`."""
    if not (site.home / "text").exists():
        save_text_backbone(site.home / "text")
        take_moments(site.home / "text", PUBLIC, site.home / "moments")
    (site.home / "backbone").unlink(missing_ok=True)
    (site.home / "backbone").symlink_to(site.home / "moments", target_is_directory=True)
    (site.home / "patients.csv").write_text(table)
    text = "Note: {note}" if outcome in WRITTEN else "{note}"
    draft = site.study(
        *DOCUMENT[:3],
        (DOCUMENT[3][0], f'[data.document]\ntext = "{text}"\n{(OUTCOMES | WRITTEN)[outcome]}'),
        ("sample_rate = 0.2", "sample_rate = 1.0"),
        *changes,
    )
    model = load_study_model(draft.draft, site.home / "backbone")
    return Desk(site, of_model(draft, model.backbone_hash, model.adapted), None, None, [])  # type: ignore[arg-type]


def with_summaries(table: str = NOTES) -> str:
    """A table of four records, with what is written of each."""
    lines = table.splitlines()
    told = [f'{line},"{summary}"' for line, summary in zip(lines[1:], SUMMARIES, strict=True)]
    return "\n".join([f"{lines[0]},summary", *told]) + "\n"


def examples_of(desk: Desk):
    model = load_study_model(desk.study.draft, desk.site.home / "backbone")
    return model, model.examples(read(load_policy(desk.site.home), desk.study, site=None))


@pytest.mark.parametrize(
    ("outcome", "trained"),
    [*itertools.product(OUTCOMES, TRAINED), ("written", "all layers"), ("written", "last layer")],
)
def test_a_release_is_the_sum_of_clipped_gradients_of_units_by_plain_autograd(site: Site, outcome, trained):
    table = with_summaries() if outcome in WRITTEN else NOTES
    desk = document_desk(site, outcome, *NONE, *TRAINED[trained], table=table)
    trainer = new_trainer(desk, kept=KeptStates(home=None, study_hash="s", most_bytes=2**20))
    trainer.keep(seconds=60)
    assert trainer.starts_from == ("tokens" if trained == "all layers" else "kept states")
    state = np.random.default_rng(0).normal(0, 0.3, desk.study.dim).astype(np.float32)
    got = trainer.release(state, 1) * 2.0**-desk.study.scale_bits
    model, examples = examples_of(desk)
    model.adapted.load_state(state)
    total = np.zeros(desk.study.dim)
    for unit in range(3):
        rows = examples.units == unit
        losses = model.adapted.losses(torch.from_numpy(examples.ids[rows]), torch.from_numpy(examples.targets[rows]))
        grads = torch.autograd.grad(losses.mean(), list(model.adapted.trained.values()))
        gradient = np.concatenate([grad.double().numpy().ravel() for grad in grads])
        total += gradient * min(1.0, 1.0 / np.linalg.norm(gradient))
    np.testing.assert_allclose(got, total, atol=1e-5)
    assert np.linalg.norm(total) > 0.1


def drawn(ids, tasks):
    """Which of so many tasks is counted of a record."""
    own = ids[: max(1, int(np.flatnonzero(ids).max(initial=-1)) + 1)]
    return int.from_bytes(sha256(b"confide/task/1|" + own.tobytes()).digest()[:8], "big") % tasks


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_histogram_counts_right_answers_of_units(site: Site, outcome):
    measured = ("[participants]", f"[evaluation]\nbins = {BINS}\n[participants]")
    desk = document_desk(site, outcome, *NONE, ALONE, measured, table=NOTES.replace("p1,sweats", "p4,sweats"))
    trainer, policy = new_trainer(desk), load_policy(site.home)
    state = np.random.default_rng(1).normal(0, 3, desk.study.dim).astype(np.float32)
    counts = trainer.histogram(state, lambda: read(policy, desk.study, site=None), 41, site_noise=0) / 2**20
    model, examples = examples_of(desk)
    model.adapted.load_state(state)
    want = np.zeros((2, BINS))
    with torch.no_grad():
        found = model.adapted.classify(torch.from_numpy(examples.ids)).double().numpy()
    findings, days = ["low", "none", "high", "high"], [3, 0.5, 31, 12]
    sepsis, shock = np.array([0, 0, 1, 1]), np.array([1, 0, 1, 0])
    for row in range(4):
        if outcome == "label":
            label, score = sepsis[row], found[row]
        elif outcome == "classes":
            chances = np.exp(found[row]) / np.exp(found[row]).sum()
            answer = int(chances.argmax())
            label = ["low", "none", "high"][answer] == findings[row]
            score = np.log(chances[answer] / (1 - chances[answer]))
        elif outcome == "labels":
            chance = np.prod(np.maximum(*(1 / (1 + np.exp(sign * found[row])) for sign in (1, -1))))
            label = ((found[row] > 0) == [sepsis[row], shock[row]]).all()
            score = np.log(chance / (1 - chance))
        elif outcome == "tasks":
            right = [
                ["low", "none", "high"][found[row][:3].argmax()] == findings[row],
                (found[row][3] > 0) == sepsis[row],
                abs(15 + 15 * np.clip(found[row][4], -1, 1) - np.clip(days[row], 0, 30)) <= 3,
            ]
            place = drawn(examples.ids[row], 3)
            want[int(right[place]), place] += 1  # finding, sepsis, stay: a bin counts one task
            continue
        else:
            answer = 15 + 15 * np.clip(found[row], -1, 1)
            label, score = abs(answer - np.clip(days[row], 0, 30)) <= 3, 0.0
        want[int(label), bin_of([score], BINS)[0]] += 1
    np.testing.assert_array_equal(counts.reshape(2, BINS), want)


def test_kept_states_move_no_bit_of_a_head_or_of_adapters_above_what_is_read(site: Site):
    for changes in ([ALONE], [TOP, ('seed = "thyroid-1"', 'seed = "thyroid-1"\nreads = [0, 2]')]):
        desk = document_desk(site, "classes", *NONE, *changes)
        kept = new_trainer(desk, kept=KeptStates(home=None, study_hash="s", most_bytes=2**20))
        never = new_trainer(desk)
        for _ in range(2):
            state = np.random.default_rng(2).normal(0, 1, desk.study.dim).astype(np.float32)
            np.testing.assert_array_equal(kept.release(state, 1), never.release(state, 1))
            kept.keep(seconds=60)
        assert kept.starts_from == "kept states"


def test_layers_below_a_state_that_is_read_are_not_skipped(site: Site):
    for reads, frozen in (("[0, 2]", 2), ("[0, 1]", 1), ("[0]", 1)):
        said = ('seed = "thyroid-1"', f'seed = "thyroid-1"\nreads = {reads}')
        desk = document_desk(site, "classes", *NONE, ALONE, said)
        assert new_trainer(desk).adapted.frozen_layers == frozen


def test_one_unit_more_moves_the_sum_by_its_own_clipped_gradient_bit_for_bit(site: Site, monkeypatch):
    lines, tried = NOTES.splitlines(keepends=True), {}

    def probed(adapted, **terms):
        """Shapes that were really tried, once an objective."""
        objective = adapted.head.objective
        if objective not in tried:
            tried[objective] = probed_shapes(adapted, **terms)
        return tried[objective]

    monkeypatch.setattr(trainer_module, "probed_shapes", probed)
    for outcome in OUTCOMES:
        sums = []
        for table in (NOTES, "".join(lines[:-1]), "".join([lines[0], lines[-1]])):
            desk = document_desk(site, outcome, *NONE, TOP, ("max_tokens = 64", "max_tokens = 31"), table=table)
            trainer = new_trainer(desk, max_rows=8)
            state = np.random.default_rng(3).normal(0, 2, desk.study.dim).astype(np.float32)
            sums.append(trainer.release(state, 1))
        assert np.abs(sums[0] - sums[1] - sums[2]).max() <= 2  # three roundings
    assert all(shapes.rows_of_length for shapes in tried.values())  # units did share batches


@pytest.mark.parametrize(
    ("outcome", "cell", "said"),
    [
        (
            "classes",
            ("p2,,none", "p2,,Low"),
            "line 3, column finding: expected one of the study's 3 classes, found text",
        ),
        (
            "classes",
            ("p2,,none", "p2,,"),
            "line 3, column finding: expected one of the study's 3 classes, found nothing",
        ),
        ("labels", ("none,0,0", "none,0,2"), "line 3, column shock: expected 0 or 1, found a number"),
        ("number", ("0,0,0.5", "0,0,"), "line 3, column days: expected a number, and not nothing, found nothing"),
    ],
)
def test_a_cell_that_cannot_be_learned_is_a_problem_and_is_not_shown(site: Site, outcome, cell, said):
    desk = document_desk(site, outcome, *NONE, ALONE)
    (site.home / "patients.csv").write_text(NOTES.replace(*cell))
    report = check(site.home / "patients.csv", load_policy(site.home), desk.study)
    assert [str(problem) for problem in report.problems] == [said]
    with pytest.raises(DataInvalid):
        new_trainer(desk).release(np.zeros(desk.study.dim, np.float32), 1)


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_what_is_learned_travels_to_workers(site: Site, outcome):
    desk = document_desk(site, outcome, *NONE, ALONE)
    model, examples = examples_of(desk)
    again = model.examples(from_arrays(to_arrays(read(load_policy(site.home), desk.study, site=None))))
    np.testing.assert_array_equal(again.ids, examples.ids)
    np.testing.assert_array_equal(again.targets, examples.targets)


def test_a_person_who_approves_sees_the_text_and_all_classes(site: Site):
    facts = document_desk(site, "classes", ALONE).study.facts()
    assert facts["Data"]["label"] == "finding, one of: low, none, high"
    assert facts["Data"]["text"] == "{note}"
    assert facts["Adapter"]["targets"] == ()


def test_a_head_that_learns_nothing_is_not_trained_as_a_writer_of_text(site: Site, monkeypatch):
    desk = document_desk(site, "classes", TOP)
    monkeypatch.setattr(Documents, "objective", lambda self, terms: None)
    with pytest.raises(BackboneMismatch, match="have a head of kind pooled, which learns None"):
        load_study_model(desk.study.draft, site.home / "backbone")


def test_a_state_without_moments_is_refused_with_those_that_there_are(site: Site):
    desk = document_desk(site, "classes", ALONE)
    draft = desk.study.draft
    wrong = draft.model_copy(update={"adapter": draft.adapter.model_copy(update={"reads": (0, 7)})})
    with pytest.raises(BackboneMismatch, match="no moments of state 7; there are those of 0, 1, 2"):
        load_study_model(wrong, site.home / "backbone")


def test_a_table_of_empty_documents_is_trained_on_counted_and_judged_like_any_other(site: Site):
    measured = ("[participants]", f"[evaluation]\nbins = {BINS}\n[participants]")
    empty = "patient_id,note,finding,sepsis,shock,days\np1,,low,0,1,3\np2,,none,0,0,1\n"
    desk = document_desk(site, "classes", *NONE, ALONE, measured, table=empty)
    trainer, policy = new_trainer(desk), load_policy(site.home)
    state = np.random.default_rng(0).normal(0, 0.3, desk.study.dim).astype(np.float32)
    assert np.isfinite(trainer.release(state, 1)).all()
    counts = trainer.histogram(state, lambda: read(policy, desk.study, site=None), 41, site_noise=0) / 2**20
    assert counts.sum() == 2
    model, examples = examples_of(desk)
    assert model.evaluate([examples])["records"] == 2


def test_adapters_above_all_that_is_read_are_refused_when_the_model_is_loaded(site: Site):
    reads = ('seed = "thyroid-1"', 'seed = "thyroid-1"\nreads = [0, 1]')
    with pytest.raises(TargetMissing, match="adapters in layer 1, counted from 0, lie above the last state"):
        document_desk(site, "classes", *NONE, reads)


def test_tables_of_fields_learn_classes_too(site: Site):
    make_desk(site)  # which writes a backbone
    (site.home / "patients.csv").write_text(
        "patient_id,age,tsh_miu_l,sex,sick,finding\np1,34,1.5,female,f,low\np2,71,,M,t,high\np3,?,0.2,,yes,none\n"
    )
    draft = site.study(
        *NONE, ALONE, ('label = "diagnosis"\n', 'label = "finding"\nclasses = ["low", "none", "high"]\n'),
        ("sample_rate = 0.2", "sample_rate = 1.0"),
    )  # fmt: skip
    model = load_study_model(draft.draft, site.home / "backbone")
    desk = Desk(site, of_model(draft, model.backbone_hash, model.adapted), None, None, [])  # type: ignore[arg-type]
    assert model.adapted.trained["head.weight"].shape == (3, 65)
    got = new_trainer(desk).release(np.zeros(desk.study.dim, np.float32), 1) * 2.0**-desk.study.scale_bits
    # At zero each class has a third: the gradient of a class is (1/3 - its own) times the inputs, of unit length.
    inputs = got.reshape(3, -1)
    np.testing.assert_allclose(inputs.sum(0), 0, atol=1e-6)
    assert 0.5 < np.linalg.norm(got) < 3
    model.adapted.load_state(np.random.default_rng(0).normal(size=desk.study.dim))
    found = model.evaluate([model.examples(read(load_policy(site.home), desk.study, site=None))])
    assert set(found) == {"records", "accuracy"}


PARTS = {"finding": slice(0, 3), "sepsis": slice(3, 4), "stay": slice(4, 5)}  # of the head's outputs, by task
SPARSE = """patient_id,note,finding,sepsis,days
p1,"feels tired, <|end|> gains weight",low,,3
p2,,,0,
p1,sweats,high,1,
p3,sweats and sweats,,,
"""


def test_a_record_moves_the_head_of_the_tasks_that_it_tells_alone(site: Site):
    desk = document_desk(site, "tasks", *NONE, ALONE, table=SPARSE)
    model, examples = examples_of(desk)
    told = [{"finding", "stay"}, {"sepsis"}, {"sepsis", "finding"}, set()]
    for row, tasks in enumerate(told):
        ids, targets = torch.from_numpy(examples.ids[row : row + 1]), torch.from_numpy(examples.targets[row : row + 1])
        (grad,) = torch.autograd.grad(model.adapted.losses(ids, targets).sum(), [model.adapted.trained["head.weight"]])
        assert {name for name, part in PARTS.items() if grad[part].any()} == tasks


def test_a_site_without_a_task_s_column_needs_none_and_one_that_has_it_but_is_not_named_does_not_train_on_it(
    site: Site,
):
    desk = document_desk(site, "tasks", *NONE, ALONE)
    policy, has = load_policy(site.home), site.home / "patients.csv"
    there = read(policy, desk.study, site="svi")
    elsewhere = read(policy, desk.study, site="rest")
    assert not np.isnan(there.columns["days"]).any()
    assert np.isnan(elsewhere.columns["days"]).all()
    has.write_text("\n".join(line.rsplit(",", 1)[0] for line in NOTES.splitlines()) + "\n")  # without its last column
    assert check(has, policy, desk.study, site="rest").is_fit
    assert np.isnan(read(policy, desk.study, site="rest").columns["days"]).all()
    assert np.isnan(read(policy, desk.study, site=None).columns["days"]).all()
    (problem,) = check(has, policy, desk.study, site="svi").problems
    assert "a column of this name for the study's days" in str(problem)
    with pytest.raises(DataInvalid):
        read(policy, desk.study, site="svi")


def test_a_trainer_reads_a_task_s_column_only_where_the_study_says_that_it_is(site: Site):
    desk, sums = document_desk(site, "tasks", *NONE, ALONE), {}
    state = np.random.default_rng(0).normal(0, 0.3, desk.study.dim).astype(np.float32)
    for name in ("svi", "rest"):
        model = WarmModel(name)
        compute = model.contribution(desk.study, load_policy(site.home), desk.study.planned_round(1))
        sums[name] = compute(state).reshape(5, -1)
        model.stop()
    assert sums["svi"][PARTS["stay"]].any()
    assert not sums["rest"][PARTS["stay"]].any()
    assert sums["rest"][PARTS["finding"]].any()


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (("none,0", "none,2"), "line 3, column sepsis: expected 0 or 1, or nothing, found a number"),
        (
            ("p2,,none", "p2,,Low"),
            "line 3, column finding: expected one of the study's 3 classes, or nothing, found text",
        ),
        (("0,0,0.5", "0,0,long"), "line 3, column days: expected a number, or nothing, found text"),
    ],
)
def test_a_cell_of_a_task_may_be_empty_but_not_anything(site: Site, cell, said):
    desk = document_desk(site, "tasks", *NONE, ALONE)
    (site.home / "patients.csv").write_text(NOTES.replace(*cell))
    report = check(site.home / "patients.csv", load_policy(site.home), desk.study, site="svi")
    assert [str(problem) for problem in report.problems] == [said]


def test_every_task_is_measured_on_the_records_that_tell_it(site: Site):
    model, examples = examples_of(document_desk(site, "tasks", *NONE, ALONE))
    state = np.random.default_rng(4).normal(0, 2, model.adapted.layout.dim).astype(np.float32)
    model.adapted.load_state(state)
    found = model.evaluate([examples])
    metrics = {"auc", "accuracy", "brier_score", "calibration_error"}
    assert {*found} == {
        "records", "accuracy", "accuracy_finding", "accuracy_stay", "mean_absolute_error_stay",
        *(f"{metric}_sepsis" for metric in metrics),
    }  # fmt: skip
    assert found["records"] == 4
    with torch.no_grad():
        outputs = model.adapted.classify(torch.from_numpy(examples.ids)).numpy()
    right = [["low", "none", "high"][row[:3].argmax()] for row in outputs]
    is_right = [answer == want for answer, want in zip(right, ("low", "none", "high", "high"), strict=True)]
    assert found["accuracy_finding"]["value"] == pytest.approx(np.mean(is_right))
    shares = np.array(is_right, dtype=float) + ((outputs[:, 3] > 0) == [0, 0, 1, 1])
    days = 15 + 15 * outputs[:, 4].clip(-1, 1)
    shares += np.abs(days - np.array([3, 0.5, 30, 12])) <= 3
    assert found["accuracy"]["value"] == pytest.approx(shares.mean() / 3)
    error = np.abs(days - np.array([3, 0.5, 30, 12])).mean()
    assert found["mean_absolute_error_stay"]["value"] == pytest.approx(error, abs=1e-3)


def test_a_person_who_approves_sees_every_task_and_where_it_is(site: Site, capsys):
    study = document_desk(site, "tasks", ALONE).study
    facts = study.facts()["Data"]
    assert facts["task sepsis"] == "weight 0.5, at all sites: label sepsis"
    assert facts["task stay"] == "weight 1, at svi, svhc, other: number days, from 0 to 30, right within 3"
    show_study(study)
    shown = " ".join(capsys.readouterr().out.split())
    assert "task finding" in shown
    assert "weight 1, at all sites: label finding, one of: low, none, high" in shown.replace("│", " ").replace(
        "  ", " "
    )
    assert "read sums over 3 sites or more" in readers(study)


def test_a_task_with_one_value_among_held_out_records_has_no_auc_and_hinders_no_other(site: Site):
    table = NOTES.replace(",1,1,31", ",0,1,31").replace(",1,0,12", ",0,0,12")
    model, examples = examples_of(document_desk(site, "tasks", *NONE, ALONE, table=table))
    found = model.evaluate([examples])
    assert "auc_sepsis" not in found
    assert {"accuracy_sepsis", "accuracy_finding", "accuracy_stay"} <= {*found}


def test_a_record_that_tells_nothing_is_neither_counted_nor_measured(site: Site):
    measured = ("[participants]", f"[evaluation]\nbins = {BINS}\n[participants]")
    desk = document_desk(site, "tasks", *NONE, ALONE, measured, table=SPARSE.replace("p1,sweats", "p4,sweats"))
    trainer, policy = new_trainer(desk), load_policy(site.home)
    state = np.random.default_rng(1).normal(0, 3, desk.study.dim).astype(np.float32)
    counts = trainer.histogram(state, lambda: read(policy, desk.study, site="svi"), 41, site_noise=0) / 2**20
    model, examples = examples_of(desk)
    model.adapted.load_state(state)
    found = model.evaluate([examples])
    assert counts.sum() == 3
    assert found["records"] == 4
    outputs = model.adapted.classify(torch.from_numpy(examples.ids)).detach().numpy()
    assert len(model.terms.shares(outputs, examples.targets)) == 3


def test_a_number_is_right_to_the_edge_of_what_is_near_enough_alone_and_as_a_task(site: Site):
    model, _ = examples_of(document_desk(site, "tasks", *NONE, ALONE))
    for days, answer in itertools.product(range(31), (0, 30)):
        outputs = np.zeros((1, 5), dtype=np.float32)
        outputs[0, 4] = answer / 15 - 1
        columns = {"days": np.array([float(days)]), "sepsis": np.array([-1]), "finding": np.array([None])}
        target = model.terms.targets(columns, None)
        assert bool(model.terms.judge(torch.from_numpy(outputs), target[0])[0]) == (abs(days - answer) <= 3)


def test_a_column_of_a_task_that_says_nothing_at_all_is_a_problem_where_the_study_says_that_it_is(site: Site):
    desk = document_desk(site, "tasks", *NONE, ALONE)
    empty = "".join(",".join([*line.split(",")[:-1], ""]) + "\n" for line in NOTES.splitlines()[1:])
    (site.home / "patients.csv").write_text(NOTES.splitlines()[0] + "\n" + empty)
    policy = load_policy(site.home)
    (problem,) = check(site.home / "patients.csv", policy, desk.study, site="svi").problems
    assert "cells that say something of days" in str(problem)
    assert check(site.home / "patients.csv", policy, desk.study, site="rest").is_fit


def test_a_site_that_a_task_is_not_at_is_asked_for_no_column_of_it(site: Site):
    terms = document_desk(site, "tasks", *NONE, ALONE).study.draft.data
    (site.home / "other.csv").write_text("patient_id,note,finding,sepsis,day\np1,a,low,0,1\n")
    found = sketch(site.home / "other.csv")
    assert own_names(terms, found, site="svi") == {"days": "day"}
    assert own_names(terms, found, site="rest") == {}
    assert own_names(terms, found) == {"days": None}  # whose it is is not known: nothing is guessed


def test_a_step_is_tried_on_a_record_that_tells_something(site: Site):
    desk = document_desk(site, "tasks", *NONE, ALONE, table=SPARSE)
    records = read(load_policy(site.home), desk.study, site="svi")
    last = Records({name: column[::-1] for name, column in records.columns.items()}, records.units[::-1], None)
    assert _first(desk.study, last).columns["sepsis"].tolist() == [1]
    nothing = Records({name: column[3:] for name, column in records.columns.items()}, records.units[3:], None)
    with pytest.raises(NothingToAudit):
        _first(desk.study, nothing)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('label = "finding"', "data.document.label stands beside data.document.tasks"),
        ('tasks.again = { label = "sepsis" }', "column 'sepsis' is learned by two tasks"),
        ('tasks.none = {}', "data.document.tasks.none.label is missing"),
        ('tasks.note = { label = "note" }', "also a column of the record"),
        ('tasks.far = { label = "far", sites = ["elsewhere"] }', "tasks.far.sites names 'elsewhere', which is none of"),
        (
            'tasks.far = { label = "far", sites = ["svi", "svhc"] }',
            "data.document.tasks.far.sites names 2 sites, of which 0 may be missing in a sum; 3 must be left",
        ),
        ('tasks.far = { label = "far", wieght = 2.0 }', "did you mean weight?"),
        (
            "\n".join(f'tasks.n{x} = {{ number = {{ column = "c{x}", low = 0.0, high = 1.0, within = 0.1 }} }}'
                      for x in range(4)),
            "at most 62 fit",
        ),
        (
            "\n".join(f'tasks.c{x} = {{ label = "c{x}", classes = {json.dumps([str(n) for n in range(600)])} }}'
                      for x in range(2)),
            "name 1,200 classes in all, and at most 1,000 may be",
        ),
    ],
)  # fmt: skip
def test_tasks_that_contradict_each_other_are_refused(site: Site, change, said):
    terms = f'[data.document]\ntext = "{{note}}"\ntasks.sepsis = {{ label = "sepsis" }}\n{change}'
    with pytest.raises(StudyInvalid, match=re.escape(said)):
        site.study(*DOCUMENT[:3], (DOCUMENT[3][0], terms))


def test_a_study_with_tasks_is_read_back_as_it_was_signed(site: Site):
    study = document_desk(site, "tasks", ALONE).study
    assert Study.parse(study.canonical()) == study
    assert b'"tasks":{"finding":{"classes"' in study.canonical()


def test_the_order_in_which_tasks_are_said_is_no_order_of_outputs(site: Site):
    study = document_desk(site, "tasks", ALONE).study
    names = [task.name for task in study.draft.data.kind.objective(study.draft.data.terms).tasks]
    again = Study.parse(study.canonical())
    assert names == [task.name for task in again.draft.data.kind.objective(again.draft.data.terms).tasks]
    assert names == sorted(names) != [line.split()[0] for line in OUTCOMES["tasks"].splitlines()[1:]]


def test_a_site_that_has_no_task_is_refused_and_missing_sites_are_counted(site: Site):
    three = 'sites = ["svi", "svhc", "rest"]'
    terms = f'[data.document]\ntext = "{{note}}"\ntasks.sepsis = {{ label = "sepsis", {three} }}'
    with pytest.raises(StudyInvalid, match="tasks: other has none of them; name it in the sites of one"):
        site.study(*DOCUMENT[:3], (DOCUMENT[3][0], terms))
    more = terms + '\ntasks.shock = { label = "shock" }'
    assert site.study(*DOCUMENT[:3], (DOCUMENT[3][0], more)).draft.fewest_told == 3
    with pytest.raises(StudyInvalid, match="of which 1 may be missing in a sum; 3 must be left"):
        site.study(*DOCUMENT[:3], (DOCUMENT[3][0], more), ("max_dropouts = 0", "max_dropouts = 1"))


def test_a_text_stands_behind_the_document_and_what_is_asked_and_a_record_that_tells_none_has_neither(site: Site):
    wide = ("max_tokens = 64", "max_tokens = 96")
    desk = document_desk(site, "written", *NONE, TOP, wide, table=with_summaries())
    model, examples = examples_of(desk)
    words = model.reader.tokenizer
    assert examples.targets.shape == examples.ids.shape
    assert examples.targets.dtype == np.int64
    notes = ["feels tired, <|end|> gains weight", "", "sweats", "sweats and sweats"]
    for row, (note, summary) in enumerate(zip(notes, SUMMARIES, strict=True)):
        document = [*words.of_template("Note:"), *words.of_records([f" {note}"])[0]]
        asked = words.of_template("\nIn short:") if summary else []
        text = [*words.of_records([f" {summary}"])[0], *words.of_template("<|end|>")] if summary else []
        whole = [*document, *asked, *text]
        assert examples.ids[row, : len(whole)].tolist() == whole
        assert not examples.ids[row, len(whole) :].any()
        marks = [0] * len(document) + [ASKED] * len(asked) + [WRITTEN_TOKEN] * len(text)
        assert examples.targets[row, 1 : len(whole)].tolist() == marks[1:]
        assert documents(examples.ids, examples.targets)[row, : len(whole)].tolist() == document + [0] * (
            len(whole) - len(document)
        )
    encoded = model.reader.encode(read(load_policy(site.home), desk.study, site=None).columns)
    np.testing.assert_array_equal(documents(examples.ids, examples.targets)[:, : encoded.shape[1]], encoded)
    assert examples.targets[:, 0].tolist() == [
        model.adapted.head.objective.joined([np.array([finding]), np.array([sepsis])], [np.ones(1, bool)] * 2)[0]
        for finding, sepsis in ((0, 0), (1, 0), (2, 1), (2, 1))
    ]


def test_a_document_has_the_same_room_whatever_text_is_told_of_it(site: Site):
    seen = []
    for summary in ("", "a", "a fever and sweats, and much more of it than there is room for"):
        long = f'patient_id,note,finding,sepsis,summary\np1,{"sweats " * 40},low,0,"{summary}"\n'
        model, examples = examples_of(document_desk(site, "written", *NONE, TOP, table=long))
        seen.append(documents(examples.ids, examples.targets)[0])
        assert (seen[-1] > 0).sum() == 64 - 34
        assert (examples.ids[0] > 0).sum() <= 64
    assert (examples.ids[0] > 0).sum() == 64  # a text that is too long is cut
    assert len({own[:30].tobytes() for own in seen}) == 1
    assert model.reader.encode({"note": ["sweats " * 40]})[0].tolist() == seen[0][:30].tolist()  # as in use


def test_a_table_without_a_record_is_no_error(site: Site):
    measured = ("[participants]", f"[evaluation]\nbins = {BINS}\n[participants]")
    empty = "patient_id,note,finding,sepsis,summary\n"
    desk = document_desk(site, "written", *NONE, TOP, measured, table=empty)
    trainer, policy = new_trainer(desk), load_policy(site.home)
    state = np.random.default_rng(0).normal(0, 0.3, desk.study.dim).astype(np.float32)
    assert not trainer.release(state, 1).any()
    assert not trainer.histogram(state, lambda: read(policy, desk.study, site=None), 41, site_noise=0).any()


def test_a_text_of_no_token_leaves_what_is_asked_behind_the_document(site: Site, monkeypatch):
    model, _ = examples_of(document_desk(site, "written", *NONE, TOP, table=with_summaries()))
    template = model.reader.behind.template
    monkeypatch.setattr(type(template), "row", lambda self, cells: ([7, 8, 9], [False] * 3))
    monkeypatch.setattr(type(model.reader), "encode", None)
    columns = {"note": np.array(["x"]), "summary": np.array(["?"], object), "finding": np.array([None]),
               "sepsis": np.array([-1])}  # fmt: skip
    monkeypatch.setattr(
        type(model.reader), "_rows",
        lambda self, columns, of: [([5, 6], [False] * 2) if of is self.template else ([7, 8, 9], [False] * 3)],
    )  # fmt: skip
    ids, targets = model.reader.examples(columns, None)
    assert documents(ids, targets)[0].tolist() == [5, 6, 0, 0, 0]


def test_braces_in_a_prompt_are_told_as_they_are_read(site: Site):
    braced = ("\\nIn short:", "\\n{{In short}}:")
    desk = document_desk(site, "written", *NONE, TOP, braced, table=with_summaries())
    model, examples = examples_of(desk)
    asked = model.reader.tokenizer.of_template("\n{In short}:")
    assert examples.ids[0, examples.targets[0] == ASKED].tolist() == asked
    assert '"\\n{In short}:"' in model.adapted.head.objective.meaning
    assert "'\\n{In short}:'" in desk.study.facts()["Data"]["task summary"]


def test_a_step_is_tried_on_a_record_that_tells_what_the_head_learns(site: Site):
    table = "patient_id,note,finding,sepsis,summary\np1,a,,,of it\np2,b,low,,\n"
    desk = document_desk(site, "written", *NONE, TOP, table=table)
    records = read(load_policy(site.home), desk.study, site="svi")
    assert _first(desk.study, records).columns["finding"].tolist() == ["low"]
    alone = Records({name: column[:1] for name, column in records.columns.items()}, records.units[:1], None)
    assert _first(desk.study, alone).columns["summary"].tolist() == ["of it"]


def test_what_is_written_is_counted_and_measured_as_one_of_the_tasks(site: Site):
    measured = ("[participants]", f"[evaluation]\nbins = {BINS}\n[participants]")
    table = with_summaries(NOTES.replace("p1,sweats", "p4,sweats"))
    desk = document_desk(site, "written", *NONE, TOP, measured, table=table)
    trainer, policy = new_trainer(desk), load_policy(site.home)
    model, examples = examples_of(desk)
    rng, seen = np.random.default_rng(1), set()
    for _ in range(6):
        state = rng.normal(0, 3, desk.study.dim).astype(np.float32)
        counts = trainer.histogram(state, lambda: read(policy, desk.study, site=None), 41, site_noise=0) / 2**20
        model.adapted.load_state(state)
        exact, right = [], []
        read_alone = documents(examples.ids, examples.targets)
        for row, (finding, sepsis) in enumerate(((0, 0), (1, 0), (2, 1), (2, 1))):
            document = torch.from_numpy(read_alone[row][read_alone[row] > 0])[None]
            with torch.no_grad():
                outputs = model.adapted.classify(document)[0].numpy()
                logits = model.adapted.model(torch.from_numpy(examples.ids[row : row + 1]), use_cache=False).logits[0]
            places = np.flatnonzero(examples.targets[row] == WRITTEN_TOKEN)
            places = places[places > 0]
            own = [outputs[:3].argmax() == finding, (outputs[3] > 0) == sepsis]
            if len(places):
                exact.append(bool((logits.argmax(-1).numpy()[places - 1] == examples.ids[row, places]).all()))
                own.append(exact[-1])
            right.append(own)
        drawn_right = [own[drawn(read_alone[row], len(own))] for row, own in enumerate(right)]
        want = np.zeros((2, BINS))
        for row, own in enumerate(right):
            place = drawn(read_alone[row], len(own))
            want[int(own[place]), place] += 1
        np.testing.assert_array_equal(counts.reshape(2, BINS), want)
        found = model.evaluate([examples])
        assert found["records"] == 4
        assert found["accuracy"]["value"] == pytest.approx(np.mean([np.mean(own) for own in right]))
        assert found["exact_match_summary"]["value"] == pytest.approx(np.mean(exact))
        assert found["perplexity_summary"]["value"] > 1
        seen.add(sum(drawn_right))
    assert len(seen) > 1


def test_a_text_s_exact_match_is_one_for_a_model_that_writes_it(site: Site, monkeypatch):
    desk = document_desk(site, "written", *NONE, TOP, table=with_summaries())
    model, examples = examples_of(desk)
    flat = examples.ids.copy()
    flat[examples.targets == WRITTEN_TOKEN] = 7
    flat[:, 0] = examples.ids[:, 0]

    def always(hidden):
        logits = torch.zeros(*hidden.shape[:-1], 300)
        logits[..., 7] = 1
        return logits

    monkeypatch.setattr(model.adapted.model, "lm_head", torch.nn.Identity())
    monkeypatch.setattr("confide.models.heads.losses.word_logits", lambda _, hidden: always(hidden))
    found = model.evaluate([Examples(flat, examples.targets, examples.units)])
    assert found["exact_match_summary"]["value"] == 1.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('text = "Note: {note}"', 'text = "{note}"'), "data.document.text must begin with some words of its own"),
        (("{summary}", "{note}"), "completion holds 'note', also a column of the record"),
        (("{summary}", "short"), "completion must hold one column's name in braces"),
        (("In short:", "In short {finding}:"), "prompt holds 'finding' in braces"),
        (("{summary}", "{summary!r}"), "braces hold a column's name and nothing else"),
        (("weight = 0.5", 'weight = 0.5, label = "sepsis"'), "tasks.summary.label stands beside data.document.tasks"),
        (
            ("sepsis = {", 'other = { text = { prompt = "a", completion = "{b}", longest = 9 } }\nsepsis = {'),
            "keep one text",
        ),
        (
            ('text = "Note: {note}"', 'text = " {note}"'),
            "data.document.text must begin with some words of its own",
        ),
        (("longest = 34", "longest = 64"), "tasks.summary.text.longest is 64; it must be below data.max_tokens, 64"),
        ((", longest = 34", ""), "longest is missing"),
        (('sepsis = { label = "sepsis" }\nfinding', "#"), "the only task; a study of one text is [data.text]"),
        ((TARGETS, "targets = []"), "adapters alone learn to write the text of tasks.summary"),
    ],
)
def test_a_text_that_contradicts_the_rest_of_a_study_is_refused(site: Site, change, said):
    terms = f'[data.document]\ntext = "Note: {{note}}"\n{WRITTEN["written"]}'
    changes = [(DOCUMENT[3][0], terms.replace(*change)), *([change] if change[0] == TARGETS else [])]
    with pytest.raises(StudyInvalid, match=re.escape(said)):
        site.study(*DOCUMENT[:3], *changes)


def test_records_of_fields_cannot_have_a_text_behind_them(site: Site):
    text = 'tasks.summary = { text = { prompt = "In short:", completion = "{summary}", longest = 20 } }'
    with pytest.raises(StudyInvalid, match="a backbone of records writes none"):
        site.study(('label = "diagnosis"\n', f'tasks.ill = {{ label = "diagnosis" }}\n{text}\n'))


def test_a_person_who_approves_sees_what_is_written(site: Site):
    study = document_desk(site, "written", TOP, table=with_summaries()).study
    facts = study.facts()["Data"]
    assert facts["task summary"] == "weight 0.5, at all sites: text ' {summary}<|end|>' after '\\nIn short:'"
    assert "summary (free text, learned)" in facts["columns"]
    assert Study.parse(study.canonical()) == study


def test_a_site_that_a_text_is_not_at_trains_on_none(site: Site):
    where = ("weight = 0.5 }", 'weight = 0.5, sites = ["svi", "svhc", "other"] }')
    desk = document_desk(site, "written", *NONE, TOP, where, table=with_summaries())
    policy = load_policy(site.home)
    model = load_study_model(desk.study.draft, site.home / "backbone")
    there, elsewhere = (model.examples(read(policy, desk.study, site=name)) for name in ("svi", "rest"))
    assert (there.targets[:, 1:] == WRITTEN_TOKEN).any()
    assert not elsewhere.targets[:, 1:].any()
    assert elsewhere.targets[:, 0].tolist() == there.targets[:, 0].tolist()


@pytest.mark.parametrize("size", [0.1, np.inf, np.nan])
def test_a_step_whose_clipping_could_not_be_seen_is_not_judged(site: Site, monkeypatch, size):
    desk = document_desk(site, "written", TOP, table=with_summaries())
    monkeypatch.setattr(step_audit, "_model", lambda study, policy: examples_of(desk)[0])
    monkeypatch.setattr(step_audit, "_gradient", lambda *_: np.array([size]))
    with pytest.raises(NothingToAudit, match="clipping would not be seen"):
        step_audit._steep(desk.study, load_policy(site.home), "svi", None)
