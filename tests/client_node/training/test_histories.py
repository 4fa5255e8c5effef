"""Histories: a person's rows as one record, read, learned and released as one."""

import numpy as np
import pandas as pd
import pytest
import torch

from confide.client_node.data import check, read
from confide.client_node.errors import DataInvalid, StudyInvalid
from confide.client_node.policy import load_policy
from confide.client_node.step_audit import _repeated
from confide.client_node.training import trainer as trainer_module
from confide.client_node.training.record_arrays import from_arrays, to_arrays
from confide.client_node.training.study_model import load_study_model
from confide.models.errors import BackboneMismatch
from confide.privacy.mechanism.batches import BatchShapes

from ..conftest import Site
from ..test_node import Desk, make_desk
from .test_trainer import NONE, new_trainer

VISITS = """patient_id,day,age,tsh_miu_l,sex,sick,diagnosis
p1,30,34,1.5,F,f,0
p2,5,71,,M,t,1
p1,-2,33,12,F,t,1
p1,400,35,0.2,,f,1
p3,0,50,1,M,t,0
p1,30,34,8,F,f,1
"""
HISTORY = (
    ('label = "diagnosis"\n', ""),
    ("max_records_per_unit = 2\n", ""),
    ('flags = ["sick"]\n', ""),
    (
        "[data.numeric]",
        '[data.history]\norder = "day"\nvisits = 3\nlabel = "diagnosis"\nflags = ["sick"]\n[data.history.numeric]',
    ),
    ("[data.categorical]", "[data.history.categorical]"),
)
SEGMENTS = ("[adapter]", "[model.segments]\nwindow = 16\ntop = 1\n[adapter]")
ALL = ("sample_rate = 0.2", "sample_rate = 1.0")
SHAPES = BatchShapes({8: (8,), 16: (8,), 32: (8, 4), 64: (4,)}, 1)


def history_desk(site: Site, *changes: tuple[str, str], table: str = VISITS) -> Desk:
    (site.home / "patients.csv").write_text(table)
    return make_desk(site, *HISTORY, *changes)


def lines_of(desk: Desk, ids: np.ndarray) -> list[str]:
    words = desk.study.record_schema().words()
    return [" ".join(words[token] for token in row if token) for row in ids]


def examples_of(desk: Desk):
    model = load_study_model(desk.study.draft, desk.site.home / "backbone")
    return model, model.examples(read(load_policy(desk.site.home), desk.study, site="svi"))


def test_rows_of_a_person_are_one_record_in_their_order_and_the_last_ones_are_read(site: Site):
    desk = history_desk(site)
    records = read(load_policy(site.home), desk.study, site="svi")
    assert list(records.units) == [0, 1, 2]
    assert records.columns["TSH"][0] == [1.5, 8, 0.2]
    assert list(records.labels) == [1, 1, 0]  # as the last row says
    _, examples = examples_of(desk)
    assert lines_of(desk, examples.ids) == [
        "TSH=b01 age=b01 sex=F <eos> TSH=b02 age=b01 sex=F <eos> TSH=b00 age=b01 sex=na <eos>",
        "TSH=na age=b03 sex=M sick <eos>",
        "TSH=b01 age=b02 sex=M sick <eos>",
    ]


@pytest.mark.parametrize("in_order", [False, True])
def test_rows_of_one_day_are_ordered_by_what_they_say_and_not_by_what_is_learned(site: Site, in_order: bool):
    first, second = "p1,30,34,1.5,F,f,1\n", "p1,30,34,8,F,f,0\n"
    desk = history_desk(site)
    for rows in (first + second, second + first):
        (site.home / "patients.csv").write_text(VISITS.partition("\n")[0] + "\n" + rows)
        records = read(load_policy(site.home), desk.study, site="svi", in_order=in_order)
        assert (records.columns["TSH"][0], records.labels.tolist()) == ([1.5, 8], [0])
        assert check(site.home / "patients.csv", load_policy(site.home), desk.study, both_classes=False).labels == (
            1,
            0,
        )


