import json

import pytest

from confide.coordinator.errors import Conflict, StateDamaged
from confide.coordinator.routing import kept
from confide.coordinator.routing.kept import KeptRouting
from confide.models.evaluation.layer_routing import LayerRouting, moved

RUN = "thyroid-0001"


def a_map(**changes):
    """Two layers of four experts; training moves a quarter of one layer's choices, and leaves an expert alone."""
    before = [LayerRouting(layer, 4, (2, 2, 2, 2), (0.25,) * 4, 0.9) for layer in (1, 3)]
    after = [LayerRouting(1, 4, (4, 2, 2, 0), (0.5, 0.25, 0.25, 0.0), 0.8), before[1]]
    facts = {"adapter": "ab" * 32, "round": 2, "backbone": "cd" * 32, "read": "synthetic records of its schema"}
    return KeptRouting.of(before, after, **facts | changes)


def test_a_map_is_read_as_it_was_written_by_its_owner_alone(tmp_path):
    assert kept.read(tmp_path, RUN) is None
    kept.write(tmp_path, RUN, a_map())
    kept.write(tmp_path, RUN, a_map(round=3))  # in the place of the older one
    assert kept.read(tmp_path, RUN) == a_map(round=3)
    (file,) = (tmp_path / "runs" / RUN).iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_map_is_of_one_adapter_on_one_backbone():
    assert a_map().is_of("ab" * 32, "cd" * 32)
    assert not a_map().is_of("cd" * 32, "cd" * 32)
    assert not a_map().is_of("ab" * 32, "ab" * 32)
    assert not a_map().is_of(None, "cd" * 32)


def test_what_has_moved_is_half_the_sum_of_what_each_load_has_changed():
    (first, second) = a_map().layers
    assert moved(*first) == (1 / 4 + 0 + 0 + 1 / 4) / 2
    assert moved(*second) == 0
    everything = [LayerRouting(0, 4, choices, (0.5, 0.5), 0.9) for choices in ((4, 0), (0, 4))]
    assert moved(*everything) == 1


CHANGES = {
    "no hash": {"adapter": "ab"},
    "another field": {"records": 5},
    "no round": {"round": 0},
    "no layer": {"before": [], "after": []},
    "fewer layers after": {"after": [{}]},
    "a control character": {"read": "\x1b[31m"},
}
OF_A_LAYER = {
    "a choice that is no number": {"choices": [4, 2, 2, "0"]},
    "a negative choice": {"choices": [4, 2, 3, -1]},
    "choices that fit no number of tokens": {"choices": [4, 2, 2, 1]},
    "no choice": {"choices": [0, 0, 0, 0]},
    "one expert": {"choices": [8], "weights": [1.0]},
    "fewer weights than experts": {"weights": [0.5, 0.5]},
    "a weight above one": {"weights": [2.0, 0.0, 0.0, 0.0]},
    "another layer than before": {"layer": 2},
    "more tokens than before": {"tokens": 8},
    "no token": {"tokens": 0},
}


@pytest.mark.parametrize("change", [*CHANGES.values(), *OF_A_LAYER.values()], ids=[*CHANGES, *OF_A_LAYER])
def test_a_changed_file_is_refused_without_a_word_of_it(tmp_path, change):
    held = json.loads(a_map().model_dump_json())
    if change in OF_A_LAYER.values():
        held["after"][0] |= change
    else:
        held |= change
    file = tmp_path / "runs" / RUN / kept.FILE
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(held))
    with pytest.raises(StateDamaged, match="make the heat map anew") as refused:
        kept.read(tmp_path, RUN)
    assert "\x1b" not in str(refused.value)


def test_a_file_that_is_too_long_is_neither_written_nor_read(tmp_path, monkeypatch):
    kept.write(tmp_path, RUN, a_map())
    monkeypatch.setattr(kept, "MOST_BYTES", 100)
    with pytest.raises(StateDamaged, match="more than 100 bytes"):
        kept.read(tmp_path, RUN)
    with pytest.raises(Conflict, match="nothing kept"):
        kept.write(tmp_path, RUN, a_map())
