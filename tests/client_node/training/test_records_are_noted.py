"""Records are trained on only after their people were noted, of whatever source they are."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing

import pandas as pd
import pytest

from confide.client_node import site as site_module
from confide.client_node.data.known_units import KnownUnits
from confide.client_node.errors import StepFailed
from confide.client_node.policy.site_policy import load_policy
from confide.client_node.training import warm_model

from ..conftest import Site
from ..test_node import Desk, make_desk, prepare

pytestmark = pytest.mark.process


class Source:
    """A source of a site's records that others write: `add` adds people."""

    def __init__(self, site: Site, kind: str) -> None:
        self.site, self.kind = site, kind
        self.path, self.more = site.home / "patients.csv", site.home / "more.parquet"
        table = pd.read_csv(self.path, dtype=str, keep_default_na=False)
        self.people = table.patient_id.nunique()
        if kind == "parts":
            self.path = site.home / "parts"
            self.path.mkdir()
            table.to_parquet(self.path / "part-0.parquet", index=False)
            site.write(('path = "patients.csv"', 'path = "parts"'))
        self.table = table

    def others(self, named: str) -> pd.DataFrame:
        found = self.table.copy()
        found["patient_id"] = [f"{named}-{each}" for each in found.patient_id]
        found["age"] = [str(60 + place) for place in range(len(found))]
        return found

    def add(self, named: str) -> None:
        if self.kind == "parts":
            self.others(named).to_parquet(self.path / f"part-{named}.parquet", index=False)
        else:
            both = pd.concat([pd.read_csv(self.path, dtype=str, keep_default_na=False), self.others(named)])
            both.to_csv(self.path, index=False)


@pytest.fixture(params=["csv", "parts"])
def source(request: pytest.FixtureRequest, site: Site) -> Source:
    return Source(site, request.param)


def noted(site: Site) -> int:
    with closing(sqlite3.connect(site.home / "units.db")) as connection:
        return int(connection.execute("SELECT count(DISTINCT mark) FROM marks WHERE kind = 1").fetchone()[0])


def ready(site: Site) -> Desk:
    """A node that was restarted after a run was prepared: it reads records in the round."""
    desk = make_desk(site)
    prepare(desk)
    return desk.restarted()


def after_the_charge(monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]) -> None:
    true = site_module.SiteRole._charge

    def charged(self: site_module.SiteRole, *args: object) -> object:
        found = true(self, *args)
        change()
        return found

    monkeypatch.setattr(site_module.SiteRole, "_charge", charged)


def around_a_reading(
    monkeypatch: pytest.MonkeyPatch, before: Callable[[], None], after: Callable[[], None]
) -> list[int]:
    """Changes a source before and after each reading; returns a list that takes how many units were read."""
    true, took = warm_model.read_records, []

    def reading(*args: object, **named: object) -> object:
        before()
        found = true(*args, **named)
        took.append(found.num_units)
        after()
        return found

    monkeypatch.setattr(warm_model, "read_records", reading)
    return took


def test_people_who_join_after_the_charge_are_noted_before_they_are_learned(site, source, monkeypatch):
    desk = ready(site)
    took = around_a_reading(monkeypatch, lambda: None, lambda: None)
    after_the_charge(monkeypatch, lambda: source.add("new"))
    desk.step()
    assert took == [2 * source.people] * 2  # once before they were noted, and once after
    assert noted(site) == 2 * source.people


@pytest.mark.parametrize("place", ["before", "after"])
def test_people_who_join_around_the_reading_are_noted_before_they_are_learned(site, source, monkeypatch, place):
    desk, left = ready(site), iter(["new"])

    def join() -> None:
        for name in left:
            source.add(name)

    took = around_a_reading(monkeypatch, *((join, lambda: None) if place == "before" else (lambda: None, join)))
    desk.step()
    assert took[-1] == noted(site) == 2 * source.people


def test_people_of_another_account_who_join_after_the_charge_are_not_learned(site, source, monkeypatch):
    desk = ready(site)
    policy = load_policy(site.home)
    source.others("other").to_parquet(source.more, index=False)
    other = {"name": "other", "path": source.more}
    KnownUnits(site.home).cover(policy.model_copy(update={"data": policy.data.model_copy(update=other)}))
    after_the_charge(monkeypatch, lambda: source.add("other"))
    with pytest.raises(StepFailed, match="failed after its charge"):
        desk.step()
    assert not list((site.home / "outbox").glob("**/*share*"))


def test_a_source_that_never_stays_the_same_is_not_learned(site, source, monkeypatch):
    desk, names = ready(site), iter("abcdefgh")
    took = around_a_reading(monkeypatch, lambda: source.add(next(names)), lambda: None)
    with pytest.raises(StepFailed, match="failed after its charge"):
        desk.step()
    assert took == [2 * source.people, 3 * source.people, 4 * source.people]


def test_a_table_that_is_there_only_while_it_is_read_is_not_learned(site, monkeypatch):
    source = Source(site, "csv")
    desk = ready(site)
    away = site.home / "away.csv"
    source.path.rename(away)
    around_a_reading(monkeypatch, lambda: shutil.copy(away, source.path), source.path.unlink)
    with pytest.raises(StepFailed, match="failed after its charge"):
        desk.step()