def test_a_study_of_histories_has_no_prototype(site: Site):
    prototype = ("[adapter]", "[prototype]\nlength = 16\nnoise_multiplier = 40.0\n[adapter]")
    with pytest.raises(StudyInvalid, match=r"\[data\.history\]; remove it: requests of several visits"):
        history_desk(site, prototype)


@pytest.mark.parametrize("place", ["9007199254740992", "-9007199254740993"])
def test_a_place_in_the_order_that_would_be_rounded_does_not_fit(site: Site, place: str):
    desk = history_desk(site, table=VISITS.replace("p3,0,", f"p3,{place},"))
    with pytest.raises(DataInvalid, match="number below"):
        read(load_policy(site.home), desk.study, site="svi")


def test_order_of_the_file_does_not_matter(site: Site):
    desk = history_desk(site)
    _, want = examples_of(desk)
    table = pd.read_csv(site.home / "patients.csv", dtype=str)
    table.iloc[::-1].to_csv(site.home / "patients.csv", index=False)
    _, got = examples_of(desk)
    assert lines_of(desk, got.ids) == lines_of(desk, want.ids)
    assert list(got.targets) == list(want.targets)


def test_a_person_of_many_visits_is_cut_to_the_last(site: Site):
    rows = "".join(f"p9,{day},{20 + day},1,F,f,{day % 2}\n" for day in range(50, 0, -1))
    desk = history_desk(site, table=VISITS + rows)
    records = read(load_policy(site.home), desk.study, site="svi")
    assert records.columns["age"][3] == [68, 69, 70]
    assert records.labels[3] == 0


def test_lists_of_cells_come_through_to_workers_also_where_all_are_as_long(site: Site):
    desk = history_desk(site, table="\n".join(VISITS.splitlines()[:4]) + "\np2,6,72,1,M,t,1\n")
    records = read(load_policy(site.home), desk.study, site="svi")
    assert [len(own) for own in records.columns["age"]] == [2, 2]
    there = from_arrays(to_arrays(records))
    for name, column in records.columns.items():
        assert there.columns[name].shape == column.shape
        assert repr(there.columns[name].tolist()) == repr(column.tolist())  # nan is not itself
    assert _repeated(records, 3, first=1).columns["age"].tolist() == [records.columns["age"][1]] * 3


@pytest.mark.parametrize("attention", [[], [SEGMENTS]], ids=["full", "segments"])
def test_a_release_is_the_sum_of_clipped_gradients_of_persons_by_plain_autograd(site: Site, attention, monkeypatch):
    monkeypatch.setattr(trainer_module, "probed_shapes", lambda *_, **__: SHAPES)
    rows = "".join(f"p9,{day},{20 + day},{day % 13},F,{'tf'[day % 2]},{day % 2}\n" for day in range(60))
    longer = ("visits = 3", "visits = 15"), ("rank = 4", "rank = 2"), ("max_tokens = 64", "max_tokens = 80")
    desk = history_desk(site, *NONE, ALL, *longer, *attention, table=VISITS + rows)
    state = np.random.default_rng(0).normal(0, 0.3, desk.study.dim).astype(np.float32)
    got = new_trainer(desk).release(state, 1) * 2.0**-desk.study.scale_bits
    model, examples = examples_of(desk)
    assert (examples.ids > 0).sum(1).max() > 48  # beyond what is read in whole by segments
    model.adapted.load_state(state)
    total = np.zeros(desk.study.dim)
    for unit in range(4):
        ids, targets = (torch.from_numpy(part[examples.units == unit]) for part in (examples.ids, examples.targets))
        assert len(ids) == 1
        grads = torch.autograd.grad(model.adapted.losses(ids, targets).sum(), list(model.adapted.trained.values()))
        gradient = np.concatenate([grad.double().numpy().ravel() for grad in grads])
        total += gradient * min(1.0, 1.0 / np.linalg.norm(gradient))
    np.testing.assert_allclose(got, total, atol=1e-5)
    assert np.linalg.norm(total) > 0.1


