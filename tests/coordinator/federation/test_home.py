import pytest

from confide.coordinator.errors import StateDamaged
from confide.coordinator.federation.home import Settings, create_home, load_settings

SETTINGS = Settings(federation="clinics", address="hub:9092", listen="127.0.0.1", port=9092, superlink_port=9093)


def test_settings_come_back_as_they_were_made(tmp_path):
    create_home(tmp_path / "home", SETTINGS)
    assert load_settings(tmp_path / "home") == SETTINGS


@pytest.mark.parametrize("text", ["", "{", "{}", '{"federation": 1}', "[]"])
def test_damaged_settings_are_named_with_their_file(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(StateDamaged, match=r"settings\.json"):
        load_settings(tmp_path)
