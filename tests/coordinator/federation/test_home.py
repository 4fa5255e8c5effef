import json

import pytest
from sqlalchemy import text

from confide.coordinator.errors import Conflict, NotFound, StateDamaged
from confide.coordinator.federation.home import Settings, create_home, load_settings, opened_store

SETTINGS = Settings(federation="clinics", address="hub:9092", listen="127.0.0.1", port=9092, superlink_port=9093)


def test_settings_come_back_as_they_were_made(tmp_path):
    create_home(tmp_path / "home", SETTINGS)
    assert load_settings(tmp_path / "home") == SETTINGS


@pytest.mark.parametrize("stored", ["", "{", "{}", '{"federation": 1}', "[]"])
def test_damaged_settings_are_named_with_their_file(tmp_path, stored):
    (tmp_path / "settings.json").write_text(stored)
    with pytest.raises(StateDamaged, match=r"settings\.json"):
        load_settings(tmp_path)


def test_settings_of_an_earlier_version_have_the_usual_number_of_strangers(tmp_path):
    create_home(tmp_path, SETTINGS)
    stored = json.loads((tmp_path / "settings.json").read_text())
    del stored["strangers_per_address"]
    (tmp_path / "settings.json").write_text(json.dumps(stored))
    assert load_settings(tmp_path).strangers_per_address == 32


@pytest.mark.parametrize("number", [1, 129, "32", 40.5])
def test_a_number_of_strangers_out_of_bounds_is_named(tmp_path, number):
    create_home(tmp_path, SETTINGS)
    stored = json.loads((tmp_path / "settings.json").read_text()) | {"strangers_per_address": number}
    (tmp_path / "settings.json").write_text(json.dumps(stored))
    with pytest.raises(StateDamaged, match="strangers_per_address"):
        load_settings(tmp_path)


def test_a_store_is_opened_only_where_a_federation_is(tmp_path):
    with pytest.raises(NotFound, match="run `coordinator init` first"), opened_store(tmp_path):
        pytest.fail("opened")
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_an_earlier_version_is_not_opened(tmp_path):
    create_home(tmp_path, SETTINGS)
    with opened_store(tmp_path) as store, store.session() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    with pytest.raises(Conflict, match="start `serve` once"), opened_store(tmp_path):
        pytest.fail("opened")