def test_a_cell_without_an_order_is_told_by_its_row(site: Site):
    desk = history_desk(site, table=VISITS.replace("p3,0,50", "p3,,50"))
    with pytest.raises(DataInvalid, match="day"):
        read(load_policy(site.home), desk.study, site="svi")
    policy = load_policy(site.home)
    report = check(policy.data.path, policy, desk.study, site="svi")
    assert [(problem.line, problem.column) for problem in report.problems] == [(6, "day")]


def test_an_order_may_have_decimal_commas(site: Site):
    table = VISITS.replace(",", ";").replace("p1;30;", "p1;30,5;").replace("1.5", "1,5").replace("0.2", "0,2")
    desk = history_desk(site, table=table)
    site.write(('path = "patients.csv"', 'path = "patients.csv"\ndecimal = ","\nseparator = ";"'))
    records = read(load_policy(site.home), desk.study, site="svi")
    assert records.columns["TSH"][0] == [1.5, 8, 0.2]
    (site.home / "patients.csv").write_text(table.replace("p1;400;", "p1;4.000;"))
    with pytest.raises(DataInvalid, match="day"):  # thousands or a decimal point: nobody knows
        read(load_policy(site.home), desk.study, site="svi")


def test_a_check_counts_what_the_last_rows_say(site: Site):
    rows = ("p1,1,34,1.5,F,f,1\n", "p1,2,34,1.5,F,f,0\n", "p2,1,34,1.5,F,f,1\n", "p2,3,34,1.5,F,f,0\n")
    desk = history_desk(site, table=VISITS.splitlines(True)[0] + "".join(rows))
    policy = load_policy(site.home)
    report = check(policy.data.path, policy, desk.study, site="svi")
    assert report.labels == (2, 0)
    assert [problem.expected for problem in report.problems] == ["rows of both labels, 0 and 1"]


def test_a_task_that_no_last_row_tells_is_a_problem(site: Site):
    task = 'label = "diagnosis"\nflags', 'tasks = { one = { label = "diagnosis" } }\nflags'
    (site.home / "patients.csv").write_text(VISITS.splitlines(True)[0] + "p1,1,34,1.5,F,f,1\np1,2,34,1.5,F,f,\n")
    draft = site.study(*HISTORY, task)
    policy = load_policy(site.home)
    report = check(policy.data.path, policy, draft, site="svi")
    assert [problem.expected for problem in report.problems] == ["cells that say something of diagnosis"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("max_tokens = 64", "max_tokens = 4097"), "whose memory is their square"),
        (('order = "day"', 'order = "age"'), "which is also read or learned"),
        (('order = "day"', 'order = "diagnosis"'), "which is also read or learned"),
        (("visits = 3", "visits = 13"), "data.max_tokens is 64; 13 visits can hold 65 words"),
        (("visits = 3", "visits = 0"), "visits"),
        (("max_tokens = 64", "max_tokens = 64\nmax_records_per_unit = 2"), "a unit is one record"),
        (("max_tokens = 64", 'max_tokens = 64\nlabel = "diagnosis"'), "all rows of a person are one record"),
    ],
)
def test_terms_that_make_no_sense_are_refused(site: Site, change, told):
    with pytest.raises(StudyInvalid, match=told):
        site.study(*(pair for pair in HISTORY), change)


def test_those_who_approve_see_what_makes_a_record(site: Site):
    facts = history_desk(site).study.facts()["Data"]
    assert facts["record"] == "the last 3 rows of each unit, in the order of day"


def test_a_backbone_is_of_so_many_visits_or_fewer(site: Site):
    desk = history_desk(site)
    draft = desk.study.draft

    def load_of(visits: int):
        history = draft.data.terms.model_copy(update={"visits": visits})
        other = draft.model_copy(update={"data": draft.data.model_copy(update={"history": history})})
        return load_study_model(other, site.home / "backbone")

    assert load_of(2).words == load_of(3).words == len(desk.study.record_schema().words())
    for visits in (1, 4):  # one visit alone has no end behind it
        with pytest.raises(BackboneMismatch, match=f"another schema .* 3 visits at most, not {visits}"):
            load_of(visits)
