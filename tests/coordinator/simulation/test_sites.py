"""How units are divided among simulated sites."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from confide.client_node.study import cost, load_draft
from confide.coordinator.errors import StudyRefused
from confide.coordinator.simulation.sites import Split, read_sites

from ...client_node.conftest import STUDY_TOML, changed

PEOPLE, ANSWERS = 90, {"train": 90, "heldout": 40}


class Reader:
    """Stands for a model: a record's tokens are its age, its target is the label."""

    def examples(self, records):
        from confide.models.records.kind import Examples

        age = records.columns["age"].astype(np.int64)
        return Examples(age[:, None], records.labels, records.units)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two records of most people, in two folders; a person's age is their number."""
    found = tmp_path_factory.mktemp("records")
    for place, part in ((place, part) for place in ("svi", "other") for part in ANSWERS):
        (found / place).mkdir(exist_ok=True)
        lines = ["patient_id,age,TSH,sex,sick,diagnosis"]
        for person in range(ANSWERS[part]):
            number = person + 200 * (place == "svi")
            lines += [f"p{person},{number},1.0,{'FM'[person % 2]},0,{int(person % 3 == 0)}"] * (1 + person % 2)
        (found / place / f"{part}.csv").write_text("\n".join(lines) + "\n")
    return found


def divided(tmp_path, folder, split, sites, seed=0):
    (tmp_path / "study.toml").write_text(changed(STUDY_TOML, ()))
    study = cost.provisional(load_draft(tmp_path / "study.toml"), dim=1)
    return read_sites(study, Reader(), folder, split=split and Split.parse(split), sites=sites, seed=seed)


def ages(table):
    return [np.sort(table.of(site).ids[:, 0]).tolist() for site in range(len(table.rows_of_site))]


@pytest.mark.parametrize("split", ["iid", "dirichlet:0.3", "by-column:sex"])
def test_every_unit_is_at_one_site_with_all_its_records(tmp_path, folder, split):
    sites = 2 if "column" in split else 20
    found = divided(tmp_path, folder, split, sites)
    assert len(found.names) == sites == len(set(found.names))
    for table, people in ((found.train, 90), (found.held_out, 40)):
        at = ages(table)
        whole = Counter(age for each in at for age in each)
        assert whole == Counter({person + start: 1 + person % 2 for start in (0, 200) for person in range(people)})
        assert all(not set(one) & set(other) for one, other in pairwise(at))
        assert sum(table.units(site) for site in range(sites)) == 2 * people
    assert min(found.train.units(site) for site in range(sites)) > 0
    assert divided(tmp_path, folder, split, sites).train.examples.units.tolist() == found.train.examples.units.tolist()


def test_the_seed_decides_and_iid_sites_are_alike(tmp_path, folder):
    one, same, other = (divided(tmp_path, folder, "iid", 20, seed) for seed in (1, 1, 2))
    assert ages(one.train) == ages(same.train) != ages(other.train)
    assert {one.train.units(site) for site in range(20)} == {9}
    assert {one.held_out.units(site) for site in range(20)} == {4}


@pytest.mark.parametrize(("alpha", "low", "high"), [(1000.0, 0.0, 0.1), (0.05, 0.25, 1.0)])
def test_a_small_alpha_gives_sites_few_classes(tmp_path, folder, alpha, low, high):
    found = divided(tmp_path, folder, f"dirichlet:{alpha}", 10)
    shares = [found.train.of(site).targets.mean() for site in range(10)]
    spread = np.mean(np.abs(np.array(shares) - 1 / 3))
    assert low <= spread <= high
    # Held-out people are divided in the same shares of each class.
    for label in (0, 1):
        of = [
            np.array([(table.of(site).targets == label).sum() for site in range(10)], dtype=float)
            for table in (found.train, found.held_out)
        ]
        np.testing.assert_allclose(of[0] / of[0].sum(), of[1] / of[1].sum(), atol=0.08)


def test_a_column_makes_sites_of_its_values(tmp_path, folder):
    found = divided(tmp_path, folder, "by-column:sex", None)
    assert found.names == ("site-0001", "site-0002")
    assert sorted({age % 2 for age in ages(found.train)[site]} for site in (0, 1)) == [{0}, {1}]


def test_without_a_split_sites_have_their_own_folders(tmp_path, folder):
    for name in ("svhc", "rest"):
        (folder / name).mkdir(exist_ok=True)
        for part in ANSWERS:
            (folder / name / f"{part}.csv").write_text("patient_id,age,TSH,sex,sick,diagnosis\nq,1,1.0,F,0,1\n")
    found = divided(tmp_path, folder, None, None)
    assert found.names == ("other", "svi", "svhc", "rest")
    assert [len(rows) for rows in found.train.rows_of_site] == [135, 135, 1, 1]
    assert min(ages(found.train)[1]) == 200
    alone = divided(tmp_path, folder / "svi", "iid", 3)  # a folder with both files is enough
    assert sum(map(len, ages(alone.train))) == 135


@pytest.mark.parametrize(
    ("split", "sites"),
    [("iid", None), ("iid", 500), ("by-column:sex", 3), ("by-column:height", None), ("by-column:TSH", None)],
)
def test_what_cannot_be_divided_is_refused(tmp_path, folder, split, sites):
    with pytest.raises(StudyRefused):
        divided(tmp_path, folder, split, sites)


@pytest.mark.parametrize("text", ["", "even", "dirichlet", "dirichlet:0", "dirichlet:nan", "dirichlet:x", "iid:2",
                                  "by-column:", "dirichlet:1e9"])  # fmt: skip
def test_another_split_is_refused(text):
    with pytest.raises(StudyRefused, match="dirichlet:ALPHA"):
        Split.parse(text)
