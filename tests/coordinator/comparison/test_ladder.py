"""The ladder on a tiny separable problem: every rung, what is kept of it, and what people and programs are told."""

import json
import re

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from typer.testing import CliRunner

from confide.client_node.data import Records
from confide.client_node.study import load_draft
from confide.coordinator.cli.main import app
from confide.coordinator.comparison import compare, federated, ladder
from confide.coordinator.comparison.figures import CAUTION, student
from confide.coordinator.comparison.ladder import RUNGS, Ladder, linear_rate
from confide.coordinator.comparison.task import Target, _of_outcome, read_task
from confide.coordinator.errors import StudyRefused
from confide.coordinator.studies.learning_rates import adapter_rate, head_rate, with_rates
from confide.models.backbones.moments import take_moments
from confide.models.evaluation.metrics import Estimate, auc
from confide.models.heads.objectives import BinaryLabel, OneClass, PointOnScale, SeveralLabels, SeveralTasks, Task
from confide.models.records.tasks import OutcomeTerms
from confide.privacy.accounting import epsilon_pld

from ...client_node.conftest import STUDY_TOML, TEXT, changed
from ...models.tiny import save_text_backbone
from ..conftest import SITES

pytestmark = pytest.mark.slow

FEW = (  # 4 sites of 40 units, a quarter of them in a round
    ("\nrounds = 40", "\nrounds = 6"),
    ("sample_rate = 0.2", "sample_rate = 0.25"),
    ("batch_units = 1374", "batch_units = 40"),
    ("noise_multiplier = 1.19", "noise_multiplier = 0.8"),
)
ROWS = {"train": 40, "heldout": 15}
TOPICS = {"fever": "infection", "cough": "lungs", "rash": "skin"}


