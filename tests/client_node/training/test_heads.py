"""A head that learns classes, several labels or a number, of documents and of fields, with and without adapters."""

import numpy as np
import pytest
import torch

from confide.client_node.cli.tables import study_facts
from confide.client_node.data import check, read
from confide.client_node.data.kept_files import KeptStates
from confide.client_node.errors import DataInvalid
from confide.client_node.policy import load_policy
from confide.client_node.training import trainer as trainer_module
from confide.client_node.training.record_arrays import from_arrays, to_arrays
from confide.client_node.training.study_model import load_study_model
from confide.models.backbones.moments import take_moments
from confide.models.errors import BackboneMismatch, TargetMissing
from confide.models.evaluation.binned import bin_of
from confide.models.records.documents import Documents
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
}
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
    draft = site.study(
        *DOCUMENT[:3],
        (DOCUMENT[3][0], f'[data.document]\ntext = "{{note}}"\n{OUTCOMES[outcome]}'),
        ("sample_rate = 0.2", "sample_rate = 1.0"),
        *changes,
    )
    model = load_study_model(draft.draft, site.home / "backbone")
    return Desk(site, of_model(draft, model.backbone_hash, model.adapted), None, None, [])  # type: ignore[arg-type]


def examples_of(desk: Desk):
    model = load_study_model(desk.study.draft, desk.site.home / "backbone")
    return model, model.examples(read(load_policy(desk.site.home), desk.study))


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_release_is_the_sum_of_clipped_gradients_of_units_by_plain_autograd(site: Site, outcome, trained):
    desk = document_desk(site, outcome, *NONE, *TRAINED[trained])
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


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_histogram_counts_right_answers_of_units(site: Site, outcome):
    measured = ("[participants]", f"[evaluation]\nbins = {BINS}\n[participants]")
    desk = document_desk(site, outcome, *NONE, ALONE, measured, table=NOTES.replace("p1,sweats", "p4,sweats"))
    trainer, policy = new_trainer(desk), load_policy(site.home)
    state = np.random.default_rng(1).normal(0, 3, desk.study.dim).astype(np.float32)
    counts = trainer.histogram(state, lambda: read(policy, desk.study), 41, site_noise=0) / 2**20
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
    again = model.examples(from_arrays(to_arrays(read(load_policy(site.home), desk.study))))
    np.testing.assert_array_equal(again.ids, examples.ids)
    np.testing.assert_array_equal(again.targets, examples.targets)


def test_a_person_who_approves_sees_the_text_and_all_classes(site: Site):
    facts = study_facts(document_desk(site, "classes", ALONE).study)
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
    counts = trainer.histogram(state, lambda: read(policy, desk.study), 41, site_noise=0) / 2**20
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
    found = model.evaluate([model.examples(read(load_policy(site.home), desk.study))])
    assert set(found) == {"records", "accuracy"}
