import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import dp_accounting
import numpy as np
import pytest
import typer

from confide.mpc.errors import FrameRejected, InvalidField, OrderMismatch
from confide.privacy.errors import BudgetExceeded, UnprotectedRefused

RUN = Path(__file__).resolve().parents[3] / "examples" / "fraud" / "run.py"


@pytest.fixture(scope="module")
def tables(fraud, tmp_path_factory):
    report = fraud.prepare.prepare(tmp_path_factory.mktemp("tables"), share=0.03)
    return Path(report["insurer"]["path"]), Path(report["hospital"]["path"]), None


@pytest.fixture(scope="module")
def terms(fraud):
    optimizer = fraud.model.Optimizer(steps=2, learning_rate=10.0, momentum=0.5, expected_people=100)
    return fraud.terms.Terms(
        study="test", max_ids=500, features=(10, 11), optimizer=optimizer, site_noise=2**43, is_measured=True
    )


def all_parts(fraud, parties, tables, terms_of):
    def run(links):
        party = links.aggregator_id
        return fraud.party.take_part(fraud.party.CountedLinks(links), terms_of(party), tables[party])

    return parties(run)


def test_three_parties_train_what_one_would_on_the_joined_tables(fraud, parties, tables, terms):
    results = all_parts(fraud, parties, tables, lambda party: terms)
    data = fraud.baselines.Joined.of(*tables[:2])
    expected = fraud.baselines.in_the_clear(data, terms.optimizer).tolist()
    assert [result["weights_without_noise"] for result in results] == [expected] * 3
    assert [result["people"] for result in results] == [len(data.train)] * 3
    assert results[0]["weights"] == results[1]["weights"] == results[2]["weights"] != expected
    assert [result["releases"] for result in results] == [2] * 3


def test_parties_with_different_terms_do_not_begin(fraud, parties, tables, terms):
    quieter = dataclasses.replace(terms, site_noise=1)
    with pytest.raises(OrderMismatch):
        all_parts(fraud, parties, tables, lambda party: quieter if party == 1 else terms)


def test_every_term_is_compared(fraud, terms):
    changed = {"study": "other", "max_ids": 499, "features": (11, 10), "site_noise": 1, "is_measured": False}
    others = [dataclasses.replace(terms, **{name: value}) for name, value in changed.items()]
    for name, value in {"steps": 3, "learning_rate": 9.0, "momentum": 0.4, "expected_people": 99}.items():
        optimizer = dataclasses.replace(terms.optimizer, **{name: value})
        others.append(dataclasses.replace(terms, optimizer=optimizer))
    assert len({terms.digest(), *(other.digest() for other in others)}) == 10
    assert fraud.terms.Terms.from_json(json.loads(json.dumps(dataclasses.asdict(terms)))) == terms


@pytest.mark.parametrize(
    "change",
    [{"study": ""}, {"max_ids": 0}, {"features": (0, 11)}, {"site_noise": 0}],
    ids=lambda change: next(iter(change)),
)
def test_terms_out_of_range_are_refused(terms, change):
    with pytest.raises(InvalidField):
        dataclasses.replace(terms, **change)


@pytest.mark.parametrize(
    "change",
    [{"steps": 0}, {"learning_rate": 0.0}, {"learning_rate": math.nan}, {"momentum": 1.0}, {"expected_people": 0}],
    ids=lambda change: next(iter(change)),
)
def test_an_optimizer_out_of_range_is_refused(terms, change):
    with pytest.raises(InvalidField):
        dataclasses.replace(terms.optimizer, **change)


def test_owners_that_tell_of_different_sizes_are_refused(fraud, parties, terms):
    def run(links):
        party = links.aggregator_id
        rows = fraud.columns.Rows(["a"] * (3 + party), np.zeros((3 + party, 10 + party), np.int64), None)
        fraud.party._people(fraud.party.CountedLinks(links), terms, rows if party < 2 else None)

    with pytest.raises(FrameRejected):
        parties(run)