def write_records(folder, seed=0):
    """Whoever has a high TSH is ill, and nobody else; a text tells its topic by one word."""
    rng = np.random.default_rng(seed)
    for number, site in enumerate(SITES):
        (folder / site).mkdir(parents=True)
        for part, rows in ROWS.items():
            lines = ["patient_id,age,TSH,sex,sick,diagnosis,note,finding"]
            for row in range(rows):
                ill, word = row % 2, list(TOPICS)[row % 3]
                age, sex, sick = rng.integers(18, 90), "FM"[rng.integers(2)], rng.integers(2)
                note = f"{word} since day {rng.integers(9)}"
                lines.append(f"p{number}-{row},{age},{[1.5, 12][ill]},{sex},{sick},{ill},{note},{TOPICS[word]}")
            (folder / site / f"{part}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("records"))


def draft_at(folder, *changes):
    (folder / "study.toml").write_text(changed(STUDY_TOML, (*FEW, *changes)))
    return load_draft(folder / "study.toml")


@pytest.fixture(scope="module")
def climbed(tmp_path_factory, records, backbone):
    """Every rung at the study's noise, an epsilon and none; two runs each."""
    folder = tmp_path_factory.mktemp("climbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(federated, "_ROWS_TRAINED", 12)  # shapes of batches are probed up to that
        found = compare(
            draft_at(folder), records, folder / "out", backbone=backbone, asked=("study", "2", "none"), seeds=2
        )  # fmt: skip
    return folder, found


def of(found, rung):
    return next(row for row in found.rows if row.rung == rung)


def test_every_rung_stands_where_a_separable_problem_puts_it(climbed):
    _, found = climbed
    at = {row.rung: {point.asked: point for point in row.points} for row in found.rows}
    assert [row.rung for row in found.rows] == list(RUNGS)
    assert at["constant"]["none"].value == 0.5
    for rung in ("site", "words", "head", "adapters"):
        assert at[rung].keys() == {"study", "2", "none"}
        assert at[rung]["none"].value > 0.9
        assert at[rung]["none"].value >= at[rung]["2"].value - 0.05  # there is hardly anything to learn through 2
    assert at["words"]["none"].value == 1.0
    assert at["words"]["study"].value > at["site"]["study"].value - 0.05  # four sites' records drown more noise
    assert of(found, "ngrams").left_out.startswith("records of fields")


def test_the_noise_of_an_epsilon_is_the_smallest_that_costs_no_more(climbed, records, backbone):
    folder, found = climbed
    study = Ladder(read_task(draft_at(folder), records), backbone)
    setting = study.setting("2")
    point = of(found, "words").at("2")
    assert (point.epsilon, point.noise_multiplier) == (setting.epsilon, setting.noise_multiplier)
    assert 1.99 < setting.epsilon <= 2
    releases = ladder.releases_of_draft(setting.draft, study.dim)
    assert epsilon_pld(releases, 1e-5, 1) == setting.epsilon
    assert sum(releases.values()) == 6  # the rounds, and no evaluation
    assert of(found, "words").at("study").noise_multiplier == 0.8
    assert of(found, "words").at("none").epsilon is None


def test_a_second_run_computes_nothing_and_tells_the_same(climbed, records, backbone, monkeypatch):
    folder, found = climbed
    monkeypatch.setattr(Ladder, "run", None)
    again = compare(
        draft_at(folder), records, folder / "out", backbone=backbone, asked=("study", "2", "none"), seeds=2
    )  # fmt: skip
    assert again == found


def test_what_was_tried_is_counted_over_invocations(tmp_path, records):
    def tried(*changes, seeds, rungs=("words",)):
        found = compare(
            draft_at(tmp_path, *changes), records, tmp_path / "out", asked=("none",), rungs=rungs, seeds=seeds
        )
        return found.tried.runs, found.tried.rungs, found.tried.settings, found.tried.seeds

    assert tried(seeds=2) == (2, 1, 1, 2)
    assert tried(seeds=1) == (2, 1, 1, 2)  # nothing new
    assert tried(("clip_norm = 1.0", "clip_norm = 0.5"), seeds=1) == (3, 1, 2, 2)
    assert tried(("rank = 4", "rank = 8"), seeds=2) == (3, 1, 2, 2)  # words have no adapter
    assert tried(seeds=1, rungs=("constant",))[:2] == (4, 2)


def test_adapters_may_have_fewer_seeds_and_others_keep_theirs(tmp_path, records, monkeypatch):
    done = []

    def noted(self, job):
        done.append((job.rung, job.seed))
        return Estimate(0.5, 0.4, 0.6, 0.95)

    monkeypatch.setattr(Ladder, "run", noted)
    monkeypatch.setattr(Ladder, "left_out", lambda self, rung: None)
    rungs = ("words", "adapters")
    compare(draft_at(tmp_path), records, tmp_path / "out", asked=("none",), rungs=rungs, seeds=2, adapter_seeds=1)
    assert done == [("words", 1), ("words", 2), ("adapters", 1)]


def test_the_page_has_every_figure_and_no_script(climbed):
    folder, found = climbed
    page = (folder / "out" / "ladder.html").read_text()
    for row in found.rows:
        assert row.name in page
        for point in row.points:
            assert f"{point.value:.3f}" in page
            assert f"{point.over_records[0]:.3f}–{point.over_records[1]:.3f}" in page
    assert str(found.tried) in page
    assert CAUTION in page
    drawn = sum(len(row.points) for row in found.rows if row.rung != "constant")
    assert page.count("<circle") == drawn + ("best constant 0.500, below" not in page)
    assert not re.search(r"<script|https?://(?!www\.w3\.org/2000/svg)", page)


def test_the_json_says_all_of_it(climbed):
    folder, found = climbed
    told = json.loads((folder / "out" / "ladder.json").read_text())
    assert told == json.loads(json.dumps(found.to_dict()))
    assert told["format"] == 1
    # A constant once; four sites, words, head and adapters at three noises, twice. Head and sites share their settings.
    assert told["tried"] == {"runs": 1 + (4 + 3) * 3 * 2, "rungs": 5, "settings": 9, "seeds": 2}
    assert [row["rung"] for row in told["rows"]] == list(RUNGS)
    assert told["rows"][2]["points"][0].keys() >= {
        "asked",
        "epsilon",
        "noise_multiplier",
        "value",
        "spread",
        "over_records",
    }


def test_a_site_alone_learns_from_its_own_records_under_its_own_noise(climbed, records, backbone):
    """The head's own private descent on one site's records, written once more as a loop."""
    folder, _ = climbed
    own = Ladder(read_task(draft_at(folder), records), backbone)
    (job,) = [job for job in own.jobs(["site"], [own.setting("none")], {"site": 1}) if job.site == "svi"]
    train, test = own._read("head")
    x, y, rng = train["svi"], own.task.target.train["svi"], np.random.default_rng(1)
    lr = 10.0  # as stated: the rule's is higher without noise
    weight = velocity = np.zeros(x.shape[1])
    for _ in range(6):
        order = rng.permutation(40)
        drawn = np.sort(order)[rng.random(40) < 0.25]
        total = np.zeros_like(weight)
        for row in drawn:
            gradient = (1 / (1 + np.exp(-x[row] @ weight)) - y[row]) * x[row]
            total += gradient / max(1.0, np.linalg.norm(gradient))
        rng.normal(0, 0, len(weight))
        velocity = 0.9 * velocity + total / (0.25 * 40)
        weight = weight - lr * velocity
    want = auc(test @ weight, own.task.target.held_out)
    assert own.run(job) == want


def test_completions_of_few_values_are_foretold_as_classes(tmp_path, records):
    found = compare(
        draft_at(tmp_path, *TEXT), records, tmp_path / "out", asked=("none",),
        rungs=("constant", "site", "words", "ngrams", "head"), seeds=2,
    )  # fmt: skip
    assert found.metric == "exact match"
    assert of(found, "constant").at("none").value == pytest.approx(1 / 3)
    assert of(found, "words").at("none").value > 0.9
    assert of(found, "ngrams").at("none").value > 0.9
    assert of(found, "site").at("none").site in SITES
    assert of(found, "head").left_out.startswith("the study has no pooled head")


def document(outcome):
    """Changes that make the study one of documents, whose head alone is trained."""
    table = f'[data.document]\ntext = "{{note}}"\n{outcome}'
    none = re.sub(r"\[.*\]", "[]", targets := re.search(r"targets = .*", STUDY_TOML)[0])
    return (*TEXT[:3], (TEXT[3][0], table), (targets, none))


def test_documents_are_told_apart_by_a_head_and_by_linear_models(tmp_path, records):
    save_text_backbone(tmp_path / "text")
    public = [
        f"{word} since day {number}, {'abcdefgh'[number % 8] * (number % 5)}" for number in range(30) for word in TOPICS
    ]
    take_moments(tmp_path / "text", public, tmp_path / "moments")
    draft = draft_at(tmp_path, *document('label = "finding"\nclasses = ["infection", "lungs", "skin"]'))
    found = compare(draft, records, tmp_path / "out", backbone=tmp_path / "moments", asked=("none",), seeds=1)
    assert found.metric == "accuracy"
    assert of(found, "constant").at("none").value == pytest.approx(1 / 3)
    for rung in ("words", "ngrams", "head"):
        assert of(found, rung).at("none").value > 0.9
    assert of(found, "site").at("none").site in SITES
    assert of(found, "adapters").left_out.startswith("the study has none")
    other = draft.model_copy(update={"adapter": draft.adapter.model_copy(update={"reads": (0,)})})
    rungs = ("words", "head")
    again = compare(
        other, records, tmp_path / "out", backbone=tmp_path / "moments", asked=("none",), rungs=rungs, seeds=1
    )
    assert again.tried.runs == found.tried.runs + 1  # the head, which reads something else; words are those of before


def test_a_number_is_told_by_linear_models(tmp_path, records):
    number = 'number = { column = "age", low = 0.0, high = 100.0, within = 5.0 }'
    draft = draft_at(tmp_path, *document(number))
    found = compare(draft, records, tmp_path / "out", asked=("none",), rungs=("constant", "words", "site"), seeds=1)
    assert found.metric == "accuracy"
    ages = np.concatenate([held_out.columns["age"] for held_out in read_task(draft, records).held_out.values()])
    best = max(np.mean(np.abs(ages - answer) <= 5) for answer in np.arange(0, 100, 0.25))
    assert of(found, "constant").at("none").value == pytest.approx(best)
    assert of(found, "words").at("none").value > 0  # at the study's rate, 10, descent would not come back
    assert of(found, "site").left_out.startswith("there is no backbone")


def test_labels_are_told_all_at_once(tmp_path, records):
    draft = draft_at(tmp_path, *document('labels = ["diagnosis", "sick"]'))
    found = compare(draft, records, tmp_path / "out", asked=("none",), rungs=("constant", "ngrams"), seeds=1)
    task = read_task(draft, records)
    columns = [np.concatenate([own.columns[name] for own in task.held_out.values()]) for name in ("diagnosis", "sick")]
    _, count = np.unique(np.stack(columns), axis=1, return_counts=True)
    assert of(found, "constant").at("none").value == pytest.approx(count.max() / count.sum())
    assert of(found, "ngrams").at("none").seeds == 1


@pytest.mark.parametrize(
    ("objective", "told", "outputs", "right"),
    [
        (BinaryLabel(), [1, 0, 1], [0.1, 0.2, 3.0], [True, False, True]),
        (OneClass(("a", "b", "c")), [2, 0], [[0, 1, 2], [0, 1, 2]], [True, False]),
        (SeveralLabels(("a", "b")), [3, 2, 0], [[1, 1], [1, 1], [-1, -2]], [True, False, True]),
        (PointOnScale(0.0, 10.0), [0.5, 1.0, -1.0], [0.6, 7.0, -0.7], [True, True, False]),
    ],
)
def test_an_answer_is_right_if_all_of_it_is(objective, told, outputs, right):
    target = Target("accuracy", objective, {}, np.array(told), within=0.1)
    assert target.judge(np.array(outputs, dtype=np.float64)).value == pytest.approx(np.mean(right))


NOTHING = float("nan")


def tasks_target(told):
    """A target of two tasks: a label, and a number of 0 to 10, right within 1."""
    terms = OutcomeTerms(
        tasks={
            "sick": {"label": "sick"},
            "days": {"number": {"column": "days", "low": 0.0, "high": 10.0, "within": 1.0}},
        }
    )
    sick, days = (np.array(column) for column in zip(*told, strict=True))
    records = Records({"sick": sick, "days": days.astype(float)}, np.arange(len(told)), None)
    return _of_outcome(terms, {"north": records}, {"north": records})


def test_of_several_tasks_the_share_that_is_right_is_measured():
    target = tasks_target([(1, 5), (1, NOTHING), (-1, 2), (-1, NOTHING), (0, 9)])
    outputs = np.array([[0.1, 1], [0.0, -1], [-0.7, 1], [0.0, 9], [0.5, -1]])  # by name: days, sick
    assert target.metric == "accuracy"
    assert target.judge(outputs).value == pytest.approx((1 + 0 + 1 + 0.5) / 4)  # who tells nothing is left out


@pytest.mark.parametrize("seed", range(5))
def test_no_constant_of_a_grid_is_better_than_the_best(seed):
    rng = np.random.default_rng(seed)
    told = [(int(rng.integers(2)), float(rng.integers(11))) for _ in range(60)]
    target = tasks_target(told)
    grid = [np.tile([days / 5 - 1, sick], (60, 1)) for days in np.arange(0, 10.5, 0.5) for sick in (-1.0, 1.0)]
    assert target.judge(target.best_constant()).value >= max(target.judge(outputs).value for outputs in grid)


def test_a_task_that_no_held_out_record_tells_has_a_constant_too():
    target = tasks_target([(1, NOTHING), (0, NOTHING), (1, NOTHING)])
    assert target.judge(target.best_constant()).value == pytest.approx(2 / 3)


def test_words_learn_a_number_among_tasks_at_the_rate_of_a_number(tmp_path):
    draft = draft_at(tmp_path)
    number, weighted = (
        PointOnScale(0.0, 9.0),
        SeveralTasks((Task("a", BinaryLabel()), Task("b", PointOnScale(0.0, 9.0), 2.0))),
    )
    assert linear_rate(draft, SeveralTasks((Task("a", number),))) == linear_rate(draft, number) < linear_rate(draft)
    assert linear_rate(draft, weighted) == linear_rate(draft, number) / 2


@pytest.mark.parametrize(
    ("values", "high", "within", "share"),
    [
        ([0, 10], 100.0, 5.0, 1.0),
        ([7, 17], 1e4, 10.0, 1.0),
        ([0, 30, 60], 100.0, 14.0, 1 / 3),
        ([99, 100], 100.0, 40.0, 1),
    ],
)
def test_the_best_constant_of_a_number_need_be_no_record_s(values, high, within, share):
    terms = OutcomeTerms(number={"column": "days", "low": 0.0, "high": high, "within": within})
    told = terms.targets({"days": np.array(values)}, None)
    target = Target("accuracy", terms.objective(), {}, told, within=2 * within / high)
    assert target.judge(target.best_constant()).value == pytest.approx(share)


def test_the_best_constant_of_labels_is_their_commonest_pattern():
    target = Target("accuracy", SeveralLabels(("a", "b")), {}, np.array([2, 2, 3, 0]))
    assert target.judge(target.best_constant()).value == 0.5


def test_the_best_constant_is_the_best_on_held_out_records(tmp_path, records):
    folder = tmp_path / "records"
    write_records(folder)
    for site in SITES:  # most training records say skin, most held-out ones lungs
        for part, word in (("train", "skin"), ("heldout", "lungs")):
            table = folder / site / f"{part}.csv"
            table.write_text(table.read_text().replace("infection", word))
    found = compare(draft_at(tmp_path, *TEXT), folder, tmp_path / "out", asked=("none",), rungs=("constant",), seeds=1)
    assert of(found, "constant").at("none").value == pytest.approx(2 / 3)
    assert found.tried.runs == 1


def test_completions_of_many_values_leave_linear_models_out(tmp_path, records, monkeypatch):
    monkeypatch.setattr("confide.coordinator.comparison.task.MOST_VALUES", 2)
    found = compare(draft_at(tmp_path, *TEXT), records, tmp_path / "out", asked=("none",), rungs=("words",), seeds=1)
    assert "no single column of completions" in of(found, "words").left_out
    assert of(found, "words").points == ()


def test_a_value_that_no_training_record_has_is_never_right(tmp_path, records):
    folder = tmp_path / "records"
    write_records(folder)
    table = folder / "svi" / "heldout.csv"
    table.write_text(table.read_text().replace("infection", "unheard of"))
    target = read_task(draft_at(tmp_path, *TEXT), folder).target
    assert (target.held_out == -1).sum() == 5
    assert target.objective.outputs == 3


def test_every_rung_has_the_rate_of_the_rule_for_what_it_learns(tmp_path, records):
    draft = draft_at(tmp_path, ("head_lr = 10.0\n", ""))
    assert linear_rate(draft) == head_rate(draft)
    classes = OneClass(("a", "b", "c"))
    assert linear_rate(draft, classes) == head_rate(draft, classes) < linear_rate(draft)
    study = draft_at(tmp_path, *document('label = "finding"\nclasses = ["infection", "lungs", "skin"]'))
    strict = Ladder(read_task(study, records), None).setting("0.2").draft
    assert strict.optimizer.head_lr == head_rate(strict, classes)
    by_rule = with_rates(
        study.model_copy(update={"optimizer": study.optimizer.model_copy(update={"head_lr": None})}), 0
    )
    assert by_rule.optimizer.head_lr == pytest.approx(head_rate(study, classes), rel=0.05)
    assert linear_rate(draft_at(tmp_path)) == 10.0
    number = PointOnScale(0.0, 9.0)
    assert linear_rate(draft_at(tmp_path), number, is_whitened=True) == 10.0
    assert linear_rate(draft_at(tmp_path), number) == pytest.approx(1.9)


def test_rates_stated_for_another_noise_are_lowered_to_the_rule_s_and_never_raised(tmp_path, records, backbone):
    own = Ladder(read_task(draft_at(tmp_path), records), backbone)
    calm, strict, free = (own.setting(asked).draft.optimizer for asked in ("study", "0.2", "none"))
    assert (calm.lr, calm.head_lr) == (free.lr, free.head_lr) == (0.3, 10.0)
    noisy = own.setting("0.2").draft
    assert strict.head_lr == head_rate(noisy) < 10.0
    layout = own.model.adapted.layout
    adapters = layout.dim - len(own.model.adapted.head.weight)
    assert strict.lr == adapter_rate(noisy, strict.head_lr, adapters) < 0.3


def test_the_interval_over_seeds_is_student_s():
    values = [0.91, 0.93, 0.95, 0.90]
    assert student(values) == pytest.approx(tuple(ttest_1samp(values, 0).confidence_interval(0.95)))
    assert student([0.9]) is None


@pytest.mark.parametrize("asked", ["0", "-1", "nan", "inf", "much"])
def test_what_is_no_epsilon_is_refused(tmp_path, records, asked):
    with pytest.raises(StudyRefused, match="takes a number above 0, study or none"):
        compare(draft_at(tmp_path), records, tmp_path / "out", asked=(asked,), rungs=("words",), seeds=1)


def test_a_site_without_a_table_is_named(tmp_path):
    write_records(tmp_path / "records")
    (tmp_path / "records" / "svhc" / "heldout.csv").unlink()
    with pytest.raises(StudyRefused, match=r"svhc/heldout\.csv"):
        compare(draft_at(tmp_path), tmp_path / "records", tmp_path / "out", seeds=1)


def call(*words):
    return CliRunner().invoke(app, ["study", "compare", *map(str, words)])


def test_the_command_prints_the_ladder_and_what_was_tried(tmp_path, records):
    draft_at(tmp_path)
    told = call(
        tmp_path / "study.toml", records, "--out", tmp_path / "out", "--epsilon", "study", "--epsilon", "none",
        "--seeds", 2, "--rung", "words", "--rung", "head",
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    assert "thyroid: AUC on 60 held-out records" in told.output
    assert re.search(r"linear on words .* 1\.000 ± 0\.000", told.output)
    assert "Left out, head on frozen states: there is no backbone" in told.output
    assert "Tried on these held-out records so far: 4 runs: 1 rungs under 2 settings in all, 2 seeds." in told.output
    assert "Records must be public or synthetic" in told.output


def test_the_command_prints_json_alone_if_asked(tmp_path, records):
    draft_at(tmp_path)
    told = call(
        tmp_path / "study.toml", records, "--out", tmp_path / "out", "--epsilon", "none", "--seeds", 1, "--json"
    )
    assert json.loads(told.stdout)["format"] == 1


def test_a_backbone_that_is_not_there_and_a_rung_that_is_none_are_refused(tmp_path, records):
    draft_at(tmp_path)
    told = call(tmp_path / "study.toml", records, "--backbone", tmp_path / "nowhere")
    assert (told.exit_code, "there is no such folder" in told.output) == (1, True)
    told = call(tmp_path / "study.toml", records, "--rung", "trees", "--out", tmp_path / "out")
    assert (told.exit_code, "there is no rung trees; there are constant, site" in told.output) == (1, True)


def test_the_help_says_that_records_must_be_public():
    told = " ".join(call("--help").output.split())
    assert "Records must be public or synthetic" in told
    assert "counted in --out and told" in told