def test_terms_above_what_a_party_allows_are_refused(fraud, terms):
    fraud.party.refuse(terms, max_epsilon=5.0, allow_unprotected=True)
    with pytest.raises(BudgetExceeded, match=r"this party allows 0\.5"):
        fraud.party.refuse(terms, max_epsilon=0.5, allow_unprotected=True)
    with pytest.raises(BudgetExceeded, match="epsilon ∞"):
        fraud.party.refuse(dataclasses.replace(terms, site_noise=1), max_epsilon=5.0, allow_unprotected=True)
    with pytest.raises(UnprotectedRefused):
        fraud.party.refuse(terms, max_epsilon=5.0, allow_unprotected=False)


def test_the_helper_sends_and_gets_nothing_while_the_owners_intersect(fraud, parties, tables, terms):
    seen = {}

    class Watched(fraud.party.CountedLinks):
        def exchange(self, step, outgoing, limit):
            received = super().exchange(step, outgoing, limit)
            if step in ("PSIO", "PSIA") and self.aggregator_id == 2:
                seen[step] = {**outgoing}, received
            return received

    def run(links):
        party = links.aggregator_id
        fraud.party.take_part(Watched(links), terms, tables[party])

    parties(run)
    assert seen == dict.fromkeys(("PSIO", "PSIA"), ({0: b"", 1: b""}, {0: b"", 1: b""}))


def test_noise_is_sized_for_who_knows_one_partys_noise(fraud):
    noise = fraud.cost.noise_for(1.0, 10, 21)
    costs = fraud.cost.cost(noise, 10, 21)
    assert 0.999 < costs.party <= 1.0
    assert costs.outsider < costs.party < costs.party_by_rdp < costs.other_owner
    assert fraud.cost.cost(noise, 11, 21).party > 1.0  # another opened vector costs more


@pytest.mark.parametrize(("known", "moved", "name"), [(0, 1, "outsider"), (1, 1, "party"), (1, 2, "other_owner")])
def test_cost_is_that_of_one_gaussian_as_strong_as_all(fraud, known, moved, name):
    noise, steps = 9 * 2**fraud.model.GRADIENT_BITS, 10
    std = 9 * (3 - known) ** 0.5 / moved / steps**0.5
    exact = dp_accounting.get_epsilon_gaussian(sigma=std, delta=1e-5)  # Balle and Wang 2018, arXiv:1805.06530
    assert exact <= getattr(fraud.cost.cost(noise, steps, 21), name) <= exact * 1.01


@pytest.mark.process
def test_a_short_run_of_three_processes_gives_every_figure():
    done = subprocess.run(
        [sys.executable, str(RUN), "--smoke", "--json"],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["equal_to_the_last_bit"] is True
    assert found["released"] == {"vectors": 3, "numbers": 21}
    assert found["people"]["trained on"] + found["people"]["held out"] == found["people"]["common"]
    assert found["epsilon"]["party"] <= 1.0
    assert all(0 <= one["low"] <= one["value"] <= one["high"] <= 1 for one in found["auc"].values())
    assert found["parts"]["helper"]["intersection"]["bytes_sent"] == 2 * 32  # its digest of the terms, to both


def test_a_folder_that_is_there_is_left_alone(fraud, tmp_path, capsys):
    with pytest.raises(typer.Exit) as caught:
        fraud.run.main(directory=tmp_path)
    assert caught.value.exit_code == 2
    assert "name a new folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.process
def test_a_party_that_fails_is_named_with_its_last_words(fraud, tmp_path):
    folder = tmp_path / "hospital"
    folder.mkdir()
    with (folder / "log.txt").open("wb") as log:
        failing = subprocess.Popen([sys.executable, "-c", "import sys; sys.exit('no table')"], stderr=log)
    with pytest.raises(fraud.run.PartyFailed, match=rf"the hospital failed: no table\n.*{folder / 'log.txt'}"):
        fraud.run._wait([failing], [folder])
